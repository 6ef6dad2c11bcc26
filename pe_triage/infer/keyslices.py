"""Which slices to look at first, and where on them.

A slice is worth p_k · a_k: its probability times the attention that the exam's answer paid to it.
Neighbours show the same clot, so slices are taken greedily with a distance along z between them
(non-maximum suppression in millimetres, so that thin and thick series behave alike).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import CtVolume, KeySlice
from pe_triage.imaging.lungs import Box
from pe_triage.imaging.windows import square_offset_yx
from pe_triage.infer.gradcam import Score, gradcam, normalise
from pe_triage.infer.predictor import Inference, Predictor
from pe_triage.infer.runtime import SliceRuntime
from pe_triage.model.encoders import Grid
from pe_triage.model.inputs import ExamInput

FEWEST: Final = 3
MOST: Final = 8
DISTANCE_MM: Final = 8.0


def choose_slices(
    probability_z: NDArray[np.float32],
    attention_z: NDArray[np.float32],
    spacing_z_mm: float,
    count: int,
    *,
    distance_mm: float = DISTANCE_MM,
) -> tuple[int, ...]:
    """Return indices of key slices in anatomical order, foot to head.

    Parameters
    ----------
    count
        How many; held within `FEWEST` and `MOST`. Fewer are returned where the volume is too
        short to hold as many at the distance.
    distance_mm
        Two key slices lie at least this far apart.
    """
    wanted = min(max(count, FEWEST), MOST)
    worth_z = probability_z.astype(np.float64) * attention_z
    chosen: list[int] = []
    for k in np.argsort(-worth_z, kind="stable"):  # the lower slice of equals comes first
        if all(abs(int(k) - j) * spacing_z_mm >= distance_mm - 1e-6 for j in chosen):
            chosen.append(int(k))
            if len(chosen) == wanted:
                break
    return tuple(sorted(chosen))


def peak_in_voxels(heatmap_yx: NDArray[np.float32], rows: int, columns: int) -> tuple[float, float]:
    """Return (row, column) of the centre of the map's largest cell, in voxels of the slice.

    Voxel centres lie at whole numbers, so the slice spans -0.5 to rows - 0.5. The centre of mass
    of equal maxima is not taken: it may lie where there is none. A map of zeros points nowhere;
    its peak is the slice's centre, and whoever marks a place must ask ``heatmap_yx.any()`` first.
    """
    if not heatmap_yx.any():
        return (rows - 1) / 2, (columns - 1) / 2
    h, w = heatmap_yx.shape
    i, j = np.unravel_index(int(np.argmax(heatmap_yx)), heatmap_yx.shape)
    return float((i + 0.5) * rows / h - 0.5), float((j + 0.5) * columns / w - 0.5)


def place_on_slice(
    map_hw: NDArray[np.float32], rows: int, columns: int, *, box: Box, size: int, grid: Grid
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Bring a map from the network's grid to the slice itself, and say where its peak lies.

    The network sees `box` of the slice in a square of air, scaled to `size`; the cells of its last
    map look at `grid`. Here the map is read at the centres of cells that tile the whole slice,
    twice as fine as the network's, by linear interpolation: the network's own cells are centred
    on the edges between such tiles, so that a tiling as coarse as they would shift or smear.
    Outside the box nothing was seen and the map is zero.

    Parameters
    ----------
    map_hw
        In [0, 1].
    rows, columns
        Of the slice.

    Returns
    -------
    heatmap_yx
        float32 in [0, 1], scaled to its maximum again.
    peak_yx
        (row, column) of the centre of the network's largest cell that looks at the slice, in
        voxels; of a map of zeros the slice's centre, so ask ``heatmap_yx.any()`` first.
    """
    height, width = box.bottom - box.top, box.right - box.left
    side = max(height, width)
    above, before = square_offset_yx(height, width)
    starts = (box.top - above, box.left - before)
    weights, places = [], []
    for extent, start, cells, low, high in zip(
        (rows, columns), starts, map_hw.shape, (box.top, box.left), (box.bottom, box.right),
        strict=True,
    ):  # fmt: skip
        tiles = max(1, math.ceil(2 * extent * size / (side * grid.step)))
        voxel = (np.arange(tiles) + 0.5) * extent / tiles - 0.5
        cell = ((voxel - start + 0.5) * size / side - 0.5 - grid.origin) / grid.step
        cell = np.clip(cell, 0, cells - 1)
        weight = np.clip(1 - np.abs(cell[:, None] - np.arange(cells)), 0, None)
        weight[(voxel < low - 0.5) | (voxel > high - 0.5)] = 0.0
        weights.append(weight)
        pixel = grid.origin + grid.step * np.arange(cells)
        places.append((pixel + 0.5) * side / size - 0.5 + start)
    heatmap = normalise((weights[0] @ map_hw @ weights[1].T).astype(np.float32)[None])[0]
    if not heatmap.any():
        return heatmap, ((rows - 1) / 2, (columns - 1) / 2)
    half = grid.step * side / size / 2
    inside_y, inside_x = (
        (place > -0.5 - half) & (place < extent - 0.5 + half)
        for place, extent in zip(places, (rows, columns), strict=True)
    )
    looking = np.where(inside_y[:, None] & inside_x, map_hw, -1.0)
    i, j = np.unravel_index(int(np.argmax(looking)), looking.shape)
    if looking[i, j] <= 0:  # what the slice shows of the map comes from cells beyond its edge
        return heatmap, peak_in_voxels(heatmap, rows, columns)
    return heatmap, (
        float(np.clip(places[0][i], 0, rows - 1)),
        float(np.clip(places[1][j], 0, columns - 1)),
    )


