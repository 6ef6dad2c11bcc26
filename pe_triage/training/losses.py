"""Losses of training, in torch. The main one is the challenge's score itself, differentiable.

Axes: ``b`` exams, ``z`` slices, ``l`` the nine labels in the order of `EXAM_LABELS`.

A batch's loss is Σ(weight × log loss) / Σ(weights) over its own rows, so numerator and denominator
are kept apart: several processes add both up before they divide, and an epoch's figure is the
score of the whole set and not a mean of means.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pe_triage.errors import InputError
from pe_triage.training.score import EXAM_WEIGHT_VECTOR, IMAGE_WEIGHT

EPSILON: Final = 1e-7
"""Probabilities are held this far from 0 and 1: the least that float32 can tell from 1."""


class WeightedLoss(NamedTuple):
    """Weighted sum of log losses, and the sum of the weights; scalars."""

    lost: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """The loss."""
        return self.lost / self.weight


def challenge_loss(
    image_probability_bz: Tensor,
    exam_probability_bl: Tensor,
    image_truth_bz: Tensor,
    exam_truth_bl: Tensor,
    mask_bz: Tensor | None = None,
) -> WeightedLoss:
    """The challenge's score of a batch of whole exams; see `score`.

    Parameters
    ----------
    image_probability_bz, exam_probability_bl
        Probabilities, float32 or wider (never half precision), such as `consistent_probabilities`
        returns.
    image_truth_bz, exam_truth_bl
        0 or 1.
    mask_bz
        True where a slice exists.
    """
    present_bz = torch.ones_like(image_probability_bz) if mask_bz is None else mask_bz
    present_bz = present_bz.to(image_probability_bz.dtype)
    image_truth_bz = image_truth_bz.to(image_probability_bz.dtype) * present_bz
    q_b = image_truth_bz.sum(dim=1) / present_bz.sum(dim=1)
    weight_bz = IMAGE_WEIGHT * q_b[:, None] * present_bz
    weight_l = exam_probability_bl.new_tensor(EXAM_WEIGHT_VECTOR)
    lost = (weight_bz * _log_loss(image_probability_bz, image_truth_bz)).sum()
    lost = lost + (weight_l * _log_loss(exam_probability_bl, exam_truth_bl)).sum()
    weight = weight_bz.sum() + weight_l.sum() * exam_probability_bl.shape[0]
    return WeightedLoss(lost, weight)


SLICE_LOSSES: Final = ("challenge", "image", "image+attention", "exam", "mixed")
"""What stage 1 may be trained on: those of `model.schedule.LOSSES`, and ``mixed``.

``challenge``: the metric's weights. Mind that in them an image of a negative exam counts nothing.
``image``: the image label's plain log loss. ``image+attention``: the same, and
`attention.attention_loss` added where clot masks are known. ``exam``: the exam labels alone.
``mixed``: half ``image``, half ``exam``.
"""


class SampledSlices(NamedTuple):
    """The truth about n units (slices or windows) drawn from each of b exams.

    Attributes
    ----------
    image_bn, exam_bl
        Labels, 0 or 1; an exam whose labels are not numbers does not count in any exam loss.
    importance_bn
        Share of a unit's class in its exam over that class' share in the sample: what makes sums
        over a balanced sample stand for the exam.
    share_b, slices_b
        Of the whole exam: share of positive images, and number of images.
    """

    image_bn: Tensor
    exam_bl: Tensor
    importance_bn: Tensor
    share_b: Tensor
    slices_b: Tensor


def stage_one_loss(
    image_logits_bn: Tensor, exam_logits_bnl: Tensor, truth: SampledSlices, kind: str = "challenge"
) -> WeightedLoss:
    """Loss of the slice encoder, multi-label, on units sampled from exams.

    The exam labels are predicted, as in the seed paper, by the slice of maximum confidence.

    Parameters
    ----------
    image_logits_bn, exam_logits_bnl
        Raw logits of stage 1's heads.
    kind
        One of `SLICE_LOSSES`.
    """
    b, n = image_logits_bn.shape
    image_bn = functional.binary_cross_entropy_with_logits(
        image_logits_bn.float(), truth.image_bn.float(), reduction="none"
    )
    surest_b = image_logits_bn.detach().argmax(dim=1)
    rows = torch.arange(b, device=surest_b.device)
    weight_l = image_bn.new_tensor(EXAM_WEIGHT_VECTOR)
    known_b = ~truth.exam_bl.isnan().any(dim=1)
    exam_b = (
        functional.binary_cross_entropy_with_logits(
            exam_logits_bnl[rows, surest_b].float(),
            truth.exam_bl.float().nan_to_num(0.0),
            reduction="none",
        )
        * weight_l
        * known_b[:, None]
    ).sum(dim=1)
    count, known = image_bn.new_tensor(float(b)), known_b.sum().to(image_bn.dtype)
    if kind == "challenge":
        image_weight_b = IMAGE_WEIGHT * truth.share_b * truth.slices_b
        lost_b = image_weight_b * (truth.importance_bn * image_bn).sum(dim=1) / n
        return WeightedLoss(
            lost_b.sum() + exam_b.sum(), image_weight_b.sum() + weight_l.sum() * known
        )
    if kind in ("image", "image+attention"):
        return WeightedLoss(image_bn.mean() * count, count)
    if kind == "exam":
        return WeightedLoss(exam_b.sum(), weight_l.sum() * known)
    if kind == "mixed":
        exam = exam_b.sum() / known.clamp(min=1) / weight_l.sum()
        return WeightedLoss((image_bn.mean() + exam) / 2 * count, count)
    raise InputError(f"the loss of stage 1 must be one of {', '.join(SLICE_LOSSES)}, not {kind!r}")


def _log_loss(probability: Tensor, truth: Tensor) -> Tensor:
    p = probability.clamp(EPSILON, 1 - EPSILON)
    return functional.binary_cross_entropy(p, truth.to(p.dtype), reduction="none")
