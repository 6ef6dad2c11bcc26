"""Motion during the scan, from what it does to the lungs' vessels and from slice to slice.

Two kinds are measured, each by one figure:

*Doubling.* A scan while something moves mixes an object with itself displaced, so that vessels in
the lung have a second outline some millimetres away, all in one direction. The autocorrelation of
the lungs' detail then rises at that displacement. Vessels themselves correlate over such distances
too, but, taken over a few centimetres of lung, about equally in all directions; so the part that
depends on the direction is the sign. (Ghosts are found by autocorrelation in film restoration and
in MR in the same way.)

*Unevenness.* Breathing moves the organs along the patient's axis, so that slices advance through
them faster and slower by turns: the stair-steps of a coronal reformat. Differences between
neighbouring slices then rise and fall within a few centimetres, as nothing in a body at rest does.

Axes: ``z y x`` as in `CtVolume`; ``r a`` distance and angle of a displacement.
`docs/quality.md` states what both read on phantoms and on real chests, and what they miss.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from pe_triage.domain import CtVolume
from pe_triage.imaging.quality import CLIP_HU, block_sums

PIXEL_MM: Final = 1.6
"""Pixels are averaged to about this: vessels of 2 mm and more stay."""
SLICE_MM: Final = 6.0
"""Distance of the slices that are looked at; each is averaged over half of it."""
SLAB: Final = 7
"""Slices over which directions are averaged: 42 mm."""
DISTANCES_MM: Final = tuple(4.5 + 0.75 * k for k in range(7))
ANGLES_DEG: Final = tuple(range(0, 180, 15))
"""An autocorrelation is symmetric: half of the circle is all of it."""
_DETAIL_MM: Final = 6.0
_TISSUE_HU: Final = (-1000.0, 200.0)
_AIR_HU, _DENSE_HU = -500.0, -300.0
_INNER_MM, _INNER_SHARE = 24.0, 0.55
"""Within the lung: where so much of a square of this side is air."""
_MIN_AREA_MM2: Final = 2000.0
_MIN_SLICES: Final = 4
_MIN_STEPS: Final = 10


def motion_signs(volume: CtVolume) -> tuple[float | None, float | None]:
    """Measure both kinds.

    Returns
    -------
    doubling
        Root mean square of the directed part of the lungs' autocorrelation; None where the lungs
        are seen on fewer than four of the slices that are looked at.
    unevenness
        Spread of the steps between slices about their running mean, as a part of it; None with
        fewer than ten steps.
    """
    hu_zyx, mm = _sampled(volume)
    return _doubling(hu_zyx, mm), _unevenness(hu_zyx)


def _doubling(hu_zyx: NDArray[np.float32], mm: tuple[float, float]) -> float | None:
    directed = [found for hu_yx in hu_zyx if (found := _autocorrelation(hu_yx, mm)) is not None]
    if len(directed) < _MIN_SLICES:
        return None
    per_slice_zra = np.stack(directed)
    wide = min(SLAB, len(per_slice_zra))
    sums = np.cumsum(np.concatenate([np.zeros_like(per_slice_zra[:1]), per_slice_zra]), axis=0)
    slabs_zra = (sums[wide:] - sums[:-wide]) / wide
    slabs_zra = slabs_zra - np.median(slabs_zra, axis=2, keepdims=True)
    return float(np.sqrt((slabs_zra**2).mean(axis=(1, 2))).mean())


def _unevenness(hu_zyx: NDArray[np.float32]) -> float | None:
    some = np.clip(hu_zyx[:, ::2, ::2], *CLIP_HU)
    steps = np.abs(np.diff(some, axis=0)).mean(axis=(1, 2))
    if steps.size < _MIN_STEPS:
        return None
    window = np.ones(5) / 5
    usual = np.convolve(steps, window, mode="valid")
    part = steps[2:-2] / np.maximum(usual, 1.0)
    return float(np.std(part))


def _sampled(volume: CtVolume) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Slices some millimetres apart, averaged to about `PIXEL_MM`; and the size of a pixel."""
    z_mm, y_mm, x_mm = volume.spacing_mm
    step, thick = max(1, round(SLICE_MM / z_mm)), max(1, round(SLICE_MM / 2 / z_mm))
    block_y, block_x = (max(1, round(PIXEL_MM / mm)) for mm in (y_mm, x_mm))
    hu_zyx = volume.hu_zyx
    rows, columns = hu_zyx.shape[1] // block_y * block_y, hu_zyx.shape[2] // block_x * block_x
    starts = range(0, hu_zyx.shape[0] - thick + 1, step)
    out = np.empty((len(starts), rows // block_y, columns // block_x), dtype=np.float32)
    for k, z in enumerate(starts):
        total = hu_zyx[z, :rows, :columns].astype(np.int32)
        for other in range(z + 1, z + thick):
            total += hu_zyx[other, :rows, :columns]
        out[k] = block_sums(total, block_y, block_x) / (thick * block_y * block_x)
    return out, (y_mm * block_y, x_mm * block_x)


def _autocorrelation(
    hu_yx: NDArray[np.float32], mm: tuple[float, float]
) -> NDArray[np.float64] | None:
    """Autocorrelation (r, a) of the detail within the lungs; None where there is little lung."""
    inner = _inner_lung(hu_yx, mm)
    if inner.sum() * mm[0] * mm[1] < _MIN_AREA_MM2:
        return None
    image = np.clip(hu_yx, *_TISSUE_HU)
    size = tuple(max(1, round(_DETAIL_MM / s)) | 1 for s in mm)
    detail = (image - ndimage.uniform_filter(image, size=size)) * inner
    # Padded by more than the largest displacement, so that nothing meets itself around the edge.
    padded = [
        fft.next_fast_len(n + int(DISTANCES_MM[-1] / s) + 2, real=True)
        for n, s in zip(hu_yx.shape, mm, strict=True)
    ]
    products = _correlate(detail, padded)
    pairs = _correlate(inner.astype(np.float32), padded)
    level = products[0, 0] / pairs[0, 0]
    if not level > 0:
        return None
    r_mm, a_rad = np.meshgrid(DISTANCES_MM, np.deg2rad(ANGLES_DEG), indexing="ij")
    at = [r_mm * np.sin(a_rad) / mm[0], r_mm * np.cos(a_rad) / mm[1]]
    ratio = products / np.maximum(pairs, 20.0) / level
    return np.asarray(
        ndimage.map_coordinates(ratio, at, order=1, mode="grid-wrap"), dtype=np.float64
    )


def _correlate(image: NDArray[np.float32], padded: list[int]) -> NDArray[np.float32]:
    spectrum = fft.rfft2(image, padded)
    found: NDArray[np.float32] = fft.irfft2(np.abs(spectrum) ** 2, padded)
    return found


def _inner_lung(hu_yx: NDArray[np.float32], mm: tuple[float, float]) -> NDArray[np.bool_]:
    """Lung with its vessels, away from the chest wall: air with body on all four sides."""
    dense = hu_yx > _DENSE_HU
    air = hu_yx < _AIR_HU
    for axis in (0, 1):
        before = np.maximum.accumulate(dense, axis=axis)
        after = np.flip(np.maximum.accumulate(np.flip(dense, axis), axis=axis), axis)
        air &= before & after
    size = tuple(max(1, round(_INNER_MM / s)) | 1 for s in mm)
    share = ndimage.uniform_filter(air.astype(np.float32), size=size)
    inner: NDArray[np.bool_] = share > _INNER_SHARE
    return inner
