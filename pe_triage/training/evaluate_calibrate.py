"""From validation predictions to a bundle with temperatures and operating points in its card."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import IMAGE_LABEL
from pe_triage.errors import InputError
from pe_triage.model.bundle import load_bundle, save_bundle
from pe_triage.model.card import BundleCard
from pe_triage.model.decisions import PE, THRESHOLD_KEYS
from pe_triage.model.reference import fit_reference
from pe_triage.training.calibration import (
    Aim,
    CalibrationData,
    choose_thresholds,
    fit_temperatures,
    reliability,
    summary,
)
from pe_triage.training.intervals import Resampler, decision_intervals
from pe_triage.training.metrics import known
from pe_triage.training.predictions import Predictions

METRICS_KEY: Final = "calibration"
"""Where a card's metrics hold the record of a calibration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A written bundle, its record, and what it says of the exams that it was fitted on."""

    card: BundleCard
    record: Mapping[str, Any]
    table: Predictions


def studies_digest(study_uids: Iterable[str]) -> str:
    """SHA-256 of a set of studies, to recognise it again without listing it."""
    return hashlib.sha256("\n".join(sorted(study_uids)).encode()).hexdigest()


def calibration_data(
    table: Predictions, exam_truth: NDArray[np.int8], slice_truth: NDArray[np.int8]
) -> CalibrationData:
    """Take the logits out of a table of predictions.

    Raises
    ------
    InputError
        The table holds none (it was read from a submission).
    """
    if not (np.isfinite(table.exam_logit_sl).all() and np.isfinite(table.image_logit_k).all()):
        raise InputError("calibration needs raw logits: evaluate the bundle itself, not a table")
    return CalibrationData(
        image_logit_k=table.image_logit_k,
        exam_logit_sl=table.exam_logit_sl,
        exam_of_k=table.exam_of_k,
        image_truth_k=slice_truth,
        exam_truth_sl=exam_truth,
    )


def recalibrated(table: Predictions, card: BundleCard) -> Predictions:
    """The table as the bundle with `card` would have given it: same logits, its temperatures."""
    nothing = np.zeros(0, np.int8)
    data = calibration_data(table, nothing, nothing)
    image_k, exam_sl, pe_s = data.probabilities(card.temperatures)
    identity = card.identity
    return replace(
        table,
        model={
            **table.model,
            "version": identity.version,
            "sha256": identity.sha256,
            "calibrated": identity.calibrated,
        },
        thresholds=dict(card.thresholds),
        slice_probability_k=image_k,
        exam_sl=exam_sl,
        pe_s=pe_s,
    )


def calibrate_bundle(
    source: Path,
    target: Path,
    table: Predictions,
    exam_truth: NDArray[np.int8],
    slice_truth: NDArray[np.int8],
    aim: Aim,
    *,
    resampler: Resampler,
    now: datetime,
    feat_szd: Sequence[NDArray[np.float32]] = (),
) -> Calibrated:
    """Fit on validation predictions of the bundle at `source`, and write it anew at `target`.

    Weights stay as they are; the version gets ``+cal``, so results of the two can be told apart
    by name as well as by hash. `feat_szd`, the exams' embeddings, become the bundle's reference
    (`model.reference`) where they are enough; else the source's is kept.

    Raises
    ------
    InputError
        `target` exists, no exam with or without PE, or no logits.
    """
    if target.exists():
        raise InputError(f"model bundle {target}: already exists")
    data = calibration_data(table, exam_truth, slice_truth)
    fitted = fit_temperatures(data)
    chosen = choose_thresholds(data, fitted.temperatures, aim)
    bundle = load_bundle(source)
    reference = fit_reference(feat_szd) or bundle.reference
    after = data.probabilities(fitted.temperatures)
    has_pe = data.pe_truth_s
    threshold = chosen.thresholds[PE]
    keep = known(has_pe, after[2])
    achieved = decision_intervals(
        has_pe[keep],
        after[2][keep] > threshold,
        resampler.group_s[keep],
        resampler,
        independent=resampler.groups == len(table.study_uids),
    )
    record = {
        **summary(aim, fitted, chosen),
        "studies": len(table.study_uids),
        "studies_sha256": studies_digest(table.study_uids),
        "exams_with_pe": int((has_pe == 1).sum()),
        "reference_exams": 0 if reference is None else reference.exams,
        "on_the_same_studies": {
            "pe_threshold": threshold,
            "sensitivity": achieved["sensitivity"].to_json(),
            "specificity": achieved["specificity"].to_json(),
            "ece_pe": _before_after(has_pe, data.probabilities({})[2], after[2]),
            "ece_slices": _before_after(slice_truth, data.probabilities({})[0], after[0]),
        },
    }
    card = replace(
        bundle.card,
        version=f"{bundle.card.version.removesuffix('+cal')}+cal",
        calibrated=PE in fitted.temperatures or IMAGE_LABEL in fitted.temperatures,
        temperatures={
            key: round(float(fitted.temperatures[key]), 6)
            for key in THRESHOLD_KEYS
            if key in fitted.temperatures
        },
        thresholds={key: float(chosen.thresholds[key]) for key in THRESHOLD_KEYS},
        metrics={**bundle.card.metrics, METRICS_KEY: record},
    )
    written = save_bundle(
        target, bundle.network.state_dict(), card, created_at=now, reference=reference
    )
    return Calibrated(card=written, record=record, table=recalibrated(table, written))


def _before_after(truth: Any, before: Any, after: Any) -> dict[str, float | None]:
    pair = {"before": reliability(truth, before).ece, "after": reliability(truth, after).ece}
    return {k: round(v, 6) if math.isfinite(v) else None for k, v in pair.items()}


def fitted_on(card: BundleCard, study_uids: Iterable[str]) -> bool:
    """Whether a card's calibration was fitted on exactly these studies."""
    record = card.metrics.get(METRICS_KEY)
    if not isinstance(record, Mapping):
        return False
    return bool(record.get("studies_sha256") == studies_digest(study_uids))
