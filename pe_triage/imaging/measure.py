"""What pixel rules judge, measured once on a coarse copy of a volume.

The copy has voxels of about 3 x 3 mm in the plane (means, so that noise is small) and a slice about
every 4 mm; all sizes below are millimetres, so that the answer does not depend on the matrix.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pe_triage.domain import CtVolume, VolumeMeasures
from pe_triage.imaging.motion import motion_signs
from pe_triage.imaging.quality import (
    alternation,
    blank_slices,
    noise_and_grain,
    saturated_slices,
    slice_jump,
    soft_tissue_hu,
    subsampled,
)
from pe_triage.imaging.typical import chest_figures, strangeness

NOMINAL_AIR_HU = -1000.0
DENSE_HU = -100.0
"""Vessels, muscle and some fat; below is lung at the mediastinum's edge."""
GRID_MM = 3.0
SLICE_STEP_MM = 4.0
AIR_BIN_HU = 16
AIR_SHARE = 0.001
"""A peak of the histogram counts from this share of all voxels on."""
LUNG_FROM_AIR_HU = 600
"""Lung and air lie below air plus this; the rest of the body above it."""
LUNG_ABOVE_AIR_HU = 30
MIN_LUNG_ML = 200.0
MIN_LUNG_AREA_MM2 = 1500.0
AIRWAY_MM = 9.0
AIRWAY_TOLERANCE_HU = 60.0
VESSEL_MM = 8.0
"""A vessel counts where all of a cube of this side is bright: calcium and noise do not."""
VESSEL_PERCENTILE = 90.0
MEDIASTINUM_FRONT, MEDIASTINUM_BACK = 0.15, 0.62
"""Part of the lungs' depth, from the front, that holds heart and great vessels, not the spine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coarse:
    hu_zyx: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]


def measure_volume(volume: CtVolume) -> VolumeMeasures:
    """Measure air, lung and the mediastinal vessels.

    ``vessel_hu`` is the 90th percentile, over the mediastinum between the lungs without spine and
    sternum, of the lowest value within 8 mm cubes: the level that a tenth of the mediastinum's
    interior reaches. Without contrast it is that of blood and muscle; in a CTPA it is near that of
    the enhanced chambers.
    """
    # These two take as long as all the rest, and hold the interpreter's lock for little of it.
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="measure") as pool:
        motion = pool.submit(motion_signs, volume)
        noise = pool.submit(noise_and_grain, volume)
        return _measure(volume, noise, motion)


_Two = Future[tuple[float | None, float | None]]


def _measure(volume: CtVolume, noise: _Two, motion: _Two) -> VolumeMeasures:
    coarse = _coarsen(volume)
    air_hu = _air_hu(volume)
    if air_hu is None or abs(air_hu - NOMINAL_AIR_HU) > AIRWAY_TOLERANCE_HU:
        # Where the body fills the picture the lowest peak is lung; the airways still hold air.
        airways = _airways_hu(coarse)
        air_hu = air_hu if airways is None else airways
    some = subsampled(volume)
    soft_hu, jump = soft_tissue_hu(some, volume.spacing_mm[0]), slice_jump(some)
    alternating = alternation(volume)
    blank, saturated = blank_slices(some), saturated_slices(some)
    (noise_hu, grain), (doubling, unevenness) = noise.result(), motion.result()
    common = VolumeMeasures(
        air_hu=air_hu,
        vessel_hu=None,
        lung_fraction=0.0,
        lung_extent_mm=0.0,
        soft_tissue_hu=soft_hu,
        noise_hu=noise_hu,
        grain=grain,
        slice_jump=jump,
        alternation=alternating,
        blank_slices=blank,
        saturated_slices=saturated,
        doubling=doubling,
        unevenness=unevenness,
    )
    dense, lung = _body_and_lung(coarse, NOMINAL_AIR_HU if air_hu is None else air_hu)
    if not lung.any():
        # A field of view within the chest: the lungs run out of the picture, and what looked like
        # air was lung.
        dense, lung = _cropped(coarse)
        air_hu = _airways_hu(coarse) if lung.any() else air_hu
    voxel_area = coarse.spacing_mm[1] * coarse.spacing_mm[2]
    lung_area = lung.sum(axis=(1, 2)) * voxel_area
    with_lung = lung_area >= MIN_LUNG_AREA_MM2
    if not with_lung.any():
        return replace(common, air_hu=air_hu)
    inside = (dense | lung)[with_lung].sum()
    strangest = strangeness(chest_figures(coarse.hu_zyx, dense, lung, coarse.spacing_mm))
    return replace(
        common,
        air_hu=air_hu,
        vessel_hu=_vessel_hu(coarse, lung, with_lung),
        lung_fraction=float(lung[with_lung].sum() / max(1, inside)),
        lung_extent_mm=float(with_lung.sum() * coarse.spacing_mm[0]),
        strangeness=None if strangest is None else strangest.spreads,
        strangest="" if strangest is None else strangest.words,
    )


def figures_of(volume: CtVolume) -> dict[str, float]:
    """Return the figures of `typical` of a volume whose scale is right."""
    coarse = _coarsen(volume)
    dense, lung = _body_and_lung(coarse, NOMINAL_AIR_HU)
    return chest_figures(coarse.hu_zyx, dense, lung, coarse.spacing_mm)


def _coarsen(volume: CtVolume) -> _Coarse:
    z_mm, y_mm, x_mm = volume.spacing_mm
    step = max(1, round(SLICE_STEP_MM / z_mm))
    block_y, block_x = max(1, round(GRID_MM / y_mm)), max(1, round(GRID_MM / x_mm))
    hu_zyx = volume.hu_zyx[step // 2 :: step] if volume.hu_zyx.shape[0] > step else volume.hu_zyx
    rows = hu_zyx.shape[1] // block_y * block_y
    columns = hu_zyx.shape[2] // block_x * block_x
    total = hu_zyx[:, 0:rows:block_y, :columns].astype(np.int32)
    for k in range(1, block_y):
        total += hu_zyx[:, k:rows:block_y, :columns]
    mean = total[:, :, ::block_x].astype(np.float32)
    for k in range(1, block_x):
        mean += total[:, :, k::block_x]
    mean /= block_y * block_x
    return _Coarse(hu_zyx=mean, spacing_mm=(z_mm * step, y_mm * block_y, x_mm * block_x))


def _air_hu(volume: CtVolume) -> float | None:
    """Median of the lowest peak of the histogram that is no padding."""
    z_step = max(1, volume.hu_zyx.shape[0] // 40)
    sample = volume.hu_zyx[::z_step, ::3, ::3].ravel()
    # Padding is one exact value below, or at the lower end of, everything else.
    lowest = sample.min()
    rest = sample[sample != lowest]
    # Some converters cut everything below -1000 HU away: then the one value is air itself.
    if abs(lowest - NOMINAL_AIR_HU) <= 10 and sample.size - rest.size >= AIR_SHARE * sample.size:
        return float(lowest)
    if rest.size >= AIR_SHARE * sample.size:
        sample = rest
    low = int(sample.min())
    counts = np.bincount((sample.astype(np.int32) - low) // AIR_BIN_HU)
    smooth = np.convolve(counts, np.ones(5), mode="same")
    peaks = np.flatnonzero(
        (smooth >= np.roll(smooth, 1))
        & (smooth >= np.roll(smooth, -1))
        & (smooth >= AIR_SHARE * sample.size)
    )
    if peaks.size == 0:
        return None
    centre = low + (int(peaks[0]) + 0.5) * AIR_BIN_HU
    near = sample[np.abs(sample - centre) <= 4 * AIR_BIN_HU]
    return float(np.median(near))


def _airways_hu(coarse: _Coarse) -> float | None:
    """Level of the darkest cube of about 9 mm, where it is that of air: the windpipe, usually."""
    lowest = float(coarse.hu_zyx.min())
    # Padding is one exact value and no air.
    hu_zyx = np.where(coarse.hu_zyx < lowest + 4.0, 0.0, coarse.hu_zyx)
    size = tuple(max(1, round(AIRWAY_MM / s)) for s in coarse.spacing_mm)
    darkest = float(ndimage.uniform_filter(hu_zyx, size=size).min())
    return darkest if abs(darkest - NOMINAL_AIR_HU) <= AIRWAY_TOLERANCE_HU else None


def _body_and_lung(coarse: _Coarse, air_hu: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    dark = coarse.hu_zyx < air_hu + LUNG_FROM_AIR_HU
    dense = _largest(~dark)
    # What no border of a slice reaches, within the body's outline, is lung or bowel gas.
    filled = np.zeros_like(dense)
    for z in range(dense.shape[0]):
        filled[z] = ndimage.binary_fill_holes(dense[z])
    return dense, _lung_like(filled & dark, coarse, air_hu)


def _cropped(coarse: _Coarse) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    dark = coarse.hu_zyx < NOMINAL_AIR_HU + LUNG_FROM_AIR_HU
    return ~dark, _lung_like(dark, coarse, NOMINAL_AIR_HU)


def _lung_like(mask: NDArray[np.bool_], coarse: _Coarse, air_hu: float) -> NDArray[np.bool_]:
    """Large connected parts of `mask` that are denser than air."""
    labels, count = ndimage.label(mask)
    sizes_ml = np.bincount(labels.ravel()) * (math.prod(coarse.spacing_mm) / 1000.0)
    keep = np.zeros(count + 1, dtype=bool)
    for n in range(1, count + 1):
        # Air caught between the patient and the table is not lung.
        keep[n] = sizes_ml[n] >= MIN_LUNG_ML and (
            float(np.median(coarse.hu_zyx[labels == n])) > air_hu + LUNG_ABOVE_AIR_HU
        )
    lung: NDArray[np.bool_] = keep[labels]
    return lung


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = labels == int(sizes.argmax())
    return largest


def _vessel_hu(
    coarse: _Coarse, lung: NDArray[np.bool_], with_lung: NDArray[np.bool_]
) -> float | None:
    region = _between_lungs(lung, with_lung)
    size = tuple(max(1, round(VESSEL_MM / s)) for s in coarse.spacing_mm)
    contiguous = ndimage.minimum_filter(coarse.hu_zyx, size=size)
    values = contiguous[region & (contiguous > DENSE_HU)]
    if values.size * math.prod(coarse.spacing_mm) < 20_000:
        return None
    return float(np.percentile(values, VESSEL_PERCENTILE))


def _between_lungs(lung: NDArray[np.bool_], with_lung: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels with lung to their right and to their left, within the mediastinum's depth."""
    right = np.maximum.accumulate(lung, axis=2)
    left = np.maximum.accumulate(lung[:, :, ::-1], axis=2)[:, :, ::-1]
    between = right & left & ~lung
    rows = np.arange(lung.shape[1])
    for z in np.flatnonzero(with_lung):
        present = np.flatnonzero(lung[z].any(axis=1))
        front, back = present[0], present[-1]
        depth = back - front
        outside = (rows < front + MEDIASTINUM_FRONT * depth) | (
            rows > front + MEDIASTINUM_BACK * depth
        )
        between[z, outside] = False
    between[~with_lung] = False
    return between
