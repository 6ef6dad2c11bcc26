"""The attention loss: the network's own map of the image label, pulled to the clot mask.

Axes: ``n`` slices, ``h w`` cells of the encoder's last feature map.

The map is the class-activation map of the image head on the last feature map (Zhou et al. 2016):
the head's logit at each cell. It needs no second backward pass and no threshold, and its mean over
the cells is the slice's logit. That last fact decides the form of the loss. A map pulled to 0 and
1 by cross entropy of each cell would have to be negative on nearly all cells of a slice with a
small clot, its mean with it, and the slice's own label would pull the other way. So the map is
compared as a distribution: what it says of where, and not of how much.

    a = softmax over the cells of the map, q = coverage of the cells by clot / its sum
    loss = KL(q ‖ a) / log(number of cells)

It is 0 where attention lies as the clot does, and 1 for an even map and a clot in one cell,
whatever the grid, so that its weight means the same for every encoder. It is unchanged when a
constant is added to the map.

Only slices that are labelled positive and hold clot by a mask take part. A slice of an empty mask
does not: the image label says the same already, and sparse annotations leave slices out. Nor does
a slice whose clot is too small for its label to say so.

Source of the idea: Shi L, et al. Automatic diagnosis of pulmonary embolism using an attention-
guided framework. MIDL 2020; the form there is not stated in the abstract, this one is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pe_triage.errors import InputError
from pe_triage.model.encoders import Grid
from pe_triage.model.network import ExamNetwork


def needs_cells(network: ExamNetwork) -> None:
    """Make sure that a network has a map of the image label over the cells of one slice.

    Raises
    ------
    InputError
        It looks at windows of slices, or its embedding is not the mean of its last map.
    """
    if network.spec.encoder == "window" or not network.encoder.is_pooled:
        raise InputError(
            f"spec {network.spec.name}: the attention loss needs an encoder of single slices with "
            "global average pooling"
        )


def clot_cells(share_nyx: Tensor, grid: Grid, cells_hw: Sequence[int]) -> Tensor:
    """Share of clot, by area, of the pixels that each cell is centred on.

    Parameters
    ----------
    share_nyx
        float32 (n, rows, columns), in [0, 1].
    grid
        Of the encoder: cell i stands for the `step` pixels around ``origin + i * step``; beyond
        the image there is no clot.
    cells_hw
        Rows and columns of cells.

    Returns
    -------
    Tensor
        (n, h, w).
    """
    step = round(grid.step)
    before = step // 2 - round(grid.origin)
    size_yx = share_nyx.shape[-2:]
    after_y, after_x = (
        count * step - before - size for count, size in zip(cells_hw, size_yx, strict=True)
    )
    framed = functional.pad(share_nyx, (before, after_x, before, after_y))
    return functional.avg_pool2d(framed[:, None], step)[:, 0]


def attention_loss(map_nhw: Tensor, cells_nhw: Tensor) -> Tensor:
    """Return each slice's loss (n,), 0 where its cells hold no clot.

    Parameters
    ----------
    map_nhw
        Logits of the image label by cell, float32; differentiable.
    cells_nhw
        Not negative; only their proportions count.
    """
    cells = cells_nhw.flatten(1)
    total = cells.sum(dim=1, keepdim=True)
    q = cells / total.clamp(min=torch.finfo(cells.dtype).tiny)
    log_a = functional.log_softmax(map_nhw.flatten(1), dim=1)
    # xlogy: 0 log 0 = 0. Slices without clot have q = 0 throughout, and so no gradient.
    divergence_n = (torch.xlogy(q, q) - q * log_a).sum(dim=1)
    return divergence_n / math.log(max(2, cells.shape[1]))
