"""From cached Hounsfield units to what an encoder takes, on the device where training runs.

The counterpart, on tensors, of `model.inputs.unit_images`, which serves; a test holds the two
together.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_triage.model.network import ExamNetwork
from pe_triage.model.spec import ModelSpec
from pe_triage.model.units import UnitPlan
from pe_triage.training.cache import CachedExam

BEYOND_HU: Final = -32768
"""Fills a window of planes beyond the head: every window of Hounsfield units makes zero of it."""


def planes_of(spec: ModelSpec, plan: UnitPlan) -> NDArray[np.int64]:
    """Planes that each unit is made of, (units, planes of a unit); -1 beyond the head.

    A unit of one slice has its neighbours too; beyond the ends the last plane is repeated.
    """
    if spec.encoder == "window":
        rows: NDArray[np.int64] = plan.start_u[:, None] + np.arange(plan.length)
        return np.where(rows < plan.planes, rows, -1)
    half = spec.planes // 2
    at: NDArray[np.int64] = np.clip(
        plan.start_u[:, None] + np.arange(-half, half + 1), 0, plan.planes - 1
    )
    return at


def truth_of_units(
    spec: ModelSpec, plan: UnitPlan, image_pe_z: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return the image label of each unit's outputs, (units, outputs of a unit)."""
    truth: NDArray[np.float32] = plan.truth_of_outputs(image_pe_z).astype(np.float32)
    return truth.reshape(plan.units, spec.outputs_per_unit)


def read_units(exam: CachedExam, planes_np: NDArray[np.int64]) -> NDArray[np.int16]:
    """Read units (n, planes, rows, columns), each plane once."""
    needed, back = np.unique(planes_np[planes_np >= 0], return_inverse=True)
    hu_pyx = exam.read_at(needed.tolist())
    out = np.full((*planes_np.shape, *hu_pyx.shape[1:]), BEYOND_HU, dtype=np.int16)
    out[planes_np >= 0] = hu_pyx[back]
    return out


def windowed(spec: ModelSpec, hu_npyx: Tensor) -> Tensor:
    """Apply the spec's windows to units of Hounsfield units; float32 in [0, 1].

    Returns
    -------
    Tensor
        (n, windows * planes, rows, columns), windows first; or, for an encoder of windows of
        slices, (n, windows, slices, rows, columns).
    """
    channels = torch.stack(
        [
            ((hu_npyx - (level - width / 2)) * (1 / width)).clamp(0, 1)
            for level, width in spec.windows
        ],
        dim=1,
    )
    return channels if spec.encoder == "window" else channels.flatten(1, 2)


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
        Planes that one pass takes, neighbours counted.
    """
    spec = network.spec
    planes_up = planes_of(spec, exam.plan(spec))
    step = max(1, planes // planes_up.shape[1])
    parts = []
    for start in range(0, len(planes_up), step):
        hu = torch.from_numpy(read_units(exam, planes_up[start : start + step]))
        images = windowed(spec, hu.to(device).float())
        parts.append(network.encoder(images).float().cpu())
    return torch.cat(parts)
