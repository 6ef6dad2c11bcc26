"""Slices as pictures: PE window, heatmap overlay, true proportions, orientation marks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pe_triage.domain import CtVolume, KeySlice
from pe_triage.report.colormaps import heat_colors

PE_WINDOW = (100.0, 700.0)
"""Level and width in HU (models.md's PE window)."""

CONTOUR = 0.5
"""The overlay's outline encloses what reaches this share of the map's maximum."""

_FAINTEST = 0.15
_STRONGEST_ALPHA = 0.55


def windowed(hu_yx: NDArray[np.integer], window: tuple[float, float] = PE_WINDOW) -> Image.Image:
    """Return a slice as an 8-bit grey picture, black below and white above the window."""
    level, width = window
    low = level - width / 2
    grey = np.clip((hu_yx.astype(np.float32) - low) / width, 0.0, 1.0)
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8))


def display_size(volume: CtVolume, limit: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) within `limit` whose pixels are square in millimetres."""
    rows, columns = volume.hu_zyx.shape[1:]
    width_mm, height_mm = columns * volume.spacing_mm[2], rows * volume.spacing_mm[1]
    scale = min(limit[0] / width_mm, limit[1] / height_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))


def plain_slice(volume: CtVolume, z: int, limit: tuple[int, int]) -> Image.Image:
    """Return slice `z` in the PE window, RGB, in true proportions within `limit` (w, h)."""
    grey = windowed(volume.hu_zyx[z]).resize(display_size(volume, limit), Image.Resampling.BICUBIC)
    return grey.convert("RGB")


def overlay_slice(volume: CtVolume, key: KeySlice, limit: tuple[int, int]) -> Image.Image:
    """Return the key slice with its heatmap: colour where it is strong, an outline at half.

    The colour is laid over by strength, so vessels stay visible beneath; the white outline shows
    the place also where the reading station knows no colours.
    """
    base = plain_slice(volume, key.z, limit)
    heat = upsampled(key.heatmap_yx, base.size)
    alpha = np.clip((heat - _FAINTEST) / (1 - _FAINTEST), 0.0, 1.0) ** 0.7 * _STRONGEST_ALPHA
    grey = np.asarray(base, dtype=np.float32)
    mixed = grey * (1 - alpha[..., None]) + heat_colors(heat).astype(np.float32) * alpha[..., None]
    outline = _edge(heat >= CONTOUR)
    shadow = _edge(heat >= CONTOUR, by=2) & ~outline
    mixed[shadow] *= 0.45
    mixed[outline] = 245.0
    return Image.fromarray(np.rint(np.clip(mixed, 0, 255)).astype(np.uint8))


class SlicePictures:
    """Pictures of a volume's key slices, which may be drawn before a run asks for them.

    One is given only for the very key slice that it was drawn of; others are drawn anew. Whoever
    gets one must not draw on it. Filled by one thread; any may ask.
    """

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, tuple[int, int]], tuple[KeySlice, Image.Image]] = {}

    def draw(self, volume: CtVolume, keys: Sequence[KeySlice], limit: tuple[int, int]) -> None:
        """Draw the overlays of `keys`."""
        for key in keys:
            self._drawn[key.z, limit] = (key, overlay_slice(volume, key, limit))

    def overlay(self, volume: CtVolume, key: KeySlice, limit: tuple[int, int]) -> Image.Image:
        """Return what `overlay_slice` does."""
        of, picture = self._drawn.get((key.z, limit), (None, None))
        if picture is not None and of is key:
            return picture
        return overlay_slice(volume, key, limit)


def upsampled(heatmap_yx: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the map in [0, 1] at (height, width) of `size` (w, h), covering the same extent."""
    clean = np.nan_to_num(np.asarray(heatmap_yx, dtype=np.float32))
    picture = Image.fromarray(clean).resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(picture, dtype=np.float32), 0.0, 1.0)


def _edge(mask_yx: NDArray[np.bool_], *, by: int = 1) -> NDArray[np.bool_]:
    """Pixels outside a mask within `by` rows and `by` columns of it."""
    along_y = mask_yx.copy()
    for k in range(1, by + 1):
        along_y[k:] |= mask_yx[:-k]
        along_y[:-k] |= mask_yx[k:]
    grown = along_y.copy()
    for k in range(1, by + 1):
        grown[:, k:] |= along_y[:, :-k]
        grown[:, :-k] |= along_y[:, k:]
    return grown & ~mask_yx


def position_mm(volume: CtVolume, z: int) -> float:
    """Return the slice's position along the patient, LPS z in millimetres (head is greater)."""
    rows, columns = volume.hu_zyx.shape[1:]
    point = volume.affine_lps @ np.array([(columns - 1) / 2, (rows - 1) / 2, z, 1.0])
    return float(point[2])
