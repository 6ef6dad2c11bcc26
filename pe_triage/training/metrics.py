"""Figures of a binary label: curves, areas under them, and decisions at a threshold.

Axes: ``s`` samples (exams or slices), ``t`` distinct scores in falling order. A sample is called
positive where its score is strictly above the threshold, as everywhere in this program. Truth is 1,
0, or negative where it is not known; samples of unknown truth must be left out by the caller
(`known`). A figure that does not exist (no positives, no negatives, nothing called positive) is
NaN, never 0 or 1.

Definitions agree with scikit-learn's ``roc_auc_score``, ``average_precision_score``,
``roc_curve`` and ``precision_recall_curve``; tests hold them against each other. They are written
here because the bootstrap needs them with weights, thousands of times, from one sorting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

DECISION_METRICS: Final = (
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "accuracy",
)
"""Figures at a threshold, in the order of the reports."""

RANK_METRICS: Final = ("auc", "auprc")
"""Figures of the whole ranking."""


def known(truth_s: ArrayLike, score_s: ArrayLike) -> NDArray[np.bool_]:
    """Where truth is 0 or 1 and the score is a number."""
    truth, score = np.asarray(truth_s), np.asarray(score_s, dtype=np.float64)
    mask: NDArray[np.bool_] = ((truth == 0) | (truth == 1)) & np.isfinite(score)
    return mask


@dataclass(frozen=True, slots=True)
class Ranking:
    """Samples sorted once by falling score, ties grouped; every weighted curve starts here.

    Attributes
    ----------
    order_s
        Indices of the samples, highest score first.
    positive_s
        1.0 where the truth is positive, in that order.
    start_t
        First place of each distinct score in that order.
    score_t
        Distinct scores, falling.
    """

    order_s: NDArray[np.int64]
    positive_s: Floats
    start_t: NDArray[np.int64]
    score_t: Floats

    @staticmethod
    def of(truth_s: ArrayLike, score_s: ArrayLike) -> Ranking:
        """Sort; truth must be 0 or 1 and scores numbers."""
        truth = np.asarray(truth_s)
        score = np.asarray(score_s, dtype=np.float64)
        if truth.shape != score.shape or truth.ndim != 1:
            raise ValueError("truth and score must be two vectors of one length")
        if not known(truth, score).all():
            raise ValueError("truth must be 0 or 1, and every score a number")
        order = np.argsort(-score, kind="stable")
        ranked = score[order]
        is_start = np.ones(len(ranked), dtype=np.bool_)
        is_start[1:] = ranked[1:] != ranked[:-1]
        start = np.flatnonzero(is_start)
        return Ranking(order, truth[order].astype(np.float64), start, ranked[start])

    def cumulative(self, weight_s: Floats | None = None) -> tuple[Floats, Floats]:
        """Weighted positives and negatives at or above each distinct score: (tp_t, fp_t)."""
        if not len(self.order_s):
            return np.zeros(0), np.zeros(0)
        w = np.ones(len(self.order_s)) if weight_s is None else weight_s[self.order_s]
        positive = w * self.positive_s
        tp = np.cumsum(np.add.reduceat(positive, self.start_t))
        fp = np.cumsum(np.add.reduceat(w - positive, self.start_t))
        return tp, fp


def area_under_roc(tp_t: Floats, fp_t: Floats) -> float:
    """AUC of a cumulative curve; ties count one half (Mann-Whitney)."""
    if not len(tp_t) or tp_t[-1] <= 0 or fp_t[-1] <= 0:
        return math.nan
    steps = np.diff(fp_t, prepend=0.0)
    heights = tp_t - np.diff(tp_t, prepend=0.0) / 2
    return float(steps @ heights / (tp_t[-1] * fp_t[-1]))


def average_precision(tp_t: Floats, fp_t: Floats) -> float:
    """AUPRC as average precision: Σ (recall step) · precision, without interpolation."""
    if not len(tp_t) or tp_t[-1] <= 0:
        return math.nan
    gained = np.diff(tp_t, prepend=0.0)
    called = tp_t + fp_t
    some = called > 0
    return float(np.sum(gained[some] * tp_t[some] / called[some]) / tp_t[-1])


def auc(truth_s: ArrayLike, score_s: ArrayLike) -> float:
    """Area under the ROC curve; NaN where one class is absent."""
    return area_under_roc(*Ranking.of(truth_s, score_s).cumulative())


def auprc(truth_s: ArrayLike, score_s: ArrayLike) -> float:
    """Average precision; NaN without positives."""
    return average_precision(*Ranking.of(truth_s, score_s).cumulative())


def roc_points(truth_s: ArrayLike, score_s: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """False and true positive rates from (0, 0) to (1, 1), and the score of each point.

    A point's score is the lowest that is still called positive there; the first is infinite.
    """
    ranking = Ranking.of(truth_s, score_s)
    tp, fp = ranking.cumulative()
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr = np.concatenate([[0.0], tp / tp[-1] if len(tp) else tp])
        fpr = np.concatenate([[0.0], fp / fp[-1] if len(fp) else fp])
    return fpr, tpr, np.concatenate([[np.inf], ranking.score_t])


def pr_points(truth_s: ArrayLike, score_s: ArrayLike) -> tuple[Floats, Floats]:
    """Recall and precision, recall rising; empty without positives."""
    tp, fp = Ranking.of(truth_s, score_s).cumulative()
    if not len(tp) or tp[-1] <= 0:
        return np.zeros(0), np.zeros(0)
    return tp / tp[-1], tp / (tp + fp)


def threshold_between(score_t: Floats, index: int) -> float:
    """A threshold that calls positive exactly the scores ``score_t[: index + 1]``.

    It lies midway to the next score below, so that rounding on either side does not move a
    decision; below the lowest score it lies midway to 0.
    """
    if index < 0:
        return float(min(1.0, (score_t[0] + 1.0) / 2)) if len(score_t) else 0.5
    below = score_t[index + 1] if index + 1 < len(score_t) else min(0.0, float(score_t[index]))
    middle = float((score_t[index] + below) / 2)
    return middle if middle < score_t[index] else float(below)


def youden_threshold(truth_s: ArrayLike, score_s: ArrayLike) -> float:
    """Threshold of the largest sensitivity + specificity - 1 (Youden 1950).

    Of equals the most sensitive; NaN where one class is absent. Chosen on the data it is then
    judged on it flatters: the reports say on which it was chosen.
    """
    ranking = Ranking.of(truth_s, score_s)
    tp, fp = ranking.cumulative()
    if not len(tp) or tp[-1] <= 0 or fp[-1] <= 0:
        return math.nan
    j = tp / tp[-1] - fp / fp[-1]
    best = int(np.flatnonzero(j >= j.max() - 1e-12)[-1])
    return threshold_between(ranking.score_t, best)


def confusion(
    truth_s: ArrayLike, called_s: ArrayLike, weight_s: ArrayLike | None = None
) -> tuple[float, float, float, float]:
    """Return weighted (tp, fp, fn, tn)."""
    truth = np.asarray(truth_s) == 1
    called = np.asarray(called_s, dtype=np.bool_)
    w = np.ones(len(truth)) if weight_s is None else np.asarray(weight_s, dtype=np.float64)
    return (
        float(w[truth & called].sum()),
        float(w[~truth & called].sum()),
        float(w[truth & ~called].sum()),
        float(w[~truth & ~called].sum()),
    )


def decision_figures(tp: Any, fp: Any, fn: Any, tn: Any) -> dict[str, Any]:
    """Figures of `DECISION_METRICS` from counts; scalars or arrays of one shape; NaN on 0/0."""
    tp, fp, fn, tn = (np.asarray(c, dtype=np.float64) for c in (tp, fp, fn, tn))
    with np.errstate(invalid="ignore", divide="ignore"):
        figures: Mapping[str, Floats] = {
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
            # Without a positive in truth there is no F1: 0 would blame, 1 would praise.
            "f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
        }
    return {k: float(v) if v.ndim == 0 else v for k, v in figures.items()}
