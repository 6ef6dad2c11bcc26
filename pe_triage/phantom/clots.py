"""Filling defects: where they sit, what they look like, and which labels follow from them.

Acute clots lie in the lumen: occlusive, or floating with a rim of contrast. Chronic ones adhere to
the wall, may carry a web across the lumen, and may hold specks of calcium. A saddle clot spans both
main arteries. RSPECT's sites follow from the vessel: trunk, main and the origin of a lobar artery
are central; a clot on a side is also left- or right-sided, whether central or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pe_triage.phantom.distributions import Choice, Uniform
from pe_triage.phantom.geometry import Box, Capsule, Float, Point, Slab
from pe_triage.phantom.presets import Preset
from pe_triage.phantom.tree import Vessel

_ACUTE = Choice(weights=(("occlusive", 0.55), ("floating", 0.45)))
# A main artery is rarely shut: its clots are cast in narrower veins, and float.
_ACUTE_MAIN = Choice(weights=(("occlusive", 0.15), ("floating", 0.85)))
_WIDE_MM = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One stretch of a clot: the vessel it fills and, unless it fills it, what bounds it there."""

    vessel: Capsule
    core: Capsule
    """The clot itself (acute, web), or the lumen that a wall-adherent clot leaves open."""
    adherent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Clot:
    """One filling defect, as drawn; mm in the frame of its pieces."""

    stage: str
    """acute or chronic."""
    kind: str
    """Acute: occlusive, floating or saddle; chronic: eccentric, web or recanalised."""
    level: str
    side: str
    central: bool
    vessel_name: str
    hu: float
    length_mm: float
    web: bool
    pieces: tuple[Piece, ...]
    calcium: tuple[Capsule, ...]
    calcium_hu: float

    @property
    def place(self) -> str:
        """central, lobar, segmental or subsegmental: where RSPECT's reader would put it."""
        return "central" if self.central else self.level

    def sides(self) -> frozenset[str]:
        """Return the sides that it counts for."""
        return frozenset(("left", "right")) if self.side == "both" else frozenset((self.side,))


def _between(a: Point, b: Point, t: float) -> Point:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def _length(c: Capsule) -> float:
    return math.dist(c.start, c.end)


def _part(c: Capsule, start: float, stop: float) -> Capsule:
    """Cut a capsule to a part of its axis, 0…1."""
    change = c.end_radius_mm - c.start_radius_mm
    return Capsule(
        start=_between(c.start, c.end, start),
        end=_between(c.start, c.end, stop),
        start_radius_mm=c.start_radius_mm + change * start,
        end_radius_mm=c.start_radius_mm + change * stop,
    )


def _stretch(
    rng: np.random.Generator, arteries: Sequence[Vessel], index: int, length_mm: float,
    begin: float,
) -> list[Capsule]:  # fmt: skip
    """Follow the tree downstream from a piece until the length is reached or the branch ends."""
    daughters: dict[int, list[int]] = {}
    for i, vessel in enumerate(arteries):
        daughters.setdefault(vessel.parent, []).append(i)
    found: list[Capsule] = []
    left = length_mm
    while left > 0.5:
        shape = arteries[index].shape
        whole = _length(shape)
        room = whole * (1 - begin)
        if room > 0.5:
            stop = begin + min(left, room) / whole
            found.append(_part(shape, begin, min(1.0, stop)))
            left -= room
        # A clot goes on straight, that is into the daughter that starts where this piece ends.
        onward = [d for d in daughters.get(index, ()) if arteries[d].shape.start == shape.end]
        if not onward:
            break
        index, begin = onward[int(rng.integers(len(onward)))], 0.0
    return found


def _across(rng: np.random.Generator, c: Capsule) -> Point:
    """Return a random unit vector across a capsule's axis."""
    length = max(_length(c), 1e-6)
    axis = [(c.end[i] - c.start[i]) / length for i in range(3)]
    v = [float(value) for value in rng.standard_normal(3)]
    along = sum(a * b for a, b in zip(axis, v, strict=True))
    v = [b - along * a for a, b in zip(axis, v, strict=True)]
    norm = max(math.sqrt(sum(b * b for b in v)), 1e-6)
    return (v[0] / norm, v[1] / norm, v[2] / norm)


def _core(c: Capsule, share: float, aside: Point, off_share: float, extra_mm: float = 0) -> Capsule:
    """Shrink a capsule to a share of its radius and move it aside by a share of it."""
    moved = [
        (p[0] + aside[0] * r * off_share, p[1] + aside[1] * r * off_share,
         p[2] + aside[2] * r * off_share)
        for p, r in ((c.start, c.start_radius_mm), (c.end, c.end_radius_mm))
    ]  # fmt: skip
    return Capsule(
        start=moved[0],
        end=moved[1],
        start_radius_mm=c.start_radius_mm * share + extra_mm,
        end_radius_mm=c.end_radius_mm * share + extra_mm,
    )