def explain_slices(
    volume: CtVolume,
    inference: Inference,
    predictor: Predictor,
    slices: Sequence[int],
    *,
    score: Score = Score.SLICE,
) -> tuple[KeySlice, ...]:
    """Explain the slices asked for, whatever the spec's units.

    Parameters
    ----------
    volume
        The volume that `inference` is of.

    Returns
    -------
    tuple
        In the order of `slices`. The heatmaps cover the whole slice.
    """
    prediction, plan = inference.prediction, inference.plan
    exam = predictor.input(volume)
    units = list(slices) if plan is None else [plan.place_of(z)[0] for z in slices]
    maps = _maps(predictor.runtime, exam, units)
    cams = gradcam(predictor.network, inference.feat_zd, maps, slices, score, plan)
    rows, columns = volume.hu_zyx.shape[1:]
    out = []
    for z, cam_hw in zip(slices, cams, strict=True):
        heatmap_yx, peak_yx = place_on_slice(
            cam_hw,
            rows,
            columns,
            box=exam.box,
            size=predictor.card.spec.size,
            grid=predictor.network.encoder.grid,
        )
        out.append(
            KeySlice(
                z=z,
                sop_instance_uid=volume.sop_instance_uids[z],
                probability=float(prediction.slice_probability_z[z]),
                attention=float(prediction.attention_z[z]),
                heatmap_yx=heatmap_yx,
                peak_yx=peak_yx,
                frame=volume.frame_of(z),
            )
        )
    return tuple(out)


def _maps(runtime: SliceRuntime, exam: ExamInput, units: Sequence[int]) -> NDArray[np.float32]:
    """Last feature maps of `units`; one that is asked for several times is encoded once."""
    once = list(dict.fromkeys(units))
    images = [exam.images(u, u + 1) for u in once]
    if runtime.info.independent:
        # Side by side; elsewhere what comes with a unit may change its last bits.
        found = list(runtime.maps(np.concatenate(images)))
    else:
        found = [runtime.maps(image)[0] for image in images]
    return np.stack([found[once.index(u)] for u in units])


def key_slices(
    volume: CtVolume,
    inference: Inference,
    predictor: Predictor,
    count: int,
    *,
    score: Score = Score.SLICE,
) -> tuple[KeySlice, ...]:
    """Choose the key slices of an inference and explain each.

    Parameters
    ----------
    volume
        The volume that `inference` is of.
    count
        How many, from `FEWEST` to `MOST`.

    Returns
    -------
    tuple
        In anatomical order. The heatmaps cover the whole slice.
    """
    prediction = inference.prediction
    slices = choose_slices(
        prediction.slice_probability_z, prediction.attention_z, volume.spacing_mm[0], count
    )
    return explain_slices(volume, inference, predictor, slices, score=score)
