"""How a spec's stages were trained by its source: plain data that the training room reads.

Nothing here trains, and nothing that serves reads it; it stands in the spec because a spec is the
whole recipe, and so that a bundle says how its weights came about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from pe_triage.errors import BundleError

LOSSES: Final = ("challenge", "image+exam", "image", "image+attention", "exam")
"""What a stage is trained on.

``challenge``: image and exam labels, weighted as in RSPECT's metric. ``image+exam``: binary cross
entropy of the image label beside the weighted exam labels. ``image``: the image label alone.
``image+attention``: the same and, where clot masks are known, the network's own map pulled to
them. ``exam``: the exam labels alone, weighted as in the metric.
"""
OPTIMISERS: Final = ("adam", "adamw", "sgd")
SCHEDULERS: Final = ("constant", "step", "cosine")
BATCHES: Final = ("exams", "units")
SAMPLINGS: Final = ("natural", "balanced")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One stage's training.

    Attributes
    ----------
    loss
        One of `LOSSES`.
    optimiser, lr, weight_decay
        As torch names and means them.
    scheduler, step_epochs, gamma
        ``step`` multiplies the rate by `gamma` every `step_epochs`; ``cosine`` lets it fall to
        zero over all epochs.
    batch, batch_of
        How many in one step, and of what: whole ``exams``, or ``units`` (slices or windows of any
        exam).
    epochs
        Passes over the training data.
    sampling
        ``natural``: as the data are; ``balanced``: as many units with PE as without.
    attention_weight
        Factor of the attention loss in ``image+attention``.
    """

    loss: str = "challenge"
    optimiser: str = "adam"
    lr: float = 1e-4
    weight_decay: float = 0.0
    scheduler: str = "constant"
    step_epochs: int = 1
    gamma: float = 1.0
    batch: int = 1
    batch_of: str = "exams"
    epochs: int = 20
    sampling: str = "natural"
    attention_weight: float = 0.0

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise BundleError(f"model spec: schedule: {key} must be one of {_list(allowed)}")
        for key in ("step_epochs", "batch", "epochs"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BundleError(f"model spec: schedule: {key} must be a positive integer")
        for key in _NUMBERS:
            value = getattr(self, key)
            if not math.isfinite(value) or value < 0:
                raise BundleError(f"model spec: schedule: {key} must be a number of at least 0")
        if not self.lr > 0 or not 0 < self.gamma <= 1:
            raise BundleError("model spec: schedule: lr must be positive and gamma lie in (0, 1]")

    def to_json(self) -> dict[str, Any]:
        """Return the schedule as JSON values, every key written out."""
        return asdict(self)

    @staticmethod
    def from_json(document: object) -> Schedule:
        """Read a schedule from JSON values.

        Raises
        ------
        BundleError
            Not a mapping, an unknown key, or a value of the wrong kind.
        """
        if not isinstance(document, Mapping):
            raise BundleError("model spec: schedule: not a JSON object")
        known = {f.name for f in fields(Schedule)}
        unknown = sorted(str(key) for key in document if key not in known)
        if unknown:
            raise BundleError(f"model spec: schedule: unknown key {', '.join(unknown)}")
        values = dict(document)
        try:
            values.update((key, float(values[key])) for key in _NUMBERS if key in values)
            return Schedule(**values)
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"model spec: schedule: a value of the wrong kind ({error})"
            ) from None


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "loss": LOSSES,
    "optimiser": OPTIMISERS,
    "scheduler": SCHEDULERS,
    "batch_of": BATCHES,
    "sampling": SAMPLINGS,
}
_NUMBERS = ("lr", "weight_decay", "gamma", "attention_weight")


def _list(words: tuple[str, ...]) -> str:
    return ", ".join(words)
