from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pe_triage.training.metrics import (
    DECISION_METRICS,
    Ranking,
    area_under_roc,
    auc,
    auprc,
    average_precision,
    confusion,
    decision_figures,
    pr_points,
    roc_points,
    threshold_between,
    youden_threshold,
)

# Few distinct scores, so that ties are the rule.
samples = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 4)), min_size=2, max_size=60
)


@given(samples)
@settings(max_examples=100, deadline=None)
def test_areas_and_curves_agree_with_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    truth, score, weight = (np.array(c) for c in zip(*rows, strict=True))
    if 0 < truth.sum() < len(truth):
        assert auc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score))
        fpr, tpr, _ = sk.roc_curve(truth, score, drop_intermediate=False)
        ours = roc_points(truth, score)
        assert np.allclose(ours[0], fpr)
        assert np.allclose(ours[1], tpr)
        w = weight.astype(float)
        if w[truth == 1].sum() and w[truth == 0].sum():
            tp, fp = Ranking.of(truth, score).cumulative(w)
            used = w > 0
            wanted = sk.roc_auc_score(truth[used], score[used], sample_weight=w[used])
            assert area_under_roc(tp, fp) == pytest.approx(wanted)
            wanted = sk.average_precision_score(truth[used], score[used], sample_weight=w[used])
            assert average_precision(tp, fp) == pytest.approx(wanted)
    if truth.sum():
        assert auprc(truth, score) == pytest.approx(sk.average_precision_score(truth, score))
        precision, recall, _ = sk.precision_recall_curve(truth, score)
        ours_recall, ours_precision = pr_points(truth, score)
        assert np.allclose(ours_recall, recall[-2::-1])
        assert np.allclose(ours_precision, precision[-2::-1])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None)
def test_decisions_agree_with_scikit_learn(rows: list[tuple[bool, bool]]) -> None:
    truth, called = (np.array(c) for c in zip(*rows, strict=True))
    figures = decision_figures(*confusion(truth, called))
    undefined = {"zero_division": np.nan}
    wanted = {
        "sensitivity": sk.recall_score(truth, called, **undefined),
        "specificity": sk.recall_score(truth, called, pos_label=False, **undefined),
        "ppv": sk.precision_score(truth, called, **undefined),
        "npv": sk.precision_score(truth, called, pos_label=False, **undefined),
        "f1": sk.f1_score(truth, called) if truth.any() else math.nan,
        "accuracy": sk.accuracy_score(truth, called),
    }
    assert set(figures) == set(DECISION_METRICS)
    for name, value in wanted.items():
        assert figures[name] == pytest.approx(value, nan_ok=True), name


def test_a_case_by_hand() -> None:
    truth, score = [1, 0, 1, 0, 0], [0.9, 0.8, 0.8, 0.3, 0.1]
    # pairs won: (0.9 > all three) 3, (0.8 = 0.8) 1/2, (0.8 > 0.3, 0.1) 2: 5.5 of 6
    assert auc(truth, score) == pytest.approx(5.5 / 6)
    assert auprc(truth, score) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # J is 1/2 at 0.9, 2/3 at 0.8, 1/3 at 0.3
    assert youden_threshold(truth, score) == pytest.approx((0.8 + 0.3) / 2)


@pytest.mark.parametrize("truth", [[0, 0, 0], [1, 1, 1], []])
def test_what_does_not_exist_is_not_a_number(truth: list[int]) -> None:
    score = np.linspace(0, 1, len(truth))
    assert math.isnan(auc(truth, score))
    assert math.isnan(youden_threshold(truth, score))
    if not sum(truth):
        assert math.isnan(auprc(truth, score))
        assert pr_points(truth, score)[0].size == 0
    assert math.isnan(decision_figures(0, 0, 0, 3)["sensitivity"])
    assert math.isnan(decision_figures(0, 0, 0, 3)["f1"])


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12, unique=True))
def test_a_threshold_between_calls_exactly_the_scores_above(scores: list[float]) -> None:
    falling = np.sort(np.array(scores, dtype=np.float64))[::-1]
    for index in range(len(falling)):
        threshold = threshold_between(falling, index)
        if falling[index] > 0:  # nothing lies strictly above 0 that is 0
            assert (falling > threshold).sum() == index + 1
    assert not (falling[falling < 1] > threshold_between(falling, -1)).any()


@pytest.mark.parametrize(("truth", "score"), [([1, 2], [0.1, 0.2]), ([1, 0], [0.1, np.nan])])
def test_unknown_truth_and_scores_that_are_no_numbers_are_refused(truth, score) -> None:
    with pytest.raises(ValueError, match="truth must be 0 or 1"):
        auc(truth, score)
