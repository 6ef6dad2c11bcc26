"""What an Enhanced CT image's functional groups say of its frames (PS3.3 C.7.6.16, C.8.15.3).

A value stands either once for all frames or with each frame; a frame's own word comes first. Legacy
Converted Enhanced CT (PS3.3 A.70) keeps what has no functional group of its own among unassigned
attributes, which are asked last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from pe_triage.domain import FrameFacts, InstanceFacts
from pe_triage.errors import InvalidInstanceError
from pe_triage.frames import split_facts
from pe_triage.imaging.elements import IMPLICIT_VR_LITTLE_ENDIAN, Element, read_elements
from pe_triage.imaging.sequences import MAX_ITEMS, Item, parse_items
from pe_triage.imaging.values import Values

_CHARACTER_SET = 0x00080005
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_UNASSIGNED = (0x00209171, 0x00209170)
"""Unassigned Per-Frame and Shared Converted Attributes Sequence."""

FRAME_CONTENT = 0x00209111
PIXEL_VALUE_TRANSFORMATION = 0x00289145
_FRAME_ANATOMY, _ANATOMIC_REGION = 0x00209071, 0x00082218
_PLANE_POSITION, _PLANE_ORIENTATION, _PIXEL_MEASURES = 0x00209113, 0x00209116, 0x00289110
_FRAME_TYPE, _ACQUISITION_TYPE, _ACQUISITION_DETAILS = 0x00189329, 0x00189301, 0x00189304
_RECONSTRUCTION, _X_RAY_DETAILS = 0x00189314, 0x00189325
_CONTRAST_USAGE, _CONTRAST_AGENTS = 0x00189341, 0x00180012
_ADMINISTERED, _CODE_MEANING, _AGENT = 0x00189342, 0x00080104, 0x00180010

Read: TypeAlias = Callable[[Values, int], Any]

_FIELDS: Mapping[str, tuple[int, tuple[int, ...], Read]] = {
    "image_type": (_FRAME_TYPE, (0x00089007,), Values.texts),
    "calculation": (_FRAME_TYPE, (0x00089207,), Values.text),
    "acquisition_number": (FRAME_CONTENT, (0x00209156,), Values.unsigned),
    "temporal_position": (FRAME_CONTENT, (0x00209128,), Values.unsigned_long),
    "stack_id": (FRAME_CONTENT, (0x00209056,), Values.text),
    # Start of the frame's data, else the moment it stands for.
    "acquisition_time_s": (
        FRAME_CONTENT, (0x00189074, 0x00189151), lambda v, tag: v.time_s(tag, skip=8),
    ),
    "kernel": (_RECONSTRUCTION, (0x00181210,), Values.texts),
    "rescale_slope": (PIXEL_VALUE_TRANSFORMATION, (0x00281053,), Values.decimal),
    "rescale_intercept": (PIXEL_VALUE_TRANSFORMATION, (0x00281052,), Values.decimal),
    "pixel_spacing_mm": (_PIXEL_MEASURES, (0x00280030,), lambda v, tag: v.decimals(tag, 2)),
    "slice_thickness_mm": (_PIXEL_MEASURES, (0x00180050,), Values.decimal),
    "image_position_mm": (_PLANE_POSITION, (0x00200032,), lambda v, tag: v.decimals(tag, 3)),
    "image_orientation": (_PLANE_ORIENTATION, (0x00200037,), lambda v, tag: v.decimals(tag, 6)),
    "gantry_tilt_deg": (_ACQUISITION_DETAILS, (0x00181120,), Values.decimal),
    "kvp": (_X_RAY_DETAILS, (0x00180060,), Values.decimal),
    "acquisition_type": (_ACQUISITION_TYPE, (0x00189302,), Values.text),
}  # fmt: skip
"""Fact: its functional group, the attributes that may state it, and how they are read."""

_LEGACY: Mapping[str, tuple[int, Read]] = {
    "acquisition_number": (0x00200012, Values.integer),
    "temporal_position": (0x00200100, Values.integer),
    "acquisition_time_s": (0x00080032, Values.time_s),
    "kernel": (0x00181210, Values.texts),
    "slice_thickness_mm": (0x00180050, Values.decimal),
    "gantry_tilt_deg": (0x00181120, Values.decimal),
    "kvp": (0x00180060, Values.decimal),
    "contrast_agent": (_AGENT, Values.text),
    "body_part": (0x00180015, Values.text),
}
"""Fact: the single-frame attribute that a conversion leaves unassigned."""

_RESCALE_TYPE = 0x00281054
_WANTED = frozenset(
    {_ADMINISTERED, _CODE_MEANING, _RESCALE_TYPE}
    | {tag for _group, tags, _read in _FIELDS.values() for tag in tags}
    | {tag for tag, _read in _LEGACY.values()}
)
_OPENED = frozenset(
    {group for group, _tags, _read in _FIELDS.values()}
    | {_FRAME_ANATOMY, _ANATOMIC_REGION, _CONTRAST_USAGE, *_UNASSIGNED}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionalGroups:
    """The groups of one image: those for all frames, and each frame's own."""

    shared: Item
    per_frame: tuple[Item, ...]
    agents: tuple[Item, ...]
    """Contrast/Bolus Agent Sequence (0018,0012) of the image."""
    charset: Mapping[int, Element]

    def values(self, frame: int, *path: int) -> Values:
        """Values of the first item of a group, the frame's (from 1) or the one for all.

        Parameters
        ----------
        path
            Tag of the group, and of sequences within it.
        """
        for item in (self.per_frame[frame - 1], self.shared):
            at: Item | None = item
            for tag in path:
                inner = () if at is None else at.sequences.get(tag, ())
                at = inner[0] if inner else None
            if at is not None:
                return Values({**self.charset, **at.elements})
        return Values({})


