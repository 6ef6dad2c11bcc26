"""Are the probabilities true, and where should one decide? Fitted on validation data only.

Axes: ``s`` exams, ``k`` slices of all exams together, ``l`` the nine labels, ``c`` bins.

**Temperatures** divide logits inside `pe_triage.model.labels.consistent_probabilities` (Guo et al.
2017, per label). Each is fitted by the likelihood of exactly what is served, through that very
function, so a fitted bundle and its evaluation cannot drift apart. They are fitted in the order in
which they act: slices, PE, then the labels that depend on PE. Negative and indeterminate share one
temperature, and so do the two RV/LV labels, as the model has it.

**Operating points.** The threshold of PE follows a stated `Aim`. Every other label's threshold is
Youden's within the exams that its decision is made in: sites, chronicity and RV/LV among exams with
PE, indeterminate among those without. Where a label has fewer than `FEWEST` exams of either class,
its temperature stays 1 and its threshold 0.5, and the outcome says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL
from pe_triage.errors import InputError
from pe_triage.model.decisions import CHRONIC_LABELS, PE, RV_LV_LABELS, SITE_LABELS
from pe_triage.model.labels import consistent_probabilities
from pe_triage.model.specification import ModelSpec
from pe_triage.training.metrics import Floats, Ranking, known, threshold_between, youden_threshold

BINS: Final = 15
FEWEST: Final = 10
"""Exams (or slices) of each class that a temperature or threshold needs."""
LOG_TEMPERATURE_BOUND: Final = math.log(20.0)

_NONE_LABELS: Final = EXAM_LABELS[:2]
_EXAM_GROUPS: Final = (_NONE_LABELS, RV_LV_LABELS, *((label,) for label in CHRONIC_LABELS),
                       *((label,) for label in SITE_LABELS))  # fmt: skip
"""Labels that share a temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """A reliability diagram.

    Attributes
    ----------
    edge_c
        (bins + 1) edges of equally wide bins of the probability.
    count_c, predicted_c, observed_c
        Samples in each bin, their mean probability, and the share that is positive; NaN where a
        bin is empty.
    ece
        Expected calibration error: Σ count · |observed - predicted| / Σ count (Naeini et al. 2015).
    """

    edge_c: Floats
    count_c: NDArray[np.int64]
    predicted_c: Floats
    observed_c: Floats
    ece: float


def reliability(truth_s: ArrayLike, probability_s: ArrayLike, bins: int = BINS) -> Reliability:
    """Bin probabilities of a binary label; samples of unknown truth are left out."""
    keep = known(truth_s, probability_s)
    truth = np.asarray(truth_s)[keep].astype(np.float64)
    p = np.asarray(probability_s, dtype=np.float64)[keep]
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(place, weights=p, minlength=bins) / count
        observed = np.bincount(place, weights=truth, minlength=bins) / count
    filled = count > 0
    ece = math.nan
    if len(p):
        gaps = np.abs(observed[filled] - predicted[filled])
        ece = float(np.sum(count[filled] * gaps) / len(p))
    return Reliability(
        edge_c=np.linspace(0, 1, bins + 1),
        count_c=count,
        predicted_c=predicted,
        observed_c=observed,
        ece=ece,
    )


def ece_replicates(
    truth_s: ArrayLike, probability_s: ArrayLike, group_s: ArrayLike, weight_bg: NDArray[np.int32],
    bins: int = BINS,
) -> Floats:  # fmt: skip
    """ECE in every resample, by one matrix product; truth must be known."""
    p = np.asarray(probability_s, dtype=np.float64)
    gap = np.asarray(truth_s).astype(np.float64) - p
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    groups = weight_bg.shape[1]
    gap_gc = np.bincount(np.asarray(group_s) * bins + place, weights=gap, minlength=groups * bins)
    weight = weight_bg.astype(np.float64)
    sizes = weight @ np.bincount(np.asarray(group_s), minlength=groups).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        ece_b: Floats = np.abs(weight @ gap_gc.reshape(groups, bins)).sum(axis=1) / sizes
    return ece_b


