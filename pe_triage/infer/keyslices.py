"""Which slices to look at first, and where on them.

A slice is worth p_k · a_k: its probability times the attention that the exam's answer paid to it.
Neighbours show the same clot, so slices are taken greedily with a distance along z between them
(non-maximum suppression in millimetres, so that thin and thick series behave alike).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import CtVolume, KeySlice
from pe_triage.imaging.windows import square_offset_yx
from pe_triage.infer.gradcam import Score, gradcam, normalise
from pe_triage.infer.predictor import Inference, Predictor

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


def on_slice(map_hw: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Take the part of the network's grid that covers the slice itself.

    The network sees a slice that is not square in a square of air. The map is cut to the slice
    with as many cells as the slice covers, rounded up, by linear interpolation between cell
    centres, and scaled to its maximum again. A square slice keeps its map as it is.
    """
    if rows == columns:
        return map_hw
    side = max(rows, columns)
    weights = []
    for extent, offset, cells in zip(
        (rows, columns), square_offset_yx(rows, columns), map_hw.shape, strict=True
    ):
        kept = max(1, math.ceil(cells * extent / side))
        centres = (offset + (np.arange(kept) + 0.5) * extent / kept) * cells / side - 0.5
        centres = np.clip(centres, 0, cells - 1)
        weights.append(np.clip(1 - np.abs(centres[:, None] - np.arange(cells)), 0, None))
    cut = (weights[0] @ map_hw @ weights[1].T).astype(np.float32)
    scaled: NDArray[np.float32] = normalise(cut[None])[0]
    return scaled


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
        In anatomical order. The heatmaps cover the whole slice at the network's own grid.
    """
    prediction = inference.prediction
    slices = choose_slices(
        prediction.slice_probability_z, prediction.attention_z, volume.spacing_mm[0], count
    )
    images = predictor.images(volume.hu_zyx[list(slices)])
    maps_kdhw = predictor.runtime.maps(images)
    maps = gradcam(predictor.network, inference.feat_zd, maps_kdhw, slices, score)
    rows, columns = volume.hu_zyx.shape[1:]
    heatmaps = [on_slice(map_hw, rows, columns) for map_hw in maps]
    return tuple(
        KeySlice(
            z=z,
            sop_instance_uid=volume.sop_instance_uids[z],
            probability=float(prediction.slice_probability_z[z]),
            attention=float(prediction.attention_z[z]),
            heatmap_yx=heatmaps[i].copy(),
            peak_yx=peak_in_voxels(heatmaps[i], rows, columns),
        )
        for i, z in enumerate(slices)
    )
