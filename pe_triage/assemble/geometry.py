"""What of a series' geometry completeness and eligibility decide on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pe_triage.domain import ReceivedInstance
from pe_triage.stack import Gap, analyse_stack


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesGeometry:
    """A series' slices in space, by headers.

    Attributes
    ----------
    contiguous
        A regular axial stack of at least two positions, without a gap.
    slices
        Positions, several images at one position counted once.
    coverage_mm
        Length of the patient that the slices cover: first to last position and one spacing.
    gaps
        Where slices are missing.
    spacing_mm
        Usual distance of slices; None with fewer than two positions.
    """

    contiguous: bool
    slices: int
    coverage_mm: float
    gaps: tuple[Gap, ...]
    spacing_mm: float | None


def series_geometry(instances: Sequence[ReceivedInstance]) -> SeriesGeometry:
    """Summarise the instances of one series, whatever their order."""
    stack = analyse_stack(instances)
    spacing = stack.spacing_mm
    return SeriesGeometry(
        contiguous=stack.problem is None and spacing is not None,
        slices=len(stack.groups),
        coverage_mm=stack.extent_mm + (spacing or 0.0),
        gaps=stack.gaps,
        spacing_mm=spacing,
    )
