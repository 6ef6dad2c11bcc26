"""Make any predictions obey the label rules: the repair of the challenge's first place.

For models whose outputs contradict each other; ours obey by construction (`model.labels`).

An exam that obeys is left alone. For any other two candidates are made, each by the fewest and
smallest moves to the nearest side of one half: the nearest one that says "no PE", and the nearest
one that says "PE". Of the two the one is taken against which the original predictions have the
lower weighted log loss.

Source: G. Xu, first place of the RSNA STR Pulmonary Embolism Detection challenge (2020), as
published with his solution. In that weighing an image counts 0.005 × its weight in the score, a
fixed share of positive images, since the true one is not known. One gap of the published code is
closed: three site probabilities that tie are repaired too (central, then left, then right).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pe_triage.domain import EXAM_LABELS
from pe_triage.model.consistency import count_violations
from pe_triage.training.score import EXAM_WEIGHT_VECTOR, IMAGE_WEIGHT

ABOVE: Final = 0.5 + 1e-6
"""Where a probability goes that must be predicted; one that must not goes to 0.5 exactly."""
ASSUMED_SHARE: Final = 0.005

_NEG, _IND, _CHRONIC, _BOTH, _CENTRAL, _LEFT, _RIGHT, _GTE, _LT = range(len(EXAM_LABELS))
_SITES = (_CENTRAL, _LEFT, _RIGHT)


def repair(
    image_probability_z: ArrayLike, exam_probability_l: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return predictions of one exam that obey every rule, as near as may be to those given.

    Parameters
    ----------
    image_probability_z
        (slices,), one at least, in [0, 1].
    exam_probability_l
        (9,) in the order of `EXAM_LABELS`, in [0, 1].

    Returns
    -------
    tuple
        New arrays, float64, of the same shapes; equal to the arguments where those obeyed.

    Raises
    ------
    ValueError
        Wrong shapes, or a value that is no probability: no repair may hide that.
    """
    image = np.array(image_probability_z, dtype=np.float64)
    exam = np.array(exam_probability_l, dtype=np.float64)
    if image.ndim != 1 or not len(image) or exam.shape != (len(EXAM_LABELS),):
        raise ValueError(f"expected one exam, got shapes {image.shape} and {exam.shape}")
    every = np.concatenate([image, exam])
    if not ((every >= 0) & (every <= 1)).all():
        raise ValueError("a probability is not a number in [0, 1]")
    if not any(count_violations(image, exam).values()):
        return image, exam
    candidates = (_without_pe(image, exam), _with_pe(image, exam))
    costs = [
        ASSUMED_SHARE * IMAGE_WEIGHT * _log_loss(image, other_image).sum()
        + (np.array(EXAM_WEIGHT_VECTOR) * _log_loss(exam, other_exam)).sum()
        for other_image, other_exam in candidates
    ]
    return candidates[1] if costs[1] < costs[0] else candidates[0]


Candidate = tuple[NDArray[np.float64], NDArray[np.float64]]


def _without_pe(image: NDArray[np.float64], exam: NDArray[np.float64]) -> Candidate:
    image, exam = np.minimum(image, 0.5), exam.copy()
    exam[_CHRONIC:] = np.minimum(exam[_CHRONIC:], 0.5)
    _exactly_one(exam, _IND, _NEG)
    return image, exam


def _with_pe(image: NDArray[np.float64], exam: NDArray[np.float64]) -> Candidate:
    image, exam = image.copy(), exam.copy()
    if image.max() <= 0.5:
        image[int(np.argmax(image))] = ABOVE
    exam[[_NEG, _IND]] = np.minimum(exam[[_NEG, _IND]], 0.5)
    if exam[_CHRONIC] > 0.5 and exam[_BOTH] > 0.5:
        exam[_BOTH if exam[_CHRONIC] > exam[_BOTH] else _CHRONIC] = 0.5
    if max(exam[i] for i in _SITES) <= 0.5:
        exam[max(_SITES, key=lambda i: exam[i])] = ABOVE
    _exactly_one(exam, _LT, _GTE)
    return image, exam


def _exactly_one(exam: NDArray[np.float64], tied: int, other: int) -> None:
    """Hold one of two labels above one half: the more probable, and `tied` where they are equal."""
    winner, loser = (other, tied) if exam[other] > exam[tied] else (tied, other)
    if exam[winner] <= 0.5:
        exam[winner] = ABOVE
    elif exam[loser] > 0.5:
        exam[loser] = 0.5


def _log_loss(probability: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log loss against targets in [0, 1]; logarithms are held at -100, as torch's are."""
    with np.errstate(divide="ignore"):
        lost: NDArray[np.float64] = -(
            target * np.maximum(np.log(probability), -100)
            + (1 - target) * np.maximum(np.log1p(-probability), -100)
        )
    return lost
