"""Does the heatmap point at the clot? Peaks of key slices against clot masks, beside controls.

Axes as in `domain`: ``zyx`` in anatomical order. Distances are within the slice, in millimetres,
from the peak to the nearest voxel of the clot; 0 inside it.

A share of hits means nothing by itself: a central clot lies near the image's centre, and a large
one is hard to miss. So each key slice also carries what two blind guesses would have scored: the
image's centre, and a point drawn evenly from the body (the share of the body that lies within
reach of a clot).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pe_triage.domain import CtVolume, KeySlice
from pe_triage.errors import PermanentError
from pe_triage.training.intervals import Resampler, mean_interval

REACH_MM: Final = 10.0
SMALL_MM2: Final = 60.0
BODY_HU: Final = -400
_SAME_GRID_MM: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One key slice against the mask.

    Attributes
    ----------
    clot_area_mm2
        Area of clot on the slice; 0 where there is none, and the distances are then None.
    chance
        Share of the body on this slice within `REACH_MM` of a clot.
    empty
        The map was zero everywhere, so it pointed nowhere: counted as a miss.
    """

    z: int
    probability: float
    clot_area_mm2: float
    distance_mm: float | None
    centre_distance_mm: float | None
    chance: float
    empty: bool

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @property
    def hit(self) -> bool:
        """In or within reach of a clot."""
        return not self.empty and self.distance_mm is not None and self.distance_mm <= REACH_MM

    @property
    def centre_hit(self) -> bool:
        """Whether the image's centre would have hit."""
        return self.centre_distance_mm is not None and self.centre_distance_mm <= REACH_MM


def load_mask(path: Path, volume: CtVolume) -> NDArray[np.bool_]:
    """Read a NIfTI mask into the grid of `volume`, nearest voxel; zyx.

    Raises
    ------
    PermanentError
        Not a three-dimensional NIfTI image.
    """
    try:
        image: Any = nib.load(path)
        data_xyz = np.asarray(image.dataobj) > 0
        to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(image.affine, dtype=np.float64)
    except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
        reason = getattr(error, "strerror", None) or "not a NIfTI image"
        raise PermanentError(f"mask {path.name}: {reason}") from None
    if data_xyz.ndim != 3:
        raise PermanentError(f"mask {path.name}: {data_xyz.ndim} dimensions, not 3")
    z, y, x = volume.hu_zyx.shape
    between = np.linalg.inv(to_lps) @ volume.affine_lps  # voxel of the volume to voxel of the mask
    corners = np.array([[a, b, c, 1.0] for a in (0, x - 1) for b in (0, y - 1) for c in (0, z - 1)])
    off_mm = np.abs((corners @ (volume.affine_lps - to_lps).T)[:, :3]).max()
    if data_xyz.shape == (x, y, z) and off_mm < _SAME_GRID_MM:
        return np.ascontiguousarray(data_xyz.transpose(2, 1, 0))
    moved = ndimage.affine_transform(
        data_xyz.astype(np.uint8),
        between[:3, :3],
        offset=between[:3, 3],
        output_shape=(x, y, z),
        order=0,
    )
    return np.ascontiguousarray(moved.transpose(2, 1, 0) > 0)


def judge_peaks(
    volume: CtVolume, mask_zyx: NDArray[np.bool_], keys: Sequence[KeySlice]
) -> list[Peak]:
    """Measure each key slice's peak, and the blind guesses, against the mask."""
    _, step_y, step_x = volume.spacing_mm
    rows, columns = mask_zyx.shape[1:]
    found = []
    for key in keys:
        mask_yx = mask_zyx[key.z]
        area = float(mask_yx.sum()) * step_y * step_x
        distance = centre = None
        chance = 0.0
        if area:
            distance = distance_mm(mask_yx, key.peak_yx, (step_y, step_x))
            middle = ((rows - 1) / 2, (columns - 1) / 2)
            centre = distance_mm(mask_yx, middle, (step_y, step_x))
            reach_yx = ndimage.distance_transform_edt(~mask_yx, sampling=(step_y, step_x))
            body_yx = body(volume.hu_zyx[key.z])
            chance = float((reach_yx[body_yx] <= REACH_MM).mean()) if body_yx.any() else 0.0
        found.append(
            Peak(
                z=key.z,
                probability=key.probability,
                clot_area_mm2=area,
                distance_mm=distance,
                centre_distance_mm=centre,
                chance=chance,
                empty=not bool(key.heatmap_yx.any()),
            )
        )
    return found


def distance_mm(
    mask_yx: NDArray[np.bool_], point_yx: tuple[float, float], spacing_mm: tuple[float, float]
) -> float:
    """Distance from a point, in voxels, to the nearest voxel of the mask; 0 inside one."""
    y, x = np.nonzero(mask_yx)
    # A voxel spans half a step to each side of its centre.
    dy = np.maximum(np.abs(y - point_yx[0]) - 0.5, 0.0) * spacing_mm[0]
    dx = np.maximum(np.abs(x - point_yx[1]) - 0.5, 0.0) * spacing_mm[1]
    return float(np.sqrt(dy**2 + dx**2).min())


def body(hu_yx: NDArray[np.int16]) -> NDArray[np.bool_]:
    """The body on a slice, lungs included: the largest object above `BODY_HU`, holes filled."""
    labels, count = ndimage.label(hu_yx > BODY_HU)
    if not count:
        return np.zeros(hu_yx.shape, np.bool_)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(labels == int(np.argmax(sizes)))
    return filled


def localisation_figures(
    peaks_s: Mapping[int, Sequence[Peak]], called_s: NDArray[np.bool_], threshold: float,
    resampler: Resampler,
) -> dict[str, Any]:  # fmt: skip
    """Hits and controls over the true-positive key slices of true-positive exams.

    Parameters
    ----------
    peaks_s
        Exam (row of the table) to its peaks; exams without a mask are absent.
    called_s
        Whether each exam was called PE.
    threshold
        Of slices: a key slice is a true positive where it holds clot and lies above.

    Returns
    -------
    dict
        For ``all``, ``small`` (under `SMALL_MM2` of clot on the slice) and ``large``: number of
        slices and exams, and the share of hits of the heatmap, the image's centre and chance,
        each with its interval by patient.
    """
    rows = [
        (int(resampler.group_s[s]), s, peak)
        for s, peaks in peaks_s.items()
        if called_s[s]
        for peak in peaks
        if peak.clot_area_mm2 > 0 and peak.probability > threshold
    ]
    out: dict[str, Any] = {"reach_mm": REACH_MM, "small_below_mm2": SMALL_MM2}
    ranges_mm2 = {"all": (0.0, np.inf), "small": (0.0, SMALL_MM2), "large": (SMALL_MM2, np.inf)}
    for name, (low, high) in ranges_mm2.items():
        kept = [row for row in rows if low <= row[2].clot_area_mm2 < high]
        group = [g for g, _, _ in kept]
        figures = {
            "heatmap": [float(p.hit) for _, _, p in kept],
            "image_centre": [float(p.centre_hit) for _, _, p in kept],
            "chance": [p.chance for _, _, p in kept],
        }
        distances = [p.distance_mm for _, _, p in kept if p.distance_mm is not None and not p.empty]
        out[name] = {
            "slices": len(kept),
            "exams": len({s for _, s, _ in kept}),
            "empty_maps": sum(p.empty for _, _, p in kept),
            "median_distance_mm": round(float(np.median(distances)), 2) if distances else None,
            **{k: mean_interval(v, group, resampler).to_json() for k, v in figures.items()},
        }
    return out