def _acute(rng: np.random.Generator, stretch: list[Capsule], kind: str) -> list[Piece]:
    wide = stretch[0].start_radius_mm > _WIDE_MM
    share = float(rng.uniform(0.38, 0.55)) if wide else float(rng.uniform(0.55, 0.78))
    aside = _across(rng, stretch[0])
    off = float(rng.uniform(0.0, 0.18))
    pieces = []
    for c in stretch:
        # A little wider than the vessel, so that no false rim of contrast stays at its wall.
        full = kind == "occlusive"
        core = _core(c, 1.0, aside, 0.0, 1.5) if full else _core(c, share, aside, off)
        pieces.append(Piece(vessel=c, core=core, adherent=False))
    return pieces


def _chronic(rng: np.random.Generator, stretch: list[Capsule], web: bool) -> list[Piece]:
    share, aside = float(rng.uniform(0.45, 0.65)), _across(rng, stretch[0])
    pieces = [
        Piece(vessel=c, core=_core(c, share, aside, 0.95 - share), adherent=True) for c in stretch
    ]
    if web:
        c = stretch[len(stretch) // 2]
        thin = Capsule(start=c.start, end=c.end, start_radius_mm=0.9, end_radius_mm=0.9)
        pieces.append(Piece(vessel=c, core=thin, adherent=False))
    return pieces


def _web(rng: np.random.Generator, stretch: list[Capsule], web: bool) -> list[Piece]:
    """Thin bands from wall to wall, and little else: what recanalisation may leave behind."""
    aside = _across(rng, stretch[0])
    pieces = [Piece(vessel=c, core=_core(c, 0.8, aside, 0.2), adherent=True) for c in stretch]
    for c in stretch:
        for _ in range(2 if _length(c) > 6 else 1):
            t, over = float(rng.uniform(0.1, 0.6)), _across(rng, c)
            a, b = _between(c.start, c.end, t), _between(c.start, c.end, t + 0.35)
            r = c.start_radius_mm
            band = Capsule(
                start=(a[0] + over[0] * r, a[1] + over[1] * r, a[2] + over[2] * r),
                end=(b[0] - over[0] * r, b[1] - over[1] * r, b[2] - over[2] * r),
                start_radius_mm=0.9,
                end_radius_mm=0.9,
            )
            pieces.append(Piece(vessel=c, core=band, adherent=False))
    return pieces


def _recanalised(rng: np.random.Generator, stretch: list[Capsule], web: bool) -> list[Piece]:
    """A vessel filled by old clot through which two or three narrow channels lead."""
    channels = [(_across(rng, stretch[0]), float(rng.uniform(0.22, 0.38)))
                for _ in range(int(rng.integers(2, 4)))]  # fmt: skip
    return [
        Piece(vessel=c, core=_core(c, share, aside, 0.88 - share), adherent=True)
        for c in stretch
        for aside, share in channels
    ]


_CHRONIC = {"eccentric": _chronic, "web": _web, "recanalised": _recanalised}


def _calcium(rng: np.random.Generator, pieces: list[Piece]) -> tuple[Capsule, ...]:
    specks = []
    for piece in pieces:
        if not piece.adherent or rng.random() > 0.6:
            continue
        c, lumen = piece.vessel, piece.core
        t = float(rng.uniform(0.2, 0.8))
        at, centre = _between(c.start, c.end, t), _between(lumen.start, lumen.end, t)
        # On the side of the wall where the clot is thick: away from the open lumen.
        away = [at[i] - centre[i] for i in range(3)]
        norm = max(math.sqrt(sum(v * v for v in away)), 1e-6)
        r = (c.start_radius_mm + c.end_radius_mm) / 2 * 0.72
        p = (at[0] + away[0] / norm * r, at[1] + away[1] / norm * r, at[2] + away[2] / norm * r)
        radius = float(rng.uniform(0.8, 1.4))
        specks.append(Capsule(start=p, end=p, start_radius_mm=radius, end_radius_mm=radius))
    return tuple(specks)


def _one(
    rng: np.random.Generator, preset: Preset, arteries: Sequence[Vessel], *, stage: str,
    start: int, length_mm: float, saddle: bool,
) -> Clot:  # fmt: skip
    vessel = arteries[start]
    if saddle:
        mains = [i for i, v in enumerate(arteries) if v.level == "main"]
        first = {
            side: next(i for i in mains if arteries[i].side == side) for side in ("left", "right")
        }
        # Both arms hang over the fork, so each starts there.
        stretch = [
            c
            for side in ("right", "left")
            for c in _stretch(rng, arteries, first[side], length_mm, 0.0)
        ]
    else:
        begin = float(rng.uniform(0.0, 0.4))
        stretch = _stretch(rng, arteries, start, length_mm, begin)
    forms = preset.effects.forms if preset.effects else None
    wide = vessel.level in ("trunk", "main")
    if forms is None:
        acute = _ACUTE_MAIN if wide else _ACUTE
        kind = "saddle" if saddle else "eccentric" if stage == "chronic" else acute.draw(rng)
        web = stage == "chronic" and rng.random() < 0.4
    else:
        acute = forms.acute_wide if wide else forms.acute
        drawn = (forms.chronic if stage == "chronic" else acute).draw(rng)
        kind = "saddle" if saddle else drawn
        web = kind == "web"
        if kind == "occlusive":
            swelling = forms.swelling.draw(rng)
            stretch = [_core(c, swelling, (0.0, 0.0, 0.0), 0.0) for c in stretch]
    pieces = (
        _CHRONIC[kind](rng, stretch, web)
        if stage == "chronic"
        else _acute(rng, stretch, "floating" if saddle else kind)
    )
    hard = 0.4 if forms is None else forms.calcified
    calcium = _calcium(rng, pieces) if stage == "chronic" and rng.random() < hard else ()
    origin = vessel.level == "lobar" and arteries[vessel.parent].level == "main"
    return Clot(
        stage=stage,
        kind=kind,
        level="main" if saddle else vessel.level,
        side="both" if saddle else vessel.side,
        central=saddle or vessel.level in ("trunk", "main") or origin,
        vessel_name="trunk bifurcation" if saddle else vessel.name,
        hu=preset.clot_hu.draw(rng) + (15.0 if stage == "chronic" else 0.0),
        length_mm=sum(_length(c) for c in stretch),
        web=web,
        pieces=tuple(pieces),
        calcium=calcium,
        calcium_hu=Uniform(low=300, high=650).draw(rng),
    )


def draw_clots(
    rng: np.random.Generator, preset: Preset, arteries: Sequence[Vessel], *, stage: str, side: str,
    central: bool,
) -> tuple[Clot, ...]:  # fmt: skip
    """Draw the clots of one positive study.

    Parameters
    ----------
    rng
        Source of randomness.
    preset
        Numbers, levels and lengths.
    arteries
        The tree, in the frame in which clots are wanted.
    stage
        acute, chronic or both.
    side
        left, right or both: which sides carry peripheral clots.
    central
        Whether one clot is central.
    """
    found: list[Clot] = []

    def next_stage() -> str:
        if stage != "both":
            return stage
        # One of each first, then any.
        order = ("acute", "chronic")
        return order[len(found)] if len(found) < 2 else order[int(rng.integers(2))]

    sides = ("left", "right") if side == "both" else (side,)
    if central:
        now = next_stage()
        saddle = now == "acute" and side == "both" and rng.random() < 0.6
        near = [
            i
            for i, v in enumerate(arteries)
            if (v.level == "main" or (v.level == "lobar" and arteries[v.parent].level == "main"))
            and v.side in sides
        ]
        start = near[int(rng.integers(len(near)))]
        length = float(rng.uniform(28, 55))
        found.append(
            _one(rng, preset, arteries, stage=now, start=start, length_mm=length, saddle=saddle)
        )
    for one_side in sides:
        count = max(1, int(preset.clots_per_side.draw(rng)))
        if stage == "both" and len(sides) == 1 and not central:
            count = max(2, count)
        for _ in range(count):
            level = preset.peripheral_level.draw(rng)
            # Pieces thinner than this hold no clot that anybody could label.
            fit = [
                i
                for i, v in enumerate(arteries)
                if v.level == level and v.side == one_side and v.shape.end_radius_mm > 1.5
            ]
            start = fit[int(rng.integers(len(fit)))]
            length = preset.clot_length_mm.draw(rng)
            found.append(
                _one(
                    rng,
                    preset,
                    arteries,
                    stage=next_stage(),
                    start=start,
                    length_mm=length,
                    saddle=False,
                )
            )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClotShares:
    """One clot in one slab: per voxel of ``box``, shares 0…1."""

    box: Box
    clot: Float
    """Share of the blood that the clot replaces."""
    vessel: Float
    """Share of the voxel that lies in the vessels that the clot runs through."""


def clot_shares(clot: Clot, slab: Slab) -> ClotShares | None:
    """Sample a clot, or return None where the slab does not meet it.

    Pieces are united first and the open lumen is taken away afterwards, so that no wall of clot
    stands where two pieces join.
    """
    corners = [c.bounds() for p in clot.pieces for c in (p.vessel, p.core)]
    low = [min(c[0][i] for c in corners) - 2 for i in range(3)]
    high = [max(c[1][i] for c in corners) + 2 for i in range(3)]
    box = slab.box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    if box is None:
        return None
    shape = tuple(s.stop - s.start for s in box)
    vessel, wall, lumen, solid = (np.zeros(shape, dtype=np.float32) for _ in range(4))

    def unite(target: Float, c: Capsule) -> None:
        found = c.coverage(slab)
        if found is not None:
            z, y, x = (
                slice(f.start - b.start, f.stop - b.start)
                for f, b in zip(found[0], box, strict=True)
            )
            np.maximum(target[z, y, x], found[1], out=target[z, y, x])

    for piece in clot.pieces:
        unite(vessel, piece.vessel)
        if piece.adherent:
            unite(wall, _core(piece.vessel, 1.0, (0.0, 0.0, 0.0), 0.0, 1.5))
            unite(lumen, piece.core)
        else:
            unite(solid, piece.core)
    return ClotShares(box=box, clot=np.maximum(wall * (1 - lumen), solid), vessel=vessel)
