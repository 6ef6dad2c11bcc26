"""A predictor that needs no network, so that a worker starts at once; its answer names the images.

The probability is a function of the SOP Instance UIDs of the volume. A result that was made of
other images than those of its study shows it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np

from pe_triage.domain import (
    EXAM_LABELS,
    IMAGE_LABEL,
    CtVolume,
    Decision,
    ExamPrediction,
    IntendedUse,
    ModelIdentity,
)

IDENTITY = ModelIdentity(
    name="stand-in",
    version="1",
    sha256=hashlib.sha256(b"stand-in").hexdigest(),
    intended_use=IntendedUse.DEMONSTRATION,
)


def expected_probability(sop_instance_uids: Iterable[str]) -> float:
    """Return what the stand-in answers for these images, whatever their order: in [0.05, 0.45)."""
    digest = hashlib.sha256("\n".join(sorted(sop_instance_uids)).encode()).digest()
    return round(0.05 + 0.4 * int.from_bytes(digest[:6], "big") / 2**48, 4)


class StandIn:
    """As much of a `Predictor` as a negative answer needs."""

    identity = IDENTITY

    def __init__(self, work_s: float) -> None:
        self._work_s = work_s

    def predict(
        self, volume: CtVolume, *, beat: Callable[[], None] | None = None, keys: Any = ()
    ) -> Any:
        """Take a while, then answer NEGATIVE."""
        deadline = time.monotonic() + self._work_s
        while (left_s := deadline - time.monotonic()) > 0:
            if beat is not None:
                beat()
            time.sleep(min(0.05, left_s))
        count = len(volume.sop_instance_uids)
        probability = expected_probability(volume.sop_instance_uids)
        exam = dict.fromkeys(EXAM_LABELS, 0.1) | {"negative_exam_for_pe": 0.9}
        findings = dict.fromkeys(EXAM_LABELS, Decision.ABSENT)
        findings["negative_exam_for_pe"] = Decision.PRESENT
        prediction = ExamPrediction(
            slice_probability_z=np.full(count, 0.1, np.float32),
            attention_z=np.full(count, 1.0 / count, np.float32),
            exam_probability=exam,
            pe_probability=probability,
            findings=findings,
            thresholds=dict.fromkeys((*EXAM_LABELS, IMAGE_LABEL, "pe"), 0.5),
            model=IDENTITY,
        )
        feat_zd = np.zeros((count, 1), np.float32)
        return SimpleNamespace(prediction=prediction, feat_zd=feat_zd, plan=None, unlikeness=None)
