"""Expected counts of a PACS: asked in the background, believed only where they can be."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from pe_triage.assemble.completeness import CompletenessRules
from pe_triage.deliver.find_scu import PacsSeries
from pe_triage.errors import QueryUnavailableError
from pe_triage.monitoring import SenderTable
from pe_triage.node.assembler import Asking, rules_for
from pe_triage.node.expectations import Expectation, Expectations

T0 = datetime(2026, 3, 1, 8, tzinfo=UTC)
STUDY = "2.25.1"


class Pacs:
    def __init__(self, **series: int) -> None:
        self.series = series
        self.asked = 0
        self.away = False

    def __call__(self, study_uid: str) -> Sequence[PacsSeries]:
        self.asked += 1
        if self.away:
            raise QueryUnavailableError("PACS@h:1: connection refused")
        return [
            PacsSeries(series_uid=uid, modality="CT", description="", instances=count)
            for uid, count in self.series.items()
        ]


class Time:
    def __init__(self) -> None:
        self.s = 0.0

    def monotonic(self) -> float:
        return self.s

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self.s)


@pytest.fixture
def time() -> Time:
    return Time()


def expectations(pacs: Pacs, time: Time) -> Expectations:
    return Expectations({"P": pacs}, clock=time.now, pause_s=60, monotonic=time.monotonic)


def test_the_first_answer_says_that_it_is_on_its_way(time: Time) -> None:
    pacs = Pacs(a=3)
    asked = expectations(pacs, time)
    first = asked.of(STUDY, "P", T0)
    assert (first.series, first.asking, pacs.asked) == (None, True, 0)
    time.s = 1
    assert asked.step()
    assert not asked.step(), "one question, however often it was put"
    known = asked.of(STUDY, "P", T0)
    assert (known.series, known.fresh, known.asking) == ({"a": 3}, True, False)
    assert known.missing({"a": 3}, whole_study=False) == 0


def test_an_answer_from_before_the_last_image_confirms_nothing(time: Time) -> None:
    asked = expectations(Pacs(a=3), time)
    asked.of(STUDY, "P", T0)
    asked.step()
    later = T0 + timedelta(seconds=5)
    time.s = 9
    stale = asked.of(STUDY, "P", later)
    assert stale.asking
    assert stale.missing({"a": 3}, whole_study=False) is None
    assert stale.missing({"a": 2}, whole_study=False) == 1, "but more than came is more than came"
    asked.step()
    assert asked.of(STUDY, "P", later).missing({"a": 3}, whole_study=False) == 0


def test_a_dead_pacs_holds_up_nothing(time: Time) -> None:
    pacs = Pacs()
    pacs.away = True
    asked = expectations(pacs, time)
    for number in range(5):
        asked.of(f"{STUDY}.{number}", "P", T0)
    while asked.step():
        pass
    assert pacs.asked == 1, "it is left alone after the first failure"
    assert not asked.of(STUDY, "P", T0).asking
    assert not asked.of(f"{STUDY}.0", "P", T0 + timedelta(seconds=5)).asking
    time.s, pacs.away, pacs.series = 61, False, {"a": 1}
    assert asked.of(STUDY, "P", T0).asking
    asked.step()
    assert asked.of(STUDY, "P", T0).series == {"a": 1}


def test_nobody_is_asked_without_a_peer(time: Time) -> None:
    asked = expectations(Pacs(a=1), time)
    assert asked.of(STUDY, None, T0) == Expectation()
    assert asked.of(STUDY, "OTHER", T0) == Expectation()
    assert not asked.step()


def test_a_study_that_has_ended_is_forgotten(time: Time) -> None:
    pacs = Pacs(a=1)
    asked = expectations(pacs, time)
    asked.of(STUDY, "P", T0)
    asked.keep([])
    assert asked.step()
    assert pacs.asked == 0


@pytest.mark.parametrize(
    ("pacs", "held", "whole", "missing"),
    [
        ({"a": 3, "b": 9}, {"a": 3}, False, 0),
        ({"a": 3, "b": 9}, {"a": 3}, True, 9),
        ({"a": 3, "b": 9}, {"a": 1, "b": 9}, False, 2),
        ({"a": 2}, {"a": 3}, False, None),
        ({}, {"a": 3}, False, None),
        ({"a": 2, "b": 5}, {"a": 3, "b": 4}, False, 1),
        ({"a": 3}, {}, False, None),
        (None, {"a": 3}, False, None),
    ],
)
def test_what_is_missing(
    pacs: dict[str, int] | None, held: dict[str, int], whole: bool, missing: int | None
) -> None:
    found = Expectation(series=pacs, fresh=True).missing(held, whole_study=whole)
    assert found == missing


def test_each_sender_has_its_own_patience() -> None:
    senders = {
        "SLOW": SenderTable(aet="SLOW", quiet_s=600, expected_wait_s=900),
        "QUICK": SenderTable(aet="QUICK", quiet_s=5, grace_s=1),
    }
    rules = CompletenessRules()

    def of(*aets: str) -> tuple[float, float, float]:
        found = rules_for(frozenset(aets), rules, senders)
        return found.quiet_s, found.grace_s, found.expected_wait_s

    assert of("CT01") == (60, 2, 300)
    assert of("QUICK") == (5, 1, 300)
    assert of("QUICK", "SLOW") == (600, 2, 900), "the most patient of those that sent it"
    assert of() == (60, 2, 300)


def test_each_sender_may_have_its_own_archive(time: Time) -> None:
    asking = Asking(
        expectations=expectations(Pacs(), time), peer="P", by_sender={"VNA": "V", "CT02": None}
    )
    assert asking.peer_of(frozenset({"CT01"})) == "P"
    assert asking.peer_of(frozenset({"VNA"})) == "V"
    assert asking.peer_of(frozenset({"CT02"})) is None
