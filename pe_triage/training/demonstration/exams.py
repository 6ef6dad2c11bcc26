"""Whole exams for stage 2: phantoms that stage 1 never saw, turned into embeddings.

An exam is drawn, kept as a file of Hounsfield units until stage 1 is ready, and then seen by its
encoder exactly as the serving path would: `model.inputs.ExamInput` on the whole volume.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from pe_triage.domain import EXAM_LABELS
from pe_triage.model.inputs import ExamInput
from pe_triage.model.network import ExamNetwork
from pe_triage.phantom.distributions import Choice
from pe_triage.phantom.presets import find_preset
from pe_triage.phantom.study import generate_study
from pe_triage.training.cache import CachedExam
from pe_triage.training.seeding import numpy_at

_MIX: Final = (("standard", 0.6), ("hard", 0.25), ("easy", 0.15))
_SPACING_MM: Final = (2.5, 3.0, 3.0)
_UNITS: Final = 16


def make_exam(seed: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of one exam: ``hu_zyx`` int16, ``image_pe_z``, ``exam_l``, ``spacing``.

    Prevalences are the presets', except that more of the clots are chronic.
    """
    rng = numpy_at("exam", seed)
    name = str(rng.choice([n for n, _ in _MIX], p=[share for _, share in _MIX]))
    preset = replace(
        find_preset(name),
        stage=Choice(weights=(("acute", 0.5), ("chronic", 0.25), ("both", 0.25))),
    )
    study = generate_study(seed, preset, slice_spacing_mm=float(rng.choice(_SPACING_MM)))
    return {
        "hu_zyx": study.hu_zyx,
        "image_pe_z": study.slice_pe_z,
        "exam_l": np.array([study.exam[label] for label in EXAM_LABELS], dtype=np.float32),
        "spacing": np.array(study.spacing_mm, dtype=np.float64),
    }


def exam_path(directory: Path, seed: int) -> Path:
    """Where the exam of a seed lies."""
    return directory / f"{seed}.safetensors"


def read_exam(path: Path, seed: int) -> CachedExam:
    """Return what stage 2 must know of an exam; its voxels stay in the file."""
    with safe_open(path, framework="numpy") as file:
        spacing_z_mm = float(file.get_tensor("spacing")[0])
        image_pe_z, exam_l = file.get_tensor("image_pe_z"), file.get_tensor("exam_l")
    return CachedExam(
        study_uid=str(seed), path=path, image_pe_z=image_pe_z, exam_l=exam_l,
        patient_key=str(seed), quality_control=True, facts={},
        sha256=hashlib.sha256(f"phantom {seed}".encode()).hexdigest(),
        planes=len(image_pe_z), spacing_z_mm=spacing_z_mm,
    )  # fmt: skip


@torch.inference_mode()
def embed(network: ExamNetwork, path: Path, precision: torch.dtype = torch.float32) -> Tensor:
    """Stage 1 of one exam: float32 (slices, d)."""
    with safe_open(path, framework="numpy") as file:
        hu_zyx, spacing = file.get_tensor("hu_zyx"), file.get_tensor("spacing")
    z, y, x = (float(v) for v in spacing)
    source = ExamInput(network.spec, hu_zyx, (z, y, x))
    parts = []
    for start in range(0, source.plan.units, _UNITS):
        images = torch.from_numpy(source.images(start, start + _UNITS))
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            parts.append(network.encoder(images).float())
    return torch.cat(parts)
