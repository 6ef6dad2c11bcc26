"""Pulmonary arteries and veins: trees that branch, taper and stay inside the lungs.

The trunk, the main and the lobar arteries follow fixed paths with drawn shifts; the segments start
in the directions of the named bronchopulmonary segments, and from there branching is random:
daughters of about 0.84 and 0.68 of their parent's radius (near Murray's cube law), at 15 to 45
degrees, until they are thinner than `LEAST_RADIUS_MM` or leave the lung.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pe_triage.phantom.anatomy import Anatomy
from pe_triage.phantom.geometry import Capsule, Ellipsoid, Point
from pe_triage.phantom.thorax import in_lung

LEAST_RADIUS_MM = 0.62
LEVELS = ("trunk", "main", "lobar", "segmental", "subsegmental")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vessel:
    """One straight piece of a tree; ``parent`` is the index of the piece upstream, or -1."""

    shape: Capsule
    level: str
    side: str
    """left, right or middle."""
    name: str
    parent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem:
    """A fixed path with radii, from which named branches may grow."""

    name: str
    level: str
    side: str
    path: tuple[Point, ...]
    radii_mm: tuple[float, ...]
    upstream: str


_Direction = tuple[str, float, float, float]

# Where each segmental artery leaves its stem: (segment, direction x, y, z). Coordinates are those
# of the right lung; the left is listed apart because its lobes differ.
_SEGMENTS: dict[str, tuple[_Direction, ...]] = {
    "right upper lobe": (
        ("apical", -0.15, 0.15, 1.0), ("posterior", -0.6, 0.75, 0.40),
        ("anterior", -0.55, -0.80, 0.12),
    ),
    "right middle lobe": (("lateral", -0.85, -0.35, -0.35), ("medial", -0.40, -0.85, -0.35)),
    "right interlobar": (("superior lower", -0.35, 0.9, 0.15),),
    "right lower lobe": (
        ("anterior basal", -0.65, -0.35, -0.70), ("lateral basal", -0.75, 0.25, -0.60),
        ("posterior basal", -0.30, 0.65, -0.70), ("medial basal", 0.05, 0.25, -1.0),
    ),
    "left upper lobe": (
        ("apicoposterior", 0.20, 0.40, 0.95), ("anterior", 0.60, -0.75, 0.20),
        ("posterior", 0.70, 0.55, 0.45),
    ),
    "lingula": (
        ("superior lingular", 0.85, -0.50, -0.10), ("inferior lingular", 0.62, -0.70, -0.45),
    ),
    "left interlobar": (("superior lower", 0.30, 0.9, 0.20),),
    "left lower lobe": (
        ("anteromedial basal", 0.55, -0.30, -0.75), ("lateral basal", 0.75, 0.25, -0.60),
        ("posterior basal", 0.30, 0.65, -0.70), ("medial basal", 0.02, 0.45, -0.95),
    ),
    "right superior vein": (
        ("apical", -0.35, -0.20, 0.90), ("anterior", -0.75, -0.65, 0.30),
        ("middle", -0.70, -0.55, -0.55),
    ),
    "right inferior vein": (
        ("superior", -0.70, 0.70, 0.25), ("basal", -0.55, 0.35, -0.80),
        ("posterior", -0.25, 0.75, -0.45),
    ),
    "left superior vein": (
        ("apical", 0.40, -0.05, 0.95), ("anterior", 0.75, -0.65, 0.35),
        ("lingular", 0.85, -0.40, -0.45),
    ),
    "left inferior vein": (
        ("superior", 0.75, 0.65, 0.20), ("basal", 0.60, 0.30, -0.80),
        ("posterior", 0.25, 0.75, -0.45),
    ),
}  # fmt: skip


def _artery_stems(anatomy: Anatomy) -> tuple[Stem, ...]:
    r = anatomy.trunk_radius_mm
    hx, hy, hz = anatomy.heart_shift
    valve: Point = (10.0 + hx, -52.0 + hy, -48.0 + hz)
    fork: Point = (19.0, -18.0, -9.0)
    right_end: Point = (-42.0, 5.0, -15.0)
    left_end: Point = (50.0, 12.0, -6.0)
    return (
        Stem(name="trunk", level="trunk", side="middle", upstream="",
             path=(valve, (21.0, -44.0, -26.0), (23.0, -30.0, -12.0), fork),
             radii_mm=(r, r * 1.05, r, r * 0.9)),
        Stem(name="right main", level="main", side="right", upstream="trunk",
             path=(fork, (0.0, 0.0, -13.0), (-22.0, 4.0, -15.0), right_end),
             radii_mm=(r * 0.82, r * 0.74, r * 0.72, r * 0.66)),
        Stem(name="left main", level="main", side="left", upstream="trunk",
             path=(fork, (32.0, -6.0, -4.0), (44.0, 6.0, -3.0), left_end),
             radii_mm=(r * 0.84, r * 0.76, r * 0.72, r * 0.66)),
        Stem(name="right upper lobe", level="lobar", side="right", upstream="right main",
             path=((-34.0, 4.0, -12.0), (-48.0, 2.0, 4.0), (-56.0, 2.0, 12.0)),
             radii_mm=(6.0, 5.4, 4.6)),
        Stem(name="right interlobar", level="lobar", side="right", upstream="right main",
             path=(right_end, (-54.0, 14.0, -28.0), (-57.0, 19.0, -42.0)),
             radii_mm=(r * 0.62, 7.4, 6.4)),
        Stem(name="right middle lobe", level="lobar", side="right", upstream="right interlobar",
             path=((-55.0, 15.0, -36.0), (-65.0, 0.0, -45.0)), radii_mm=(4.2, 3.8)),
        Stem(name="right lower lobe", level="lobar", side="right", upstream="right interlobar",
             path=((-57.0, 19.0, -42.0), (-61.0, 27.0, -58.0), (-64.0, 31.0, -66.0)),
             radii_mm=(6.2, 5.4, 4.8)),
        Stem(name="left upper lobe", level="lobar", side="left", upstream="left main",
             path=((46.0, 8.0, -3.0), (55.0, 4.0, 9.0)), radii_mm=(5.6, 4.8)),
        Stem(name="left interlobar", level="lobar", side="left", upstream="left main",
             path=(left_end, (57.0, 21.0, -18.0), (59.0, 25.0, -36.0)),
             radii_mm=(r * 0.62, 7.2, 6.2)),
        Stem(name="lingula", level="lobar", side="left", upstream="left interlobar",
             path=((58.0, 22.0, -27.0), (70.0, 6.0, -34.0)), radii_mm=(4.2, 3.8)),
        Stem(name="left lower lobe", level="lobar", side="left", upstream="left interlobar",
             path=((59.0, 25.0, -36.0), (62.0, 32.0, -54.0), (66.0, 35.0, -62.0)),
             radii_mm=(6.0, 5.2, 4.7)),
    )  # fmt: skip


def _vein_stems() -> tuple[Stem, ...]:
    def stem(name: str, side: str, *path: Point) -> Stem:
        radii = (8.0, 7.0, 5.4)[: len(path)]
        return Stem(name=name, level="lobar", side=side, upstream="", path=path, radii_mm=radii)

    return (
        stem("right superior vein", "right", (-20.0, 16.0, -38.0), (-40.0, -2.0, -30.0),
             (-56.0, -10.0, -24.0)),
        stem("right inferior vein", "right", (-20.0, 32.0, -50.0), (-42.0, 40.0, -58.0),
             (-54.0, 42.0, -62.0)),
        stem("left superior vein", "left", (34.0, 14.0, -34.0), (48.0, -8.0, -22.0),
             (58.0, -14.0, -14.0)),
        stem("left inferior vein", "left", (32.0, 32.0, -48.0), (48.0, 44.0, -58.0),
             (58.0, 46.0, -62.0)),
    )  # fmt: skip


def unit(v: Sequence[float]) -> Point:
    """Scale a vector to length 1."""
    length = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    return (v[0] / length, v[1] / length, v[2] / length)


def turned(rng: np.random.Generator, direction: Point, angle: float) -> Point:
    """Turn a direction by an angle (radians) about a random axis."""
    r = rng.standard_normal(3)
    along = float(r[0]) * direction[0] + float(r[1]) * direction[1] + float(r[2]) * direction[2]
    aside = unit([float(r[i]) - along * direction[i] for i in range(3)])
    c, s = math.cos(angle), math.sin(angle)
    return unit([c * direction[i] + s * aside[i] for i in range(3)])


class _Grower:
    """Collects the pieces of one tree while it grows."""

    def __init__(self, rng: np.random.Generator, anatomy: Anatomy, sac: Ellipsoid) -> None:
        self.rng = rng
        self.anatomy = anatomy
        self.sac = sac
        self.vessels: list[Vessel] = []

    def add(self, shape: Capsule, level: str, side: str, name: str, parent: int) -> int:
        self.vessels.append(Vessel(shape=shape, level=level, side=side, name=name, parent=parent))
        return len(self.vessels) - 1

    def free(self, p: Point, radius_mm: float) -> bool:
        return in_lung(self.anatomy, p, rim_mm=radius_mm + 2.0) and not self.sac.contains(p)

    def grow(
        self, start: Point, direction: Point, radius_mm: float, *, generation: int, side: str,
        name: str, parent: int, segment_mm: float,
    ) -> None:  # fmt: skip
        """Grow one branch of two pieces, then its daughters."""
        length = segment_mm * float(self.rng.uniform(0.8, 1.2))
        level = "segmental" if generation == 0 else "subsegmental"
        at, heading, radius = start, direction, radius_mm
        for piece in range(2):
            end: Point | None = None
            for attempt in range(9):
                angle = float(self.rng.uniform(0.05, 0.2 + 0.13 * attempt))
                tried = turned(self.rng, heading, angle)
                reach = length / 2 * (1 - 0.07 * attempt)
                step = (
                    at[0] + tried[0] * reach, at[1] + tried[1] * reach, at[2] + tried[2] * reach
                )  # fmt: skip
                # A hilar stem may start outside the lung: only the way onwards must be free.
                if self.free(step, radius) or (generation == 0 and at == start and attempt == 8):
                    end, heading = step, tried
                    break
            if end is None:
                return
            thinner = radius * 0.95
            shape = Capsule(start=at, end=end, start_radius_mm=radius, end_radius_mm=thinner)
            parent = self.add(shape, level, side, name, parent)
            at, radius = end, thinner
            twig = radius * float(self.rng.uniform(0.4, 0.58))
            if piece == 0 and twig > LEAST_RADIUS_MM:
                self.grow(
                    at, turned(self.rng, heading, float(self.rng.uniform(0.7, 1.2))), twig,
                    generation=generation + 2, side=side, name=name, parent=parent,
                    segment_mm=max(8.0, segment_mm * 0.75),
                )  # fmt: skip
        major, minor = float(self.rng.uniform(0.80, 0.88)), float(self.rng.uniform(0.60, 0.76))
        for share, spread in ((major, (0.2, 0.5)), (minor, (0.5, 0.9))):
            if radius * share < LEAST_RADIUS_MM:
                continue
            self.grow(
                at, turned(self.rng, heading, float(self.rng.uniform(*spread))), radius * share,
                generation=generation + 1, side=side, name=name, parent=parent,
                segment_mm=max(8.0, segment_mm * 0.80),
            )  # fmt: skip

    def stems(self, stems: Sequence[Stem], radius_mm: float) -> tuple[Vessel, ...]:
        """Lay the stems, then grow every named segment from its stem's end."""
        last: dict[str, int] = {"": -1}
        for stem in stems:
            parent = last[stem.upstream]
            jitter = [float(v) for v in self.rng.uniform(-2.5, 2.5, size=3)]
            path = list(stem.path)
            if stem.name in _SEGMENTS and not stem.name.endswith("interlobar"):
                end = path[-1]
                path[-1] = (end[0] + jitter[0], end[1] + jitter[1], end[2] + jitter[2])
            for i in range(len(path) - 1):
                shape = Capsule(
                    start=path[i], end=path[i + 1],
                    start_radius_mm=stem.radii_mm[i], end_radius_mm=stem.radii_mm[i + 1],
                )  # fmt: skip
                parent = self.add(shape, stem.level, stem.side, stem.name, parent)
            last[stem.name] = parent
        for stem in stems:
            for segment, x, y, z in _SEGMENTS.get(stem.name, ()):
                tip = self.vessels[last[stem.name]].shape
                drawn = radius_mm * float(self.rng.uniform(0.88, 1.12))
                radius = min(tip.end_radius_mm * 0.9, drawn)
                self.grow(
                    tip.end, turned(self.rng, unit((x, y, z)), 0.12), radius, generation=0,
                    side=stem.side, name=f"{stem.name}, {segment}", parent=last[stem.name],
                    segment_mm=float(self.rng.uniform(24, 32)),
                )  # fmt: skip
        return tuple(self.vessels)


