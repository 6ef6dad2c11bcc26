"""From drawn shapes to Hounsfield units: painting order, noise, motion. See `geometry` for axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from pe_triage.phantom import artefacts, parenchyma
from pe_triage.phantom.anatomy import Anatomy, Painted
from pe_triage.phantom.clots import Clot, clot_shares
from pe_triage.phantom.effects import Findings
from pe_triage.phantom.geometry import Capsule, Float, Grid, Point, Slab
from pe_triage.phantom.rasterise import CapsuleArray, unite
from pe_triage.phantom.thorax import LungPainter, Texture, trunk_slice
from pe_triage.phantom.tree import Vessel

_AIRWAY_HU = -985.0
_AIRWAY_WALL_HU = 15.0
_WALL_MM = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Breathing and heartbeat during the scan: how far a slice's two halves of data disagree."""

    shift_mm: float
    period_mm: float
    """Along z."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extras:
    """What a preset with effects adds to the plain scene; scanner's frame."""

    findings: Findings
    noise_hu: float
    """In the middle of the body, of this kernel, body, thickness and pixel."""
    streaks: artefacts.Streaks | None
    smoke: tuple[artefacts.Smoke, ...]
    interruption_at_mm: float
    plugs: tuple[Capsule, ...]
    plug_hu: float
    heart: Point
    mimics: tuple[dict[str, object], ...]
    """What could be taken for a clot, as values that JSON can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that is drawn, in the scanner's frame except what `thorax` derives itself."""

    anatomy: Anatomy
    texture: Texture
    painted: tuple[Painted, ...]
    airways: tuple[Capsule, ...]
    veins: tuple[Vessel, ...]
    arteries: tuple[Vessel, ...]
    clots: tuple[Clot, ...]
    motion: Motion | None
    noise_hu: float
    extras: Extras | None = None


def _blend(hu: Float, found: tuple[tuple[slice, slice, slice], Float] | None, value: float) -> None:
    if found is not None:
        box, share = found
        part = hu[box]
        part += share * (np.float32(value) - part)


def _arterial(
    scene: Scene, arteries: CapsuleArray, slab: Slab, hu: Float
) -> NDArray[np.uint8]:  # fmt: skip
    """Lay arterial blood and clots over ``hu`` in place; return the clot index of each voxel."""
    blood = np.zeros(slab.shape, dtype=np.float32)
    unite(arteries, slab, blood)
    index = np.zeros(slab.shape, dtype=np.uint8)
    extras = scene.extras
    if not scene.clots and extras is None:
        hu += blood * (np.float32(scene.anatomy.contrast.artery_hu) - hu)
        return index
    value = np.full(slab.shape, scene.anatomy.contrast.artery_hu, dtype=np.float32)
    if extras is not None:
        gap = extras.findings.interruption_depth
        if gap > 0:
            factor = artefacts.interruption(slab.z_mm, extras.interruption_at_mm, gap)
            value *= factor[:, None, None]
        for smoke in extras.smoke:
            smoke.dim(value, slab)
    for number, clot in enumerate(scene.clots, start=1):
        shares = clot_shares(clot, slab)
        if shares is not None:
            _blend(value, (shares.box, shares.clot), clot.hu)
            index[shares.box][(shares.clot > 0.5) & (blood[shares.box] > 0.5)] = number
        for speck in clot.calcium:
            _blend(value, speck.coverage(slab), clot.calcium_hu)
    hu += blood * (value - hu)
    return index


