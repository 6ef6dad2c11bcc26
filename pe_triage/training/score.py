"""The challenge's score, in numpy: the figure that RSPECT's leader board shows.

Score = Σ(weight × log loss over all image and exam rows) / Σ(weights). An exam row weighs what
`EXAM_WEIGHTS` says. An image row of exam i weighs ``IMAGE_WEIGHT`` × q_i, where q_i is the share of
positive images in exam i; the images of exams without PE weigh nothing. (One public
implementation multiplies the image weight twice.)

Source: evaluation page of the RSNA STR Pulmonary Embolism Detection challenge (2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL

IMAGE_WEIGHT: Final = 0.07361963
EXAM_WEIGHTS: Final[Mapping[str, float]] = {
    "negative_exam_for_pe": 0.0736196319,
    "indeterminate": 0.09202453988,
    "chronic_pe": 0.1042944785,
    "acute_and_chronic_pe": 0.1042944785,
    "central_pe": 0.1877300613,
    "leftsided_pe": 0.06257668712,
    "rightsided_pe": 0.06257668712,
    "rv_lv_ratio_gte_1": 0.2346625767,
    "rv_lv_ratio_lt_1": 0.0782208589,
}
"""In the order of `EXAM_LABELS`."""
EXAM_WEIGHT_VECTOR: Final[tuple[float, ...]] = tuple(EXAM_WEIGHTS[label] for label in EXAM_LABELS)

EPSILON: Final = float(np.finfo(np.float64).eps)
"""Probabilities are held this far from 0 and 1, as scikit-learn's ``log_loss`` does in float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score and what it is made of.

    Attributes
    ----------
    total
        The challenge's figure; lower is better.
    mean_log_loss
        Label (``IMAGE_LABEL`` too) to its own weighted mean log loss; NaN where nothing weighs.
    share
        Label to its part of `total`; the parts add up to it.
    """

    total: float
    mean_log_loss: Mapping[str, float]
    share: Mapping[str, float]


def log_loss(truth: ArrayLike, probability: ArrayLike) -> NDArray[np.float64]:
    """Log loss of each row, float64, of the shape of its arguments."""
    y = np.asarray(truth, dtype=np.float64)
    p = np.clip(np.asarray(probability, dtype=np.float64), EPSILON, 1 - EPSILON)
    loss: NDArray[np.float64] = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    return loss


def challenge_score(
    image_truth: Sequence[ArrayLike],
    image_probability: Sequence[ArrayLike],
    exam_truth_bl: ArrayLike,
    exam_probability_bl: ArrayLike,
) -> Score:
    """Score predictions.

    Parameters
    ----------
    image_truth, image_probability
        For each exam the labels (0 or 1) and probabilities of its images, in one order.
    exam_truth_bl, exam_probability_bl
        (exams, 9) in the order of `EXAM_LABELS`.

    Raises
    ------
    ValueError
        Shapes that do not belong together, no exam, or a probability that is not in [0, 1].
    """
    exam_y = np.asarray(exam_truth_bl, dtype=np.float64)
    exam_p = np.asarray(exam_probability_bl, dtype=np.float64)
    shape = (len(image_truth), len(EXAM_LABELS))
    if not shape[0] or exam_y.shape != shape or exam_p.shape != shape:
        raise ValueError(f"expected exam labels of shape {shape}, got {exam_y.shape, exam_p.shape}")
    weight_l = np.array(EXAM_WEIGHT_VECTOR)
    _check(exam_p)
    lost = dict(
        zip(EXAM_LABELS, (log_loss(exam_y, exam_p) * weight_l).sum(axis=0).tolist(), strict=True)
    )
    weighed = dict(zip(EXAM_LABELS, (weight_l * shape[0]).tolist(), strict=True))
    lost[IMAGE_LABEL] = weighed[IMAGE_LABEL] = 0.0
    for truth, probability in zip(image_truth, image_probability, strict=True):
        y = np.asarray(truth, dtype=np.float64)
        p = np.asarray(probability, dtype=np.float64)
        if y.ndim != 1 or y.shape != p.shape or not len(y):
            raise ValueError(f"expected labels of images of one shape, got {y.shape, p.shape}")
        _check(p)
        weight = IMAGE_WEIGHT * float(y.mean())
        lost[IMAGE_LABEL] += weight * float(log_loss(y, p).sum())
        weighed[IMAGE_LABEL] += weight * len(y)
    total = sum(weighed.values())
    return Score(
        total=sum(lost.values()) / total,
        mean_log_loss={k: lost[k] / weighed[k] if weighed[k] else float("nan") for k in lost},
        share={k: lost[k] / total for k in lost},
    )


def _check(probability: NDArray[np.float64]) -> None:
    if not ((probability >= 0) & (probability <= 1)).all():  # NaN fails both
        raise ValueError("a probability is not a number in [0, 1]")