def brier(truth_s: ArrayLike, probability_s: ArrayLike) -> float:
    """Mean squared difference of probability and truth; NaN of nothing."""
    keep = known(truth_s, probability_s)
    if not keep.any():
        return math.nan
    gap = np.asarray(truth_s)[keep] - np.asarray(probability_s, dtype=np.float64)[keep]
    return float(np.mean(gap**2))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """Raw logits and truth of validation exams.

    Attributes
    ----------
    image_logit_k, exam_logit_sl
        As the network gives them, before any rule.
    exam_of_k
        Exam of each slice.
    image_truth_k, exam_truth_sl
        1, 0, or -1 where it is not known.
    """

    image_logit_k: Floats
    exam_logit_sl: Floats
    exam_of_k: NDArray[np.int64]
    image_truth_k: NDArray[np.int8]
    exam_truth_sl: NDArray[np.int8]

    @property
    def pe_truth_s(self) -> NDArray[np.int8]:
        """PE of each exam: neither negative nor indeterminate; -1 where either is unknown."""
        return pe_truth(self.exam_truth_sl)

    def probabilities(self, temperatures: Mapping[str, float]) -> tuple[Floats, Floats, Floats]:
        """(image_k, exam_sl, pe_s) as they would be served at these temperatures."""
        exams = torch.from_numpy(self.exam_logit_sl)
        # Exam labels hear the slices only through the largest of them.
        top = np.full(len(exams), -np.inf)
        np.maximum.at(top, self.exam_of_k, self.image_logit_k)
        out = consistent_probabilities(
            torch.from_numpy(top)[:, None], exams, temperatures=temperatures
        )
        slices = consistent_probabilities(
            torch.from_numpy(self.image_logit_k)[:, None],
            exams[torch.from_numpy(self.exam_of_k)],
            temperatures=temperatures,
        )
        return slices.image_bz[:, 0].numpy(), out.exam_bl.numpy(), out.pe_b.numpy()


