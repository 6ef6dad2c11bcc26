r"""Grad-CAM of single slices without a backward pass through the CNN.

Axes: ``z`` units of the exam (slices, or windows of them), ``k`` the few slices asked for, ``d``
features, which are the channels of the last feature map A, ``h w`` its grid, ``t h w`` a window's.

Stage 2 sees a slice only through its embedding x̂_kd, the mean of A_kd over the grid. So for any
score S of stage 2 the derivative by every cell of A_kd is the same, (∂S/∂x̂_kd) / (h·w), and that
is also its mean over the grid: the channel's weight of Grad-CAM (Selvaraju et al. 2017)::

    map_k = relu( Σ_d (∂S/∂x̂_kd) / (h·w) · A_kd )

It is exact, and works with any runtime that returns the last feature map. The gradient runs on the
CPU: cuDNN's LSTM has no backward in evaluation mode.

**Windows.** A 3-D encoder's mean goes over t·h·w cells, so that the divisor is t·h·w; the map of
slice k is read off the map of the window that shows it most centrally, by linear interpolation
between the two cells along t that look nearest to it, after the rectification.

**A map that is flattened** (the plain CNN) has no mean: there the derivative goes on through the
small dense layer, from x̂_k back to A_k by autograd, and is averaged over the grid as published.
The convolutions before are not passed.

**Which score.** For slice k the score is u_k, that slice's own logit of PE as it is served: its
image logit plus the exam's evidence, so the map answers "where on this slice does PE on this slice
come from". The exam's G = max u_k would be the argument of one slice only, and say of the others
how they help that one; `Score.EXAM` gives it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_triage.infer.faults import device_faults
from pe_triage.infer.runtime import stage_two
from pe_triage.model.encoders import Encoder
from pe_triage.model.labels import pe_logits
from pe_triage.model.network import ExamNetwork
from pe_triage.model.outputs import to_slices
from pe_triage.model.units import UnitPlan


class Score(StrEnum):
    """What is explained."""

    SLICE = "slice"
    """Each slice's own logit of PE, u_k."""
    EXAM = "exam"
    """The exam's logit of PE, G = max u_k."""


def channel_gradients(
    network: ExamNetwork,
    feat_zd: Tensor,
    slices: Sequence[int],
    score: Score = Score.SLICE,
    plan: UnitPlan | None = None,
) -> Tensor:
    """Return ∂S_k/∂x̂ of the unit that shows slice k, shape (k, d), for the slices asked for.

    Parameters
    ----------
    network
        In evaluation mode, with its stage 2 on the CPU.
    feat_zd
        Embeddings of all units of the exam, on the CPU.
    plan
        How units and slices belong together; None where units are the slices.
    """
    # One copy of the exam for each slice asked for: a single backward pass then serves them all.
    # A pass for each would be as many times as slow, since the LSTM's steps are tiny.
    feat_kzd = feat_zd.detach()[None].repeat(len(slices), 1, 1).requires_grad_(True)
    rows = torch.arange(len(slices))
    with stage_two(), torch.enable_grad():
        logits = network.exam_logits(feat_kzd)
        image_kz = logits.image_bz if plan is None else to_slices(logits.image_bz, plan)
        u_kz = pe_logits(image_kz, logits.exam_bl)
        scores_k = u_kz.amax(dim=1) if score is Score.EXAM else u_kz[rows, list(slices)]
        (gradient_kzd,) = torch.autograd.grad(scores_k.sum(), feat_kzd)
    units = list(slices) if plan is None else [plan.place_of(z)[0] for z in slices]
    return gradient_kzd[rows, units]


def combine(gradient_kd: Tensor, maps: Tensor, encoder: Encoder | None = None) -> Tensor:
    """Return the raw maps: rectified sums of channels, weighted by their gradients.

    Parameters
    ----------
    maps
        (k, d, h, w) or (k, d, t, h, w).
    encoder
        Where it does not pool, the gradient goes back through its `embed_maps`; None: it pools.

    Returns
    -------
    Tensor
        (k, h, w) or (k, t, h, w).
    """
    if encoder is None or encoder.is_pooled:
        weight_kc = gradient_kd / maps[0, 0].numel()
    else:
        device = next(encoder.parameters()).device
        with torch.enable_grad():
            leaf = maps.detach().to(device).requires_grad_(True)
            embedding = encoder.embed_maps(leaf)
            (gradient,) = torch.autograd.grad(embedding, leaf, gradient_kd.to(embedding))
        weight_kc = gradient.mean(dim=tuple(range(2, maps.dim()))).to(maps)
    return torch.relu(torch.einsum("kd,kd...->k...", weight_kc, maps))


def normalise(maps_khw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each map by its own maximum to [0, 1]; a map without anything stays zeros."""
    top = maps_khw.max(axis=(1, 2), keepdims=True)
    # A subnormal maximum would divide to infinity; there is nothing to show in it anyway.
    scale = np.where(top > np.finfo(np.float32).tiny, top, np.float32(np.inf))
    return np.clip(maps_khw / scale, 0.0, 1.0).astype(np.float32)


def at_planes(raw_kthw: Tensor, position_k: Sequence[float], encoder: Encoder) -> Tensor:
    """Read windows' maps at one plane each, (k, h, w), by linear interpolation along t.

    Parameters
    ----------
    position_k
        The plane within the window, in slices from its start.
    """
    t = raw_kthw.shape[1]
    cell_k = (torch.tensor(position_k, dtype=raw_kthw.dtype) - encoder.grid.origin_t) / (
        encoder.grid.step_t
    )
    cell_k = cell_k.clamp(0, t - 1)
    weight_kt = (1 - (cell_k[:, None] - torch.arange(t)).abs()).clamp(min=0)
    return torch.einsum("kt,kthw->khw", weight_kt.to(raw_kthw), raw_kthw)


@device_faults()
def gradcam(
    network: ExamNetwork,
    feat_zd: NDArray[np.float32],
    maps: NDArray[np.float32],
    slices: Sequence[int],
    score: Score = Score.SLICE,
    plan: UnitPlan | None = None,
) -> NDArray[np.float32]:
    """Return Grad-CAM of `slices` in [0, 1], float32 (k, h, w).

    Parameters
    ----------
    feat_zd
        Embeddings of the whole exam.
    maps
        Last feature maps of the units that show `slices`, in the same order: (k, d, h, w) or
        (k, d, t, h, w).
    plan
        How units and slices belong together; None where units are the slices.
    """
    feat = torch.from_numpy(feat_zd.copy())
    gradient_kd = channel_gradients(network, feat, slices, score, plan)
    raw = combine(gradient_kd, torch.from_numpy(maps), network.encoder)
    if raw.dim() == 4:
        if plan is None:
            raise ValueError("maps of windows need the plan of their units")
        raw = at_planes(raw, [plan.place_of(z)[1] for z in slices], network.encoder)
    return normalise(raw.detach().numpy())
