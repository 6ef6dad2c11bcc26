r"""Grad-CAM of single slices without a backward pass through the CNN.

Axes: ``z`` slices of the exam, ``k`` the few slices asked for, ``d`` features, which are the
channels of the last feature map A, ``h w`` its grid.

Stage 2 sees a slice only through its embedding x̂_kd, the mean of A_kd over the grid. So for any
score S of stage 2 the derivative by every cell of A_kd is the same, (∂S/∂x̂_kd) / (h·w), and that
is also its mean over the grid: the channel's weight of Grad-CAM (Selvaraju et al. 2017)::

    map_k = relu( Σ_d (∂S/∂x̂_kd) / (h·w) · A_kd )

It is exact, and works with any runtime that returns the last feature map. The gradient runs on the
CPU: cuDNN's LSTM has no backward in evaluation mode.

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

from pe_triage.infer.runtime import stage_two
from pe_triage.model.labels import pe_logits
from pe_triage.model.network import ExamNetwork


class Score(StrEnum):
    """What is explained."""

    SLICE = "slice"
    """Each slice's own logit of PE, u_k."""
    EXAM = "exam"
    """The exam's logit of PE, G = max u_k."""


def channel_gradients(
    network: ExamNetwork, feat_zd: Tensor, slices: Sequence[int], score: Score = Score.SLICE
) -> Tensor:
    """Return ∂S_k/∂x̂_k, shape (k, d), for the slices asked for.

    Parameters
    ----------
    network
        In evaluation mode, with its stage 2 on the CPU.
    feat_zd
        Embeddings of all slices of the exam, on the CPU.
    """
    # One copy of the exam for each slice asked for: a single backward pass then serves them all.
    # A pass for each would be as many times as slow, since the LSTM's steps are tiny.
    feat_kzd = feat_zd.detach()[None].repeat(len(slices), 1, 1).requires_grad_(True)
    rows = torch.arange(len(slices))
    with stage_two(), torch.enable_grad():
        logits = network.exam_logits(feat_kzd)
        u_kz = pe_logits(logits.image_bz, logits.exam_bl)
        scores_k = u_kz.amax(dim=1) if score is Score.EXAM else u_kz[rows, list(slices)]
        (gradient_kzd,) = torch.autograd.grad(scores_k.sum(), feat_kzd)
    return gradient_kzd[rows, list(slices)]


def combine(gradient_kd: Tensor, maps_kdhw: Tensor) -> Tensor:
    """Return the raw maps (k, h, w): rectified sums of channels, weighted by their gradients."""
    h, w = maps_kdhw.shape[2:]
    return torch.relu(torch.einsum("kd,kdhw->khw", gradient_kd / (h * w), maps_kdhw))


def normalise(maps_khw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each map by its own maximum to [0, 1]; a map without anything stays zeros."""
    top = maps_khw.max(axis=(1, 2), keepdims=True)
    # A subnormal maximum would divide to infinity; there is nothing to show in it anyway.
    scale = np.where(top > np.finfo(np.float32).tiny, top, np.float32(np.inf))
    return np.clip(maps_khw / scale, 0.0, 1.0).astype(np.float32)


def gradcam(
    network: ExamNetwork,
    feat_zd: NDArray[np.float32],
    maps_kdhw: NDArray[np.float32],
    slices: Sequence[int],
    score: Score = Score.SLICE,
) -> NDArray[np.float32]:
    """Return Grad-CAM of `slices` in [0, 1], float32 (k, h, w).

    Parameters
    ----------
    feat_zd
        Embeddings of the whole exam.
    maps_kdhw
        Last feature maps of `slices`, in the same order.
    """
    gradient_kd = channel_gradients(network, torch.from_numpy(feat_zd.copy()), slices, score)
    raw = combine(gradient_kd, torch.from_numpy(maps_kdhw))
    return normalise(raw.numpy())
