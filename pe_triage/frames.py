"""The images of a series: every single-frame instance, and every frame of a multi-frame one.

An Enhanced CT image (PS3.3 A.38) holds a whole series, or several, in one instance. Here each of
its frames becomes a value of the same kind as a single-frame image, so that order, rules and
geometry are decided by the same code and cannot answer differently. What is stored, counted and
digested remains the instance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from pe_triage.domain import FrameFacts, InstanceFacts, ReceivedInstance

MULTI_FRAME_CT = {
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
}
"""SOP classes whose frames are described by functional groups (PS3.4 Annex B.5)."""

_FRAME_FIELDS = tuple(f.name for f in fields(FrameFacts))


def images_of(instances: Iterable[ReceivedInstance]) -> tuple[ReceivedInstance, ...]:
    """Return one value for each image, frames in their order; frames given stay as they are.

    A multi-frame instance whose frames cannot be told stands for itself.
    """
    images: list[ReceivedInstance] = []
    for instance in instances:
        if instance.frame is not None or not instance.facts.frames:
            images.append(instance)
            continue
        shared = replace(instance.facts, frames=(), number_of_frames=1)
        images += [
            replace(instance, frame=number, facts=_facts_of(shared, own))
            for number, own in enumerate(instance.facts.frames, start=1)
        ]
    return tuple(images)


def by_image(image: ReceivedInstance) -> tuple[str, int]:
    """Sorting key: the instance, then the frame."""
    return image.sop_instance_uid, image.frame or 0


def _facts_of(shared: InstanceFacts, own: FrameFacts) -> InstanceFacts:
    stated = {name: getattr(own, name) for name in _FRAME_FIELDS}
    return replace(shared, **{n: v for n, v in stated.items() if v is not None and v != ()})


def split_facts(
    shared: InstanceFacts, frames: Iterable[FrameFacts]
) -> tuple[InstanceFacts, tuple[FrameFacts, ...]]:
    """Move what all `frames` say alike into `shared`; `images_of` brings it back.

    A value that some frames lack stays with those that have it.
    """
    rows = tuple(frames)
    unstated = FrameFacts()
    alike: dict[str, Any] = {
        name: getattr(rows[0], name)
        for name in _FRAME_FIELDS
        if rows and all(getattr(row, name) == getattr(rows[0], name) for row in rows)
    }
    common = {n: v for n, v in alike.items() if v != getattr(unstated, n)}
    # What only some frames state must not be filled in from the image's own header.
    cleared: dict[str, Any] = {n: getattr(unstated, n) for n in _FRAME_FIELDS if n not in alike}
    blank: dict[str, Any] = {n: getattr(unstated, n) for n in common}
    return (
        replace(shared, **(common | cleared)),
        tuple(replace(row, **blank) for row in rows),
    )
