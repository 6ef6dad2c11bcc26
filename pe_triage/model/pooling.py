"""How ĥ of all units become the exam's features z, and what each unit's attention is.

Axes: ``b`` exams, ``z`` units, ``d`` features, ``l`` the nine labels. Every pooling returns
features that the exam head reads, (b, d) or (b, l, d), and an attention (b, z) that is non-negative
and sums to 1 over an exam's units; what stands in for it where a pooling has none is said there.

Source of the attention: Ilse, Tomczak and Welling (2018), as the default's seed paper uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pe_triage.domain import EXAM_LABELS
from pe_triage.model.specification import ModelSpec


class Pooling(nn.Module):
    """What every pooling says of itself."""

    dim: int
    """Features that the exam head reads."""


class AttentionPooling(Pooling):
    """z = Σ a_k ĥ_k with a = softmax_k(wᵀ tanh(V ĥ_kᵀ))."""

    def __init__(self, dim: int, attention_dim: int) -> None:
        super().__init__()
        self.v = nn.Linear(dim, attention_dim, bias=False)
        self.w = nn.Linear(attention_dim, 1, bias=False)
        self.dim = dim

    def forward(self, h_bzd: Tensor, mask_bz: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (b, d) and the attention (b, z), which sums to 1."""
        score_bz = self.w(torch.tanh(self.v(h_bzd))).squeeze(-1)
        if mask_bz is not None:
            score_bz = score_bz.masked_fill(~mask_bz, -torch.inf)
        a_bz = torch.softmax(score_bz, dim=1)
        return torch.einsum("bz,bzd->bd", a_bz, h_bzd), a_bz


class MeanPooling(Pooling):
    """z = mean ĥ_k; every slice's attention is the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, h_bzd: Tensor, mask_bz: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (b, d) and the attention (b, z), which sums to 1."""
        weight_bz = h_bzd.new_ones(h_bzd.shape[:2]) if mask_bz is None else mask_bz.to(h_bzd.dtype)
        a_bz = weight_bz / weight_bz.sum(dim=1, keepdim=True)
        if mask_bz is not None:
            h_bzd = h_bzd.masked_fill(~mask_bz[..., None], 0.0)
        return torch.einsum("bz,bzd->bd", a_bz, h_bzd), a_bz


class MaxPooling(Pooling):
    """z = max over slices of each feature; a slice's attention is its share of the maxima."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, h_bzd: Tensor, mask_bz: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (b, d) and the attention (b, z), which sums to 1."""
        if mask_bz is not None:
            h_bzd = h_bzd.masked_fill(~mask_bz[..., None], -torch.inf)
        z_bd, winner_bd = h_bzd.max(dim=1)
        ones = torch.ones_like(z_bd) / z_bd.shape[1]
        a_bz = h_bzd.new_zeros(h_bzd.shape[:2]).scatter_add(1, winner_bd, ones.detach())
        return z_bd, a_bz


class AttentionMaxPooling(Pooling):
    """z = attention's sum beside the maximum; the attention shown is the mean of both ones'."""

    def __init__(self, dim: int, attention_dim: int) -> None:
        super().__init__()
        self.attention = AttentionPooling(dim, attention_dim)
        self.max = MaxPooling(dim)
        self.dim = 2 * dim

    def forward(self, h_bzd: Tensor, mask_bz: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (b, 2d) and the attention (b, z), which sums to 1."""
        seen_bd, a_bz = self.attention(h_bzd, mask_bz)
        top_bd, share_bz = self.max(h_bzd, mask_bz)
        return torch.cat([seen_bd, top_bd], dim=1), (a_bz + share_bz) / 2


class LabelAttentionMaxPooling(Pooling):
    """Each label attends by itself, beside the maximum that all share.

    The attention shown is half the mean of the nine labels', half the share of the maxima.
    """

    def __init__(self, dim: int, attention_dim: int) -> None:
        super().__init__()
        self.v = nn.Linear(dim, attention_dim, bias=False)
        self.w = nn.Linear(attention_dim, len(EXAM_LABELS), bias=False)
        self.max = MaxPooling(dim)
        self.dim = 2 * dim

    def forward(self, h_bzd: Tensor, mask_bz: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (b, l, 2d) and the attention (b, z), which sums to 1."""
        score_bzl = self.w(torch.tanh(self.v(h_bzd)))
        if mask_bz is not None:
            score_bzl = score_bzl.masked_fill(~mask_bz[..., None], -torch.inf)
        a_bzl = torch.softmax(score_bzl, dim=1)
        seen_bld = torch.einsum("bzl,bzd->bld", a_bzl, h_bzd)
        top_bd, share_bz = self.max(h_bzd, mask_bz)
        top_bld = top_bd[:, None].expand(-1, a_bzl.shape[2], -1)
        return torch.cat([seen_bld, top_bld], dim=2), (a_bzl.mean(dim=2) + share_bz) / 2


def make_pooling(spec: ModelSpec, dim: int) -> Pooling:
    """Build the pooling that the spec names, over features of length `dim`."""
    if spec.pooling == "mean":
        return MeanPooling(dim)
    if spec.pooling == "max":
        return MaxPooling(dim)
    attending = {
        "attention": AttentionPooling,
        "attention+max": AttentionMaxPooling,
        "label-attention+max": LabelAttentionMaxPooling,
    }
    pooling: Pooling = attending[spec.pooling](dim, spec.attention_dim)
    return pooling
