"""Many thin tubes at once: the union of capsules over a slab.

A lung holds some 2,300 vessel pieces, most of them a few voxels across, so that the time went into
calls and not into voxels. Here the boxes of many capsules are laid end to end in one flat array.
The arithmetic is that of `Capsule.coverage`, operation by operation, so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_triage.phantom.geometry import Capsule, Float, Slab

_CHUNK = 1 << 16
"""Voxels at once: small enough for the second-level cache."""
_ALONE = 4096
"""A capsule whose box is larger than this is drawn by itself: its calls no longer count."""

_Ints = NDArray[np.int64]


class CapsuleArray:
    """The numbers of many capsules as columns, made once per study."""

    def __init__(self, capsules: Sequence[Capsule]) -> None:
        self.capsules = tuple(capsules)
        table = np.array(
            [(*c.start, *c.end, c.start_radius_mm, c.end_radius_mm) for c in self.capsules],
            dtype=np.float64,
        ).reshape(len(self.capsules), 8)
        self.start, self.end, self.radii = table[:, :3], table[:, 3:6], table[:, 6:]
        low = np.minimum(self.start - self.radii[:, :1], self.end - self.radii[:, 1:])
        high = np.maximum(self.start + self.radii[:, :1], self.end + self.radii[:, 1:])
        self.low, self.high = low, high
        along = self.end - self.start
        length2 = along[:, 0] * along[:, 0] + along[:, 1] * along[:, 1] + along[:, 2] * along[:, 2]
        self.along = along
        self.solid = length2 > 0
        safe = np.where(self.solid, length2, 1.0)[:, None]
        self.columns = np.concatenate(
            [self.start, along / safe, along, self.radii[:, :1], np.diff(self.radii, axis=1)],
            axis=1,
        ).astype(np.float32)

    def boxes(self, slab: Slab) -> tuple[_Ints, _Ints]:
        """Return first index and extent of each capsule's box, ``nzyx``; extent 0: not met."""
        first, extent = [], []
        for axis, axis_mm, step, rim in (
            (2, slab.z_mm, slab.spacing_mm, slab.thickness_mm),
            (1, slab.y_mm, slab.pixel_mm, slab.edge_mm),
            (0, slab.x_mm, slab.pixel_mm, slab.edge_mm),
        ):
            origin = float(axis_mm[0])
            start = np.floor((self.low[:, axis] - rim - origin) / step).astype(np.int64)
            stop = np.ceil((self.high[:, axis] + rim - origin) / step).astype(np.int64) + 1
            start, stop = np.maximum(start, 0), np.minimum(stop, len(axis_mm))
            first.append(start)
            extent.append(np.maximum(stop - start, 0))
        return np.stack(first, axis=1), np.stack(extent, axis=1)


def unite(capsules: CapsuleArray, slab: Slab, target: Float) -> None:
    """Raise ``target`` (``zyx``, contiguous) to the largest share that any capsule has there."""
    if not capsules.capsules:
        return
    first, extent = capsules.boxes(slab)
    volume = extent.prod(axis=1)
    alone = (volume > _ALONE) | ((volume > 0) & ~capsules.solid)
    for i in np.flatnonzero(alone):
        found = capsules.capsules[i].coverage(slab)
        if found is not None:
            part = target[found[0]]
            np.maximum(part, found[1], out=part)
    few = np.flatnonzero((volume > 0) & ~alone)
    if not len(few):
        return
    flat = target.reshape(-1)
    ends = np.cumsum(volume[few])
    begin = 0
    while begin < len(few):
        done = int(ends[begin - 1]) if begin else 0
        stop = int(np.searchsorted(ends, done + _CHUNK, side="right"))
        stop = max(stop, begin + 1)
        _some(capsules, slab, flat, few[begin:stop], first, extent, volume)
        begin = stop


def _some(
    capsules: CapsuleArray, slab: Slab, flat: Float, which: NDArray[Any], first: _Ints,
    extent: _Ints, volume: _Ints,
) -> None:  # fmt: skip
    counts = volume[which]
    owner = np.repeat(np.arange(len(which)), counts)
    offset = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    wide, deep = extent[which, 2][owner], extent[which, 1][owner]
    rows = offset // wide
    kx = offset - rows * wide + first[which, 2][owner]
    layers = rows // deep
    ky = rows - layers * deep + first[which, 1][owner]
    kz = layers + first[which, 0][owner]
    c = capsules.columns[which].T[:, owner]
    dx, dy, dz = slab.x_mm[kx] - c[0], slab.y_mm[ky] - c[1], slab.z_mm[kz] - c[2]
    t = (dx * c[3] + dy * c[4]) + dz * c[5]
    np.clip(t, 0.0, 1.0, out=t)
    dx, dy, dz = dx - t * c[6], dy - t * c[7], dz - t * c[8]
    radius = c[9] + t * c[10]
    distance = np.sqrt(dx * dx + dy * dy + dz * dz) + np.float32(1e-3)
    width = (np.abs(dx) + np.abs(dy)) * slab.edge_mm + np.abs(dz) * slab.thickness_mm
    width = width / distance + np.float32(0.3 * slab.edge_mm)
    share = np.clip((radius - distance) / width + 0.5, 0.0, 1.0)
    _, height, breadth = slab.shape
    index = (kz * height + ky) * breadth + kx
    touched = np.flatnonzero(share > 0)
    np.maximum.at(flat, index[touched], share[touched])
