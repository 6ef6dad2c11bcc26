"""How well a volume was imaged: noise and its grain, soft tissue, slices that do not belong.

All figures are robust ones over the whole volume, so that a single implant, a streak or an edge
does not decide; `docs/quality.md` states what they measure on phantoms and on real chests.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pe_triage.domain import CtVolume

BODY_HU = -300
"""Above it a voxel is body, table or clothes; below it lung and air."""
MIN_BODY_SHARE = 0.02
"""A chest fills a fifth of a slice and more."""
FLAT_HU = 20
"""A slice whose values differ by less shows nothing, whatever its level."""
SATURATED_HU = 3000
"""12 stored bits end at 3071 HU."""
SATURATED_SHARE = 0.05
"""Of a slice; larger than any implant."""
CLIP_HU = (-1000, 400)
"""Range in which neighbouring slices are compared: contrast and metal count no more than tissue."""
NEIGHBOURS = 8
"""Steps on either side against which a step between slices is held."""
SUBSAMPLE_MM = 3.0
EVERY_SECOND_MM = 6.0
"""Squares whose means are compared from slice to slice: noise is small in them."""
SOFT_HU = (-20.0, 110.0)
"""Muscle, liver and unenhanced blood, as means over some millimetres."""
BLOCK_MM = 3.0
NEAR_MM, FAR_MM = 0.8, 4.0
"""Distances at which noise is compared with itself: within and beyond the grain of any kernel."""
COARSE_MM = 1.1
"""Pixels wider than that average the grain away."""
MIN_SAMPLES = 300


def subsampled(volume: CtVolume) -> NDArray[np.int16]:
    """Every so many pixels of each slice, about `SUBSAMPLE_MM` apart: (z, y, x), contiguous.

    What is asked of all slices is asked of this: pixels far from each other cost as much to fetch
    as all that lie between them, each time.
    """
    _, y_mm, x_mm = volume.spacing_mm
    every_y, every_x = (max(1, round(SUBSAMPLE_MM / mm)) for mm in (y_mm, x_mm))
    return np.ascontiguousarray(volume.hu_zyx[:, ::every_y, ::every_x])


def blank_slices(some: NDArray[np.int16]) -> int:
    """Count slices that show nothing, or no body, in what `subsampled` gave."""
    flat = some.max(axis=(1, 2)).astype(np.int32) - some.min(axis=(1, 2)) < FLAT_HU
    body = (some > BODY_HU).mean(axis=(1, 2))
    return int((flat | (body < MIN_BODY_SHARE)).sum())


def saturated_slices(some: NDArray[np.int16]) -> int:
    """Count slices of which a large part lies at the upper end of what can be stored."""
    return int(((some >= SATURATED_HU).mean(axis=(1, 2)) > SATURATED_SHARE).sum())


def slice_jump(some: NDArray[np.int16]) -> float | None:
    """Largest step between neighbouring slices, over the usual step near by.

    A slice at a wrong place, of another patient or of another phase stands out by both of its
    steps; breathing during the scan gives single, smaller ones. None with fewer than three slices.
    """
    steps = _steps(some)
    if steps.size < 2:
        return None
    # Both neighbours of a foreign slice differ from it: the smaller of two steps is the sign.
    pairs = np.minimum(steps[:-1], steps[1:])
    usual = np.array(
        [np.median(steps[max(0, z - NEIGHBOURS) : z + NEIGHBOURS + 2]) for z in range(pairs.size)]
    )
    return float((pairs / np.maximum(usual, 1.0)).max())


def alternation(volume: CtVolume) -> float | None:
    """How much neighbouring slices differ, over how much every second one differs.

    In one body a slice is more like its neighbour than like the one after: the figure is below 1,
    and near 1 where noise is all that is seen. Where the slices of two acquisitions lie between
    each other it is above 1, whatever the headers say. None with fewer than five slices.
    """
    means = _means(volume)
    if means.shape[0] < 5:
        return None
    near = np.abs(np.diff(means, axis=0)).mean(axis=(1, 2))
    far = np.abs(means[2:] - means[:-2]).mean(axis=(1, 2))
    return float(np.median((near[:-1] + near[1:]) / 2 / np.maximum(far, 1.0)))


def block_sums(values_yx: NDArray[np.integer], block_y: int, block_x: int) -> NDArray[np.int32]:
    """Sums of blocks of (block_y, block_x) pixels; what is left over at the ends is left out."""
    rows = values_yx.shape[0] // block_y * block_y
    columns = values_yx.shape[1] // block_x * block_x
    whole = values_yx[:rows, :columns]
    # Row by row and column by column: a third of the time of a sum over axes so short.
    bands = whole[::block_y].astype(np.int32)
    for k in range(1, block_y):
        bands += whole[k::block_y]
    sums = bands[:, ::block_x].copy()
    for k in range(1, block_x):
        sums += bands[:, k::block_x]
    return sums


def _means(volume: CtVolume) -> NDArray[np.float32]:
    """Means of squares of `EVERY_SECOND_MM`; where pixels are fine, of every second one of them."""
    _, y_mm, x_mm = volume.spacing_mm
    blocks = [max(1, round(EVERY_SECOND_MM / mm)) for mm in (y_mm, x_mm)]
    skip_y, skip_x = (2 if block >= 4 else 1 for block in blocks)
    some = volume.hu_zyx[:, ::skip_y, ::skip_x]
    block_y, block_x = blocks[0] // skip_y, blocks[1] // skip_x
    rows, columns = some.shape[1] // block_y, some.shape[2] // block_x
    found = np.empty((some.shape[0], rows, columns), dtype=np.float32)
    for z, hu_yx in enumerate(some):
        found[z] = block_sums(hu_yx, block_y, block_x) / (block_y * block_x)
    return np.clip(found, *CLIP_HU, out=found)


def _steps(some: NDArray[np.int16]) -> NDArray[np.float64]:
    some = np.clip(some, *CLIP_HU)
    return np.array(
        [np.abs(some[z + 1].astype(np.int32) - some[z]).mean() for z in range(some.shape[0] - 1)]
    )


def noise_and_grain(volume: CtVolume) -> tuple[float | None, float | None]:
    """Measure noise within homogeneous soft tissue.

    Returns
    -------
    noise_hu
        Standard deviation, robustly; None where too little soft tissue was found.
    grain
        Correlation of the noise of neighbouring pixels: near 1 for smooth kernels, near 0 or below
        for sharp ones; None where the pixels are too coarse to tell (more than about 1 mm).
    """
    soft, body = _differences(volume)
    near_hu, far_hu = soft
    if far_hu.size < MIN_SAMPLES:
        # Noise so strong that nothing looks homogeneous: what all of the body shows is then noise.
        near_hu, far_hu = body
    if far_hu.size < MIN_SAMPLES:
        return None, None
    # Median absolute difference of two independent normal values, as a standard deviation.
    to_sd = 1.4826 / math.sqrt(2)
    noise = to_sd * float(np.median(np.abs(far_hu)))
    if noise <= 0 or volume.spacing_mm[2] > COARSE_MM:
        return noise, None
    return noise, 1.0 - (to_sd * float(np.median(np.abs(near_hu))) / noise) ** 2


_Differences = tuple[NDArray[np.float32], NDArray[np.float32]]


def _differences(volume: CtVolume) -> tuple[_Differences, _Differences]:
    """Differences of near and of far pixels: within homogeneous soft tissue, and in the body."""
    found: tuple[list[NDArray[np.float32]], ...] = ([], [], [], [])
    z_mm, y_mm, x_mm = volume.spacing_mm
    block = max(2, round(BLOCK_MM / y_mm)), max(2, round(BLOCK_MM / x_mm))
    steps = max(1, round(NEAR_MM / x_mm)), max(2, round(FAR_MM / x_mm))
    for z in range(0, volume.hu_zyx.shape[0], max(1, round(8.0 / z_mm))):
        hu_yx = volume.hu_zyx[z].astype(np.float32)
        mean = ndimage.uniform_filter(hu_yx, size=block)
        soft = (mean > SOFT_HU[0]) & (mean < SOFT_HU[1])
        # Homogeneous: soft tissue all around.
        soft = ndimage.minimum_filter(soft, size=tuple(2 * b + 1 for b in block))
        for into, (mask, step) in zip(
            found, [(m, s) for m in (soft, mean > BODY_HU) for s in steps], strict=True
        ):
            both = mask[:, step:] & mask[:, :-step]
            into.append((hu_yx[:, step:] - hu_yx[:, :-step])[both])
    a, b, c, d = (np.concatenate(parts) for parts in found)
    return (a, b), (c, d)


def soft_tissue_hu(some: NDArray[np.int16], slice_mm: float) -> float | None:
    """Level of the body's soft tissue: the median of what is neither air, lung, contrast nor bone.

    The window is placed by the data (between the darkest and the brightest tenth of the body), so
    that a wrong scale shows instead of being cut away.
    """
    some = some[:: max(1, round(4.0 / slice_mm))]
    low, high = int(some.min()), int(np.percentile(some, 96))
    # The upper half of the range that is used (metal and bone aside): body; air and lung fill the
    # lower.
    body = some[some > low + (high - low) * 0.45]
    return float(np.median(body)) if body.size >= MIN_SAMPLES else None
