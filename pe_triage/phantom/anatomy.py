"""The patient that is drawn: body, heart and contrast timing, as frozen numbers.

Everything is laid out in one canonical frame (mm, LPS, origin at the carina) and then placed by a
`Pose`, so that anatomy can vary in size and position without any shape knowing of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pe_triage.phantom.distributions import Uniform
from pe_triage.phantom.geometry import Capsule, Ellipsoid, Point, Shape

IDENTITY: tuple[Point, Point, Point] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Scale, turn about the body axis, shift: from the canonical frame to the scanner's."""

    scale: float
    rotation_deg: float
    shift_x_mm: float
    shift_y_mm: float

    @property
    def turn(self) -> tuple[float, float]:
        """Cosine and sine of the rotation."""
        angle = math.radians(self.rotation_deg)
        return math.cos(angle), math.sin(angle)

    def point(self, p: Point) -> Point:
        """Place a point."""
        c, s = self.turn
        return (
            self.scale * (c * p[0] - s * p[1]) + self.shift_x_mm,
            self.scale * (s * p[0] + c * p[1]) + self.shift_y_mm,
            self.scale * p[2],
        )

    def axis(self, a: Point) -> Point:
        """Place a direction."""
        c, s = self.turn
        return (c * a[0] - s * a[1], s * a[0] + c * a[1], a[2])

    def capsule(self, shape: Capsule) -> Capsule:
        """Place a capsule."""
        return Capsule(
            start=self.point(shape.start),
            end=self.point(shape.end),
            start_radius_mm=shape.start_radius_mm * self.scale,
            end_radius_mm=shape.end_radius_mm * self.scale,
        )

    def shape(self, shape: Shape) -> Shape:
        """Place a shape."""
        if isinstance(shape, Capsule):
            return self.capsule(shape)
        a, b, c = shape.axes
        return Ellipsoid(
            centre=self.point(shape.centre),
            axes=(self.axis(a), self.axis(b), self.axis(c)),
            semi_mm=(
                shape.semi_mm[0] * self.scale,
                shape.semi_mm[1] * self.scale,
                shape.semi_mm[2] * self.scale,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Attenuation of blood in each compartment, HU: the timing of the bolus."""

    artery_hu: float
    svc_hu: float
    right_heart_hu: float
    left_heart_hu: float
    aorta_hu: float
    ivc_hu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """One drawn body, lengths in canonical mm unless the pose has been applied."""

    sex: str
    age_years: int
    pose: Pose
    fat_mm: float
    depth: float
    """Front-to-back size of the chest relative to the average."""
    lung_hu: float
    rib_phase_mm: float
    right_dome_mm: float
    left_dome_mm: float
    heart_shift: Point
    heart_turn_deg: float
    lv_diameter_mm: float
    rv_diameter_mm: float
    septum_mm: float
    trunk_radius_mm: float
    aorta_radius_mm: float
    contrast: Contrast
    bow_mm: float = 0.0
    """How far the septum bows into the left ventricle; 0: it bows the other way, as in health."""
    side_factors: tuple[float, float] = (1.0, 1.0)
    """Calibre of the left and right lungs' arteries relative to the average."""

    @property
    def rv_lv_ratio(self) -> float:
        """Ratio of the short-axis diameters in the axial slice through the ventricles' centre."""
        return self.rv_diameter_mm / self.lv_diameter_mm


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """A shape and what fills it."""

    shape: Shape
    hu: float


def draw_contrast(rng: np.random.Generator, artery_hu: float) -> Contrast:
    """Draw the bolus timing around the attenuation of the pulmonary arteries."""
    late = Uniform(low=0.55, high=1.0).draw(rng)
    right = artery_hu * Uniform(low=0.95, high=1.15).draw(rng)
    left = max(70.0, artery_hu * late)
    return Contrast(
        artery_hu=artery_hu,
        svc_hu=right * Uniform(low=1.1, high=1.9).draw(rng),
        right_heart_hu=right,
        left_heart_hu=left,
        aorta_hu=max(55.0, left * Uniform(low=0.75, high=0.95).draw(rng)),
        ivc_hu=Uniform(low=50, high=95).draw(rng),
    )


def draw_anatomy(rng: np.random.Generator, *, artery_hu: float, rv_dilated: bool) -> Anatomy:
    """Draw one body.

    Parameters
    ----------
    rng
        Source of randomness; advanced by a fixed number of draws.
    artery_hu
        Attenuation of the pulmonary arteries.
    rv_dilated
        Whether RV/LV is drawn from 1.03…1.7 or from 0.62…0.97; the gap keeps the label honest at
        the resolution at which anybody could measure it.
    """
    wide = Uniform(low=1.03, high=1.7).draw(rng)
    narrow = Uniform(low=0.62, high=0.97).draw(rng)
    ratio = wide if rv_dilated else narrow
    lv = Uniform(low=40, high=48).draw(rng) * (0.86 if rv_dilated else 1.0)
    return Anatomy(
        sex="F" if rng.random() < 0.5 else "M",
        age_years=int(rng.integers(22, 90)),
        pose=Pose(
            scale=Uniform(low=0.92, high=1.07).draw(rng),
            rotation_deg=Uniform(low=-5, high=5).draw(rng),
            shift_x_mm=Uniform(low=-6, high=6).draw(rng),
            shift_y_mm=Uniform(low=-6, high=6).draw(rng),
        ),
        fat_mm=Uniform(low=8, high=30).draw(rng),
        depth=Uniform(low=0.94, high=1.1).draw(rng),
        lung_hu=Uniform(low=-885, high=-815).draw(rng),
        rib_phase_mm=Uniform(low=0, high=24).draw(rng),
        right_dome_mm=Uniform(low=-100, high=-86).draw(rng),
        left_dome_mm=Uniform(low=-112, high=-98).draw(rng),
        heart_shift=(
            Uniform(low=-5, high=5).draw(rng),
            Uniform(low=-4, high=4).draw(rng),
            Uniform(low=-4, high=4).draw(rng),
        ),
        heart_turn_deg=Uniform(low=-8, high=8).draw(rng),
        lv_diameter_mm=lv,
        rv_diameter_mm=lv * ratio,
        septum_mm=Uniform(low=8, high=11).draw(rng),
        trunk_radius_mm=Uniform(low=12.5, high=15).draw(rng) * (1.12 if rv_dilated else 1.0),
        aorta_radius_mm=Uniform(low=14, high=17).draw(rng),
        contrast=draw_contrast(rng, artery_hu),
    )


def tube(points: Iterable[Point], radii_mm: Iterable[float]) -> list[Capsule]:
    """Join points by tapered capsules."""
    p, r = list(points), list(radii_mm)
    return [
        Capsule(start=p[i], end=p[i + 1], start_radius_mm=r[i], end_radius_mm=r[i + 1])
        for i in range(len(p) - 1)
    ]
