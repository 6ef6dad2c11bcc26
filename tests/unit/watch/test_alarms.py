"""Each alarm has its planted fault, and is silent without it."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pe_triage.domain import Outcome, StudyState
from pe_triage.monitoring import WatchTable
from pe_triage.watch.alarms import NAMES, day_chart, draw, judge
from pe_triage.watch.metrics import exposition, gauges
from pe_triage.watch.samples import (
    History,
    RunSample,
    Situation,
    Uncommitted,
    Waiting,
    attention_entropy,
)

T0 = datetime(2026, 3, 1, 8, tzinfo=UTC)
SETTINGS = WatchTable(silent_s=3600)
HOUR = 3600.0


def runs(count: int, seed: int = 1, **change: Any) -> list[RunSample]:
    """Studies as a node in order sees them: 1/6 positive, 1/10 refused, 1/20 open."""
    source = random.Random(seed)
    made = []
    for number in range(count):
        draw_of = source.random()
        refused = draw_of > 0.9
        outcome = (
            Outcome.NOT_EVALUATED
            if refused
            else Outcome.POSITIVE
            if draw_of < 1 / 6
            else Outcome.INDETERMINATE
            if draw_of > 0.85
            else Outcome.NEGATIVE
        )
        values: dict[str, Any] = {
            "study_uid": f"2.25.{seed}{number}",
            "state": StudyState.NOT_EVALUATED if refused else StudyState.DONE,
            "outcome": outcome,
            "completed_at": T0 + timedelta(minutes=5 * number),
            "latency_s": source.lognormvariate(3, 0.3),
            "pe_probability": None if refused else source.random(),
            "attention_entropy": None if refused else source.gauss(0.8, 0.05),
            "model_sha256": "ab",
        }
        made.append(RunSample(**(values | change)))
    return made


def history(recent: list[RunSample], seed: int = 1) -> History:
    baseline = runs(100, seed)
    return History(
        baseline=tuple(baseline),
        recent=tuple(recent),
        wanted=100,
        latest=tuple([*baseline, *recent][-200:]),
    )


def names(past: History, situation: Situation | None = None, **change: Any) -> list[str]:
    settings = SETTINGS.model_copy(update=change)
    return [f.name for f in judge(past, situation or Situation(), settings)]


IN_ORDER = history(runs(100, 2))


def test_a_node_in_order_is_silent() -> None:
    assert names(IN_ORDER) == []
    assert names(History()) == [], "and so is one that has seen nothing yet"
    charts = draw(IN_ORDER, SETTINGS)
    assert charts.positive is not None
    assert charts.not_evaluated is not None
    assert charts.indeterminate is not None
    assert charts.latency is not None
    assert charts.attention_entropy is not None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("watch.constant_output", {"pe_probability": 0.4242421}),
        ("watch.positive_rate", {"outcome": Outcome.POSITIVE}),
        ("watch.positive_rate", {"outcome": Outcome.NEGATIVE}),
        ("watch.not_evaluated_rate", {"outcome": Outcome.NOT_EVALUATED}),
        ("watch.indeterminate_rate", {"outcome": Outcome.INDETERMINATE}),
        ("watch.latency", {"latency_s": 300.0}),
        ("watch.attention_entropy", {"attention_entropy": 0.99}),
        ("watch.attention_entropy", {"attention_entropy": 0.3}),
    ],
)
def test_a_planted_fault_of_the_output_is_noticed_within_a_days_studies(
    name: str, change: dict[str, Any]
) -> None:
    """50 studies: a busy hospital's day of CTPA and less."""
    assert name in names(history(runs(50, 3, **change)))


def test_a_constant_output_is_noticed_after_eight_studies_even_without_a_baseline() -> None:
    frozen = runs(8, 3, pe_probability=0.1234567)
    assert names(History(latest=tuple(frozen))) == ["watch.constant_output"]
    assert names(History(latest=tuple(frozen[1:]))) == []
    last = replace(frozen[-1], pe_probability=0.1234587)
    assert names(History(latest=(*frozen[:-1], last))) == [], "differs in the sixth digit"
    refused = runs(3, 4, pe_probability=None)
    assert names(History(latest=(*frozen[:4], *refused, *frozen[4:]))) == ["watch.constant_output"]


def test_a_day_is_judged_by_itself_too() -> None:
    def outside(day: list[RunSample], past: History = IN_ORDER, **change: Any) -> bool | None:
        settings = SETTINGS.model_copy(update=change)
        chart = day_chart(day, past, settings, Outcome.POSITIVE)
        return None if chart is None else chart.outside

    assert outside(runs(20, 5)) is False
    assert outside(runs(20, 5, outcome=Outcome.POSITIVE)) is True
    assert outside([]) is None
    assert outside(runs(20, 5, outcome=None)) is None
    assert outside(runs(20, 5), History()) is None
    assert outside(runs(20, 5, outcome=Outcome.POSITIVE), History(), positive_rate=0.2) is True


def test_faster_results_are_no_alarm() -> None:
    assert names(history(runs(50, 2, latency_s=1.0))) == []


