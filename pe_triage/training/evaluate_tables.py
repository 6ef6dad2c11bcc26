"""From predictions and truth to documents of figures: plain JSON values, nothing drawn.

Axes as in `predictions`. A label's sample is its truth and score over exams or over slices; every
figure of a report is computed from such samples, with one set of resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL, Decision
from pe_triage.model.decisions import PE, decide
from pe_triage.training.calibration import brier, ece_replicates, pe_truth, reliability
from pe_triage.training.intervals import (
    Interval,
    Resampler,
    decision_intervals,
    rank_replicates,
)
from pe_triage.training.metrics import (
    Floats,
    auc,
    auprc,
    confusion,
    known,
    pr_points,
    roc_points,
    youden_threshold,
)
from pe_triage.training.predictions import Predictions
from pe_triage.training.score import EXAM_WEIGHT_VECTOR, IMAGE_WEIGHT, challenge_score

LABELS: Final = (PE, *EXAM_LABELS, IMAGE_LABEL)
"""Every label a report speaks of, in its order."""
MOST_POINTS: Final = 200
"""Points of a curve that a document keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSample:
    """One label's truth beside what was said; only samples whose truth is known.

    Attributes
    ----------
    unit
        ``exam`` or ``slice``.
    group_s
        Row of the resampler's weights that each sample belongs to.
    independent
        Whether no two samples are of one patient.
    served_s
        The decision served, obeying the label rules; None where thresholds are unknown.
    index_s
        Row of each sample in its table (exam or slice).
    """

    label: str
    unit: str
    truth_s: NDArray[np.int8]
    score_s: Floats
    group_s: NDArray[np.int64]
    independent: bool
    served_s: NDArray[np.bool_] | None
    index_s: NDArray[np.int64]


def label_samples(
    table: Predictions,
    exam_truth: NDArray[np.int8],
    slice_truth: NDArray[np.int8],
    resampler: Resampler,
) -> dict[str, LabelSample]:
    """Make the sample of each of `LABELS`.

    Parameters
    ----------
    exam_truth, slice_truth
        (exams, 9) and (slices,): 1, 0, or -1 for unknown; in the order of `table`.
    resampler
        Made of ``table.patient_s``.
    """
    served = served_decisions(table) if table.thresholds else None
    one_each = resampler.groups == len(table.study_uids)
    has_pe = pe_truth(exam_truth)
    out = {}
    for label in LABELS:
        unit = "slice" if label == IMAGE_LABEL else "exam"
        if label == IMAGE_LABEL:
            truth, score = slice_truth, table.slice_probability_k
            group = resampler.group_s[table.exam_of_k]
        else:
            column = None if label == PE else EXAM_LABELS.index(label)
            truth = has_pe if column is None else exam_truth[:, column]
            score = table.pe_s if column is None else table.exam_sl[:, column]
            group = resampler.group_s
        keep = known(truth, score)
        out[label] = LabelSample(
            label=label,
            unit=unit,
            truth_s=truth[keep],
            score_s=score[keep],
            group_s=group[keep],
            independent=one_each and unit == "exam",
            served_s=None if served is None else served[label][keep],
            index_s=np.flatnonzero(keep),
        )
    return out


def served_decisions(table: Predictions) -> dict[str, NDArray[np.bool_]]:
    """What would be served at the stored thresholds, for each of `LABELS`."""
    exams = len(table.study_uids)
    out = {label: np.zeros(exams, np.bool_) for label in LABELS}
    out[IMAGE_LABEL] = np.zeros(len(table.sop_instance_uids), np.bool_)
    for s in range(exams):
        probability = dict(zip(EXAM_LABELS, table.exam_sl[s].tolist(), strict=True))
        slices = table.slice_probability_k[table.slices_of(s)].astype(np.float32)
        said = decide(slices, probability, float(table.pe_s[s]), table.thresholds)
        out[PE][s] = said.pe
        out[IMAGE_LABEL][table.slices_of(s)] = said.slice_present_z
        for label in EXAM_LABELS:
            out[label][s] = said.findings[label] is Decision.PRESENT
    return out


