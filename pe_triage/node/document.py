"""The analysis part of a show document: plain JSON values, in the words of the interface."""

from __future__ import annotations

from typing import Any

from pe_triage.domain import ModelIdentity, TriageResult
from pe_triage.report.policy import TriagePolicy
from pe_triage.watch.samples import attention_entropy


def analysis_document(result: TriageResult, policy: TriagePolicy) -> dict[str, Any]:
    """What a result says of the images, as stored with its run.

    Slices are in anatomical order, foot to head. What the rule for bundles not made for patients
    withholds is absent here too: it was dropped when the result was made.
    """
    prediction = result.prediction
    document: dict[str, Any] = {
        "series_uid": result.series_uid,
        "series_choice": result.series_choice,
        "unlikeness": result.unlikeness,
        "exam": None,
        "pe_probability": None,
        "findings": None,
        "slices": [],
        "key_slices": [k.sop_instance_uid for k in result.key_slices],
        "model": None if result.model is None else model_document(result.model),
        "policy": {"name": policy.name, "rules": list(policy.describe())},
    }
    if any(k.frame is not None for k in result.key_slices):
        document["key_frames"] = [k.frame for k in result.key_slices]
    if prediction is None:
        return document
    document["exam"] = {label: float(p) for label, p in prediction.exam_probability.items()}
    document["pe_probability"] = float(prediction.pe_probability)
    document["findings"] = {label: str(d) for label, d in prediction.findings.items()}
    document["thresholds"] = {label: float(t) for label, t in prediction.thresholds.items()}
    document["attention_entropy"] = attention_entropy(prediction.attention_z)
    document["slices"] = [
        {"sop_instance_uid": uid, "probability": float(p), "attention": float(a)}
        for uid, p, a in zip(
            result.sop_instance_uids,
            prediction.slice_probability_z,
            prediction.attention_z,
            strict=True,
        )
    ]
    for entry, frame in zip(document["slices"], result.frame_numbers, strict=False):
        if frame is not None:
            entry["frame"] = frame
    return document


def model_document(model: ModelIdentity) -> dict[str, Any]:
    """Which weights answered."""
    return {
        "name": model.name,
        "version": model.version,
        "sha256": model.sha256,
        "intended_use": str(model.intended_use),
    }
