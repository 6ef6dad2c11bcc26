"""The decisions served at a bundle's stored thresholds; they obey the label rules by themselves.

Thresholds are free per label (a triage threshold below 0.5 is usual), so comparing each label with
its own would contradict the rules: PE present with every site below its threshold, say. Here the
exam's state is decided first, and within it the labels that a rule binds together.

==============================  ==============================================================
state of the exam               decided by
==============================  ==============================================================
PE                              pe_probability > threshold ``pe``
indeterminate, where not PE     its probability > its threshold, or indeterminate is further
                                above (less below) its threshold than negative
negative                        else
==============================  ==============================================================

Within PE: each site above its threshold, or else the site nearest to it; the RV/LV label further
above its threshold; a chronic label above its threshold, the further one where both are. On a
negative exam the seven positive labels are ABSENT, on an indeterminate one UNDETERMINED: nobody
could tell. "Further above" compares log odds: logit(p) - logit(t).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL, POSITIVE_LABELS, Decision

PE = "pe"
THRESHOLD_KEYS: tuple[str, ...] = (*EXAM_LABELS, IMAGE_LABEL, PE)
"""Labels for which every bundle stores a threshold."""

SITE_LABELS = ("central_pe", "leftsided_pe", "rightsided_pe")
CHRONIC_LABELS = ("chronic_pe", "acute_and_chronic_pe")
RV_LV_LABELS = ("rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedDecisions:
    """What is served for one exam.

    Attributes
    ----------
    pe
        Whether the exam shows PE: exactly where neither negative nor indeterminate is PRESENT.
    findings
        Decision on each of `EXAM_LABELS`.
    slice_present_z
        bool (slices,): some where `pe`, none otherwise.
    """

    pe: bool
    findings: Mapping[str, Decision]
    slice_present_z: NDArray[np.bool_]


def decide(
    slice_probability_z: NDArray[np.float32],
    exam_probability: Mapping[str, float],
    pe_probability: float,
    thresholds: Mapping[str, float],
) -> ServedDecisions:
    """Decide on every label at the stored thresholds.

    Parameters
    ----------
    slice_probability_z
        PE on each slice, (slices,), one slice at least.
    exam_probability
        All of `EXAM_LABELS`.
    pe_probability
        PE in the exam.
    thresholds
        All of `THRESHOLD_KEYS`; a label is present strictly above its own.

    Returns
    -------
    ServedDecisions
        Obeys the label rules whatever the probabilities and thresholds.
    """
    margin = {k: _log_odds(exam_probability[k]) - _log_odds(thresholds[k]) for k in EXAM_LABELS}
    above = {k: exam_probability[k] > thresholds[k] for k in EXAM_LABELS}
    pe = pe_probability > thresholds[PE]
    present: set[str]
    if pe:
        present = {k for k in SITE_LABELS if above[k]} or {_best(SITE_LABELS, margin)}
        present.add(_best(RV_LV_LABELS, margin))
        chronic = [k for k in CHRONIC_LABELS if above[k]]
        if chronic:
            present.add(_best(tuple(chronic), margin))
        elsewhere = Decision.ABSENT
    else:
        unclear = (
            above["indeterminate"] or margin["indeterminate"] >= margin["negative_exam_for_pe"]
        )
        present = {"indeterminate" if unclear else "negative_exam_for_pe"}
        elsewhere = Decision.UNDETERMINED if unclear else Decision.ABSENT
    findings = {
        label: Decision.PRESENT
        if label in present
        else (elsewhere if label in POSITIVE_LABELS else Decision.ABSENT)
        for label in EXAM_LABELS
    }
    slices = (slice_probability_z > np.float64(thresholds[IMAGE_LABEL])) & pe
    if pe and not slices.any():
        slices[int(np.argmax(slice_probability_z))] = True
    return ServedDecisions(pe=pe, findings=findings, slice_present_z=slices)


def _best(labels: tuple[str, ...], margin: Mapping[str, float]) -> str:
    return max(labels, key=lambda label: margin[label])  # the first of equals


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-12), 1 - 1e-12)
    return math.log(p) - math.log1p(-p)
