"""From cached Hounsfield units to what an encoder takes, on the device where training runs.

The counterpart, on tensors, of what serving does on arrays with `imaging.windows`; a test holds the
two together.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_triage.model.network import ExamNetwork
from pe_triage.model.spec import ModelSpec
from pe_triage.training.cache import CachedExam


def units_of(spec: ModelSpec, slices: int) -> NDArray[np.int64]:
    """Slices that each unit of an exam is made of.

    Returns
    -------
    ndarray
        (units, planes), foot to head. For an encoder of slices one unit for each slice, with its
        neighbours; beyond the ends the last slice is repeated. For one of windows a window every
        `window_step` slices from the foot, the last one moved back so that it ends at the head.
    """
    if spec.encoder == "window":
        length = spec.window_slices
        last = max(0, slices - length)
        starts = [*range(0, last, spec.window_step), last]
        rows = np.array(starts, dtype=np.int64)[:, None] + np.arange(length)
    else:
        reach = spec.planes // 2
        rows = np.arange(slices, dtype=np.int64)[:, None] + np.arange(-reach, reach + 1)
    units_up: NDArray[np.int64] = np.clip(rows, 0, slices - 1)
    return units_up


def unit_truth(
    spec: ModelSpec, image_pe_z: NDArray[np.uint8], units_up: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the image label of each output, (units, outputs): a window has PE if a slice has."""
    if spec.encoder != "window":
        truth = image_pe_z[units_up[:, units_up.shape[1] // 2]][:, None]
    elif spec.image_outputs == "slices":
        truth = image_pe_z[units_up]
    else:
        truth = image_pe_z[units_up].max(axis=1, keepdims=True)
    labels: NDArray[np.float32] = truth.astype(np.float32)
    return labels


def windowed(spec: ModelSpec, hu_npyx: Tensor) -> Tensor:
    """Apply the spec's windows to units of Hounsfield units; float32 in [0, 1].

    Returns
    -------
    Tensor
        (n, planes × windows, rows, columns), planes first; or, for an encoder of windows of
        slices, (n, windows, slices, rows, columns).
    """
    channels = [
        ((hu_npyx - (level - width / 2)) * (1 / width)).clamp(0, 1) for level, width in spec.windows
    ]
    if spec.encoder == "window":
        return torch.stack(channels, dim=1)
    return torch.stack(channels, dim=2).flatten(1, 2)


@torch.inference_mode()
def embed_exam(
    network: ExamNetwork, exam: CachedExam, device: torch.device, *, planes: int = 64
) -> Tensor:
    """Stage 1 of one exam without augmentation: float32 (units, d) on the CPU.

    Parameters
    ----------
    network
        In evaluation mode.
    planes
        Slices that one pass takes, neighbours counted.
    """
    hu_zyx = exam.read()
    units_up = units_of(network.spec, exam.slices)
    step = max(1, planes // units_up.shape[1])
    parts = []
    for start in range(0, len(units_up), step):
        hu = torch.from_numpy(hu_zyx[units_up[start : start + step]]).to(device).float()
        parts.append(network.encoder(windowed(network.spec, hu)).float().cpu())
    return torch.cat(parts)
