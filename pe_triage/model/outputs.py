"""What the network says of units, brought to the volume's slices; differentiable.

Axes: ``b`` exams (one volume's plan serves all of a batch: copies of one exam, or exams of one
shape), ``o`` image outputs, ``u`` units, ``z`` slices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pe_triage.model.units import UnitPlan


def to_slices(image_bo: Tensor, plan: UnitPlan) -> Tensor:
    """Return the image logits (b, slices) given those of outputs."""
    if plan.is_identity:
        return image_bo
    taps = torch.from_numpy(plan.tap_zk.copy()).to(image_bo.device)
    weights = torch.from_numpy(plan.weight_zk.copy()).to(image_bo)
    return (image_bo[:, taps] * weights).sum(dim=2)


def attention_to_slices(attention_bu: Tensor, plan: UnitPlan) -> Tensor:
    """Return each slice's part (b, slices) of the units' attention; sums are kept."""
    if plan.share_us is None:
        return attention_bu
    return attention_bu @ torch.from_numpy(plan.share_us.copy()).to(attention_bu)
