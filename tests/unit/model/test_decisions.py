"""Decisions at stored thresholds obey the label rules whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL, POSITIVE_LABELS, Decision
from pe_triage.model.card import read_card
from pe_triage.model.decisions import PE, THRESHOLD_KEYS, ServedDecisions, decide
from pe_triage.model.labels import consistent_probabilities
from pe_triage.resources import demonstration_bundle

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
    """100,000 cases: random numbers, and a grid on which probabilities and thresholds meet."""
    rng = np.random.default_rng(3)
    cases = 100_000
    free, grid = rng.random((cases, 12)), rng.choice(GRID, (cases, 12))
    mark, step = rng.uniform(0.001, 0.999, (cases, 11)), rng.choice(GRID[1:-1], (cases, 11))
    draws = np.where((np.arange(cases) % 2)[:, None], grid, free)
    marks = np.where((np.arange(cases) % 3)[:, None], step, mark).tolist()
    slices = draws[:, 9:11].astype(np.float32)
    for draw, mark_l, slice_z in zip(draws.tolist(), marks, slices, strict=True):
        exam = dict(zip(EXAM_LABELS, draw[:9], strict=True))
        thresholds = dict(zip(THRESHOLD_KEYS, mark_l, strict=True))
        served = decide(slice_z, exam, draw[11], thresholds)
        _obeys(served)
        assert served.pe == (draw[11] > thresholds["pe"])


def test_what_a_bundle_serves_obeys_at_its_stored_thresholds_whatever_the_logits() -> None:
    """100,000 cases from logits to decisions, with the temperatures and thresholds shipped.

    A third of the exams lies near the threshold of PE, where slices, exam and labels could part.
    """
    card = read_card(demonstration_bundle())
    assert set(card.thresholds) == set(THRESHOLD_KEYS)
    assert any(value != 0.5 for value in card.thresholds.values())
    cases = 100_000
    generator = torch.Generator().manual_seed(15)
    scale = torch.tensor([0.05, 1.0, 6.0]).repeat(cases // 3 + 1)[:cases, None]
    image, exam = (torch.randn(cases, k, generator=generator) * scale for k in (3, 9))
    image[::3] += float(np.log(card.thresholds[PE] / (1 - card.thresholds[PE])))
    out = consistent_probabilities(image, exam, temperatures=card.temperatures)
    said = out.exam_bl.tolist(), out.pe_b.tolist(), out.image_bz.numpy()
    called = 0
    for exam_l, pe, slice_z in zip(*said, strict=True):
        named = dict(zip(EXAM_LABELS, exam_l, strict=True))
        served = decide(slice_z, named, pe, card.thresholds)
        _obeys(served)
        called += served.pe
    assert 0.2 * cases < called < 0.8 * cases


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
