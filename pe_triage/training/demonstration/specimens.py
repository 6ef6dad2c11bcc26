"""Specimens: some slices of one phantom with its truth to the voxel, for stage 1 to learn from.

A whole phantom is wasteful: most of its slices hold no clot, and neighbours show the same. So each
is sampled coarsely along z, but with slices as thin as a scanner's, and of these are kept those
with clot (`MOST_POSITIVE` at most), some without, and two through the ventricles.

Files are safetensors: ``hu_nyx`` int16 at the network's size, ``what_nyx`` uint8 bits of `BITS` by
voxel, ``z_n`` mm above the carina, ``pe_n``, ``heart_n`` (whether the slice cuts both ventricles
near their middle), ``exam_l`` and ``facts`` (`FACTS`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS
from pe_triage.imaging.windows import resize_slices
from pe_triage.phantom.distributions import Choice
from pe_triage.phantom.presets import Preset, find_preset
from pe_triage.phantom.study import PhantomStudy, generate_study
from pe_triage.phantom.truth import SLICE_POSITIVE_MIN_AREA_MM2
from pe_triage.training.seeding import numpy_at

BITS: Final = ("clot", "acute", "chronic", "left", "right", "central", "unsure")
"""What a voxel is, bit by bit. ``unsure``: clot too small in this slice for its label to say so;
such a voxel has no other bit."""
FACTS: Final = ("rv_lv_ratio", "artery_hu", "breathing_mm")
MOST_POSITIVE: Final = 8
NEGATIVE: Final = 5
HEART: Final = 2
SPACING_MM: Final = 6.0
_THICKNESS_MM: Final = (1.5, 2.0, 2.5, 3.0)
_HEART_MM: Final = -62.0
"""Of the ventricles' centre below the carina in the phantom's own frame (`phantom.scene`)."""
_HEART_REACH_MM: Final = 9.0
_MIX: Final = (("standard", 0.6), ("hard", 0.3), ("easy", 0.1))
_LARGE: Final = 0.06
"""Share of phantoms drawn at 512 x 512, as scanners send them."""


def specimen_preset(seed: int) -> tuple[Preset, int, float]:
    """Return what a specimen is drawn from: preset, matrix and slice thickness in mm.

    More of them show PE than in `phantom.presets`, more of it is chronic, and more right ventricles
    are wide: rare labels teach little otherwise. Everything physical is the preset's.
    """
    rng = numpy_at("specimen", seed)
    name = str(rng.choice([n for n, _ in _MIX], p=[share for _, share in _MIX]))
    preset = replace(
        find_preset(name),
        status=Choice(weights=(("positive", 0.78), ("negative", 0.14), ("indeterminate", 0.08))),
        stage=Choice(weights=(("acute", 0.4), ("chronic", 0.3), ("both", 0.3))),
        rv_dilated=0.9,
    )
    size = 512 if rng.random() < _LARGE else 256
    return preset, size, float(rng.choice(_THICKNESS_MM))


def make_specimen(seed: int, size: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of one specimen, slices at `size` x `size`; see the module's head."""
    preset, matrix, thickness_mm = specimen_preset(seed)
    rng = numpy_at("specimen slices", seed)
    foot = -140.0 + float(rng.uniform(0, SPACING_MM))
    study = generate_study(
        seed, preset, size=matrix, slice_spacing_mm=SPACING_MM, slice_thickness_mm=thickness_mm,
        coverage_mm=(foot, 100.0),
    )  # fmt: skip
    z_mm = study.origin_lps_mm[2] + study.spacing_mm[0] * np.arange(len(study.hu_zyx))
    heart_z = study.anatomy.pose.scale * (_HEART_MM + study.anatomy.heart_shift[2])
    near_heart = np.abs(z_mm - heart_z) <= _HEART_REACH_MM
    kept = _choose(rng, study.slice_pe_z > 0, near_heart)
    facts = study.drawn
    return {
        "hu_nyx": np.rint(resize_slices(study.hu_zyx[kept], size)).astype(np.int16),
        "what_nyx": _what(study, kept, size),
        "z_n": z_mm[kept].astype(np.float32),
        "pe_n": study.slice_pe_z[kept].copy(),
        "heart_n": near_heart[kept].astype(np.uint8),
        "exam_l": np.array([study.exam[label] for label in EXAM_LABELS], dtype=np.float32),
        "facts": np.array(
            [
                study.anatomy.rv_lv_ratio,
                study.anatomy.contrast.artery_hu,
                facts.get("effects", {}).get("breathing_mm", 0.0),
            ],
            dtype=np.float32,
        ),
    }


def _choose(
    rng: np.random.Generator, pe_z: NDArray[np.bool_], heart_z: NDArray[np.bool_]
) -> NDArray[np.int64]:
    def some(pool: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
        at = np.flatnonzero(pool)
        return rng.choice(at, min(count, len(at)), replace=False)

    positive = some(pe_z, MOST_POSITIVE)
    parts = (positive, some(~pe_z, NEGATIVE), some(heart_z, HEART))
    return np.unique(np.concatenate(parts))


def _what(study: PhantomStudy, kept: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return the bits of each voxel of the kept slices, nearest voxel at the network's size."""
    pixel_mm2 = study.spacing_mm[1] * study.spacing_mm[2]
    n = study.hu_zyx.shape[1]
    nearest = ((np.arange(size) + 0.5) * n / size).astype(np.int64)
    out = np.zeros((len(kept), size, size), dtype=np.uint8)
    bit = {name: 1 << k for k, name in enumerate(BITS)}
    for row, z in enumerate(kept.tolist()):
        index_yx = study.clot_index_zyx[z]
        if not index_yx.any():
            continue
        code = np.zeros(len(study.clots) + 1, dtype=np.uint8)
        area = np.bincount(index_yx.ravel(), minlength=len(code)) * pixel_mm2
        for number, truth in enumerate(study.clots, start=1):
            clot = truth.clot
            if area[number] < SLICE_POSITIVE_MIN_AREA_MM2:
                code[number] = bit["unsure"]
                continue
            names = {"clot", clot.stage, *clot.sides(), *(["central"] if clot.central else [])}
            code[number] = sum(bit[name] for name in names)
        out[row] = code[index_yx][np.ix_(nearest, nearest)]
    return out


def specimen_path(directory: Path, seed: int) -> Path:
    """Where the specimen of a seed lies."""
    return directory / f"{seed}.safetensors"
