"""The trunk slice by slice: chest wall, ribs, spine, lungs, diaphragm and what lies below it.

All functions work on one axial slice in the canonical frame (mm, LPS, origin at the carina); two
dimensional arrays are ``yx``. See `geometry` for why only exact arithmetic is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pe_triage.phantom.anatomy import Anatomy
from pe_triage.phantom.geometry import Float, Point, Slab, soft

AIR_HU = -1000.0
CAVITY_HALF_WIDTH_MM = 128.0
CAVITY_HALF_DEPTH_MM = 82.0
APEX_MM = 104.0
_CELL_MM = (34.0, 9.0)
_RIB_PITCH_MM = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Texture:
    """Coarse random lattices ``zyx``, one per scale, that shape fat, muscle, liver and lung."""

    lattices: tuple[Float, ...]

    @staticmethod
    def draw(rng: np.random.Generator) -> Texture:
        """Draw lattices for a cube of 520 mm around the carina."""
        return Texture(
            lattices=tuple(
                rng.standard_normal((int(520 / c) + 3,) * 3, dtype=np.float32) for c in _CELL_MM
            )
        )

    def at(self, scale: int, x_mm: Float, y_mm: Float, z_mm: float) -> Float:
        """Interpolate one scale linearly at a slice; ``x_mm`` and ``y_mm`` are axis vectors."""
        lattice, cell = self.lattices[scale], _CELL_MM[scale]
        last = lattice.shape[0] - 2

        def split(v_mm: Float) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], Float]:
            position = np.clip((v_mm + np.float32(260.0)) / np.float32(cell), 0, last)
            index = position.astype(np.intp)
            return index, (position - index.astype(np.float32)).astype(np.float32)

        kz, fz = split(np.array([z_mm], dtype=np.float32))
        plane = lattice[kz[0]] * (1 - fz[0]) + lattice[kz[0] + 1] * fz[0]
        ky, fy = split(y_mm)
        rows = plane[ky] * (1 - fy)[:, None] + plane[ky + 1] * fy[:, None]
        kx, fx = split(x_mm)
        field: Float = rows[:, kx] * (1 - fx)[None, :] + rows[:, kx + 1] * fx[None, :]
        return field


def squircle(
    x: Float, y: Float, half_width: float, half_depth: float, box: float = 0.35
) -> tuple[Float, Float]:
    """Return signed distance in mm (negative inside) and normalised radius of a boxy ellipse."""
    u, v = x * np.float32(1 / half_width), y * np.float32(1 / half_depth)
    u2, v2 = u * u, v * v
    square = u2 + v2
    if box:
        square -= box * u2 * np.minimum(v2, 1.0)
    radius = np.sqrt(np.maximum(square, np.float32(1e-6)))
    slope = u2 * np.float32(1 / half_width**2) + v2 * np.float32(1 / half_depth**2)
    slope = np.maximum(np.sqrt(slope), np.float32(1e-4))
    return (radius - 1) * radius / slope, radius


def ellipse(x: Float, y: Float, centre: tuple[float, float], semi: tuple[float, float]) -> Float:
    """Return the signed distance in mm of an ellipse; negative inside."""
    return squircle(x - centre[0], y - centre[1], semi[0], semi[1], 0.0)[0]


def segment(
    x: Float, y: Float, start: tuple[float, float], end: tuple[float, float], radius: float | Float
) -> Float:
    """Return the signed distance in mm of a stick of a given radius; negative inside."""
    ux, uy = end[0] - start[0], end[1] - start[1]
    dx, dy = x - start[0], y - start[1]
    t = np.clip((dx * ux + dy * uy) / (ux * ux + uy * uy), 0, 1)
    dx, dy = dx - t * ux, dy - t * uy
    distance: Float = np.sqrt(dx * dx + dy * dy) - radius
    return distance


def cavity_scale(z_mm: float) -> float:
    """Return the width of the rib cage at a height, relative to its widest."""
    above = max(0.0, (z_mm - 15.0) / 100.0)
    return max(0.45, 1.0 - 0.42 * above * above)


def dome_mm(anatomy: Anatomy, x: float, y: float) -> float:
    """Return the height of the diaphragm at a point."""
    right = anatomy.right_dome_mm - 50 * ((x + 58) / 75) ** 2 - 58 * ((y + 8) / 88) ** 2
    left = anatomy.left_dome_mm - 50 * ((x - 60) / 75) ** 2 - 58 * ((y + 8) / 88) ** 2
    return max(right, left)


def in_lung(anatomy: Anatomy, p: Point, rim_mm: float = 4.0) -> bool:
    """Say whether a point lies in lung, at least about ``rim_mm`` from its surface."""
    x, y, z = p
    s = cavity_scale(z)
    a, b = CAVITY_HALF_WIDTH_MM * s - rim_mm, CAVITY_HALF_DEPTH_MM * anatomy.depth * s - rim_mm
    u, v = x / a, (y + 4) / b
    if u * u + v * v - 0.35 * u * u * v * v > 1 or z < dome_mm(anatomy, x, y) + rim_mm:
        return False
    if z > 10:
        aside, aft = ((abs(x) - 56) / (78 - rim_mm)) ** 2, ((y - 6) / (100 - rim_mm)) ** 2
        if aside * aside + aft * aft + ((z - 10) / (APEX_MM - 10 - rim_mm)) ** 2 > 1:
            return False
    return abs(x) > mediastinum_mm(y, z) + rim_mm


def _mediastinal_bulge_mm(z: float) -> float:
    """Return how far the mediastinum bulges at a height: less where the heart is painted over."""
    return 22.0 + 5.0 * min(1.0, max(0.0, (z + 35) / 30))


def mediastinum_mm(y: float, z: float) -> float:
    """Return the half-width of the mediastinum at a depth and height."""
    middle = 7 + _mediastinal_bulge_mm(z) * max(0.0, 1 - ((y + 4) / 62) ** 2)
    return max(middle, 20.0 if y > 46 else 0.0)


class LungPainter(Protocol):
    """Paints what is wrong with the lungs over a slice: see `parenchyma.paint_lungs`."""

    def __call__(
        self, hu: Float, share: Float, content: Float, *, x: Float, y: Float, z: float,
        cavity: Float, coarse: Float, fine: Float, edge: float,
    ) -> None:  # fmt: skip
        """Change ``hu`` in place where ``share`` of a voxel is lung."""


def trunk_slice(
    anatomy: Anatomy, texture: Texture, slab: Slab, z_scanner_mm: float,
    lungs: LungPainter | None = None,
) -> Float:  # fmt: skip
    """Paint one axial slice of the trunk without heart, vessels and airways.

    Returns
    -------
    float32 ``yx`` in HU, of the slab's rows and columns.
    """
    pose = anatomy.pose
    cos, sin = pose.turn
    whole = np.full((len(slab.y_mm), len(slab.x_mm)), AIR_HU, dtype=np.float32)
    xs = (slab.x_mm - np.float32(pose.shift_x_mm)) / np.float32(pose.scale)
    ys = (slab.y_mm - np.float32(pose.shift_y_mm)) / np.float32(pose.scale)
    z = z_scanner_mm / pose.scale
    edge, thick = slab.edge_mm / pose.scale, slab.thickness_mm / pose.scale
    rows, columns = _body_box(anatomy, xs, ys, edge)
    xs, ys, hu = xs[columns], ys[rows], whole[rows, columns]
    if not hu.size:
        return whole
    x = xs[None, :] * np.float32(cos) + ys[:, None] * np.float32(sin)
    y = ys[:, None] * np.float32(cos) - xs[None, :] * np.float32(sin)
    coarse = texture.at(0, xs, ys, z)
    fine = texture.at(1, xs, ys, z)

    def painter(view: Float) -> _Paint:
        def paint(share: Float, value: float | Float) -> None:
            np.add(view, share * (value - view), out=view)

        return paint

    def crop(half_width: float, y_low: float, y_high: float) -> tuple[slice, slice]:
        # Where a midline structure can be, allowing for the turn of the body.
        rim = 0.12 * max(half_width, abs(y_low), abs(y_high)) + edge
        rows = np.flatnonzero((ys > y_low - rim) & (ys < y_high + rim))
        columns = np.flatnonzero(np.abs(xs) < half_width + rim)
        if not len(rows) or not len(columns):
            return slice(0, 0), slice(0, 0)
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    paint = painter(hu)

    s = cavity_scale(z)
    width, depth = CAVITY_HALF_WIDTH_MM * s, CAVITY_HALF_DEPTH_MM * anatomy.depth * s
    cavity, rho = squircle(x, y + 4, width, depth)
    inside = soft(cavity, edge)
    front = -CAVITY_HALF_DEPTH_MM * anatomy.depth
    fat = anatomy.fat_mm
    shoulder = 10 * min(1.0, max(0.0, (z - 10) / 60))
    muscle_depth = CAVITY_HALF_DEPTH_MM * anatomy.depth + 24
    body, _ = squircle(x, y - 6, 150 + fat + shoulder, muscle_depth + 0.8 * fat, 0.5)
    if anatomy.sex == "F":
        height = max(0.0, 1 - ((z + 45) / 55) ** 2) ** 0.5
        if height > 0.2:
            semi = ((46 + 0.5 * fat) * height, (16 + 0.5 * fat) * height)
            for sign in (-1, 1):
                at = (sign * 78.0, front - 12 - 0.4 * fat)
                body = np.minimum(body, ellipse(x, y, at, semi))
    _wall(paint, x, y, body, coarse, fine, edge, muscle_depth, shoulder)
    behind = crop(160.0, 20.0, 118.0)
    _back(painter(hu[behind]), anatomy, x[behind], y[behind], z, coarse[behind], fine[behind], edge)
    _ribs(paint, anatomy, x, y, z, cavity, rho, depth, edge)
    lung, value = _inside(paint, anatomy, x, y, z, cavity, inside, coarse, fine, edge, thick)
    if lungs is not None:
        lungs(
            hu, lung, value, x=x, y=y, z=z, cavity=cavity, coarse=coarse, fine=fine, edge=edge
        )  # fmt: skip
    at_spine = crop(40.0, 42.0, 118.0)
    _spine(painter(hu[at_spine]), x[at_spine], y[at_spine], z, edge)
    if -95 < z < 58:
        half = 17.0 + 9.0 * min(1.0, max(0.0, (z - 20) / 25))
        here = crop(30.0, front - 18, front)
        bone = squircle(x[here], y[here] - (front - 9.0), half, 7.0, 0.6)[0]
        paint = painter(hu[here])
        paint(soft(bone, edge), 520.0)
        paint(soft(bone + 2.2, edge), 170.0 + 25 * fine[here])
    return whole


def _body_box(anatomy: Anatomy, xs: Float, ys: Float, edge: float) -> tuple[slice, slice]:
    """Return rows and columns outside which there is air whatever the height."""
    _, sin = anatomy.pose.turn
    fat, depth = anatomy.fat_mm, CAVITY_HALF_DEPTH_MM * anatomy.depth
    half = 160.0 + fat
    front, back = -depth - 28 - 0.9 * fat, depth + 30 + 0.8 * fat
    aside = abs(sin) * max(-front, back)
    tilt, rim = abs(sin) * half, 10.0 + edge
    rows = np.flatnonzero((ys > front - tilt - rim) & (ys < back + tilt + rim))
    columns = np.flatnonzero(np.abs(xs) < half + aside + rim)
    if not len(rows) or not len(columns):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


class _Paint(Protocol):
    """What `trunk_slice` passes to its parts: paint a share of each pixel with a value."""

    def __call__(self, share: Float, value: float | Float) -> None: ...


def _wall(
    paint: _Paint, x: Float, y: Float, body: Float, coarse: Float, fine: Float, edge: float,
    muscle_depth: float, shoulder: float,
) -> None:  # fmt: skip
    """Skin, fat and muscle."""
    paint(soft(body, edge), -104 + 7 * fine)
    paint(soft(np.abs(body + 1.2) - 1.0, edge), 10.0)
    muscle, _ = squircle(x, y - 6, 150 + shoulder, muscle_depth, 0.5)
    flesh = 55 + 6 * fine
    paint(soft(muscle + 2.0 + 2.2 * coarse, edge), flesh)
    # Fat planes between the muscle layers, wavy by the texture.
    plane = np.abs(muscle + 11.0 + 3.5 * coarse) - (0.7 + 0.6 * np.maximum(fine, 0))
    paint(soft(plane, edge) * np.float32(0.8), -80.0)


def _back(
    paint: _Paint, anatomy: Anatomy, x: Float, y: Float, z: float, coarse: Float, fine: Float,
    edge: float,
) -> None:  # fmt: skip
    """Long muscles of the back and shoulder blades."""
    flesh = 55 + 6 * fine
    for sign in (-1, 1):
        back = ellipse(x, y, (sign * 30.0, 96.0 * anatomy.depth), (27.0, 15.0))
        paint(soft(back + 0.8 * coarse, edge), flesh)
        if -60 < z < 92:
            up = (z + 60) / 152
            # A triangle standing on its tip: the inner border runs outwards going down.
            reach = min(1.0, 1.6 * up)
            start = (sign * (124 - 46 * reach), (66 + 26 * reach) * anatomy.depth)
            end = (sign * (128 + 14 * up), (40 + 12 * (1 - up)) * anatomy.depth)
            paint(soft(segment(x, y, start, end, 11.0 + 2 * coarse), edge), flesh)
            blade = segment(x, y, start, end, 1.7 + 2.2 * up * up)
            paint(soft(blade, edge), 480.0)
            paint(soft(blade + 1.8, edge), 240.0)


def _ribs(
    paint: _Paint, anatomy: Anatomy, x: Float, y: Float, z: float, cavity: Float, rho: Float,
    depth: float, edge: float,
) -> None:  # fmt: skip
    """Ribs fall from back to front; near the sternum they are cartilage."""
    paint(soft(np.abs(cavity - 6.0) - 6.5, edge), 48.0)
    paint(soft(np.abs(cavity - 12.5) - 0.8, edge) * np.float32(0.7), -70.0)
    aft = (y + 4) / depth / np.maximum(rho, 0.2)
    turn = (z - 40 * aft + anatomy.rib_phase_mm) / _RIB_PITCH_MM
    height = (turn - np.floor(turn) - 0.5) * _RIB_PITCH_MM
    across = (cavity - 5.5) / 4.3
    up = height / 6.3
    rib = (np.sqrt(across * across + up * up) - 1) * 4.3
    near = soft(np.abs(x) - 16, 8.0)
    share = soft(rib, edge) * (1 - near)
    cartilage = soft((aft + 0.80) * 60, 6.0)
    paint(share, 560 * (1 - cartilage) + 105 * cartilage)
    paint(soft(rib + 1.7, edge) * (1 - near) * (1 - cartilage), 210.0)


def _inside(
    paint: _Paint, anatomy: Anatomy, x: Float, y: Float, z: float, cavity: Float, inside: Float,
    coarse: Float, fine: Float, edge: float, thick: float,
) -> tuple[Float, Float]:  # fmt: skip
    """Paint mediastinum, lungs and what lies below; return the lungs' share and their values."""
    paint(inside, -92 + 9 * fine)
    y2 = 58 * ((y + 8) / 88) ** 2
    right = anatomy.right_dome_mm - 50 * ((x + 58) / 75) ** 2 - y2
    left = anatomy.left_dome_mm - 50 * ((x - 60) / 75) ** 2 - y2
    above = z - np.maximum(right, left)
    below = soft(above, thick + 0.9 * edge) * inside
    if float(above.min()) < 5:
        paint(below, -95 + 8 * fine)
        paint(soft(np.abs(above + 1.5) - 1.5, thick + edge) * inside, 50.0)
        liver = np.maximum(above + 2, segment(x, y, (-75.0, 0.0), (10.0, -34.0), 62.0))
        paint(soft(liver, thick + edge) * inside, 72 + 7 * fine)
        paint(soft(ellipse(x, y, (78.0, 42.0), (34.0, 26.0)), 2 * edge) * below, 108 + 13 * fine)
        stomach = ellipse(x, y, (58.0, -22.0), (38.0, 34.0))
        paint(soft(stomach, 2 * edge) * below, 40.0)
        gas = np.maximum(stomach + 4, y + 28.0)
        paint(soft(stomach + 4, edge) * below, 18.0)
        paint(soft(gas, edge) * below, -960.0)
    middle = 7 + _mediastinal_bulge_mm(z) * np.maximum(0.0, 1 - ((y + 4) / 62) ** 2)
    beside = np.maximum(middle, 20 - 3 * np.maximum(0.0, 46 - y)) - np.abs(x) + 1.5 * coarse
    lung = np.maximum(cavity, beside)
    if z > 10:
        top = (z - 10) / (APEX_MM - 10)
        aside, aft = ((np.abs(x) - 56) / 78) ** 2, ((y - 6) / 100) ** 2
        apex = np.sqrt(aside * aside + aft * aft + top * top) - 1
        lung = np.maximum(lung, 45 * apex)
    share = soft(lung, edge + (0.6 * thick if z > 60 else 0.0)) * (1 - below)
    # The lower lung lies under its own weight: denser towards the back of a supine patient.
    value = anatomy.lung_hu + 0.35 * y + 12 * coarse + 16 * fine
    paint(share, value)
    return share, value