def grow_arteries(rng: np.random.Generator, anatomy: Anatomy, sac: Ellipsoid) -> tuple[Vessel, ...]:
    """Grow the pulmonary arteries, canonical frame; parents stand before their daughters."""
    return _Grower(rng, anatomy, sac).stems(_artery_stems(anatomy), 3.1)


def grow_veins(rng: np.random.Generator, anatomy: Anatomy, sac: Ellipsoid) -> tuple[Vessel, ...]:
    """Grow the pulmonary veins from the left atrium outwards, canonical frame."""
    return _Grower(rng, anatomy, sac).stems(_vein_stems(), 3.0)


def accompanying_airways(rng: np.random.Generator, arteries: Sequence[Vessel]) -> list[Capsule]:
    """Return the lumina of segmental bronchi, each beside its artery."""
    found = []
    for vessel in arteries:
        shape = vessel.shape
        if vessel.level != "segmental" or shape.start_radius_mm < 2.0:
            continue
        heading = unit([shape.end[i] - shape.start[i] for i in range(3)])
        aside = turned(rng, heading, math.pi / 2)
        # Medial of the artery, as bronchi mostly run, and never crossing to the other side of it.
        if aside[0] * (1 if shape.start[0] > 0 else -1) > 0:
            aside = (-aside[0], -aside[1], -aside[2])
        off = shape.start_radius_mm + 2.6
        start, end = (
            (p[0] + aside[0] * off, p[1] + aside[1] * off, p[2] + aside[2] * off)
            for p in (shape.start, shape.end)
        )
        found.append(Capsule(start=start, end=end, start_radius_mm=1.7, end_radius_mm=1.5))
    return found
