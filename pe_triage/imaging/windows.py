"""Preprocessing that training and serving share: windows of Hounsfield units at the network's size.

Resampling happens in Hounsfield units, before windowing, because a mean of saturated values is not
the saturated mean. One method serves all sizes: each output pixel is the mean of the source over
its footprint (area resampling); for 512 to 256 that is the exact mean of 2 x 2 pixels. When
enlarging, where a footprint is smaller than a pixel, it is linear interpolation between pixel
centres.

A slice that is not square is padded with air to a square around its centre; nothing is cropped, so
the network sees the whole reconstructed field of view whatever the body's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

PADDING_HU = -1024.0
SLAB = 32
"""Slices resampled at a time: bounds the float copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A linear window: `level_hu` ± half of `width_hu` becomes 0 to 1 (PS3.3 C.11.2.1.2.1)."""

    level_hu: float
    width_hu: float

    def apply(
        self, hu: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Map Hounsfield units to [0, 1], float32, of the same shape; into `out` where given."""
        shifted = np.subtract(hu, np.float32(self.level_hu - self.width_hu / 2), out=out)
        shifted *= np.float32(1 / self.width_hu)
        np.clip(shifted, 0.0, 1.0, out=shifted)
        return shifted


LUNG = Window(level_hu=-600, width_hu=1500)
PE = Window(level_hu=100, width_hu=700)
MEDIASTINAL = Window(level_hu=40, width_hu=400)
RSPECT_WINDOWS = (LUNG, PE, MEDIASTINAL)
"""The three windows in the order of the network's channels."""


def window_channels(
    hu_zyx: NDArray[np.int16], windows: Sequence[Window], size: int
) -> NDArray[np.float32]:
    """Slices as the network sees them.

    Parameters
    ----------
    hu_zyx
        (slices, rows, columns) Hounsfield units; any part of a volume gives the same answer for
        its slices as the whole.
    windows
        One for each channel.
    size
        Side of the output in pixels.

    Returns
    -------
    ndarray
        float32 (slices, channels, size, size) in [0, 1].

    Raises
    ------
    ValueError
        Not three axes, or nothing in them.
    """
    if hu_zyx.ndim != 3 or 0 in hu_zyx.shape or size < 1:
        raise ValueError(f"expected slices, rows and columns, got shape {hu_zyx.shape}")
    out = np.empty((hu_zyx.shape[0], len(windows), size, size), dtype=np.float32)
    for first in range(0, hu_zyx.shape[0], SLAB):
        resized = resize_slices(hu_zyx[first : first + SLAB], size)
        for channel, window in enumerate(windows):
            window.apply(resized, out=out[first : first + SLAB, channel])
    return out


def square_offset_yx(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of air that stand before the slice in its square."""
    side = max(rows, columns)
    return (side - rows) // 2, (side - columns) // 2


def resize_slices(hu_zyx: NDArray[np.int16], size: int) -> NDArray[np.float32]:
    """Pad to a square and resample to (slices, size, size), float32 Hounsfield units."""
    slices, rows, columns = hu_zyx.shape
    side = max(rows, columns)
    if rows != columns:
        square = np.full((slices, side, side), PADDING_HU, dtype=hu_zyx.dtype)
        top, left = square_offset_yx(rows, columns)
        square[:, top : top + rows, left : left + columns] = hu_zyx
        hu_zyx = square
    if side == size:
        return hu_zyx.astype(np.float32)
    factor, rest = divmod(side, size)
    if rest == 0:
        return _block_mean(hu_zyx, factor)
    resampler = _resampler(side, size)
    resized = np.empty((slices, size, size), dtype=np.float32)
    for hu_yx, out_yx in zip(hu_zyx, resized, strict=True):
        by_rows = resampler @ hu_yx.astype(np.float32)
        out_yx[:] = (resampler @ np.ascontiguousarray(by_rows.T)).T
    return resized


@cache
def _resampler(source: int, target: int) -> Any:
    """`resampling_weights` as a sparse matrix: an output pixel is made of two or three of them.

    A dense product is a hundred times the work, and on all cores: BLAS brings threads of its own.
    Where 512 becomes a multiple of 32, all products and sums are exact, so both give the same bits.
    """
    return csr_array(resampling_weights(source, target))


def _block_mean(hu_zyx: NDArray[np.int16], factor: int) -> NDArray[np.float32]:
    """Exact mean of factor x factor pixels; sums of int16 stay exact in int32."""
    rows = hu_zyx[:, ::factor, :].astype(np.int32)
    for k in range(1, factor):
        rows += hu_zyx[:, k::factor, :]
    total = rows[:, :, ::factor].copy()
    for k in range(1, factor):
        total += rows[:, :, k::factor]
    mean: NDArray[np.float32] = total.astype(np.float32)
    mean *= np.float32(1 / (factor * factor))
    return mean


def resampling_weights(source: int, target: int) -> NDArray[np.float32]:
    """Matrix (target, source) that resamples one axis; each row sums to 1."""
    scale = source / target
    if scale >= 1:
        edges = np.arange(target + 1) * scale
        low = np.maximum(edges[:-1, None], np.arange(source))
        high = np.minimum(edges[1:, None], np.arange(1, source + 1))
        weights = np.clip(high - low, 0.0, None)
    else:
        centres = np.clip((np.arange(target) + 0.5) * scale - 0.5, 0, source - 1)
        weights = np.clip(1 - np.abs(centres[:, None] - np.arange(source)), 0.0, None)
    normal: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normal