def _spine(paint: _Paint, x: Float, y: Float, z: float, edge: float) -> None:
    """Vertebral body or disc, arch, processes, canal and cord."""
    level = z / 23.0
    phase = abs(level - np.floor(level) - 0.5)
    disc = phase > 0.40
    around = ellipse(x, y, (0.0, 64.0), (23.0, 19.0))
    paint(soft(around, edge), 20.0)
    body = squircle(x, y - 63.0, 17.0, 14.5, 0.4)[0]
    if disc:
        paint(soft(body, edge), 85.0)
    else:
        paint(soft(body, edge), 480.0)
        paint(soft(body + 2.2, edge), 185.0)
    arch = ellipse(x, y, (0.0, 85.0), (15.5, 12.5))
    if not disc:
        paint(soft(arch, edge), 470.0)
        for sign in (-1, 1):
            process = segment(x, y, (sign * 12.0, 84.0), (sign * 34.0, 92.0), 4.5)
            paint(soft(process, edge), 450.0)
            paint(soft(process + 2.0, edge), 200.0)
    paint(soft(segment(x, y, (0.0, 96.0), (0.0, 112.0), 3.4), edge), 420.0 if not disc else 60.0)
    canal = ellipse(x, y, (0.0, 83.5), (9.5, 8.0))
    paint(soft(canal, edge), 12.0)
    paint(soft(ellipse(x, y, (0.0, 83.5), (5.0, 4.2)), edge), 38.0)
