"""Decisions at stored thresholds obey the label rules whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL, POSITIVE_LABELS, Decision
from pe_triage.model.decisions import THRESHOLD_KEYS, ServedDecisions, decide

HALF = dict.fromkeys(THRESHOLD_KEYS, 0.5)
GRID = np.array([0.0, 1e-9, 0.05, 0.3, 0.5, 0.50001, 0.7, 1.0])


def _obeys(served: ServedDecisions) -> None:
    present = {k for k, v in served.findings.items() if v is Decision.PRESENT}
    assert set(served.findings) == set(EXAM_LABELS)
    assert served.pe == bool(served.slice_present_z.any())
    if served.pe:
        assert len(present & {"rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1"}) == 1
        assert present & {"central_pe", "leftsided_pe", "rightsided_pe"}
        assert not present >= {"chronic_pe", "acute_and_chronic_pe"}
        assert not present & {"negative_exam_for_pe", "indeterminate"}
        assert Decision.UNDETERMINED not in served.findings.values()
    else:
        assert present in ({"negative_exam_for_pe"}, {"indeterminate"})


def test_any_probabilities_and_thresholds_obey() -> None:
    rng = np.random.default_rng(3)
    for i in range(20_000):
        draw = rng.choice(GRID, 12) if i % 2 else rng.random(12)
        marks = rng.choice(GRID[1:-1], 11) if i % 3 else rng.uniform(0.001, 0.999, 11)
        exam = dict(zip(EXAM_LABELS, map(float, draw[:9]), strict=True))
        thresholds = dict(zip(THRESHOLD_KEYS, map(float, marks), strict=True))
        served = decide(draw[9:11].astype(np.float32), exam, float(draw[11]), thresholds)
        _obeys(served)
        assert served.pe == (draw[11] > thresholds["pe"])


def _exam(**values: float) -> dict[str, float]:
    return {label: values.get(label, 0.1) for label in EXAM_LABELS}


def test_pe_below_one_half_names_the_likeliest_site() -> None:
    exam = _exam(negative_exam_for_pe=0.7, rightsided_pe=0.25, central_pe=0.2, rv_lv_ratio_lt_1=0.2)
    served = decide(np.array([0.1, 0.3], np.float32), exam, 0.3, {**HALF, "pe": 0.2})
    assert served.pe
    present = {k for k, v in served.findings.items() if v is Decision.PRESENT}
    assert present == {"rightsided_pe", "rv_lv_ratio_lt_1"}
    assert served.slice_present_z.tolist() == [False, True]


def test_a_site_is_judged_at_its_own_threshold() -> None:
    exam = _exam(leftsided_pe=0.4, rightsided_pe=0.45, rv_lv_ratio_gte_1=0.6)
    marks = {**HALF, "leftsided_pe": 0.35}
    served = decide(np.array([0.9], np.float32), exam, 0.9, marks)
    assert served.findings["leftsided_pe"] is Decision.PRESENT
    assert served.findings["rightsided_pe"] is Decision.ABSENT


def test_exactly_at_the_threshold_is_not_present() -> None:
    served = decide(np.array([0.5], np.float32), _exam(negative_exam_for_pe=0.6), 0.5, HALF)
    assert not served.pe
    assert served.findings["negative_exam_for_pe"] is Decision.PRESENT


def test_an_indeterminate_exam_leaves_positive_labels_undetermined() -> None:
    exam = _exam(indeterminate=0.3, negative_exam_for_pe=0.6)
    served = decide(np.array([0.2], np.float32), exam, 0.2, {**HALF, "indeterminate": 0.25})
    assert served.findings["indeterminate"] is Decision.PRESENT
    assert served.findings["negative_exam_for_pe"] is Decision.ABSENT
    assert {served.findings[k] for k in POSITIVE_LABELS} == {Decision.UNDETERMINED}


@pytest.mark.parametrize("image_threshold", [0.01, 0.99])
def test_slices_agree_with_the_exam(image_threshold: float) -> None:
    marks = {**HALF, IMAGE_LABEL: image_threshold}
    low = decide(np.array([0.3, 0.2], np.float32), _exam(negative_exam_for_pe=0.7), 0.3, marks)
    high = decide(np.array([0.3, 0.7], np.float32), _exam(), 0.7, marks)
    assert not low.slice_present_z.any()
    assert high.slice_present_z[1]
