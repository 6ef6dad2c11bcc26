"""Augmentation of Hounsfield units, on the device where training runs.

The numbers are drawn where the batch is made, by its own generator; pixels are moved and changed
here. Nothing is mirrored: left and right are labels, and the heart has a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

AIR_HU: Final = -1024.0
COLUMNS: Final = ("angle", "scale", "shift_y", "shift_x", "offset_hu", "gain", "noise_hu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far images are changed; every range is symmetric around no change.

    Attributes
    ----------
    angle_deg, scale, shift
        In-plane turn, relative zoom, and shift as a share of the image.
    offset_hu, gain
        Brightness, and contrast around 0 HU: scanners, kernels and tube voltages differ.
    noise_hu
        Standard deviation of white noise at most, drawn from 0 up.
    """

    angle_deg: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    offset_hu: float = 15.0
    gain: float = 0.05
    noise_hu: float = 25.0

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return (count, 7) numbers for `count` images, in the order of `COLUMNS`."""
        u = rng.uniform(-1, 1, (count, len(COLUMNS)))
        reach = np.array(
            [
                np.deg2rad(self.angle_deg),
                np.log1p(self.scale),
                2 * self.shift,
                2 * self.shift,
                self.offset_hu,
                np.log1p(self.gain),
                self.noise_hu,
            ]
        )
        drawn = u * reach
        drawn[:, [1, 5]] = np.exp(drawn[:, [1, 5]])
        drawn[:, 6] = np.abs(drawn[:, 6])
        numbers: NDArray[np.float32] = drawn.astype(np.float32)
        return numbers


def augment(hu_npyx: Tensor, numbers_n7: Tensor) -> Tensor:
    """Turn, zoom, shift, brighten and roughen images; planes of one unit alike.

    Parameters
    ----------
    hu_npyx
        float32 (units, planes, rows, columns) Hounsfield units.
    numbers_n7
        As drawn by `Augmentation.draw`. Noise comes from torch's generator.
    """
    moved = _moved(hu_npyx - AIR_HU, numbers_n7)
    *_, offset, gain, noise = numbers_n7.unbind(dim=1)
    each = (slice(None), None, None, None)
    changed = (moved + AIR_HU) * gain[each] + offset[each]
    return changed + torch.randn_like(changed) * noise[each]


def move_masks(share_nyx: Tensor, numbers_n7: Tensor) -> Tensor:
    """Turn, zoom and shift masks as `augment` does the images they belong to; nothing else.

    Parameters
    ----------
    share_nyx
        float32 (units, rows, columns); zero comes in from outside.
    numbers_n7
        Those given to `augment`.
    """
    return _moved(share_nyx[:, None], numbers_n7)[:, 0]


def _moved(image_npyx: Tensor, numbers_n7: Tensor) -> Tensor:
    angle, scale, shift_y, shift_x, *_ = numbers_n7.unbind(dim=1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack(
        [torch.stack([cos, -sin, shift_x], dim=1), torch.stack([sin, cos, shift_y], dim=1)], dim=1
    )
    grid = functional.affine_grid(theta, list(image_npyx.shape), align_corners=False)
    return functional.grid_sample(image_npyx, grid, padding_mode="zeros", align_corners=False)
