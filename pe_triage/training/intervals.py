"""Bootstrap intervals by patient, vectorised over resamples.

Axes: ``b`` resamples, ``g`` groups (patients), ``s`` samples. A resample draws as many patients as
there are, with replacement (Efron and Tibshirani 1993, ch. 6 and 8.3); all exams and slices of a
patient come along together, so the dependence between slices of one exam widens the interval as it
must (cluster bootstrap, Field and Welsh 2007). A resample is a vector of weights, so nothing is
copied and nothing is sorted again.

Intervals are percentile intervals at 95 %. Where they say nothing they say so: see `Interval.note`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from pe_triage.training.metrics import (
    DECISION_METRICS,
    Floats,
    Ranking,
    area_under_roc,
    average_precision,
    decision_figures,
)

LEVEL: Final = 0.95
DEFAULT_RESAMPLES: Final = 1000
MOST_UNDEFINED: Final = 0.05
"""With a larger share of resamples in which the figure does not exist, no interval is given."""
FEWEST_GROUPS: Final = 5
"""Below this many patients no bootstrap interval is given."""

# Of (tp, fp, fn, tn), which two are the hits and the misses of a proportion.
_PROPORTIONS: Final[Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "sensitivity": ((0,), (2,)),
    "specificity": ((3,), (1,)),
    "ppv": ((0,), (1,)),
    "npv": ((3,), (2,)),
    "accuracy": ((0, 3), (1, 2)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval.

    Attributes
    ----------
    value
        On the sample itself; NaN where it does not exist.
    low, high
        NaN where no interval can be given.
    note
        Empty; ``undefined`` (the figure does not exist here, or in too many resamples);
        ``few`` (too few patients); ``exact``: all resamples agreed, as they do at 0 and 1, and the
        exact binomial interval over exams stands in; ``collapsed``: they agreed and nothing
        stands in, so the width of zero is no certainty.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values; what is not a number becomes null."""
        document: dict[str, Any] = {
            "value": _number(self.value),
            "low": _number(self.low),
            "high": _number(self.high),
        }
        if self.note:
            document["note"] = self.note
        return document


def _number(x: float) -> float | None:
    return round(float(x), 6) if math.isfinite(x) else None


