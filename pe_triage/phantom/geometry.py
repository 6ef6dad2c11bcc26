"""Sampling grid and implicit shapes with analytic partial volume.

Axes are ``zyx``: z foot to head, y front to back, x the patient's right to left; all coordinates
are millimetres in the patient system LPS (PS3.3 C.7.6.2.1.1), so a point is ``(x, y, z)``.

A shape is an implicit function f, negative inside. A voxel's share of the shape is, to first order,
``0.5 - f / (|df/dx| dx + |df/dy| dy + |df/dz| dz)`` clipped to 0…1: exact for a plane through a
box, and it makes thick slices blur oblique surfaces as they do in a scanner, without supersampling.

The voxel path uses only +, -, *, / and square roots element by element. IEEE 754 fixes those to the
last bit, so a seed gives the same voxels on any machine, whatever vector units numpy finds there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_triage.errors import InputError

Float = NDArray[np.floating[Any]]
"""Voxel values; float32 throughout."""
Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]

MAX_SIZE = 1024
MAX_SLICES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where the voxels lie, and how wide an edge appears.

    ``x0_mm, y0_mm, z0_mm`` is the centre of the voxel at index 0, 0, 0; ``edge_mm`` the in-plane
    width of a sharp edge, which holds the pixel and the blur of a soft kernel.
    """

    size: int
    n_slices: int
    pixel_mm: float
    slice_spacing_mm: float
    slice_thickness_mm: float
    x0_mm: float
    y0_mm: float
    z0_mm: float
    edge_mm: float

    @staticmethod
    def of(
        *,
        size: int,
        field_of_view_mm: float,
        coverage_mm: tuple[float, float],
        slice_spacing_mm: float,
        slice_thickness_mm: float,
        kernel_blur_mm: float,
    ) -> Grid:
        """Build the grid that covers ``coverage_mm`` (foot, head) and a centred field of view.

        Raises
        ------
        InputError
            A size, spacing, thickness or coverage that cannot be sampled.
        """
        if not 32 <= size <= MAX_SIZE:
            raise InputError(f"size must be 32 to {MAX_SIZE} pixels, not {size}")
        if not 0.3 <= slice_spacing_mm <= 100 or not 0.3 <= slice_thickness_mm <= 100:
            raise InputError("slice spacing and thickness must be 0.3 to 100 mm")
        foot_mm, head_mm = coverage_mm
        n_slices = int((head_mm - foot_mm) / slice_spacing_mm + 1e-6)
        if not 1 <= n_slices <= MAX_SLICES:
            raise InputError(f"coverage must give 1 to {MAX_SLICES} slices, not {n_slices}")
        pixel_mm = round(field_of_view_mm / size, 6)
        first = -pixel_mm * (size - 1) / 2
        return Grid(
            size=size,
            n_slices=n_slices,
            pixel_mm=pixel_mm,
            slice_spacing_mm=slice_spacing_mm,
            slice_thickness_mm=slice_thickness_mm,
            x0_mm=first,
            y0_mm=first,
            z0_mm=foot_mm + slice_spacing_mm / 2,
            edge_mm=float((pixel_mm**2 + kernel_blur_mm**2) ** 0.5),
        )

    def slab(self, first: int, last: int) -> Slab:
        """Return the slices ``first <= index < last``."""
        index = np.arange(self.size, dtype=np.float64) * self.pixel_mm
        z = self.z0_mm + np.arange(first, last, dtype=np.float64) * self.slice_spacing_mm
        return Slab(
            first=first,
            x_mm=(self.x0_mm + index).astype(np.float32),
            y_mm=(self.y0_mm + index).astype(np.float32),
            z_mm=z.astype(np.float32),
            pixel_mm=self.pixel_mm,
            spacing_mm=self.slice_spacing_mm,
            thickness_mm=self.slice_thickness_mm,
            edge_mm=self.edge_mm,
        )

    def slabs(self, voxels: int = 1 << 20) -> Iterator[Slab]:
        """Cut the grid into slabs of at most about ``voxels`` voxels, foot to head."""
        step = max(1, voxels // (self.size * self.size))
        for first in range(0, self.n_slices, step):
            yield self.slab(first, min(first + step, self.n_slices))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Some consecutive slices of a grid: voxel centres along each axis, in mm."""

    first: int
    x_mm: Float
    y_mm: Float
    z_mm: Float
    pixel_mm: float
    spacing_mm: float
    thickness_mm: float
    edge_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of slices, rows, columns."""
        return len(self.z_mm), len(self.y_mm), len(self.x_mm)

    def box(self, low: Point, high: Point) -> Box | None:
        """Return the index box that holds ``low…high`` with a rim for soft edges, or None."""
        found: list[slice] = []
        for axis_mm, step, rim, lo, hi in (
            (self.z_mm, self.spacing_mm, self.thickness_mm, low[2], high[2]),
            (self.y_mm, self.pixel_mm, self.edge_mm, low[1], high[1]),
            (self.x_mm, self.pixel_mm, self.edge_mm, low[0], high[0]),
        ):
            start = int(np.floor((lo - rim - float(axis_mm[0])) / step))
            stop = int(np.ceil((hi + rim - float(axis_mm[0])) / step)) + 1
            start, stop = max(start, 0), min(stop, len(axis_mm))
            if start >= stop:
                return None
            found.append(slice(start, stop))
        return found[0], found[1], found[2]

    def axes(self, box: Box) -> tuple[Float, Float, Float]:
        """Return x, y, z of a box, each shaped to broadcast to ``zyx``."""
        z, y, x = box
        return (
            self.x_mm[None, None, x],
            self.y_mm[None, :, None][:, y],
            self.z_mm[z, None, None],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capsule:
    """A tapered tube with round ends from ``start`` to ``end``; radii in mm."""

    start: Point
    end: Point
    start_radius_mm: float
    end_radius_mm: float

    def bounds(self) -> tuple[Point, Point]:
        """Return the lowest and highest corner."""
        ends = ((self.start, self.start_radius_mm), (self.end, self.end_radius_mm))
        low = [min(p[i] - r for p, r in ends) for i in range(3)]
        high = [max(p[i] + r for p, r in ends) for i in range(3)]
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def coverage(self, slab: Slab) -> tuple[Box, Float] | None:
        """Return the box touched in ``slab`` and each of its voxels' share, 0…1; None if none."""
        box = slab.box(*self.bounds())
        if box is None:
            return None
        x, y, z = slab.axes(box)
        dx, dy, dz = x - self.start[0], y - self.start[1], z - self.start[2]
        ux, uy, uz = (self.end[i] - self.start[i] for i in range(3))
        length2 = ux * ux + uy * uy + uz * uz
        if length2 > 0:
            t = (dx * (ux / length2) + dy * (uy / length2)) + dz * (uz / length2)
            np.clip(t, 0.0, 1.0, out=t)
            dx, dy, dz = dx - t * ux, dy - t * uy, dz - t * uz
            radius = self.start_radius_mm + t * (self.end_radius_mm - self.start_radius_mm)
        else:
            radius = np.float32(self.start_radius_mm)
        distance = np.sqrt(dx * dx + dy * dy + dz * dz) + np.float32(1e-3)
        width = (np.abs(dx) + np.abs(dy)) * slab.edge_mm + np.abs(dz) * slab.thickness_mm
        width = width / distance + np.float32(0.3 * slab.edge_mm)
        share = np.clip((radius - distance) / width + 0.5, 0.0, 1.0)
        return box, share.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipsoid:
    """An ellipsoid: centre, three orthonormal axes as rows, and its semi-axes in mm."""

    centre: Point
    axes: tuple[Point, Point, Point]
    semi_mm: Point

    def bounds(self) -> tuple[Point, Point]:
        """Return the lowest and highest corner."""
        half = [
            sum((a[i] * s) ** 2 for a, s in zip(self.axes, self.semi_mm, strict=True)) ** 0.5
            for i in range(3)
        ]
        low = [c - h for c, h in zip(self.centre, half, strict=True)]
        high = [c + h for c, h in zip(self.centre, half, strict=True)]
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def contains(self, point: Point) -> bool:
        """Say whether ``point`` lies inside."""
        d = [p - c for p, c in zip(point, self.centre, strict=True)]
        f = 0.0
        for axis, semi in zip(self.axes, self.semi_mm, strict=True):
            f += (sum(a * v for a, v in zip(axis, d, strict=True)) / semi) ** 2
        return f < 1

    def coverage(self, slab: Slab) -> tuple[Box, Float] | None:
        """Return the box touched in ``slab`` and each of its voxels' share, 0…1; None if none."""
        box = slab.box(*self.bounds())
        if box is None:
            return None
        x, y, z = slab.axes(box)
        dx, dy, dz = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        u = [
            ((dx * (a[0] / s) + dy * (a[1] / s)) + dz * (a[2] / s)).astype(np.float32)
            for a, s in zip(self.axes, self.semi_mm, strict=True)
        ]
        f = np.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2]) + np.float32(1e-3)
        width = np.zeros_like(f)
        for i, step in enumerate((slab.edge_mm, slab.edge_mm, slab.thickness_mm)):
            slope = np.zeros_like(f)
            for k in range(3):
                slope += u[k] * np.float32(self.axes[k][i] / self.semi_mm[k])
            width += np.abs(slope) * np.float32(step)
        share = np.clip(0.5 - (f - 1) * f / (width + np.float32(1e-6)), 0.0, 1.0)
        return box, share.astype(np.float32, copy=False)


Shape = Capsule | Ellipsoid


def soft(f_mm: Float, width_mm: float | Float) -> Float:
    """Return the share 0…1 of voxels whose signed distance to an edge of a width is given."""
    share: Float = np.clip(0.5 - f_mm / width_mm, 0.0, 1.0)
    return share
