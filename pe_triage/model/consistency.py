"""Count where predictions break RSPECT's label rules; written apart from what constructs them.

Source: the rules of the RSNA STR Pulmonary Embolism Detection challenge (2020), as the metric
states them: a label is predicted where its probability is strictly above 0.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pe_triage.domain import EXAM_LABELS, POSITIVE_LABELS

RULES: tuple[str, ...] = (
    "exactly one RV/LV label on a positive exam",
    "at least one of left, right, central on a positive exam",
    "not both chronic and acute-and-chronic",
    "neither negative nor indeterminate on a positive exam",
    "exactly one of negative and indeterminate on any other exam",
    "no positive label on any other exam",
    "every probability is a number in [0, 1]",
)


def count_violations(
    image_probability_bz: ArrayLike, exam_probability_bl: ArrayLike
) -> dict[str, int]:
    """Count the exams that break each rule.

    Parameters
    ----------
    image_probability_bz
        (exams, slices), or (slices,) for one exam; pad shorter exams with zeros.
    exam_probability_bl
        (exams, 9) or (9,), in the order of `EXAM_LABELS`.

    Returns
    -------
    dict
        Rule to number of exams that break it; every rule of `RULES` is a key.
    """
    image = np.atleast_2d(np.asarray(image_probability_bz, dtype=np.float64))
    exam = np.atleast_2d(np.asarray(exam_probability_bl, dtype=np.float64))
    said = {label: exam[:, i] > 0.5 for i, label in enumerate(EXAM_LABELS)}

    def many(*labels: str) -> NDArray[np.int64]:
        total: NDArray[np.int64] = np.stack([said[k] for k in labels]).sum(axis=0, dtype=np.int64)
        return total

    positive = (image > 0.5).any(axis=1)
    none = many("negative_exam_for_pe", "indeterminate")
    in_range = np.isfinite(image).all(axis=1) & np.isfinite(exam).all(axis=1)
    with np.errstate(invalid="ignore"):
        in_range &= ((image >= 0) & (image <= 1)).all(axis=1)
        in_range &= ((exam >= 0) & (exam <= 1)).all(axis=1)
    broken = (
        positive & (many("rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1") != 1),
        positive & (many("leftsided_pe", "rightsided_pe", "central_pe") == 0),
        positive & (many("chronic_pe", "acute_and_chronic_pe") == 2),
        positive & (none != 0),
        ~positive & (none != 1),
        ~positive & (many(*POSITIVE_LABELS) != 0),
        ~in_range,
    )
    return {rule: int(np.count_nonzero(b)) for rule, b in zip(RULES, broken, strict=True)}
