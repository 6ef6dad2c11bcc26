"""Where the slices of one series lie in space: order, spacing, gaps, duplicates, orientation.

Eligibility, completeness and the loader of volumes all need this answer, and it must be the same
answer; so it stands on the ground floor. Headers only; the Instance Number is never looked at.

Axes: the image's row direction (along which the column index grows), its column direction, and
their cross product, the slice normal (PS3.3 C.7.6.2.1.1). LPS, millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import InstanceFacts, ReceivedInstance
from pe_triage.frames import by_image, images_of

SAME_POSITION_MM = 0.01
"""Slices nearer than this lie at one position (DS positions are rounded to 0.001 mm or so)."""
AXIAL_LIMIT_DEG = 10.0
"""A slice tilted or turned further from the body axes is not axial."""
SHEAR_LIMIT_DEG = 0.5
"""Largest angle between slice normal and table travel that is rounding, not gantry tilt."""
SIDEWAYS_LIMIT_MM = 1.0
"""Largest sideways shift of a slice against the line through all."""
SAME_PLACE_MM = 0.1
"""Images at one position that lie further apart sideways show different parts of the body."""
UNIT_TOLERANCE = 1e-2
SAME_ORIENTATION = 1e-3
"""Largest difference of a direction cosine within one series."""
GAP_RATIO = 1.5
"""A step longer than this many usual steps means that a slice is missing."""
UNEQUAL_RATIO = 0.1
UNEQUAL_MM = 0.15
"""Steps may differ from the usual one by the larger of a share of it and scanners' rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Slices are missing between two positions (mm along the foot-to-head normal)."""

    from_mm: float
    to_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why the slices are no regular axial stack."""

    rule: str
    """Short stable name."""
    reason: str
    """Words a radiographer understands, with the value found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The slices of a series as a stack.

    Attributes
    ----------
    groups
        Instances by position, foot to head; more than one where several lie at one position.
        Empty where the geometry could not be read.
    positions_mm
        One for each group, along `normal`.
    normal
        Unit vector, LPS, pointing headwards for axial slices.
    row_direction, column_direction
        Unit vectors: along which the column index, the row index grows.
    spacing_mm
        Usual (median) distance of neighbouring positions; None with fewer than two.
    problem
        First defect that hinders a volume, most fundamental first; None where there is none.
        Several instances at one position are no problem yet: their pixels decide.
    """

    groups: tuple[tuple[ReceivedInstance, ...], ...]
    positions_mm: tuple[float, ...]
    normal: tuple[float, float, float]
    row_direction: tuple[float, float, float]
    column_direction: tuple[float, float, float]
    spacing_mm: float | None
    gaps: tuple[Gap, ...]
    problem: Problem | None

    @property
    def extent_mm(self) -> float:
        """Distance of the first from the last position."""
        return self.positions_mm[-1] - self.positions_mm[0] if self.positions_mm else 0.0

    @property
    def duplicates(self) -> int:
        """Instances beyond the first at their position."""
        return sum(len(group) - 1 for group in self.groups)


def analyse_stack(instances: Sequence[ReceivedInstance]) -> Stack:
    """Order the images of one series along their normal and name what is irregular.

    Each frame of a multi-frame instance is an image. The answer does not depend on the order of
    `instances`.
    """
    ordered = sorted(images_of(instances), key=by_image)
    problem = _header_problem([i.facts for i in ordered])
    if problem is not None:
        return _unreadable(problem)
    facts = [i.facts for i in ordered]
    orientation = np.array(facts[0].image_orientation, dtype=np.float64)
    row, column = orientation[:3], orientation[3:]
    row = row / np.linalg.norm(row)
    column = column / np.linalg.norm(column)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    # The sign that makes the dominant axis grow: headwards for axial slices.
    if normal[int(np.argmax(np.abs(normal)))] < 0:
        normal = -normal
    places = np.array([f.image_position_mm for f in facts], dtype=np.float64)
    heights = places @ normal
    order = np.argsort(heights, kind="stable")
    groups: list[list[int]] = []
    for index in order:
        if groups and heights[index] - heights[groups[-1][0]] <= SAME_POSITION_MM:
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
    positions = np.array([heights[g[0]] for g in groups])
    steps = np.diff(positions)
    spacing = float(np.median(steps)) if len(steps) else None
    gaps = _gaps(positions, spacing)
    return Stack(
        groups=tuple(tuple(sorted((ordered[i] for i in g), key=by_image)) for g in groups),
        positions_mm=tuple(float(p) for p in positions),
        normal=_vector(normal),
        row_direction=_vector(row),
        column_direction=_vector(column),
        spacing_mm=spacing,
        gaps=gaps,
        problem=(
            _not_axial(row, column, normal)
            or _displaced(places, groups)
            or _sheared(places[[g[0] for g in groups]], normal)
            or _gap_problem(gaps, spacing)
            or _unequal(steps, spacing)
        ),
    )


def _unreadable(problem: Problem) -> Stack:
    zero = (0.0, 0.0, 0.0)
    return Stack(
        groups=(),
        positions_mm=(),
        normal=zero,
        row_direction=zero,
        column_direction=zero,
        spacing_mm=None,
        gaps=(),
        problem=problem,
    )


def _vector(v: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(v[0]), float(v[1]), float(v[2])


def _header_problem(facts: Sequence[InstanceFacts]) -> Problem | None:
    if not facts:
        return Problem(rule="slices", reason="the series holds no image")
    total = len(facts)
    for name, missing in (
        ("image position (0020,0032)", sum(f.image_position_mm is None for f in facts)),
        ("image orientation (0020,0037)", sum(f.image_orientation is None for f in facts)),
        ("pixel spacing (0028,0030)", sum(f.pixel_spacing_mm is None for f in facts)),
        ("image size (0028,0010/0011)", sum(not f.rows or not f.columns for f in facts)),
    ):
        if missing:
            reason = f"{name} is missing or unreadable on {missing} of {total} images"
            return Problem(rule="geometry_missing", reason=reason)
    orientations = np.array([f.image_orientation for f in facts], dtype=np.float64)
    row, column = orientations[0, :3], orientations[0, 3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.any(np.abs(lengths - 1) > UNIT_TOLERANCE) or abs(row @ column) > UNIT_TOLERANCE:
        reason = "image orientation (0020,0037) is not two perpendicular directions"
        return Problem(rule="orientation_invalid", reason=reason)
    if np.max(np.abs(orientations - orientations[0])) > SAME_ORIENTATION:
        reason = "the images of the series are oriented differently"
        return Problem(rule="mixed_orientation", reason=reason)
    sizes = sorted({(f.rows or 0, f.columns or 0) for f in facts})
    if len(sizes) > 1:
        words = " and ".join(f"{r} x {c}" for r, c in sizes[:3])
        return Problem(rule="mixed_matrix", reason=f"image sizes differ in the series: {words}")
    spacings = np.array([f.pixel_spacing_mm for f in facts], dtype=np.float64)
    if np.any(spacings <= 0):
        reason = "pixel spacing (0028,0030) is not positive"
        return Problem(rule="pixel_spacing_invalid", reason=reason)
    if np.max(np.abs(spacings - spacings[0])) > 1e-4:
        found = f"{spacings[:, 0].min():.3f} to {spacings[:, 0].max():.3f} mm"
        return Problem(
            rule="mixed_pixel_spacing", reason=f"pixel spacing differs in the series: {found}"
        )
    frames = {f.frame_of_reference_uid for f in facts}
    if len(frames) > 1:
        reason = "the images of the series do not share one frame of reference"
        return Problem(rule="mixed_frame_of_reference", reason=reason)
    return None


def _angle_deg(cosine: float) -> float:
    return float(np.degrees(np.arccos(min(1.0, abs(cosine)))))


def _not_axial(
    row: NDArray[np.float64], column: NDArray[np.float64], normal: NDArray[np.float64]
) -> Problem | None:
    tilt = _angle_deg(float(normal[2]))
    if tilt > AXIAL_LIMIT_DEG:
        axis = int(np.argmax(np.abs(normal)))
        plane = ("sagittal", "coronal", "oblique")[axis]
        reason = f"slices are {plane}, not axial ({tilt:.0f} degrees from the axial plane)"
        return Problem(rule="not_axial", reason=reason)
    turn = min(_angle_deg(float(np.max(np.abs(v[:2])))) for v in (row, column))
    if turn > AXIAL_LIMIT_DEG:
        reason = f"images are turned by {turn:.0f} degrees within the axial plane"
        return Problem(rule="turned_in_plane", reason=reason)
    return None


def _sheared(places: NDArray[np.float64], normal: NDArray[np.float64]) -> Problem | None:
    if len(places) < 2:
        return None
    travel = places[-1] - places[0]
    length = float(np.linalg.norm(travel))
    angle = _angle_deg(float(travel @ normal) / length)
    # Rounded positions of a short stack may look tilted.
    sideways = float(np.linalg.norm(travel - (travel @ normal) * normal))
    if angle > SHEAR_LIMIT_DEG and sideways > SIDEWAYS_LIMIT_MM:
        reason = f"gantry tilt: slices are shifted against each other by {angle:.1f} degrees"
        return Problem(rule="gantry_tilt", reason=reason)
    share = ((places - places[0]) @ normal) / float(travel @ normal)
    off = np.linalg.norm(places - places[0] - share[:, None] * travel, axis=1)
    if float(off.max()) > SIDEWAYS_LIMIT_MM:
        reason = f"slices are shifted sideways against each other by up to {off.max():.1f} mm"
        return Problem(rule="shifted_slices", reason=reason)
    return None


def _displaced(places: NDArray[np.float64], groups: Sequence[Sequence[int]]) -> Problem | None:
    for group in groups:
        for other in group[1:]:
            apart = float(np.linalg.norm(places[other] - places[group[0]]))
            if apart > SAME_PLACE_MM:
                reason = f"images at one height are shifted sideways by {apart:.1f} mm"
                return Problem(rule="shifted_slices", reason=reason)
    return None


def _gaps(positions: NDArray[np.float64], spacing: float | None) -> tuple[Gap, ...]:
    if spacing is None:
        return ()
    limit = GAP_RATIO * spacing
    return tuple(
        Gap(from_mm=float(a), to_mm=float(b)) for a, b in pairwise(positions) if b - a > limit
    )


def _gap_problem(gaps: tuple[Gap, ...], spacing: float | None) -> Problem | None:
    if not gaps:
        return None
    gap = max(gaps, key=lambda g: g.to_mm - g.from_mm)
    reason = (
        f"slices are missing: {len(gaps)} gap(s), the largest {gap.to_mm - gap.from_mm:.1f} mm "
        f"at {gap.from_mm:.1f} mm, where slices are {spacing or 0.0:.2f} mm apart"
    )
    return Problem(rule="gap", reason=reason)


def _unequal(steps: NDArray[np.float64], spacing: float | None) -> Problem | None:
    if spacing is None:
        return None
    worst = float(np.max(np.abs(steps - spacing)))
    if worst <= max(UNEQUAL_MM, UNEQUAL_RATIO * spacing):
        return None
    reason = f"slices are unequally spaced: {steps.min():.2f} to {steps.max():.2f} mm"
    return Problem(rule="unequal_spacing", reason=reason)