class Resampler:
    """Weights of patients for every resample; one object serves all figures of a report.

    Using the same resamples for two models is what makes their comparison paired.

    Parameters
    ----------
    group_s
        Patient of each exam, any integers.
    resamples
        Number of resamples.
    seed
        Of the random generator.
    """

    def __init__(
        self, group_s: ArrayLike, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0
    ) -> None:
        _, index = np.unique(np.asarray(group_s), return_inverse=True)
        self.group_s: NDArray[np.int64] = index.astype(np.int64)
        self.groups = int(index.max()) + 1 if len(index) else 0
        rng = np.random.default_rng(seed)
        share = np.full(self.groups, 1 / max(self.groups, 1))
        drawn = rng.multinomial(self.groups, share, size=resamples) if self.groups else None
        self.weight_bg: NDArray[np.int32] = (
            np.zeros((resamples, 0), np.int32) if drawn is None else drawn.astype(np.int32)
        )

    @property
    def resamples(self) -> int:
        """Number of resamples."""
        return int(self.weight_bg.shape[0])

    def interval(
        self,
        value: float,
        replicate_b: Floats,
        *,
        groups_used: int | None = None,
        exact: tuple[float, float] | None = None,
    ) -> Interval:
        """Percentile interval of a figure from its values in the resamples.

        Parameters
        ----------
        groups_used
            Patients that the figure is of; all where None.
        exact
            Hits and misses of a proportion of independent exams, for the exact interval where
            the bootstrap has collapsed to a point.
        """
        if not math.isfinite(value):
            return Interval(value=math.nan, note="undefined")
        if (self.groups if groups_used is None else groups_used) < FEWEST_GROUPS:
            return Interval(value=value, note="few")
        good = replicate_b[np.isfinite(replicate_b)]
        if not len(good) or len(good) < (1 - MOST_UNDEFINED) * len(replicate_b):
            return Interval(value=value, note="undefined")
        low, high = np.percentile(good, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        if high - low < 1e-12:
            if exact is None:
                return Interval(value=value, low=float(low), high=float(high), note="collapsed")
            low, high = clopper_pearson(*exact)
            return Interval(value=value, low=low, high=high, note="exact")
        return Interval(value=value, low=float(low), high=float(high))


def clopper_pearson(hits: float, misses: float, level: float = LEVEL) -> tuple[float, float]:
    """Exact binomial interval (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    low = 0.0 if hits <= 0 else float(beta.ppf(tail, hits, misses + 1))
    high = 1.0 if misses <= 0 else float(beta.ppf(1 - tail, hits + 1, misses))
    return low, high


def rank_replicates(
    truth_s: ArrayLike, score_s: ArrayLike, group_s: ArrayLike, resampler: Resampler
) -> tuple[Floats, Floats]:
    """AUC and AUPRC in every resample: (auc_b, auprc_b).

    Parameters
    ----------
    group_s
        Row of `Resampler.weight_bg` that each sample belongs to (``resampler.group_s`` of its
        exam).
    """
    ranking = Ranking.of(truth_s, score_s)
    group = np.asarray(group_s)
    auc_b = np.full(resampler.resamples, np.nan)
    auprc_b = np.full(resampler.resamples, np.nan)
    for b in range(resampler.resamples):
        tp, fp = ranking.cumulative(resampler.weight_bg[b].astype(np.float64)[group])
        auc_b[b] = area_under_roc(tp, fp)
        auprc_b[b] = average_precision(tp, fp)
    return auc_b, auprc_b


def count_replicates(
    truth_s: ArrayLike, called_s: ArrayLike, group_s: ArrayLike, resampler: Resampler
) -> Floats:
    """Weighted (tp, fp, fn, tn) in every resample, (b, 4), by one matrix product."""
    truth = np.asarray(truth_s) == 1
    called = np.asarray(called_s, dtype=np.bool_)
    group = np.asarray(group_s)
    cells = (truth & called, ~truth & called, truth & ~called, ~truth & ~called)
    count_g4 = np.stack(
        [np.bincount(group[c], minlength=resampler.groups) for c in cells], axis=1
    ).astype(np.float64)
    product: Floats = resampler.weight_bg.astype(np.float64) @ count_g4
    return product


def decision_intervals(
    truth_s: ArrayLike,
    called_s: ArrayLike,
    group_s: ArrayLike,
    resampler: Resampler,
    *,
    independent: bool,
) -> dict[str, Interval]:
    """Every figure of `DECISION_METRICS` with its interval.

    Parameters
    ----------
    independent
        Whether each sample is an exam of its own, so that an exact binomial interval may stand in
        where the bootstrap collapses; slices of one exam are not.
    """
    truth, called = np.asarray(truth_s), np.asarray(called_s, dtype=np.bool_)
    cells = (truth == 1) & called, (truth == 0) & called, (truth == 1) & ~called
    counts = (*(int(c.sum()) for c in cells), int(((truth == 0) & ~called).sum()))
    values = decision_figures(*counts)
    replicates = decision_figures(*count_replicates(truth, called, group_s, resampler).T)
    used = len(np.unique(np.asarray(group_s)))
    out = {}
    for name in DECISION_METRICS:
        exact = None
        if independent and name in _PROPORTIONS:
            hits, misses = _PROPORTIONS[name]
            exact = (float(sum(counts[i] for i in hits)), float(sum(counts[i] for i in misses)))
        out[name] = resampler.interval(
            values[name], replicates[name], groups_used=used, exact=exact
        )
    return out


def mean_interval(
    value_s: ArrayLike, group_s: ArrayLike, resampler: Resampler, *, independent: bool = False
) -> Interval:
    """Mean of values (0 and 1 for a proportion) with its interval; an empty sample has none."""
    value, group = np.asarray(value_s, dtype=np.float64), np.asarray(group_s, dtype=np.int64)
    if not len(value):
        return Interval(value=math.nan, note="undefined")
    weight = resampler.weight_bg.astype(np.float64)
    total_b = weight @ np.bincount(group, weights=value, minlength=resampler.groups)
    number_b = weight @ np.bincount(group, minlength=resampler.groups).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_b = total_b / number_b
    exact = (float(value.sum()), float(len(value) - value.sum())) if independent else None
    return resampler.interval(
        float(value.mean()), mean_b, groups_used=len(np.unique(group)), exact=exact
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979); NaN stays NaN and does not count."""
    finite = [(p, i) for i, p in enumerate(p_values) if math.isfinite(p)]
    adjusted = [math.nan] * len(p_values)
    worst = 0.0
    for rank, (p, i) in enumerate(sorted(finite)):
        worst = max(worst, min(1.0, p * (len(finite) - rank)))
        adjusted[i] = worst
    return adjusted