def _blur_motion(scene: Scene, slab: Slab, hu: Float) -> None:
    """Mix each slice with itself displaced, most in the chest, as a scan during breathing shows."""
    if scene.motion is None:
        return
    for k, z in enumerate(slab.z_mm):
        # A triangle wave: exact arithmetic, see `geometry`.
        phase = abs((float(z) / scene.motion.period_mm) % 1.0 * 2 - 1)
        pixels = scene.motion.shift_mm * (0.35 + 0.65 * phase) / slab.pixel_mm
        dy, dx = round(pixels), round(pixels * 0.6)
        rows = slab.y_mm[:, None] / np.float32(105.0)
        columns = slab.x_mm[None, :] / np.float32(140.0)
        weight = np.clip(1.25 - rows * rows - columns * columns, 0, 1) * np.float32(0.55)
        plane = hu[k]
        moved = np.roll(plane, (-dy, dx), axis=(0, 1))
        back = np.roll(plane, (dy // 2, -dx // 2), axis=(0, 1))
        hu[k] = plane + weight * ((moved + back) * np.float32(0.5) - plane)


def areas_mm2(index_zyx: NDArray[np.uint8], n_clots: int, grid: Grid) -> NDArray[np.float64]:
    """Return the area of each clot in each slice, ``zk`` with k from clot number 1, in mm²."""
    count = np.zeros((index_zyx.shape[0], n_clots), dtype=np.float64)
    for k in range(index_zyx.shape[0]) if n_clots else ():
        if index_zyx[k].any():
            count[k] = np.bincount(index_zyx[k].ravel(), minlength=n_clots + 1)[1:]
    return count * (grid.pixel_mm * grid.pixel_mm)


def clot_areas_mm2(scene: Scene, grid: Grid) -> NDArray[np.float64]:
    """Return, without rendering, a lower bound of what `areas_mm2` will find: own vessels only."""
    areas = np.zeros((grid.n_slices, len(scene.clots)), dtype=np.float64)
    for slab in grid.slabs():
        index = np.zeros(slab.shape, dtype=np.uint8)
        for number, clot in enumerate(scene.clots, start=1):
            shares = clot_shares(clot, slab)
            if shares is not None:
                index[shares.box][(shares.clot > 0.5) & (shares.vessel > 0.5)] = number
        last = slab.first + slab.shape[0]
        areas[slab.first : last] = areas_mm2(index, len(scene.clots), grid)
    return areas


# A soft kernel's noise is correlated over about 1.5 mm: weights by pixel size, sum of squares 1.
_WEIGHTS = ((0.9, (0.18, 0.62, 1.0, 0.62, 0.18)), (1.3, (0.5, 1.0, 0.5)), (9e9, (0.22, 1.0, 0.22)))


def _noise(rng: np.random.Generator, scene: Scene, slab: Slab) -> Float:
    """Draw noise, stronger in the middle of the body where fewer photons arrive."""
    grain = rng.standard_normal(slab.shape, dtype=np.float32)
    raw = next(weights for limit, weights in _WEIGHTS if slab.pixel_mm < limit)
    norm = sum(w * w for w in raw) ** 0.5
    weights = [w / norm for w in raw]
    for axis in (1, 2):
        grain = correlate1d(grain, weights, axis=axis, mode="nearest")
    rows = slab.y_mm[:, None] / np.float32(125.0)
    columns = slab.x_mm[None, :] / np.float32(170.0)
    level = np.clip(1.15 - 0.8 * (rows * rows + columns * columns), 0.35, None)
    grain *= (level * np.float32(scene.noise_hu)).astype(np.float32)
    return grain


def render(
    scene: Scene, grid: Grid, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Sample a scene.

    Returns
    -------
    hu_zyx, clot_index_zyx
        Hounsfield units within -1024…3071 (what 12 bits hold), and for each voxel the number of the
        clot that fills more than half of its blood, counted from 1; 0 elsewhere.
    """
    shape = (grid.n_slices, grid.size, grid.size)
    hu_zyx = np.empty(shape, dtype=np.int16)
    clot_index_zyx = np.zeros(shape, dtype=np.uint8)
    walls = [
        Capsule(
            start=c.start,
            end=c.end,
            start_radius_mm=c.start_radius_mm + _WALL_MM,
            end_radius_mm=c.end_radius_mm + _WALL_MM,
        )
        for c in scene.airways
    ]
    extras = scene.extras
    # A clot that shuts an artery may widen it.
    swollen = [p.vessel for c in scene.clots for p in c.pieces if c.kind == "occlusive"]
    arteries = CapsuleArray([v.shape for v in scene.arteries] + (swollen if extras else []))
    veins = CapsuleArray([v.shape for v in scene.veins])
    lungs = _lung_painter(scene)
    for slab in grid.slabs():
        hu = np.stack(
            [trunk_slice(scene.anatomy, scene.texture, slab, float(z), lungs) for z in slab.z_mm]
        )
        _paint_all(hu, slab, scene.painted)
        for wall in walls:
            _blend(hu, wall.coverage(slab), _AIRWAY_WALL_HU)
        for lumen in scene.airways:
            _blend(hu, lumen.coverage(slab), _AIRWAY_HU)
        for plug in extras.plugs if extras else ():
            _blend(hu, plug.coverage(slab), extras.plug_hu if extras else 0.0)
        _venous(scene, veins, slab, hu)
        last = slab.first + slab.shape[0]
        clot_index_zyx[slab.first : last] = _arterial(scene, arteries, slab, hu)
        _table(hu, slab)
        if extras is None:
            _blur_motion(scene, slab, hu)
            hu += _noise(rng, scene, slab)
        else:
            _scan(scene, extras, grid, slab, hu)
            level = extras.noise_hu
            hu += artefacts.noise(rng, slab, extras.findings.kernel, level)
        np.rint(hu, out=hu)
        np.clip(hu, -1024, 3071, out=hu)
        hu_zyx[slab.first : last] = hu
    return hu_zyx, clot_index_zyx


def _venous(scene: Scene, veins: CapsuleArray, slab: Slab, hu: Float) -> None:
    """Lay the pulmonary veins over ``hu`` in place."""
    value = scene.anatomy.contrast.left_heart_hu
    if scene.extras is None:
        # One after the other, as when the committed samples were made: joints are a little fuller.
        for vein in scene.veins:
            _blend(hu, vein.shape.coverage(slab), value)
        return
    share = np.zeros(slab.shape, dtype=np.float32)
    unite(veins, slab, share)
    hu += share * (np.float32(value) - hu)


def _scan(scene: Scene, extras: Extras, grid: Grid, slab: Slab, hu: Float) -> None:
    """Add to ``hu`` in place what scanning adds, noise apart."""
    found = extras.findings
    if extras.streaks is not None:
        extras.streaks.add(hu, slab)
    if found.heartbeat_mm > 0:
        artefacts.beat(hu, slab, extras.heart, found.heartbeat_mm)
    if found.breath is not None:
        half = grid.slice_spacing_mm / 2
        foot, head = grid.z0_mm - half, grid.z0_mm - half + grid.n_slices * grid.slice_spacing_mm
        artefacts.breathe(hu, slab, found.breath, foot, head)


def _lung_painter(scene: Scene) -> LungPainter | None:
    """Return what paints the lungs' findings, or None where there are none."""
    found = scene.extras.findings if scene.extras else None
    if found is None or not (found.lungs or found.emphysema_extent > 0):
        return None

    def paint(
        hu: Float, share: Float, content: Float, *, x: Float, y: Float, z: float, cavity: Float,
        coarse: Float, fine: Float, edge: float,
    ) -> None:  # fmt: skip
        parenchyma.paint_lungs(
            hu, share, content, scene.anatomy, found.lungs, found.emphysema_extent, x, y, z, cavity,
            coarse, fine, edge,
        )  # fmt: skip

    return paint


def _paint_all(hu: Float, slab: Slab, painted: Sequence[Painted]) -> None:
    for item in painted:
        _blend(hu, item.shape.coverage(slab), item.hu)


def _table(hu: Float, slab: Slab) -> None:
    """Draw the couch: a thin shell under the patient, in the scanner's frame."""
    x = slab.x_mm[None, :] / np.float32(200.0)
    top = np.float32(150.0) - 16 * (x * x)
    depth = slab.y_mm[:, None] - top
    shell = np.clip(0.5 - (np.abs(depth) - 1.0) / np.float32(slab.edge_mm), 0, 1)
    shell = shell * (np.abs(x) < 0.98)
    air = hu < -900
    hu += np.where(air, shell[None] * (np.float32(-250.0) - hu), np.float32(0.0))
