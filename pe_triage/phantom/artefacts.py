"""What the scanner and the flow of blood add: noise by kernel, streaks, unmixed blood, motion.

As in `geometry`, only +, -, *, / and square roots touch voxels, so a seed gives the same bits
anywhere; angles are therefore drawn as unit vectors and bells are rational functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from pe_triage.phantom.effects import Breath, Kernel
from pe_triage.phantom.geometry import Float, Point, Slab

_REFERENCE_THICKNESS_MM = 2.0
_REFERENCE_PIXEL_MM = 0.7
_RAYS = 14
_RAY_STEP_MM = 4.0


def noise_level_hu(noise_hu: float, kernel: Kernel, fat_factor: float, slab_mm: float,
                   pixel_mm: float) -> float:  # fmt: skip
    """Return the standard deviation in the middle of the body, HU.

    ``noise_hu`` is stated for 2 mm slices of 0.7 mm pixels, a medium kernel and an average body.
    Noise falls with the root of the thickness, and a pixel wider than the grain averages it.
    """
    grain2 = kernel.grain_mm * kernel.grain_mm

    def averaged(pixel: float) -> float:
        return float((grain2 / (grain2 + pixel * pixel / 12)) ** 0.5)

    thickness = (_REFERENCE_THICKNESS_MM / max(0.5, slab_mm)) ** 0.5
    pixels = averaged(pixel_mm) / averaged(_REFERENCE_PIXEL_MM)
    return float(noise_hu * kernel.noise_factor * fat_factor * thickness * pixels)


def grain_weights(kernel: Kernel, pixel_mm: float) -> list[float]:
    """Return a smearing kernel along one axis, sum of squares 1: a rational bell."""
    width = kernel.grain_mm / pixel_mm
    reach = min(5, max(1, int(2.2 * width + 0.5)))
    raw = [
        1.0 / (1.0 + (d / width) ** 2 + 0.8 * (d / width) ** 4) for d in range(-reach, reach + 1)
    ]
    norm = sum(w * w for w in raw) ** 0.5
    return [w / norm for w in raw]


def noise(rng: np.random.Generator, slab: Slab, kernel: Kernel, level_hu: float) -> Float:
    """Draw noise with the kernel's grain, strongest in the middle of the body."""
    grain = rng.standard_normal(slab.shape, dtype=np.float32)
    weights = grain_weights(kernel, slab.pixel_mm)
    for axis in (1, 2):
        grain = correlate1d(grain, weights, axis=axis, mode="nearest")
    rows = slab.y_mm[:, None] / np.float32(125.0)
    columns = slab.x_mm[None, :] / np.float32(170.0)
    level = np.clip(1.15 - 0.8 * (rows * rows + columns * columns), 0.35, None)
    # Shoulders absorb more than the chest: noise grows towards the head end, and along x.
    shoulders = np.clip((slab.z_mm - 40.0) / 60.0, 0, 1)[:, None, None] * np.float32(0.35) + 1
    grain *= (level * np.float32(level_hu)).astype(np.float32)
    grain *= shoulders.astype(np.float32)
    return grain


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Streaks:
    """Beam hardening around the superior vena cava: dark and bright rays that change with z."""

    axis: tuple[Point, ...]
    """The vein's centre line, foot to head, scanner's frame."""
    hu: float
    rays: Float
    """``(step, ray, 3)``: direction x, y and strength -1…1."""

    @staticmethod
    def draw(rng: np.random.Generator, axis: tuple[Point, ...], hu: float) -> Streaks:
        """Draw rays for each 4 mm of the vein's length."""
        steps = int((axis[-1][2] - axis[0][2]) / _RAY_STEP_MM) + 1
        rays = rng.standard_normal((steps, _RAYS, 3))
        length = np.sqrt(rays[..., :1] ** 2 + rays[..., 1:2] ** 2) + 1e-6
        strength = np.clip(rays[..., 2:] * 0.8 - 0.2, -1.3, 1.0)
        rays = np.concatenate([rays[..., :2] / length, strength], axis=-1).astype(np.float32)
        return Streaks(axis=axis, hu=hu, rays=rays)

    def centre(self, z_mm: float) -> tuple[float, float] | None:
        """Return the vein's centre at a height, or None beyond its ends."""
        for a, b in zip(self.axis, self.axis[1:], strict=False):
            if a[2] <= z_mm <= b[2]:
                t = (z_mm - a[2]) / (b[2] - a[2])
                return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t
        return None

    def add(self, hu: Float, slab: Slab) -> None:
        """Add the rays to ``hu`` in place."""
        for k, z in enumerate(slab.z_mm):
            centre = self.centre(float(z))
            if centre is None:
                continue
            rows = np.flatnonzero(np.abs(slab.y_mm - centre[1]) < 85)
            columns = np.flatnonzero(np.abs(slab.x_mm - centre[0]) < 85)
            if not len(rows) or not len(columns):
                continue
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            dx = slab.x_mm[None, None, box[1]] - np.float32(centre[0])
            dy = slab.y_mm[None, box[0], None] - np.float32(centre[1])
            step = min(len(self.rays) - 1, int((float(z) - self.axis[0][2]) / _RAY_STEP_MM))
            ux, uy, strength = (self.rays[step, :, i, None, None] for i in range(3))
            along = dx * ux + dy * uy
            across = np.abs(dx * uy - dy * ux)
            width = np.float32(0.5 * slab.edge_mm + 1.2) + np.float32(0.07) * np.abs(along)
            ray = np.maximum(0, 1 - across / width) * np.clip(along / 9, 0, 1)
            far = np.clip(along / 32, 0, None)
            ray *= strength / (1 + far * far) * np.clip((85 - along) / 25, 0, 1)
            hu[k][box] += np.float32(self.hu) * ray.sum(axis=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Smoke:
    """Blood that has not mixed: a soft, uneven loss of contrast in part of an artery. No clot."""

    centre: Point
    radius_mm: float
    depth: float
    lattice: Float
    vessel_name: str
    side: str
    level: str

    @staticmethod
    def draw_lattice(rng: np.random.Generator) -> Float:
        """Draw the swirl's texture."""
        return rng.standard_normal((9, 9, 9), dtype=np.float32)

    def dim(self, value: Float, slab: Slab) -> None:
        """Lower ``value``, the attenuation of arterial blood ``zyx``, in place."""
        r = self.radius_mm
        low = (self.centre[0] - r, self.centre[1] - r, self.centre[2] - r)
        high = (self.centre[0] + r, self.centre[1] + r, self.centre[2] + r)
        box = slab.box(low, high)
        if box is None:
            return
        x, y, z = slab.axes(box)
        dx, dy, dz = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        bump = np.maximum(0, 1 - (dx * dx + dy * dy + dz * dz) / np.float32(r * r))
        field = self.lattice
        for axis, d in enumerate((dz, dy, dx)):
            field = _along(field, axis, (d.ravel() / np.float32(r) + 1) * np.float32(4.0))
        swirl = np.clip(np.float32(0.75) + np.float32(0.6) * field, 0, 1.25)
        part = value[box]
        lost = np.minimum(np.float32(1), bump * swirl * np.float32(1.4)) * np.float32(self.depth)
        part -= lost * np.maximum(part - np.float32(50.0), 0)


def _along(lattice: Float, axis: int, position: Float) -> Float:
    """Interpolate a lattice linearly along one axis at positions in cells."""
    last = lattice.shape[axis] - 2
    clipped = np.clip(position, 0, last + np.float32(0.999))
    index: NDArray[Any] = clipped.astype(np.intp)
    shape = [1, 1, 1]
    shape[axis] = len(index)
    part = (clipped - index.astype(np.float32)).astype(np.float32).reshape(shape)
    found: Float = np.take(lattice, index, axis=axis) * (1 - part)
    found += np.take(lattice, index + 1, axis=axis) * part
    return found


def interruption(z_mm: Float, at_mm: float, depth: float) -> Float:
    """Return the factor on arterial contrast at each height: a gap in the bolus 50 mm long."""
    away = (z_mm - np.float32(at_mm)) / np.float32(25.0)
    factor: Float = 1 - np.float32(depth) * np.maximum(0, 1 - away * away)
    return factor


def _moved(plane: Float, down: float, right: float) -> Float:
    """Return a plane displaced by a fraction of pixels."""
    for axis, by in ((0, down), (1, right)):
        whole = int(np.floor(by))
        part = np.float32(by - whole)
        shifted = np.roll(plane, whole, axis)
        plane = shifted * (1 - part) + np.roll(shifted, 1, axis) * part
    return plane


def breathe(hu: Float, slab: Slab, breath: Breath, foot_mm: float, head_mm: float) -> None:
    """Mix slices with themselves displaced, most in the chest, while the breath lasted."""
    length = head_mm - foot_mm
    for k, z in enumerate(slab.z_mm):
        at = (float(z) - foot_mm) / length
        ends = min((at - breath.low) * length, (breath.high - at) * length) / 12.0
        if ends <= 0:
            continue
        phase = abs((float(z) / breath.period_mm) % 1.0 * 2 - 1)
        pixels = breath.shift_mm * (0.35 + 0.65 * phase) * min(1.0, ends) / slab.pixel_mm
        rows = slab.y_mm[:, None] / np.float32(105.0)
        columns = slab.x_mm[None, :] / np.float32(140.0)
        weight = np.clip(1.25 - rows * rows - columns * columns, 0, 1) * np.float32(0.55)
        mixed = _moved(hu[k], -pixels, -0.6 * pixels) + _moved(hu[k], pixels / 2, -0.3 * pixels)
        hu[k] += weight * (mixed * np.float32(0.5) - hu[k])


def beat(hu: Float, slab: Slab, centre: Point, shift_mm: float) -> None:
    """Double the outlines of the heart, of the aortic root and of the vessels beside them."""
    for k, z in enumerate(slab.z_mm):
        dz = (float(z) - centre[2]) / 58.0
        if abs(dz) >= 1:
            continue
        rows = np.flatnonzero(np.abs(slab.y_mm - centre[1]) < 75)
        columns = np.flatnonzero(np.abs(slab.x_mm - centre[0]) < 95)
        if not len(rows) or not len(columns):
            continue
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        v = (slab.y_mm[box[0]][:, None] - np.float32(centre[1])) / np.float32(72.0)
        u = (slab.x_mm[box[1]][None, :] - np.float32(centre[0])) / np.float32(92.0)
        weight = np.clip(2.2 * (1 - v * v - u * u - np.float32(dz * dz)), 0, 1) * np.float32(0.5)
        plane = hu[k][box]
        pixels = shift_mm / slab.pixel_mm
        plane += weight * (_moved(plane, -0.45 * pixels, pixels) - plane)