def pe_truth(exam_truth_sl: NDArray[np.int8]) -> NDArray[np.int8]:
    """PE of each exam from its nine labels: neither negative nor indeterminate; -1 if unknown."""
    none = exam_truth_sl[:, :2]
    truth = np.where((none == 0).all(axis=1), 1, 0)
    return np.where((none < 0).any(axis=1), -1, truth).astype(np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedTemperatures:
    """Temperatures, and why some labels have none."""

    temperatures: Mapping[str, float]
    left: Mapping[str, str]


def fit_temperatures(data: CalibrationData) -> FittedTemperatures:
    """Fit a temperature for slices, PE and each group of exam labels by maximum likelihood.

    Each is one-dimensional and bounded to [1/20, 20]; the two chronic labels are fitted in turns.
    """
    found: dict[str, float] = {}
    left: dict[str, str] = {}

    def fit(labels: tuple[str, ...], loss: Callable[[Mapping[str, float]], float]) -> None:
        def at(log_t: float) -> float:
            return loss({**found, **dict.fromkeys(labels, math.exp(log_t))})

        bound = LOG_TEMPERATURE_BOUND
        best = minimize_scalar(at, bounds=(-bound, bound), method="bounded",
                               options={"xatol": 1e-3})  # fmt: skip
        # A bounded search may stop in a hollow beside 1; never leave worse than nothing.
        log_t = float(best.x) if best.fun < at(0.0) else 0.0
        found.update(dict.fromkeys(labels, math.exp(log_t)))

    def enough(truth: NDArray[np.int8], labels: tuple[str, ...]) -> bool:
        fewest = min(int(np.count_nonzero(truth == 1)), int(np.count_nonzero(truth == 0)))
        if fewest < FEWEST:
            reason = f"only {fewest} of one class; {FEWEST} are needed"
            left.update(dict.fromkeys(labels, reason))
        return fewest >= FEWEST

    if enough(data.image_truth_k, (IMAGE_LABEL,)):
        fit((IMAGE_LABEL,), lambda t: _log_loss(data.image_truth_k, data.probabilities(t)[0]))
    if enough(data.pe_truth_s, (PE,)):
        fit((PE,), lambda t: _log_loss(data.pe_truth_s, _exam_only(data, t)[1]))
    for _round in range(2):
        for labels in _EXAM_GROUPS:
            columns = [EXAM_LABELS.index(label) for label in labels]
            truth = data.exam_truth_sl[:, columns]

            def loss(
                t: Mapping[str, float], columns: list[int] = columns, truth: Any = truth
            ) -> float:
                return _log_loss(truth.ravel(), _exam_only(data, t)[0][:, columns].ravel())

            if enough(truth[:, 0], labels):
                fit(labels, loss)
    return FittedTemperatures(temperatures=found, left=left)


def _exam_only(data: CalibrationData, temperatures: Mapping[str, float]) -> tuple[Floats, Floats]:
    top = np.full(len(data.exam_logit_sl), -np.inf)
    np.maximum.at(top, data.exam_of_k, data.image_logit_k)
    out = consistent_probabilities(
        torch.from_numpy(top)[:, None],
        torch.from_numpy(data.exam_logit_sl),
        temperatures=temperatures,
    )
    return out.exam_bl.numpy(), out.pe_b.numpy()


def _log_loss(truth: NDArray[np.int8], p: Floats) -> float:
    keep = truth >= 0
    q = np.clip(p[keep], 1e-7, 1 - 1e-7)
    y = truth[keep]
    return float(-np.mean(np.where(y == 1, np.log(q), np.log1p(-q))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What an operating point is for: a figure reaches a value, or Youden's index is largest."""

    metric: str
    at_least: float = math.nan

    def __str__(self) -> str:
        return "youden" if self.metric == "youden" else f"{self.metric}>={self.at_least:g}"

    @staticmethod
    def parse(text: str) -> Aim:
        """Read ``sensitivity>=0.95``, ``specificity>=0.9`` or ``youden``.

        Raises
        ------
        InputError
            Anything else.
        """
        words = text.strip().lower().replace("≥", ">=")
        if words == "youden":
            return Aim(metric="youden")
        match = re.fullmatch(r"(sensitivity|specificity)\s*>=\s*(0?\.\d+|1(?:\.0*)?)", words)
        if match is None or not 0 < float(match[2]) <= 1:
            raise InputError(
                f"aim {text!r}: give sensitivity>=X or specificity>=X with X in (0, 1], or youden"
            )
        return Aim(metric=match[1], at_least=float(match[2]))


def default_aim(spec: ModelSpec) -> Aim:
    """Youden's index where the spec's source chose its threshold so, else a sensitivity of 0.95."""
    if spec.operating_point == "youden":
        return Aim(metric="youden")
    return Aim(metric="sensitivity", at_least=0.95)


def operating_point(truth_s: ArrayLike, probability_s: ArrayLike, aim: Aim) -> float:
    """The threshold in (0, 1) that reaches the aim at the least cost.

    For a sensitivity the highest threshold that reaches it, for a specificity the lowest; midway
    between neighbouring scores.

    Raises
    ------
    InputError
        One class is absent, so that nothing can be chosen.
    """
    keep = known(truth_s, probability_s)
    truth, p = np.asarray(truth_s)[keep], np.asarray(probability_s, dtype=np.float64)[keep]
    ranking = Ranking.of(truth, p)
    tp, fp = ranking.cumulative()
    if not len(tp) or tp[-1] <= 0 or fp[-1] <= 0:
        raise InputError("an operating point needs exams with and without PE")
    if aim.metric == "youden":
        threshold = youden_threshold(truth, p)
    elif aim.metric == "sensitivity":
        enough = tp >= aim.at_least * tp[-1] - 1e-9
        threshold = threshold_between(ranking.score_t, int(np.argmax(enough)))
    else:
        enough = fp[-1] - fp >= aim.at_least * fp[-1] - 1e-9
        threshold = threshold_between(ranking.score_t, int(np.count_nonzero(enough)) - 1)
    return float(np.clip(threshold, 1e-6, 1 - 1e-6))


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedThresholds:
    """Thresholds for all keys of a card, and why some are 0.5."""

    thresholds: Mapping[str, float]
    left: Mapping[str, str]


def choose_thresholds(
    data: CalibrationData, temperatures: Mapping[str, float], aim: Aim
) -> FittedThresholds:
    """Choose the threshold of PE by the aim and of every other label by Youden's index."""
    image_k, exam_sl, pe_s = data.probabilities(temperatures)
    has_pe = data.pe_truth_s
    thresholds: dict[str, float] = {PE: operating_point(has_pe, pe_s, aim)}
    left: dict[str, str] = {}
    for label in (IMAGE_LABEL, *EXAM_LABELS):
        if label == IMAGE_LABEL:
            truth, p = data.image_truth_k, image_k
        else:
            column = EXAM_LABELS.index(label)
            among = has_pe == (0 if label in _NONE_LABELS else 1)
            truth, p = data.exam_truth_sl[among, column], exam_sl[among, column]
        fewest = min(int(np.count_nonzero(truth == 1)), int(np.count_nonzero(truth == 0)))
        if fewest < FEWEST:
            thresholds[label] = 0.5
            left[label] = f"only {fewest} of one class; {FEWEST} are needed"
            continue
        keep = truth >= 0
        chosen = youden_threshold(truth[keep], p[keep])
        thresholds[label] = float(np.clip(chosen, 1e-6, 1 - 1e-6))
    return FittedThresholds(thresholds=thresholds, left=left)


def summary(aim: Aim, fitted: FittedTemperatures, chosen: FittedThresholds) -> dict[str, Any]:
    """What a card and a report say of a calibration."""
    return {
        "aim": str(aim),
        "temperatures_left_at_1": dict(fitted.left),
        "thresholds_left_at_half": dict(chosen.left),
    }
