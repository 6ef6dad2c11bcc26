"""Where the lungs are: a mask of each slice, and the bounding box of both in the plane.

The recipe is that of the seed paper on LSTM and TCN (lstm_vs_tcn, 3.2): threshold at -400 HU,
remove what touches the image's border, dilate, close. Its elements are not stated; the sizes here
are millimetres and chosen so that vessels of the hilum lie inside: dilation by 4 mm takes the
vessel walls in, closing by 20 mm bridges vessels and the hilum's notch. The centre of the
mediastinum stays outside, as in the paper: a network behind this mask cannot see a saddle embolus
other than at its edges.

Masks are made on a grid of about 2 mm and are two-dimensional, so that any part of a volume gives
the same masks as the whole, in bounded memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pe_triage.imaging.windows import PADDING_HU

LUNG_HU: Final = -400.0
"""The paper's threshold between lung and soft tissue."""
GRID_MM: Final = 2.0
DILATION_MM: Final = 4.0
CLOSING_MM: Final = 20.0
MIN_AREA_MM2: Final = 400.0
"""Smaller parts of a slice are bowel gas, the oesophagus, or air caught in the table."""
BOX_MARGIN_MM: Final = 10.0
BOX_STEP_MM: Final = 4.0
BOX_MIN_ML: Final = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Part of every slice: rows `top` to `bottom`, columns `left` to `right`, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int


def lung_mask(
    hu_zyx: NDArray[np.int16], spacing_yx_mm: tuple[float, float], *, spread: bool = True
) -> NDArray[np.bool_]:
    """Mask the lungs on each slice by itself.

    Parameters
    ----------
    hu_zyx
        (slices, rows, columns) Hounsfield units.
    spacing_yx_mm
        Of rows and columns.
    spread
        Dilate and close, so that vessels are inside; without, the air of the lungs alone.

    Returns
    -------
    ndarray
        bool, of the same shape; a slice without lung is all False.
    """
    slices, rows, columns = hu_zyx.shape
    block_y, block_x = (max(1, round(GRID_MM / mm)) for mm in spacing_yx_mm)
    cell_mm = (block_y * spacing_yx_mm[0], block_x * spacing_yx_mm[1])
    out = np.zeros((slices, rows, columns), dtype=bool)
    for z in range(slices):
        coarse = _lungs_of_slice(_block_means(hu_zyx[z], block_y, block_x), cell_mm, spread)
        if coarse.any():
            full = coarse.repeat(block_y, axis=0).repeat(block_x, axis=1)
            out[z] = full[:rows, :columns]
    return out


def outside_is_air(
    hu_zyx: NDArray[np.int16], spacing_yx_mm: tuple[float, float]
) -> NDArray[np.int16]:
    """Return a copy with air wherever `lung_mask` is False."""
    mask = lung_mask(hu_zyx, spacing_yx_mm)
    return np.where(mask, hu_zyx, np.int16(PADDING_HU))


def has_lungs(hu_zyx: NDArray[np.int16], spacing_mm: tuple[float, float, float]) -> bool:
    """Say whether the masks of a volume hold as much as a lung."""
    return lung_box(hu_zyx, spacing_mm) is not None


def lung_box(
    hu_zyx: NDArray[np.int16],
    spacing_mm: tuple[float, float, float],
    *,
    margin_mm: float = BOX_MARGIN_MM,
) -> Box | None:
    """Find the lungs' bounding box in the plane, over all slices.

    Parameters
    ----------
    spacing_mm
        (z, y, x).
    margin_mm
        Added on every side, within the image.

    Returns
    -------
    Box or None
        None where no lung is found: no chest, or a field of view so small that the lungs run out
        of it everywhere.
    """
    step = max(1, round(BOX_STEP_MM / spacing_mm[0]))
    some = hu_zyx[step // 2 :: step] if hu_zyx.shape[0] > step else hu_zyx
    block_y, block_x = (max(1, round(GRID_MM / mm)) for mm in spacing_mm[1:])
    cell_mm = (block_y * spacing_mm[1], block_x * spacing_mm[2])
    mask = np.stack(
        [_lungs_of_slice(_block_means(s, block_y, block_x), cell_mm, False) for s in some]
    )
    labels, count = ndimage.label(mask)
    if not count:
        return None
    cell_ml = spacing_mm[0] * step * math.prod(cell_mm) / 1000.0
    sizes_ml = np.bincount(labels.ravel()) * cell_ml
    keep = sizes_ml >= BOX_MIN_ML
    keep[0] = False
    if not keep.any():
        return None
    plane = keep[labels].any(axis=0)
    (top, bottom), (left, right) = (
        (int(where[0]), int(where[-1]) + 1)
        for where in (np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0)))
    )
    rows, columns = hu_zyx.shape[1:]
    grow_y, grow_x = (math.ceil(margin_mm / mm) for mm in spacing_mm[1:])
    return Box(
        top=max(0, top * block_y - grow_y),
        bottom=min(rows, bottom * block_y + grow_y),
        left=max(0, left * block_x - grow_x),
        right=min(columns, right * block_x + grow_x),
    )


def _block_means(hu_yx: NDArray[np.int16], block_y: int, block_x: int) -> NDArray[np.float32]:
    """Means of blocks; the last of a row or column may be smaller."""
    starts_y = np.arange(0, hu_yx.shape[0], block_y)
    starts_x = np.arange(0, hu_yx.shape[1], block_x)
    total = np.add.reduceat(hu_yx.astype(np.int32), starts_y, axis=0)
    total = np.add.reduceat(total, starts_x, axis=1)
    count_y = np.diff(np.append(starts_y, hu_yx.shape[0]))
    count_x = np.diff(np.append(starts_x, hu_yx.shape[1]))
    mean: NDArray[np.float32] = (total / (count_y[:, None] * count_x)).astype(np.float32)
    return mean


def _lungs_of_slice(
    hu_yx: NDArray[np.float32], cell_mm: tuple[float, float], spread: bool
) -> NDArray[np.bool_]:
    """Mask one slice on the coarse grid."""
    labels, count = ndimage.label(hu_yx < LUNG_HU)
    keep = np.bincount(labels.ravel(), minlength=count + 1) * math.prod(cell_mm) >= MIN_AREA_MM2
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        keep[border] = False  # the air around the patient
    keep[0] = False
    mask: NDArray[np.bool_] = keep[labels]
    if not spread or not mask.any():
        return mask
    mask = _distance_mm(mask, cell_mm) <= DILATION_MM
    # padded, because eroding beside the border must not take the border for tissue
    pad = tuple(math.ceil(CLOSING_MM / mm) + 1 for mm in cell_mm)
    wide = np.pad(mask, [(p, p) for p in pad])
    wide = _distance_mm(wide, cell_mm) <= CLOSING_MM
    wide = ndimage.distance_transform_edt(wide, sampling=cell_mm) > CLOSING_MM
    closed: NDArray[np.bool_] = wide[pad[0] : -pad[0], pad[1] : -pad[1]] | mask
    return closed


def _distance_mm(mask: NDArray[np.bool_], cell_mm: tuple[float, float]) -> NDArray[np.float64]:
    """Distance of each cell to the mask: a threshold on it dilates by a disc of any size."""
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~mask, sampling=cell_mm)
    return distance
