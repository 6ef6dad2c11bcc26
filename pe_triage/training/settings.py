"""How a training run is to go: what a person may choose, as one frozen value."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pe_triage.errors import InputError
from pe_triage.model.schedule import Schedule
from pe_triage.model.spec import ModelSpec
from pe_triage.training.augment import Augmentation

PRECISIONS: Final = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """One run's settings, besides the spec and the data.

    Attributes
    ----------
    stage1, stage2
        Optimiser, rate, batch and epochs of each stage.
    units_per_exam
        Slices that stage 1 draws from each exam of a batch.
    max_steps1
        At most so many steps in an epoch of stage 1; 0 for as many as the data give.
    cpu_minutes1, cpu_minutes2
        Processor time that a stage may take; 0 for no limit. A stage that has taken it ends there,
        in the middle of an epoch if need be, and is judged once more. Where a stage ends then
        depends on the machine, so such runs are not repeated to the last bit.
    stage2_share
        Share of the training patients that stage 1 never sees and stage 2 alone learns from; 0:
        both learn from all.
    augmentation
        None for none.
    clip
        Largest norm of the gradient.
    checkpoint_steps
        A checkpoint after so many steps, besides those after each epoch.
    """

    stage1: Schedule
    stage2: Schedule
    seed: int = 0
    units_per_exam: int = 32
    max_steps1: int = 0
    cpu_minutes1: float = 0.0
    cpu_minutes2: float = 0.0
    stage2_share: float = 0.0
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    loss1: str = "challenge"
    precision: str = "auto"
    clip: float = 5.0
    validation: float = 0.15
    test: float = 0.0
    checkpoint_steps: int = 500
    workers: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}")
        if not 0 <= self.stage2_share < 1:
            raise InputError("the share of stage 2 alone must lie in [0, 1)")
        for name in ("units_per_exam", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1")
        for name in ("cpu_minutes1", "cpu_minutes2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a number of at least 0")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    def digest(self, spec: ModelSpec, exams: Sequence[str]) -> str:
        """Return what a resumed run must agree on: all that the weights follow from.

        The number of loader processes and of steps between checkpoints may differ.
        """
        own = {k: v for k, v in self.to_json().items() if k not in ("workers", "checkpoint_steps")}
        text = json.dumps([own, spec.to_json(), list(exams)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def learning_rate(schedule: Schedule, epoch: int) -> float:
    """Return the rate of an epoch, counted from 0, under the schedule alone."""
    if schedule.scheduler == "step":
        return float(schedule.lr * schedule.gamma ** (epoch // schedule.step_epochs))
    if schedule.scheduler == "cosine":
        return schedule.lr * (1 + math.cos(math.pi * epoch / schedule.epochs)) / 2
    return schedule.lr