def read_functional_groups(path: Path) -> FunctionalGroups:
    """Read the functional groups of a Part 10 file; pixel data are never touched.

    Raises
    ------
    InvalidInstanceError
        No DICOM file, a broken structure, or no per-frame functional groups.
    """
    found = read_elements(
        path,
        (_CHARACTER_SET,),
        last=_PER_FRAME,
        sequences=(_CONTRAST_AGENTS, _SHARED, _PER_FRAME),
    )
    implicit = found.transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
    parsed = {
        tag: parse_items(content, _WANTED, _OPENED, implicit=implicit)
        for tag, content in found.sequences.items()
    }
    if not parsed.get(_PER_FRAME):
        raise InvalidInstanceError("per-frame functional groups (5200,9230) are missing")
    return FunctionalGroups(
        shared=next(iter(parsed.get(_SHARED, ())), Item()),
        per_frame=parsed[_PER_FRAME],
        agents=parsed.get(_CONTRAST_AGENTS, ()),
        charset=found.found,
    )


def with_frames(path: Path, facts: InstanceFacts) -> InstanceFacts:
    """Add what the functional groups of `path` say to the `facts` of its other header.

    What cannot be told becomes `InstanceFacts.frames_problem`, so that the study ends with that
    reason; nothing is raised.
    """
    count = facts.number_of_frames
    if count is None or not 1 <= count <= MAX_ITEMS:
        found = "missing or unreadable" if count is None else str(count)
        return replace(facts, frames_problem=f"number of frames (0028,0008) is {found}")
    if facts.concatenation_uid is not None and facts.concatenation_number is None:
        # PS3.3 Table C.7.6.16-1: required. Whether all parts are there could not be told.
        problem = "a part of a split image has no number (0020,9162)"
        return replace(facts, frames_problem=problem)
    try:
        groups = read_functional_groups(path)
    except InvalidInstanceError as error:
        return replace(facts, frames_problem=str(error))
    if len(groups.per_frame) != count:
        problem = f"{count} frames are stated, {len(groups.per_frame)} are described (5200,9230)"
        return replace(facts, frames_problem=problem)
    agent = _agent(groups, facts)
    rows = [_frame(groups, number, agent) for number in range(1, count + 1)]
    # Usage stands with the frames; the image's own list only names what was given.
    shared, frames = split_facts(replace(facts, contrast_agent=None), rows)
    return replace(shared, frames=frames)


def _agent(groups: FunctionalGroups, facts: InstanceFacts) -> str | None:
    named = (Values({**groups.charset, **item.elements}).text(_CODE_MEANING)
             for item in groups.agents)  # fmt: skip
    stated = facts.contrast_agent or next(filter(None, named), None)
    return stated or ("contrast agent" if groups.agents else None)


def _frame(groups: FunctionalGroups, number: int, agent: str | None) -> FrameFacts:
    read: dict[str, Any] = {}
    for name, (group, tags, reader) in _FIELDS.items():
        values = groups.values(number, group)
        read[name] = next((v for tag in tags if (v := reader(values, tag)) not in (None, ())), None)
    region = groups.values(number, _FRAME_ANATOMY, _ANATOMIC_REGION).text(_CODE_MEANING)
    read["body_part"] = region.upper() if region else None
    usage = groups.values(number, _CONTRAST_USAGE).text(_ADMINISTERED)
    read["contrast_agent"] = {"NO": None, "YES": agent or "contrast agent"}.get(usage or "", agent)
    for name, (tag, reader) in _LEGACY.items():
        if read[name] not in (None, ()):
            continue
        for sequence in _UNASSIGNED:
            read[name] = read[name] or reader(groups.values(number, sequence), tag)
    return FrameFacts(**{name: value for name, value in read.items() if value is not None})
