from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from pe_triage.training.intervals import (
    Resampler,
    clopper_pearson,
    count_replicates,
    decision_intervals,
    holm,
    mean_interval,
    rank_replicates,
)
from pe_triage.training.metrics import auc, auprc, confusion


def test_weights_give_what_copying_patients_would_give() -> None:
    rng = np.random.default_rng(3)
    patient = rng.integers(0, 12, 40)
    truth, score = rng.integers(0, 2, 40), rng.integers(0, 9, 40) / 8
    resampler = Resampler(patient, resamples=120, seed=1)
    group = resampler.group_s
    auc_b, auprc_b = rank_replicates(truth, score, group, resampler)
    counts_b = count_replicates(truth, score > 0.5, group, resampler)
    for b in (0, 7, 119):
        rows = np.repeat(np.arange(40), resampler.weight_bg[b][group])
        assert auc_b[b] == pytest.approx(auc(truth[rows], score[rows]))
        assert auprc_b[b] == pytest.approx(auprc(truth[rows], score[rows]))
        assert tuple(counts_b[b]) == confusion(truth[rows], score[rows] > 0.5)
    assert (resampler.weight_bg.sum(axis=1) == len(np.unique(patient))).all()


def test_coverage_of_the_true_auc() -> None:
    """95 % intervals of normal scores hold the true AUC in about 95 % of samples."""
    rng = np.random.default_rng(0)
    true_auc, hits, runs = float(norm.cdf(1 / math.sqrt(2))), 0, 100
    truth = np.repeat([0, 1], 40)
    for run in range(runs):
        score = rng.normal(size=80) + truth
        resampler = Resampler(np.arange(80), resamples=200, seed=run)
        replicates = rank_replicates(truth, score, resampler.group_s, resampler)[0]
        found = resampler.interval(auc(truth, score), replicates)
        hits += found.low <= true_auc <= found.high
    assert 0.88 <= hits / runs <= 0.99


def test_slices_of_one_patient_widen_the_interval() -> None:
    """Every slice ten times over is no more knowledge; only patients count."""
    rng = np.random.default_rng(5)
    value = np.repeat(rng.integers(0, 2, 60).astype(float), 10)
    patient = np.repeat(np.arange(60), 10)
    clustered = Resampler(patient, resamples=500)
    alone = Resampler(np.arange(600), resamples=500)
    wide = mean_interval(value, clustered.group_s, clustered)
    narrow = mean_interval(value, alone.group_s, alone)
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.2)


def test_same_seed_same_resamples() -> None:
    first, second = (Resampler(np.arange(9), resamples=50, seed=4) for _ in range(2))
    assert (first.weight_bg == second.weight_bg).all()
    assert (Resampler(np.arange(9), resamples=50, seed=5).weight_bg != first.weight_bg).any()


def test_clopper_pearson_against_published_values() -> None:
    # Clopper-Pearson 95 % limits as tabulated: 0 of 10, 10 of 10, 5 of 10
    assert clopper_pearson(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert clopper_pearson(10, 0) == pytest.approx((0.6915, 1), abs=1e-4)
    assert clopper_pearson(5, 5) == pytest.approx((0.1871, 0.8129), abs=1e-4)


def test_intervals_say_when_they_say_nothing() -> None:
    truth, called = np.array([1] * 10 + [0] * 10), np.array([True] * 10 + [False] * 10)
    resampler = Resampler(np.arange(20), resamples=200)
    exams = decision_intervals(truth, called, resampler.group_s, resampler, independent=True)
    assert exams["sensitivity"].note == "exact"
    assert exams["sensitivity"].low == pytest.approx(0.6915, abs=1e-4)
    assert exams["f1"].note == "collapsed"
    slices = decision_intervals(truth, called, resampler.group_s, resampler, independent=False)
    assert slices["sensitivity"].note == "collapsed"
    few = Resampler([0, 0, 1, 1], resamples=50)
    assert mean_interval([1, 0, 1, 1], few.group_s, few).note == "few"
    assert mean_interval([], [], few).to_json() == {
        "value": None,
        "low": None,
        "high": None,
        "note": "undefined",
    }
    # one positive exam of twenty: absent from a third of the resamples
    truth[1:] = 0
    replicates = rank_replicates(truth, np.arange(20.0), resampler.group_s, resampler)[0]
    assert np.isnan(replicates).mean() > 0.2
    found = resampler.interval(auc(truth, np.arange(20.0)), replicates)
    assert found.note == "undefined"
    assert found.value == 0.0
    assert math.isnan(found.low)


def test_holm_by_hand() -> None:
    # sorted 0.01 x 3, 0.02 x 2 -> 0.04, 0.04 x 1 -> 0.04; NaN does not count
    assert holm([0.04, math.nan, 0.01, 0.02])[::2] == pytest.approx([0.04, 0.03])
    assert holm([0.04, math.nan, 0.01, 0.02])[3] == pytest.approx(0.04)
    assert math.isnan(holm([0.04, math.nan])[1])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
