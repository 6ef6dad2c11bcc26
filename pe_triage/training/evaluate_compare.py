"""Several models on the same exams: differences with paired tests, as documents.

Only exams that every model answered are compared. AUCs of exams are tested by DeLong where each
patient has one exam; everything else by the paired bootstrap over patients. p-values are adjusted
for their number by Holm within a pair of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import IMAGE_LABEL
from pe_triage.model.decisions import PE
from pe_triage.training.calibration import ece_replicates, reliability
from pe_triage.training.comparison import Difference, bootstrap_difference, delong_test
from pe_triage.training.evaluate_tables import (
    LABELS,
    LabelSample,
    label_samples,
    score_parts,
)
from pe_triage.training.intervals import Resampler, count_replicates, holm, rank_replicates
from pe_triage.training.metrics import auc, auprc, confusion, decision_figures
from pe_triage.training.predictions import Predictions

AT_STORED: Final = ("sensitivity", "specificity", "f1", "accuracy")
FULL_LABELS: Final = (PE, IMAGE_LABEL)
"""Labels compared in every figure; the others in AUC."""


def common_exams(tables: Sequence[Predictions]) -> list[Predictions]:
    """The tables cut to the exams that all of them hold, in the order of the first.

    An exam counts as the same where study and slices are.
    """
    shared = [
        uid
        for s, uid in enumerate(tables[0].study_uids)
        if all(_same_slices(tables[0], s, other) for other in tables[1:])
    ]
    cut = []
    for table in tables:
        row = {uid: s for s, uid in enumerate(table.study_uids)}
        cut.append(table.select([row[uid] for uid in shared]))
    return cut


def _same_slices(table: Predictions, s: int, other: Predictions) -> bool:
    uid = table.study_uids[s]
    if uid not in other.study_uids:
        return False
    t = other.study_uids.index(uid)
    mine = table.sop_instance_uids[table.slices_of(s)]
    return mine == other.sop_instance_uids[other.slices_of(t)]


def comparison_document(
    first: Predictions,
    second: Predictions,
    exam_truth: NDArray[np.int8],
    slice_truth: NDArray[np.int8],
    resampler: Resampler,
) -> dict[str, Any]:
    """Differences, first minus second, on tables of the same exams in the same order."""
    one = label_samples(first, exam_truth, slice_truth, resampler)
    two = label_samples(second, exam_truth, slice_truth, resampler)
    found: dict[tuple[str, str], Difference] = {}
    for label in LABELS:
        a, b = one[label], two[label]
        if not np.array_equal(a.index_s, b.index_s) or not len(a.truth_s):
            continue
        found.update({(label, name): d for name, d in _ranks(a, b, resampler).items()})
        if label in FULL_LABELS:
            thresholds = (first.thresholds.get(label, 0.5), second.thresholds.get(label, 0.5))
            found.update({(label, n): d for n, d in _points(a, b, thresholds, resampler).items()})
            found[(label, "ece")] = _ece(a, b, resampler)
    parts = [score_parts(t, exam_truth, slice_truth) for t in (first, second)]
    if parts[0] is not None and parts[1] is not None:
        found[("challenge", "score")] = bootstrap_difference(
            parts[0].total, parts[1].total,
            parts[0].replicates(resampler), parts[1].replicates(resampler), resampler,
        )  # fmt: skip
    adjusted = holm([d.p_value for d in found.values()])
    rows = [
        {
            "label": label,
            "figure": figure,
            **difference.to_json(),
            "p_holm": round(p, 6) if math.isfinite(p) else None,
        }
        for ((label, figure), difference), p in zip(found.items(), adjusted, strict=True)
    ]
    return {
        "first": dict(first.model),
        "second": dict(second.model),
        "exams": len(first.study_uids),
        "differences": rows,
    }


def _ranks(a: LabelSample, b: LabelSample, resampler: Resampler) -> Mapping[str, Difference]:
    groups = len(np.unique(a.group_s))
    first_b = rank_replicates(a.truth_s, a.score_s, a.group_s, resampler)
    second_b = rank_replicates(b.truth_s, b.score_s, b.group_s, resampler)
    values = ((auc(s.truth_s, s.score_s), auprc(s.truth_s, s.score_s)) for s in (a, b))
    (auc_a, ap_a), (auc_b, ap_b) = values
    out = {}
    if a.independent:
        out["auc"] = delong_test(a.truth_s, a.score_s, b.score_s)
    else:
        out["auc"] = bootstrap_difference(
            auc_a, auc_b, first_b[0], second_b[0], resampler, groups_used=groups
        )
    if a.label in FULL_LABELS:
        out["auprc"] = bootstrap_difference(
            ap_a, ap_b, first_b[1], second_b[1], resampler, groups_used=groups
        )
    return out


def _points(
    a: LabelSample, b: LabelSample, thresholds: tuple[float, float], resampler: Resampler
) -> dict[str, Difference]:
    figures, replicates = [], []
    for sample, threshold in zip((a, b), thresholds, strict=True):
        called = sample.score_s > threshold
        figures.append(decision_figures(*confusion(sample.truth_s, called)))
        counts = count_replicates(sample.truth_s, called, sample.group_s, resampler)
        replicates.append(decision_figures(*counts.T))
    return {
        name: bootstrap_difference(
            figures[0][name], figures[1][name], replicates[0][name], replicates[1][name], resampler
        )
        for name in AT_STORED
    }


def _ece(a: LabelSample, b: LabelSample, resampler: Resampler) -> Difference:
    values = [reliability(s.truth_s, s.score_s).ece for s in (a, b)]
    replicates = [
        ece_replicates(s.truth_s, s.score_s, s.group_s, resampler.weight_bg) for s in (a, b)
    ]
    return bootstrap_difference(values[0], values[1], replicates[0], replicates[1], resampler)
