"""Places on key slices, from the volume's voxels to the pixel grid of the source image.

In SCOORD the corner of the first pixel is (0, 0) and its centre (0.5, 0.5) (PS3.3 C.18.6.1.2),
while voxels are counted by their centres from 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import CtVolume, KeySlice

OUTLINE_SHARE = 0.5
"""An outline encloses what reaches this share of the heatmap's value at its peak."""

_DIRECTIONS = 32
_STEPS_PER_CELL = 8


def has_place(key: KeySlice) -> bool:
    """Whether the heatmap points anywhere: one of zeros does not."""
    return bool(key.heatmap_yx.any())


def strongest(keys: tuple[KeySlice, ...]) -> int | None:
    """Return the index of the key slice with a place that is worth most, or None without any."""
    placed = [i for i, key in enumerate(keys) if has_place(key)]
    return max(placed, key=lambda i: (keys[i].probability * keys[i].attention, -i), default=None)


def marks(keys: tuple[KeySlice, ...]) -> bool:
    """Whether a report of these key slices marks any place on an image."""
    return strongest(keys) is not None


def source_point(key: KeySlice, volume: CtVolume) -> tuple[float, float]:
    """Return the heatmap's peak as (column, row) in the pixel grid of the source image."""
    (point,) = to_source(np.array([_peak(key, volume)]), volume)
    return float(point[0]), float(point[1])


def source_outline(key: KeySlice, volume: CtVolume) -> NDArray[np.float64]:
    """Return a closed outline around the peak, (n, 2) of (column, row) in the source image.

    From the peak outwards in equal directions, to where the map first falls below
    `OUTLINE_SHARE` of its value at the peak or the slice ends: the part of the region that the
    peak sees, so it never crosses itself. The last vertex equals the first (PS3.3 C.18.6.1.2).
    """
    rows, columns = volume.hu_zyx.shape[1:]
    h, w = key.heatmap_yx.shape
    peak = _peak(key, volume)
    heat = np.nan_to_num(key.heatmap_yx.astype(np.float64))
    level = _sample(heat, peak, rows, columns) * OUTLINE_SHARE
    step = min(rows / h, columns / w) / _STEPS_PER_CELL
    reach = np.arange(1, math.ceil(math.hypot(rows, columns) / step) + 1) * step
    angles = np.arange(_DIRECTIONS) * (2 * math.pi / _DIRECTIONS)
    directions = np.array([(math.sin(angle), math.cos(angle)) for angle in angles])
    # For each direction, each step: row and column.
    rays = peak + reach[:, None] * directions[:, None, :]
    out = ((rays < -0.5) | (rays > (rows - 0.5, columns - 0.5))).any(axis=2)
    low = _sample(heat, rays, rows, columns) < level
    ends = rays[np.arange(_DIRECTIONS), np.argmax(out | low, axis=1)]
    vertices = np.clip(ends, -0.5, (rows - 0.5, columns - 0.5))
    outline = to_source(np.concatenate([vertices, vertices[:1]]), volume)
    return outline


def heat_in_source(key: KeySlice, volume: CtVolume) -> NDArray[np.float64]:
    """Return the heatmap at every pixel of the source image, shape (Rows, Columns), in [0, 1].

    Undoes what brought the source into anatomical order: the exchange of rows and columns came
    first there, so it is undone last.
    """
    rows, columns = volume.hu_zyx.shape[1:]
    at_yx = np.stack(
        np.meshgrid(np.arange(float(rows)), np.arange(float(columns)), indexing="ij"), axis=-1
    )
    heat_yx = _sample(np.nan_to_num(key.heatmap_yx.astype(np.float64)), at_yx, rows, columns)
    if volume.source_flip_yx[0]:
        heat_yx = heat_yx[::-1]
    if volume.source_flip_yx[1]:
        heat_yx = heat_yx[:, ::-1]
    if volume.source_transpose:
        heat_yx = heat_yx.T
    return np.ascontiguousarray(np.clip(heat_yx, 0.0, 1.0))


def to_source(points_yx: NDArray[np.float64], volume: CtVolume) -> NDArray[np.float64]:
    """Return points (n, 2) of (row, column) in the volume's slice as SCOORD's (column, row)."""
    rows, columns = volume.hu_zyx.shape[1:]
    row, column = points_yx[:, 0], points_yx[:, 1]
    if volume.source_flip_yx[0]:
        row = rows - 1 - row
    if volume.source_flip_yx[1]:
        column = columns - 1 - column
    if volume.source_transpose:
        # Decubitus acquisitions: the source's rows are the volume's columns.
        row, column = column, row
    return np.stack([column, row], axis=1) + 0.5


def _peak(key: KeySlice, volume: CtVolume) -> NDArray[np.float64]:
    rows, columns = volume.hu_zyx.shape[1:]
    return np.clip(np.array(key.peak_yx, dtype=np.float64), 0, (rows - 1, columns - 1))


def _sample(
    heat_yx: NDArray[np.float64], points_yx: NDArray[np.float64], rows: int, columns: int
) -> NDArray[np.float64]:
    """Interpolate linearly between the centres of the map's cells; beyond them it is flat."""
    h, w = heat_yx.shape
    y = np.clip((points_yx[..., 0] + 0.5) * h / rows - 0.5, 0, h - 1)
    x = np.clip((points_yx[..., 1] + 0.5) * w / columns - 0.5, 0, w - 1)
    y0, x0 = np.minimum(y.astype(int), h - 1), np.minimum(x.astype(int), w - 1)
    y1, x1 = np.minimum(y0 + 1, h - 1), np.minimum(x0 + 1, w - 1)
    fy, fx = y - y0, x - x0
    top = heat_yx[y0, x0] * (1 - fx) + heat_yx[y0, x1] * fx
    bottom = heat_yx[y1, x0] * (1 - fx) + heat_yx[y1, x1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy)
