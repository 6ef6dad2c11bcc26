"""Limits against what can be computed otherwise, and faults that the charts must find in time."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from pe_triage.watch.charts import (
    ALPHA,
    beta_binomial,
    binomial,
    limits,
    rate_chart,
    value_chart,
)


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.5, 0.9])
def test_probabilities_are_those_of_scipy(rate: float) -> None:
    assert binomial(50, rate) == pytest.approx(stats.binom.pmf(range(51), 50, rate), abs=1e-12)
    a, b = 100 * rate + 0.5, 100 * (1 - rate) + 0.5
    expected = stats.betabinom.pmf(range(51), 50, a, b)
    assert beta_binomial(50, a, b) == pytest.approx(expected, abs=1e-10)
    assert math.fsum(beta_binomial(50, a, b)) == pytest.approx(1)


def test_counts_outside_the_limits_have_less_than_alpha() -> None:
    for n, p in ((50, 0.15), (20, 0.02), (200, 0.5)):
        low, high = limits(binomial(n, p), ALPHA)
        assert stats.binom.cdf(low - 1, n, p) < ALPHA / 2 <= stats.binom.cdf(low, n, p)
        assert stats.binom.sf(high, n, p) < ALPHA / 2 <= stats.binom.sf(high - 1, n, p)


def test_an_uncertain_baseline_has_wider_limits() -> None:
    known = rate_chart(9, 50, expected=0.15)
    guessed = rate_chart(9, 50, baseline=(3, 20))
    assert guessed.low <= known.low
    assert guessed.high > known.high
    assert not known.outside
    with pytest.raises(ValueError, match="either"):
        rate_chart(1, 2)


def test_a_rate_of_none_or_all_in_the_baseline_does_not_cry_at_once() -> None:
    assert not rate_chart(1, 50, baseline=(0, 100)).outside
    assert rate_chart(25, 50, baseline=(0, 100)).outside
    assert not rate_chart(50, 50, baseline=(100, 100)).outside


def test_the_average_stays_inside_for_more_of_the_same() -> None:
    """Seeded; docs/watching.md gives the share of such runs that leave the limits by chance."""
    source = random.Random(4)
    values = [source.gauss(3, 0.5) for _ in range(300)]
    chart = value_chart(values[:100], values[100:])
    assert not chart.outside
    assert chart.low < chart.expected < chart.high


@pytest.mark.parametrize(("shift", "within"), [(2.0, 10), (1.0, 40)])
def test_a_shift_is_found_within_a_days_studies(shift: float, within: int) -> None:
    source = random.Random(7)
    baseline = [source.gauss(0, 1) for _ in range(100)]
    shifted: list[float] = []
    for _ in range(within):
        shifted.append(source.gauss(shift, 1))
        if value_chart(baseline, shifted).outside:
            return
    pytest.fail(f"a shift of {shift} sd was not found in {within} studies")


def test_a_baseline_without_spread_is_no_division_by_zero() -> None:
    chart = value_chart([2.0] * 20, [2.0] * 20)
    assert not chart.outside
