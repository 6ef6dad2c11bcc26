from __future__ import annotations

import math

import numpy as np
import pytest

from pe_triage.training.comparison import (
    bootstrap_difference,
    delong,
    delong_interval,
    delong_test,
)
from pe_triage.training.intervals import Resampler, rank_replicates
from pe_triage.training.metrics import auc

TRUTH = [1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0]
K = np.arange(1, 31)
FIRST = (7 * K * K) % 23 + 6 * np.array(TRUTH)
SECOND = (11 * K + 3 * K * K) % 17 + 3 * np.array(TRUTH)


def test_delong_agrees_with_proc() -> None:
    """Figures of R's pROC (var, cov, roc.test with method="delong") on the same thirty cases."""
    found = delong(TRUTH, np.stack([FIRST, SECOND]))
    assert found.auc_m == pytest.approx([0.746606334842, 0.794117647059], abs=1e-11)
    assert found.covariance_mm[0, 0] == pytest.approx(0.00915939818322, abs=1e-12)
    assert found.covariance_mm[1, 1] == pytest.approx(0.00681740238734, abs=1e-12)
    assert found.covariance_mm[0, 1] == pytest.approx(-0.00062404878415, abs=1e-12)
    test = delong_test(TRUTH, FIRST, SECOND)
    assert test.difference.value == pytest.approx(0.746606334842 - 0.794117647059, abs=1e-11)
    assert test.p_value == pytest.approx(0.71734572448024, abs=1e-9)
    interval = delong_interval(TRUTH, FIRST)
    assert (interval.low, interval.high) == pytest.approx((0.559028482, 0.934184188), abs=1e-8)


def test_midranks_give_the_definition() -> None:
    """Against placement values pair by pair (DeLong et al. 1988, equation 2)."""
    rng = np.random.default_rng(8)
    truth, score = rng.integers(0, 2, 50), rng.integers(0, 6, 50).astype(float)
    positive, negative = score[truth == 1], score[truth == 0]
    won = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    s10, s01 = won.mean(axis=1).var(ddof=1), won.mean(axis=0).var(ddof=1)
    found = delong(truth, score)
    assert found.auc_m[0] == pytest.approx(auc(truth, score))
    wanted = s10 / len(positive) + s01 / len(negative)
    assert found.covariance_mm[0, 0] == pytest.approx(wanted)


def test_equal_models_do_not_differ() -> None:
    same = delong_test(TRUTH, FIRST, 3 * FIRST + 1)
    assert same.difference.value == 0
    assert same.p_value == 1.0


def test_one_class_is_no_test() -> None:
    nothing = delong_test([1, 1, 1], [1, 2, 3], [3, 2, 1])
    assert math.isnan(nothing.p_value)
    assert nothing.to_json()["p"] is None
    one = delong_test([1, 0, 0], [1, 2, 3], [3, 2, 1])  # one positive: no variance
    assert math.isnan(one.p_value)


def test_paired_bootstrap_is_near_delong() -> None:
    rng = np.random.default_rng(2)
    truth = np.repeat([0, 1], 100)
    common = rng.normal(size=200) + truth
    good, poor = common + 0.3 * rng.normal(size=200), common + 2.0 * rng.normal(size=200)
    resampler = Resampler(np.arange(200), resamples=1000, seed=1)
    replicates = [rank_replicates(truth, s, resampler.group_s, resampler)[0] for s in (good, poor)]
    boot = bootstrap_difference(auc(truth, good), auc(truth, poor), *replicates, resampler)
    exact = delong_test(truth, good, poor)
    assert boot.difference.value == pytest.approx(exact.difference.value)
    assert boot.difference.low == pytest.approx(exact.difference.low, abs=0.015)
    assert boot.difference.high == pytest.approx(exact.difference.high, abs=0.015)
    assert boot.p_value < 0.02
    assert exact.p_value < 0.02


def test_paired_bootstrap_finds_nothing_where_nothing_is() -> None:
    resampler = Resampler(np.arange(50), resamples=400)
    noise_b = np.random.default_rng(0).normal(size=(2, 400))
    assert bootstrap_difference(0.5, 0.5, *noise_b, resampler).p_value > 0.5
