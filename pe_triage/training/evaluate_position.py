"""The shortcut that a slice's AUC must beat: where along the scan the slice lies, and no image.

Clots sit where arteries are wide, so height alone tells much. The score of a slice is the share of
slices with PE at its height among all *other* patients of the same data.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.training.intervals import Resampler, rank_replicates
from pe_triage.training.metrics import auc
from pe_triage.training.predictions import Predictions

BINS: Final = 24
"""Parts of a scan, foot to head."""


def position_scores(
    table: Predictions, slice_truth: NDArray[np.int8], patient_s: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Score each slice by its height alone; not a number where no other patient tells.

    Parameters
    ----------
    slice_truth
        (slices,): 1, 0, or -1 for unknown, in the order of `table`.
    patient_s
        Whose each exam is, counted from 0.
    """
    exam_k = table.exam_of_k
    first, count = table.start_s[:-1][exam_k], np.diff(table.start_s)[exam_k]
    height_k = (np.arange(len(exam_k)) - first) * BINS // count
    patient_k = patient_s[exam_k]
    patients = int(patient_s.max()) + 1 if len(patient_s) else 0
    seen = np.zeros((2, patients, BINS))
    for row, those in enumerate((slice_truth >= 0, slice_truth == 1)):
        np.add.at(seen[row], (patient_k[those], height_k[those]), 1)
    others = seen.sum(axis=1, keepdims=True) - seen
    with np.errstate(invalid="ignore", divide="ignore"):
        share: NDArray[np.float64] = (others[1] / others[0])[patient_k, height_k]
    return share


def position_document(
    table: Predictions, slice_truth: NDArray[np.int8], resampler: Resampler
) -> dict[str, Any]:
    """AUC of slices by position alone, with its interval, beside which the model's AUC stands."""
    score = position_scores(table, slice_truth, resampler.group_s)
    keep = (slice_truth >= 0) & np.isfinite(score)
    truth, score = slice_truth[keep], score[keep]
    group = resampler.group_s[table.exam_of_k][keep]
    replicates = rank_replicates(truth, score, group, resampler)[0]
    groups = len(np.unique(group))
    return resampler.interval(auc(truth, score), replicates, groups_used=groups).to_json()
