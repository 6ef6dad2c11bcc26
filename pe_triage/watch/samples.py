"""What the charts and alarms are told, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import Outcome, StudyState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSample:
    """One run that has ended and that no newer one has superseded."""

    study_uid: str
    state: StudyState
    outcome: Outcome | None
    completed_at: datetime
    latency_s: float | None
    """From the decision that the study is complete to the last delivery; None before that."""
    pe_probability: float | None = None
    attention_entropy: float | None = None
    model_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Runs since the model in force gave its first answer (or since a time that a person set).

    Attributes
    ----------
    baseline
        The first of them, oldest first: what is usual here.
    recent
        The newest of them that are not in `baseline`, oldest first.
    wanted
        Studies that a whole baseline has.
    """

    baseline: tuple[RunSample, ...] = ()
    recent: tuple[RunSample, ...] = ()
    wanted: int = 100
    latest: tuple[RunSample, ...] = ()
    """The newest of all, oldest first, whether or not they are in `baseline`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits for one destination."""

    destination: str
    pending: int
    oldest_s: float
    """Age of the oldest that waits."""
    since_taken_s: float | None
    """Since it last took anything; None where it never has."""
    parked: int = 0
    """Results that a person has to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncommitted:
    """Results that a destination took and has not committed to for too long."""

    destination: str
    objects: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Where the node stands now.

    Attributes
    ----------
    unanswered
        Studies that have not ended though their last image, or the order to analyse them, came more
        than `watch.absent_s` ago; backfills do not count.
    since_answer_s
        Since a run last ended with an answer (DONE or NOT_EVALUATED); None where none ever has.
    not_indexed, not_indexed_s
        Instances that were acknowledged and are not in the database yet, and the oldest's age.
    since_came_s
        Since the last new study; None where none ever came.
    queued, running
        Runs that have not ended.
    longest_wait_s
        Of a run that could be claimed now; None where none waits.
    since_ended_s
        Since a run last ended; None where none ever has.
    failed
        Studies whose newest run FAILED within a day.
    quarantined
        Objects that were set aside and await a decision.
    unheard
        Scanners' requests for storage commitment whose answer they never took.
    """

    unanswered: int = 0
    since_answer_s: float | None = None
    not_indexed: int = 0
    not_indexed_s: float = 0.0
    since_came_s: float | None = None
    queued: int = 0
    running: int = 0
    longest_wait_s: float | None = None
    since_ended_s: float | None = None
    failed: int = 0
    quarantined: int = 0
    waiting: tuple[Waiting, ...] = ()
    uncommitted: tuple[Uncommitted, ...] = ()
    unheard: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    """Studies by state."""


def attention_entropy(attention_z: NDArray[np.float32] | Sequence[float]) -> float | None:
    """Entropy of the attention over slices, as a share of its greatest possible value.

    0: all of it on one slice; 1: the same on every slice. Normalised by the logarithm of the number
    of slices, so that studies of different length compare (Pielou's evenness, J. Theor. Biol.
    13:131, 1966).

    Returns
    -------
    float or None
        None where there are fewer than two slices, or no attention at all.
    """
    weights = np.asarray(attention_z, dtype=np.float64)
    total = float(weights.sum())
    if weights.size < 2 or not math.isfinite(total) or total <= 0 or float(weights.min()) < 0:
        return None
    share = weights[weights > 0] / total
    return float(-(share * np.log(share)).sum() / math.log(weights.size))