def test_a_stated_rate_needs_no_baseline() -> None:
    some = History(latest=tuple(runs(50, 3, outcome=Outcome.POSITIVE)))
    assert names(some) == []
    assert names(some, positive_rate=0.2) == ["watch.positive_rate"]
    open_ones = History(latest=tuple(runs(50, 3, outcome=Outcome.INDETERMINATE)))
    assert names(open_ones, indeterminate_rate=0.05) == ["watch.indeterminate_rate"]


def situations() -> list[tuple[str, Situation]]:
    dead = Waiting(destination="PACS", pending=3, oldest_s=5 * HOUR, since_taken_s=5 * HOUR)
    return [
        ("watch.no_answer", Situation(unanswered=4, since_answer_s=5 * HOUR)),
        ("watch.no_answer", Situation(unanswered=1, since_answer_s=None)),
        ("queue.stalled", Situation(queued=2, longest_wait_s=1000, since_ended_s=1000)),
        ("queue.stalled", Situation(queued=2, longest_wait_s=1000, since_ended_s=None)),
        ("watch.not_indexed", Situation(not_indexed=9, not_indexed_s=1000)),
        ("watch.no_delivery", Situation(waiting=(dead,))),
        ("watch.no_delivery", Situation(waiting=(replace(dead, since_taken_s=None),))),
        ("watch.parked", Situation(waiting=(replace(dead, pending=0, parked=1),))),
        (
            "watch.not_committed",
            Situation(uncommitted=(Uncommitted(destination="PACS", objects=2, oldest_s=9 * HOUR),)),
        ),
        ("watch.commitment_unheard", Situation(unheard=1)),
        ("watch.failed", Situation(failed=1)),
        ("watch.quarantine", Situation(quarantined=1)),
        ("watch.no_study", Situation(since_came_s=2 * HOUR)),
        ("watch.stuck", Situation(unanswered=1, since_answer_s=60)),
    ]


@pytest.mark.parametrize(("name", "situation"), situations())
def test_a_planted_fault_of_the_node_is_noticed(name: str, situation: Situation) -> None:
    assert names(IN_ORDER, situation) == [name]


@pytest.mark.parametrize(
    "situation",
    [
        Situation(unanswered=0, since_answer_s=50 * HOUR),
        Situation(queued=900, longest_wait_s=9000, since_ended_s=20),
        Situation(queued=2, longest_wait_s=100, since_ended_s=90 * HOUR),
        Situation(not_indexed=900, not_indexed_s=5),
        Situation(
            waiting=(Waiting(destination="PACS", pending=9, oldest_s=9 * HOUR, since_taken_s=60.0),)
        ),
        Situation(since_came_s=HOUR / 2),
    ],
)
def test_what_only_looks_like_a_fault_is_none(situation: Situation) -> None:
    assert names(IN_ORDER, situation) == []


def test_every_alarm_is_named_and_described() -> None:
    planted = {name for name, _ in situations()} | {
        "watch.constant_output",
        "watch.positive_rate",
        "watch.not_evaluated_rate",
        "watch.indeterminate_rate",
        "watch.latency",
        "watch.attention_entropy",
        "watch.reconciliation",
        "watch.reconciliation_failed",
        # Raised by what removes files.
        "watch.space",
    }
    assert planted == set(NAMES)


def test_no_message_names_a_study() -> None:
    for _, situation in situations():
        for finding in judge(history(runs(50, 3, pe_probability=0.5)), situation, SETTINGS):
            assert "2.25." not in finding.message
            assert "\n" not in finding.message


def test_entropy_of_attention() -> None:
    assert attention_entropy(np.full(40, 1 / 40, np.float32)) == pytest.approx(1)
    assert attention_entropy([1.0, 0.0, 0.0]) == pytest.approx(0)
    assert attention_entropy([0.5, 0.5, 0.0, 0.0]) == pytest.approx(0.5)
    for nothing in ([], [1.0], [0.0, 0.0], [float("nan"), 1.0], [-1.0, 2.0]):
        assert attention_entropy(nothing) is None


def test_the_metrics_are_what_prometheus_reads() -> None:
    situation = replace(
        situations()[5][1], states={"DONE": 7}, since_answer_s=3.5, longest_wait_s=None
    )
    text = exposition(
        gauges(
            now=T0,
            situation=situation,
            charts=draw(IN_ORDER, SETTINGS),
            alarms=[("watch.no_delivery", 'odd"name\\')],
            reconciliation={"NEVER_CAME": 2},
        )
    )
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert all(f.type == "gauge" and f.documentation for f in families.values())
    (alarm,) = families["pe_triage_alarm"].samples
    assert alarm.labels == {"alarm": "watch.no_delivery", "subject": 'odd"name\\'}
    assert families["pe_triage_look_timestamp_seconds"].samples[0].value == T0.timestamp()
    assert {s.labels["state"]: s.value for s in families["pe_triage_deliveries"].samples} == {
        "PENDING": 3,
        "PARKED": 0,
    }
    rates = {s.labels["outcome"] for s in families["pe_triage_rate"].samples}
    assert rates == {"POSITIVE", "NOT_EVALUATED", "INDETERMINATE"}
    assert families["pe_triage_reconciliation_studies"].samples[0].value == 2
