"""Two models on the same exams: DeLong's test for AUC, paired bootstrap for everything else.

Axes: ``m`` models, ``p`` positive exams, ``n`` negative ones. DeLong's variance (DeLong, DeLong and
Clarke-Pearson, Biometrics 44, 1988) by midranks (Sun and Xu, IEEE Signal Processing Letters 21,
2014). It takes exams as independent, so it is used for exams only where each patient has one; for
slices, and where patients have several exams, the cluster bootstrap stands in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from pe_triage.training.intervals import Interval, Resampler
from pe_triage.training.metrics import Floats

_Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeLong:
    """AUCs of models on the same exams.

    Attributes
    ----------
    auc_m
        AUC of each model; NaN where one class is absent.
    covariance_mm
        Their estimated covariance.
    """

    auc_m: Floats
    covariance_mm: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A paired difference, first minus second.

    Attributes
    ----------
    p_value
        Two-sided; NaN where no test can be made.
    method
        ``DeLong`` or ``paired bootstrap``.
    """

    difference: Interval
    p_value: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        p = self.p_value
        return {
            **self.difference.to_json(),
            "p": round(p, 6) if math.isfinite(p) else None,
            "method": self.method,
        }


def delong(truth_s: ArrayLike, score_ms: ArrayLike) -> DeLong:
    """AUCs and their covariance.

    Parameters
    ----------
    truth_s
        1 or 0.
    score_ms
        One row of scores for each model, higher for positive.
    """
    truth = np.asarray(truth_s) == 1
    score = np.atleast_2d(np.asarray(score_ms, dtype=np.float64))
    positive, negative = score[:, truth], score[:, ~truth]
    p, n = positive.shape[1], negative.shape[1]
    models = len(score)
    if not p or not n:
        nothing = np.full(models, np.nan)
        return DeLong(auc_m=nothing, covariance_mm=np.full((models, models), np.nan))
    rank_all = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    v_positive = (rank_all[:, :p] - rankdata(positive, axis=1)) / n
    v_negative = 1 - (rank_all[:, p:] - rankdata(negative, axis=1)) / p
    covariance = _covariance(v_positive) / p + _covariance(v_negative) / n
    return DeLong(auc_m=v_positive.mean(axis=1), covariance_mm=covariance)


def _covariance(rows: NDArray[np.float64]) -> Floats:
    if rows.shape[1] < 2:
        return np.full((len(rows), len(rows)), np.nan)
    return np.atleast_2d(np.cov(rows))


def delong_interval(truth_s: ArrayLike, score_s: ArrayLike) -> Interval:
    """AUC with DeLong's 95 % interval, cut to [0, 1]."""
    result = delong(truth_s, score_s)
    value, variance = float(result.auc_m[0]), float(result.covariance_mm[0, 0])
    if not math.isfinite(variance):
        return Interval(value=value, note="undefined")
    half = _Z95 * math.sqrt(variance)
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def delong_test(truth_s: ArrayLike, first_s: ArrayLike, second_s: ArrayLike) -> Difference:
    """Two-sided test of equal AUCs on the same exams."""
    result = delong(truth_s, np.stack([np.asarray(first_s), np.asarray(second_s)]))
    contrast = np.array([1.0, -1.0])
    difference = float(contrast @ result.auc_m)
    variance = float(contrast @ result.covariance_mm @ contrast)
    if not math.isfinite(variance):
        interval = Interval(value=difference, note="undefined")
        return Difference(difference=interval, p_value=math.nan, method="DeLong")
    error = math.sqrt(max(variance, 0.0))
    if error < 1e-12:  # the same ranking of every pair: nothing to test unless the AUCs differ
        p_value = 1.0 if abs(difference) < 1e-12 else math.nan
    else:
        p_value = float(2 * norm.sf(abs(difference) / error))
    interval = Interval(
        value=difference, low=difference - _Z95 * error, high=difference + _Z95 * error
    )
    return Difference(difference=interval, p_value=p_value, method="DeLong")


def bootstrap_difference(
    first: float,
    second: float,
    first_b: Floats,
    second_b: Floats,
    resampler: Resampler,
    *,
    groups_used: int | None = None,
) -> Difference:
    """Difference of two figures from their values in the same resamples.

    The p-value is twice the smaller share of resamples on either side of no difference, ties
    halved, never below 1 / (resamples + 1) (Davison and Hinkley 1997, 4.2.3).
    """
    delta_b = first_b - second_b
    interval = resampler.interval(first - second, delta_b, groups_used=groups_used)
    good = delta_b[np.isfinite(delta_b)]
    p_value = math.nan
    if not interval.note and len(good):
        ties = 0.5 * float(np.count_nonzero(good == 0))
        above = float(np.count_nonzero(good > 0)) + ties
        below = float(np.count_nonzero(good < 0)) + ties
        p_value = min(1.0, 2 * (min(above, below) + 1) / (len(good) + 1))
    return Difference(difference=interval, p_value=p_value, method="paired bootstrap")
