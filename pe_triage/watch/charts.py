"""Control charts say whether what comes out now is like what came out before.

Rates are judged by exact tails and not by three sigma of a normal curve, which a rate of a few per
cent in fifty studies does not follow. Where the usual rate is itself an estimate from the baseline,
the count in the window has a beta-binomial distribution (Jeffreys' prior: Brown, Cai and DasGupta,
Statistical Science 16:101, 2001), so that a short baseline does not cry wolf. Values are judged by
an exponentially weighted moving average (Roberts, Technometrics 1:239, 1959; Lucas and Saccucci,
Technometrics 32:1, 1990), its limits widened for the baseline's own uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

ALPHA = 0.0027
"""Two-sided share outside three sigma of a normal distribution (Shewhart's limits)."""
EWMA_WEIGHT = 0.1
"""Of the newest value; small weights find small lasting shifts."""
EWMA_WIDTH = 3.5
"""Limits in standard errors; see docs/watching.md for how often they speak without a cause."""
LEAST_SD = 1e-6
"""A baseline that does not vary at all is the constant output's alarm, not a chart's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChart:
    """A count among studies, against what is usual.

    Attributes
    ----------
    low, high
        Least and greatest count that is within the limits.
    """

    count: int
    studies: int
    expected: float
    low: int
    high: int

    @property
    def rate(self) -> float:
        """Share of the count."""
        return self.count / self.studies

    @property
    def outside(self) -> bool:
        """Whether the count is outside its limits."""
        return not self.low <= self.count <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueChart:
    """An exponentially weighted moving average against its limits."""

    value: float
    expected: float
    low: float
    high: float
    studies: int

    @property
    def outside(self) -> bool:
        """Whether the average is outside its limits."""
        return not self.low <= self.value <= self.high


def rate_chart(
    count: int,
    studies: int,
    *,
    baseline: tuple[int, int] | None = None,
    expected: float | None = None,
    alpha: float = ALPHA,
) -> RateChart:
    """Judge `count` among `studies` (at least one).

    Parameters
    ----------
    baseline
        Count and number of studies that say what is usual.
    expected
        The usual rate where a person has stated it; goes before `baseline`.
    """
    if expected is not None:
        probabilities = binomial(studies, expected)
        usual = expected
    elif baseline is not None:
        before, of = baseline
        probabilities = beta_binomial(studies, before + 0.5, of - before + 0.5)
        usual = (before + 0.5) / (of + 1.0)
    else:
        raise ValueError("either baseline or expected")
    low, high = limits(probabilities, alpha)
    return RateChart(count=count, studies=studies, expected=usual, low=low, high=high)


def limits(probabilities: Sequence[float], alpha: float) -> tuple[int, int]:
    """Least and greatest count whose tail, itself included, has at least half of `alpha`."""
    low, tail = 0, 0.0
    for count, probability in enumerate(probabilities):
        tail += probability
        if tail >= alpha / 2:
            low = count
            break
    high, tail = len(probabilities) - 1, 0.0
    for count in range(len(probabilities) - 1, -1, -1):
        tail += probabilities[count]
        if tail >= alpha / 2:
            high = count
            break
    return low, high


@lru_cache(maxsize=256)
def binomial(studies: int, rate: float) -> tuple[float, ...]:
    """Probability of each count from 0 to `studies`, for a rate strictly between 0 and 1."""
    return tuple(
        math.exp(_log_choose(studies, k) + k * math.log(rate) + (studies - k) * math.log1p(-rate))
        for k in range(studies + 1)
    )


@lru_cache(maxsize=256)
def beta_binomial(studies: int, a: float, b: float) -> tuple[float, ...]:
    """Probability of each count from 0 to `studies`, for a rate that is Beta(a, b)."""
    return tuple(
        math.exp(_log_choose(studies, k) + _log_beta(k + a, studies - k + b) - _log_beta(a, b))
        for k in range(studies + 1)
    )


def value_chart(
    baseline: Sequence[float],
    values: Sequence[float],
    *,
    weight: float = EWMA_WEIGHT,
    width: float = EWMA_WIDTH,
) -> ValueChart:
    """Average `values` (oldest first, at least one) against a baseline of at least two."""
    n = len(baseline)
    mean = math.fsum(baseline) / n
    variance = math.fsum((value - mean) ** 2 for value in baseline) / (n - 1)
    sd = max(math.sqrt(variance), LEAST_SD * max(1.0, abs(mean)))
    average = mean
    for value in values:
        average = weight * value + (1 - weight) * average
    of_average = weight / (2 - weight) * (1 - (1 - weight) ** (2 * len(values)))
    reach = width * sd * math.sqrt(of_average + 1 / n)
    return ValueChart(
        value=average, expected=mean, low=mean - reach, high=mean + reach, studies=len(values)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