def label_document(
    sample: LabelSample, stored: float | None, resampler: Resampler
) -> dict[str, Any]:
    """Every figure of one label with its interval, and its curves."""
    truth, score = sample.truth_s, sample.score_s
    positives = int(np.count_nonzero(truth == 1))
    groups = len(np.unique(sample.group_s))
    auc_b, auprc_b = rank_replicates(truth, score, sample.group_s, resampler)
    youden = youden_threshold(truth, score)
    points: dict[str, Any] = {}
    for name, threshold in (("stored", stored), ("youden", youden), ("half", 0.5)):
        if threshold is not None and math.isfinite(threshold):
            called = score > threshold
            points[name] = {"threshold": threshold, **_decisions(sample, called, resampler)}
    if sample.served_s is not None:
        points["served"] = {"threshold": None, **_decisions(sample, sample.served_s, resampler)}
    fit = reliability(truth, score)
    ece_b = ece_replicates(truth, score, sample.group_s, resampler.weight_bg)
    fpr, tpr, _ = roc_points(truth, score)
    recall, precision = pr_points(truth, score)
    both = 0 < positives < len(truth)
    return {
        "label": sample.label,
        "unit": sample.unit,
        "samples": len(truth),
        "positives": positives,
        "prevalence": positives / len(truth) if len(truth) else None,
        "patients": groups,
        "auc": resampler.interval(auc(truth, score), auc_b, groups_used=groups).to_json(),
        "auprc": resampler.interval(
            auprc(truth, score) if both else math.nan, auprc_b, groups_used=groups
        ).to_json(),
        "thresholds": points,
        "calibration": {
            "ece": resampler.interval(fit.ece, ece_b, groups_used=groups).to_json(),
            "brier": _rounded(brier(truth, score)),
            "bins": [
                {
                    "low": float(fit.edge_c[i]),
                    "high": float(fit.edge_c[i + 1]),
                    "count": int(fit.count_c[i]),
                    "predicted": _rounded(fit.predicted_c[i]),
                    "observed": _rounded(fit.observed_c[i]),
                }
                for i in range(len(fit.count_c))
            ],
        },
        "roc": _thinned(fpr, tpr) if both else [],
        "pr": _thinned(*_first_of_each(recall, precision)) if both else [],
    }


def _decisions(
    sample: LabelSample, called_s: NDArray[np.bool_], resampler: Resampler
) -> dict[str, Any]:
    tp, fp, fn, tn = confusion(sample.truth_s, called_s)
    figures = decision_intervals(
        sample.truth_s, called_s, sample.group_s, resampler, independent=sample.independent
    )
    return {
        "counts": {"tp": int(tp), "fp": int(fp), "fn": int(fn), "tn": int(tn)},
        **{name: interval.to_json() for name, interval in figures.items()},
    }


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _first_of_each(recall: Floats, precision: Floats) -> tuple[Floats, Floats]:
    """Of points of one recall the first, which is the most precise; none at recall 0."""
    risen = np.diff(recall, prepend=0.0) > 0
    return recall[risen], precision[risen]


def _thinned(x: Floats, y: Floats) -> list[list[float]]:
    keep = np.arange(len(x))
    if len(x) > MOST_POINTS:
        keep = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return [[round(float(x[i]), 5), round(float(y[i]), 5)] for i in keep]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreParts:
    """Numerator and denominator of the challenge's score for each exam."""

    lost_s: Floats
    weight_s: Floats

    @property
    def total(self) -> float:
        """The score."""
        return float(self.lost_s.sum() / self.weight_s.sum())

    def replicates(self, resampler: Resampler) -> Floats:
        """The score in every resample."""
        weight = resampler.weight_bg.astype(np.float64)
        group = resampler.group_s
        lost = weight @ np.bincount(group, weights=self.lost_s, minlength=resampler.groups)
        out: Floats = lost / (
            weight @ np.bincount(group, weights=self.weight_s, minlength=resampler.groups)
        )
        return out


def score_parts(
    table: Predictions, exam_truth: NDArray[np.int8], slice_truth: NDArray[np.int8]
) -> ScoreParts | None:
    """Parts of the challenge's score by exam; None where some truth is not known."""
    if (exam_truth < 0).any() or (slice_truth < 0).any():
        return None
    exams = len(table.study_uids)
    weight = np.full(exams, sum(EXAM_WEIGHT_VECTOR))
    lost = np.zeros(exams)
    for s in range(exams):
        k = table.slices_of(s)
        weight[s] += IMAGE_WEIGHT * float(slice_truth[k].sum())
        one = challenge_score(
            [slice_truth[k]], [table.slice_probability_k[k]], exam_truth[s : s + 1],
            table.exam_sl[s : s + 1],
        )  # fmt: skip
        lost[s] = one.total * weight[s]
    return ScoreParts(lost_s=lost, weight_s=weight)


def score_document(
    table: Predictions, exam_truth: NDArray[np.int8], slice_truth: NDArray[np.int8],
    resampler: Resampler,
) -> dict[str, Any] | None:  # fmt: skip
    """The challenge's score with its interval and its parts by label."""
    parts = score_parts(table, exam_truth, slice_truth)
    if parts is None:
        return None
    spans = [table.slices_of(s) for s in range(len(table.study_uids))]
    whole = challenge_score(
        [slice_truth[k] for k in spans],
        [table.slice_probability_k[k] for k in spans],
        exam_truth,
        table.exam_sl,
    )
    interval: Interval = resampler.interval(whole.total, parts.replicates(resampler))
    return {
        "score": interval.to_json(),
        "mean_log_loss": {k: _rounded(v) for k, v in whole.mean_log_loss.items()},
        "share": {k: _rounded(v) for k, v in whole.share.items()},
    }


def all_labels(
    samples: Mapping[str, LabelSample], thresholds: Mapping[str, float], resampler: Resampler,
    labels: Sequence[str] = LABELS,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The document of each label."""
    return {
        label: label_document(samples[label], thresholds.get(label), resampler) for label in labels
    }
