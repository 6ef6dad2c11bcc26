from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_triage.deliver.backoff import GIVE_UP_AFTER_S, MAX_DELAY_S, next_attempt_s
from pe_triage.deliver.statuses import Verdict, classify, describe


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        ((0x0000,), Verdict.SENT),
        ((0xB000, 0xB006, 0xB007, 0xB123, 0x0001, 0x0107, 0x0111, 0x0116), Verdict.WARNING),
        ((0x0122, 0x0124, 0xA900, 0xA9FF, 0xC000, 0xC123, 0xCFFF), Verdict.PARK),
        ((0xA700, 0xA701, 0xA7FF, 0x0110, 0x0213, 0xFE00, 0xA800, 0xD000), Verdict.RETRY),
    ],
)
def test_each_status_has_its_verdict(statuses: tuple[int, ...], verdict: Verdict) -> None:
    for status in statuses:
        assert classify(status).verdict is verdict, f"{status:04X}"


@given(st.integers(0, 0xFFFF))
def test_only_zero_is_success(status: int) -> None:
    assert (classify(status).verdict is Verdict.SENT) == (status == 0)


def test_description_is_in_our_own_words() -> None:
    assert describe(0xA700) == "status A700: out of resources"
    assert describe(0xC000) == "status C000: cannot understand"


@given(st.integers(1, 10**6), st.floats(0, GIVE_UP_AFTER_S - 1), st.floats(0, 1))
def test_backoff_stays_in_bounds(attempts: int, age_s: float, jitter: float) -> None:
    delay = next_attempt_s(attempts, age_s, jitter=jitter)
    assert delay is not None
    assert 1 <= delay <= MAX_DELAY_S * 1.201
    longer = next_attempt_s(attempts + 1, age_s, jitter=jitter)
    assert longer is not None
    assert longer >= delay


def test_backoff_doubles_and_gives_up_after_a_week() -> None:
    assert [next_attempt_s(n, 0) for n in (1, 2, 3, 4)] == pytest.approx([2, 4, 8, 16])
    assert next_attempt_s(100, GIVE_UP_AFTER_S - 1) == pytest.approx(MAX_DELAY_S)
    assert next_attempt_s(1, GIVE_UP_AFTER_S) is None
    # The whole week is covered by a bounded number of attempts.
    age_s, attempts = 0.0, 0
    while (delay := next_attempt_s(attempts + 1, age_s)) is not None:
        age_s += delay
        attempts += 1
    assert 1000 < attempts < 1100
