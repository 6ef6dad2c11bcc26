"""Exams worth looking at: the worst misses first, each with heatmaps and its run along the scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import PermanentError
from pe_triage.infer.keyslices import choose_slices, explain_slices
from pe_triage.infer.predictor import Inference, Predictor
from pe_triage.training import figures
from pe_triage.training.evaluate_causes import traits
from pe_triage.training.evaluate_data import LabelledStudy, load_study
from pe_triage.training.evaluate_localisation import load_mask
from pe_triage.training.predictions import Predictions

KINDS: Final[Mapping[str, str]] = {
    "false_negative": "Missed: PE in truth, called negative, the surest first",
    "false_positive": "False alarms: no PE in truth, called positive, the surest first",
    "true_positive": "Found: the surest first",
    "true_negative": "Rightly negative: the closest calls first",
}
"""In the order of the report."""
_IN_TRUTH: Final[Mapping[int, str]] = {1: "PE", 0: "no PE", -1: "unknown"}
SHOWN: Final = 4
"""Slices shown of an exam."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One exam of the gallery.

    Attributes
    ----------
    row
        Of the table.
    picture_png, scan_svg
        Slices with heatmaps; probability and attention along the scan.
    """

    kind: str
    row: int
    study_uid: str
    pe: float
    truth: tuple[str, ...]
    traits: tuple[str, ...]
    picture_png: bytes
    scan_svg: bytes


def choose_cases(
    truth_s: NDArray[np.int8], pe_s: NDArray[np.float64], called_s: NDArray[np.bool_], count: int
) -> dict[str, list[int]]:
    """Rows of the exams to show of each of `KINDS`, at most `count` each."""
    masks = {
        "false_negative": (truth_s == 1) & ~called_s,
        "false_positive": (truth_s == 0) & called_s,
        "true_positive": (truth_s == 1) & called_s,
        "true_negative": (truth_s == 0) & ~called_s,
    }
    out = {}
    for kind, mask in masks.items():
        rows = np.flatnonzero(mask)
        # The surest: lowest probability of a miss, highest of the others.
        sign = 1.0 if kind == "false_negative" else -1.0
        out[kind] = rows[np.argsort(sign * pe_s[rows], kind="stable")][:count].tolist()
    return out


def make_case(
    kind: str, row: int, table: Predictions, study: LabelledStudy, predictor: Predictor, *,
    threads: int = 2,
) -> Case:  # fmt: skip
    """Read one exam again and draw it.

    Raises
    ------
    PermanentError
        Its images cannot be read any more.
    """
    volume = load_study(study, threads=threads).volume
    uids = table.sop_instance_uids[table.slices_of(row)]
    if volume.sop_instance_uids != uids:
        raise PermanentError("the images are no longer those that were evaluated")
    inference = predictor.predict(volume)
    truth_z = np.array([study.slice_truth[uid] for uid in uids], dtype=np.int8)
    mask_zyx = None if study.mask_path is None else load_mask(study.mask_path, volume)
    shown = slices_to_show(inference, truth_z, mask_zyx, volume.spacing_mm[0])
    keys = explain_slices(volume, inference, predictor, shown)
    # As the table says, which a calibration may have changed since.
    probability_z = table.slice_probability_k[table.slices_of(row)]
    items = [
        {
            "hu_yx": volume.hu_zyx[key.z],
            "heatmap_yx": key.heatmap_yx,
            "mask_yx": None if mask_zyx is None else mask_zyx[key.z],
            "peak_yx": key.peak_yx,
            "title": f"slice {key.z + 1} of {len(uids)}\np {probability_z[key.z]:.2f}, "
            f"{_IN_TRUTH[int(truth_z[key.z])]} in truth",
        }
        for key in keys
    ]
    return Case(
        kind=kind,
        row=row,
        study_uid=study.study_uid,
        pe=float(table.pe_s[row]),
        truth=tuple(label for label in EXAM_LABELS if study.exam_truth[label] == 1),
        traits=tuple(sorted(traits(study))),
        picture_png=figures.slices_with_heatmaps(items, volume.spacing_mm[1:]),
        scan_svg=figures.along_the_scan(
            probability_z,
            inference.prediction.attention_z.astype(np.float64),
            truth_z,
            volume.spacing_mm[0],
            shown,
        ),
    )


def slices_to_show(
    inference: Inference, truth_z: NDArray[np.int8], mask_zyx: NDArray[np.bool_] | None,
    spacing_z_mm: float,
) -> list[int]:  # fmt: skip
    """Key slices; where these miss the clot, the slice with the most of it stands among them."""
    prediction = inference.prediction
    chosen = list(
        choose_slices(prediction.slice_probability_z, prediction.attention_z, spacing_z_mm, SHOWN)
    )[:SHOWN]
    positive = np.flatnonzero(truth_z == 1)
    if len(positive) and not (truth_z[chosen] == 1).any():
        if mask_zyx is not None:
            best = int(positive[np.argmax(mask_zyx[positive].sum(axis=(1, 2)))])
        else:
            best = int(positive[len(positive) // 2])
        worth = prediction.slice_probability_z * prediction.attention_z
        if len(chosen) >= SHOWN:
            chosen.remove(min(chosen, key=lambda z: float(worth[z])))
        chosen.append(best)
    return sorted(chosen)
