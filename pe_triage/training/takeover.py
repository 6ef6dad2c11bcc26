"""Stage 1 of one run for another's stage 2: several sequence models on one frozen encoder.

That is how the sources compare an LSTM with a TCN, and it costs the encoder's training once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pe_triage.errors import BundleError, InputError
from pe_triage.model.spec import ModelSpec
from pe_triage.training.checkpoint import load_checkpoint, save_checkpoint
from pe_triage.training.splits import Split

_OF_STAGE_TWO: Final = (
    "name", "head", "sequence", "sequence_hidden", "sequence_layers", "dense_dim", "pooling",
    "attention_dim", "dropout", "neighbours", "sequence_fit", "sequence_length", "dense", "kernel",
    "causal", "stage1", "stage2", "operating_point",
)  # fmt: skip
"""What two specs may differ in and yet have one encoder on one input."""


def take_stage_one(source: Path, spec: ModelSpec, split: Split, target: Path, digest: str) -> None:
    """Copy the best weights of stage 1 of the run in `source` to `target`.

    Parameters
    ----------
    spec, split
        Of the run that takes them.
    digest
        Of the run that takes them, written to the copy.

    Raises
    ------
    InputError
        No finished stage 1 there, another encoder or input, no stage 2 to train, or it learnt from
        patients that this run validates or tests with.
    """
    if spec.head != "sequence":
        raise InputError(f"spec {spec.name} has no stage 2: nothing would be trained")
    run = _json(source / "run.json")
    try:
        theirs = ModelSpec.from_json(run["spec"])
    except (KeyError, TypeError, BundleError):
        raise InputError(f"{source}: no training run of this version") from None
    if _encoder_of(theirs) != _encoder_of(spec):
        raise InputError(
            f"{source}: its stage 1, of {theirs.name}, has another encoder or input than "
            f"{spec.name}"
        )
    studies = set(_json(source / "split.json").get("train", []))
    ours = (*split.train, *split.validation, *split.test)
    patients = {exam.patient_key for exam in ours if exam.study_uid in studies}
    for name in ("validation", "test"):
        leaked = sorted(e.study_uid for e in split.part(name) if e.patient_key in patients)
        if leaked:
            raise InputError(
                f"{source}: its stage 1 learnt from patients of {len(leaked)} exams of this run's "
                f"{name} part, {leaked[0]} among them"
            )
    best = source / "stage1-best.safetensors"
    if not (source / "stage1-history.json").exists():
        raise InputError(f"{source}: its stage 1 has not come to its end")
    tensors, document = load_checkpoint(best)
    save_checkpoint(target, tensors, {**document, "digest": digest, "run": theirs.name})


def _encoder_of(spec: ModelSpec) -> ModelSpec:
    plain = ModelSpec(name="-")
    return replace(spec, **{key: getattr(plain, key) for key in _OF_STAGE_TWO})


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path}: not there, or not of a training run") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: not of a training run")
    return document
