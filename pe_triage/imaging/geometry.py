"""From a stack of slices to anatomical axes: which way each array axis of the source runs.

Target axes (see `domain.CtVolume`): z foot to head, y front to back, x the patient's right to left,
so that every index grows along a positive LPS axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_triage.errors import ImagingError
from pe_triage.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlane:
    """How a source slice is brought into anatomical order: exchange axes first, then reverse.

    Attributes
    ----------
    transpose
        The source's rows run from side to side: the patient lies on the side (decubitus).
    flip_y, flip_x
        Reverse the rows, the columns, after the exchange.
    """

    transpose: bool
    flip_y: bool
    flip_x: bool

    def apply(self, source_yx: NDArray[Any]) -> NDArray[Any]:
        """View of a source slice in anatomical order."""
        out = source_yx.T if self.transpose else source_yx
        return out[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def undo(self, hu_yx: NDArray[Any]) -> NDArray[Any]:
        """View of a slice in anatomical order as its source has it."""
        out = hu_yx[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return out.T if self.transpose else out


def in_plane(stack: Stack) -> InPlane:
    """Decide how the slices of an axial stack are to be turned.

    Any of the eight axial orientations is brought to the one of the target without resampling.
    """
    row, column = np.array(stack.row_direction), np.array(stack.column_direction)
    transpose = bool(abs(row[1]) > abs(row[0]))
    along_x, along_y = (column, row) if transpose else (row, column)
    return InPlane(transpose=transpose, flip_y=bool(along_y[1] < 0), flip_x=bool(along_x[0] < 0))


def affine_lps(stack: Stack, plane: InPlane) -> NDArray[np.float64]:
    """Voxel index (x, y, z, 1) of the anatomical volume to LPS millimetres, float64 (4, 4).

    PS3.3 C.7.6.2.1.1, with the slice axis taken from the first and the last position.

    Raises
    ------
    ImagingError
        Fewer than two positions.
    """
    if len(stack.groups) < 2:
        raise ImagingError("the series holds a single slice position: no volume")
    first, last = stack.groups[0][0].facts, stack.groups[-1][0].facts
    if (
        first.image_position_mm is None
        or last.image_position_mm is None
        or first.pixel_spacing_mm is None
        or first.rows is None
        or first.columns is None
    ):
        raise ImagingError("the geometry of the series cannot be read")
    row_step, column_step = first.pixel_spacing_mm
    # Moving one column follows the row direction, and the reverse (PS3.3 equation C.7.6.2.1-1).
    along_columns = np.array(stack.row_direction) * column_step
    along_rows = np.array(stack.column_direction) * row_step
    origin = np.array(first.image_position_mm, dtype=np.float64)
    along_slices = (np.array(last.image_position_mm) - origin) / (len(stack.groups) - 1)
    if plane.transpose:
        x_step, y_step, width, height = along_rows, along_columns, first.rows, first.columns
    else:
        x_step, y_step, width, height = along_columns, along_rows, first.columns, first.rows
    if plane.flip_x:
        origin, x_step = origin + (width - 1) * x_step, -x_step
    if plane.flip_y:
        origin, y_step = origin + (height - 1) * y_step, -y_step
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = (
        x_step,
        y_step,
        along_slices,
        origin,
    )
    return affine


def spacing_zyx_mm(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lengths of the affine's steps, (z, y, x)."""
    x, y, z = (float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
    return z, y, x
