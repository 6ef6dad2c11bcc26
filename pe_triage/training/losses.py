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


def stage_one_loss(
    image_logits_bn: Tensor,
    exam_logits_bnl: Tensor,
    image_truth_bn: Tensor,
    exam_truth_bl: Tensor,
    *,
    exam_share: float = 0.5,
) -> WeightedLoss:
    """Multi-label loss of the slice encoder on n slices sampled from each of b exams.

    The image label's log loss is a plain mean: in the challenge's own weights an image of a
    negative exam counts nothing, and an encoder trained so never learns what is no clot. The
    imbalance of 5.4 % is met by the sampler instead. The exam labels are predicted, as in the seed
    paper, by the slice of maximum confidence, with the challenge's weights.

    Parameters
    ----------
    exam_share
        Part of the exam labels in the loss, in [0, 1].
    """
    image = functional.binary_cross_entropy_with_logits(
        image_logits_bn.float(), image_truth_bn.float()
    )
    surest_b = image_logits_bn.detach().argmax(dim=1)
    rows = torch.arange(len(surest_b), device=surest_b.device)
    exam_bl = functional.binary_cross_entropy_with_logits(
        exam_logits_bnl[rows, surest_b].float(), exam_truth_bl.float(), reduction="none"
    )
    weight_l = exam_bl.new_tensor(EXAM_WEIGHT_VECTOR)
    exam = (exam_bl * weight_l / weight_l.sum()).sum(dim=1).mean()
    count = torch.tensor(float(image_logits_bn.shape[0]), device=image.device)
    return WeightedLoss(((1 - exam_share) * image + exam_share * exam) * count, count)


def _log_loss(probability: Tensor, truth: Tensor) -> Tensor:
    p = probability.clamp(EPSILON, 1 - EPSILON)
    return functional.binary_cross_entropy(p, truth.to(p.dtype), reduction="none")
