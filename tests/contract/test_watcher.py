"""Faults planted in a database: the node's own look finds them, says so everywhere, and stops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from pe_triage.deliver.find_scu import PacsSeries, PacsStudy
from pe_triage.deliver.outcomes import Sent
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import DeliveryState, Outcome, PatientIdentity
from pe_triage.errors import QueryUnavailableError
from pe_triage.monitoring import ReconcileTable, WatchTable
from pe_triage.node.reconciler import Reconciler
from pe_triage.node.watcher import Notifier, Watcher
from pe_triage.store import schema
from pe_triage.store.alarms import AlarmStore
from pe_triage.store.engine import db_now
from pe_triage.store.watching import WatchStore
from tests.support.store import EMPTY_ANSWER, PACS, START, STUDY, StoreUnderTest

pytestmark = pytest.mark.usefixtures("fresh_logs")


class Pager:
    """Takes what it is told, or is away."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.away = False

    def post(self, body: bytes) -> Sent:
        if self.away:
            return Sent(verdict=Verdict.RETRY, error="away", unreachable=True)
        self.bodies.append(json.loads(body))
        return Sent(verdict=Verdict.SENT)

    @property
    def told(self) -> list[str]:
        return [f"{b['data']['alarm']} {b['type'].rpartition('.')[2]}" for b in self.bodies]


class Node:
    """The watching side of a node over one store."""

    def __init__(self, store: StoreUnderTest, tmp_path: Path, **settings: Any) -> None:
        self.metrics = tmp_path / "x.prom"
        self.pager = Pager()
        self.alarms = AlarmStore(store.engine, destinations=("pager",))
        self.backlog = (0, 0.0)
        self.watcher = Watcher(
            watching=WatchStore(store.engine),
            alarms=self.alarms,
            settings=WatchTable(metrics_file=self.metrics, **settings),
            clock=store.clock,
            backlog=lambda: self.backlog,
        )
        self.notifier = Notifier(
            alarms=self.alarms, posters={"pager": self.pager}, jitter=lambda: 0.5
        )

    def look(self) -> list[str]:
        found = [f.name for f in self.watcher.look()]
        self.notifier.tick()
        return found


@pytest.fixture
def node(store: StoreUnderTest, tmp_path: Path) -> Node:
    return Node(store, tmp_path)


def answer(store: StoreUnderTest, number: int, probability: float) -> None:
    store.queued_and_claimed(f"{STUDY}.{number}")
    job = store.queue.claim("x", 1)
    assert job is None
    with store.engine.begin() as connection:
        connection.execute(
            update(schema.jobs)
            .where(schema.jobs.c.study_uid == f"{STUDY}.{number}")
            .values(
                state="DONE",
                outcome=Outcome.NEGATIVE.value,
                completed_at=store.clock.forward(60),
                delivered_at=store.clock(),
                pe_probability=probability,
                model_sha256="ab",
            )
        )
        connection.execute(
            update(schema.studies)
            .where(schema.studies.c.study_uid == f"{STUDY}.{number}")
            .values(state="DONE")
        )


def test_a_constant_output_is_said_to_log_webhook_and_metrics(
    store: StoreUnderTest, node: Node
) -> None:
    for number in range(1, 8):
        answer(store, number, 0.3333333)
    assert node.look() == []
    answer(store, 8, 0.33333331)
    with capture_logs() as logs:
        assert node.look() == ["watch.constant_output"]
        assert node.look() == ["watch.constant_output"]
    said = [entry for entry in logs if entry["event"] == "watch.constant_output"]
    assert [entry["log_level"] for entry in said] == ["error"], "said once"
    assert said[0]["pe_probability"] == 0.333333
    assert node.pager.told == ["watch.constant_output raised"]
    assert 'pe_triage_alarm{alarm="watch.constant_output",subject=""} 1' in node.metrics.read_text()
    answer(store, 9, 0.71)
    with capture_logs() as logs:
        assert node.look() == []
    assert [e["alarm"] for e in logs if e["event"] == "watch.cleared"] == ["watch.constant_output"]
    assert node.pager.told[1:] == ["watch.constant_output cleared"]


def test_an_absent_output_is_noticed_the_same_day(store: StoreUnderTest, node: Node) -> None:
    answer(store, 1, 0.2)
    store.receive(f"{STUDY}.2", 2)
    store.enqueue(f"{STUDY}.2")
    assert node.look() == []
    store.clock.forward(4 * 3600 + 60)
    with store.engine.begin() as connection:
        connection.execute(update(schema.jobs).values(available_at=db_now() - 4 * 3600))
    assert set(node.look()) == {"watch.no_answer", "queue.stalled"}
    job = store.claimed()
    store.finish(job, document=EMPTY_ANSWER)
    assert node.look() == []


def test_one_study_that_hangs_is_noticed_though_the_others_are_answered(
    store: StoreUnderTest, node: Node
) -> None:
    """A worker that is stuck in a library goes on renewing its lease."""
    store.queued_and_claimed(f"{STUDY}.1")
    store.clock.forward(4 * 3600 + 60)
    assert node.look() == ["watch.no_answer"]
    store.receive(f"{STUDY}.2", 2, received_at=store.clock())
    store.enqueue(f"{STUDY}.2")
    job = store.claimed()
    store.finish(job, document=EMPTY_ANSWER, destinations=())
    assert node.look() == ["watch.stuck"]
    # An old study that is analysed again was not forgotten for years.
    store.clock.forward(60)
    with store.engine.begin() as connection:
        connection.execute(
            update(schema.jobs).values(state="DONE").where(schema.jobs.c.state == "RUNNING")
        )
    digest = store.studies.manifest(f"{STUDY}.2").digest
    assert store.queue.enqueue(f"{STUDY}.2", digest, forced=True)
    assert node.look() == []


def test_a_journal_that_is_not_emptied(store: StoreUnderTest, node: Node) -> None:
    node.backlog = (40, 899.0)
    assert node.look() == []
    node.backlog = (40, 901.0)
    assert node.look() == ["watch.not_indexed"]


def test_parked_results_are_an_alarm_until_somebody_sends_them(
    store: StoreUnderTest, node: Node
) -> None:
    store.finish(store.queued_and_claimed(STUDY))
    item = store.outbox.due(PACS, 9)[0]
    store.outbox.mark(item.delivery_id, DeliveryState.PARKED, error="refused")
    assert node.look() == ["watch.parked"]
    store.outbox.requeue_parked()
    assert node.look() == []


def test_a_pager_that_is_away_hears_it_later(store: StoreUnderTest, node: Node) -> None:
    node.pager.away = True
    node.backlog = (1, 9999.0)
    node.look()
    assert node.pager.bodies == []
    with store.engine.begin() as connection:
        connection.execute(update(schema.alarm_notices).values(next_attempt_at=db_now()))
    node.pager.away = False
    assert node.notifier.tick() == 1
    assert node.pager.told == ["watch.not_indexed raised"]


# ------------------------------------------------------------------ the day before

DAY = START.date()


class Archive:
    """A PACS as data."""

    def __init__(self) -> None:
        self.days: dict[date, list[str]] = {}
        self.away = False
        self.asked: list[date] = []
        self.fails: set[date] = set()

    def studies(
        self, first: date, _last: date, *, modality: str | None = None
    ) -> Sequence[PacsStudy]:
        if self.away or first in self.fails:
            raise QueryUnavailableError("PACS@h:1: connection refused")
        self.asked.append(first)
        assert modality == "CT"
        return [
            PacsStudy(
                study_uid=uid,
                identity=PatientIdentity(patient_id="PID-SECRET"),
                name="",
                birth_date="",
                study_date=f"{first:%Y%m%d}",
                study_time="080000",
                description="CTPA",
                modalities=("CT",),
                series=None,
                instances=None,
            )
            for uid in self.days.get(first, [])
        ]

    def series(self, study_uid: str) -> Sequence[PacsSeries]:
        return [PacsSeries(series_uid=f"{study_uid}.0", modality="CT", description="", instances=2)]


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def daily(store: StoreUnderTest, archive: Archive) -> Reconciler:
    store.data_dir.mkdir(exist_ok=True)
    return Reconciler(
        archive=archive,  # type: ignore[arg-type]
        pacs="PACS@h:1",
        watching=WatchStore(store.engine),
        alarms=AlarmStore(store.engine),
        table=ReconcileTable(at="06:30"),
        data_dir=store.data_dir,
        clock=store.clock,
        remind_s=86400,
    )


def at(day: int, hour: int) -> datetime:
    return datetime.combine(DAY + timedelta(days=day), datetime.min.time(), UTC) + timedelta(
        hours=hour
    )


def test_each_day_is_compared_once_and_missed_days_are_made_up_for(
    store: StoreUnderTest, archive: Archive, daily: Reconciler
) -> None:
    store.clock.now = at(1, 6)
    assert daily.tick() == []
    store.clock.now = at(1, 7)
    assert daily.tick() == [DAY]
    assert daily.tick() == []
    store.clock.now = at(4, 7)
    assert daily.tick() == [DAY + timedelta(days=n) for n in (1, 2, 3)]
    made = sorted(p.name for p in (store.data_dir / "reconciliation").iterdir())
    assert len(made) == 4
    store.clock.now = at(40, 7)
    assert len(daily.tick()) == 7, "not for ever"


def test_a_study_that_never_came_stands_until_it_has(
    store: StoreUnderTest, archive: Archive, daily: Reconciler
) -> None:
    archive.days[DAY] = [f"{STUDY}.1", f"{STUDY}.2"]
    store.finish(store.queued_and_claimed(f"{STUDY}.1"), destinations=())
    store.clock.now = at(1, 7)
    with capture_logs() as logs:
        daily.tick()
    (alarm,) = AlarmStore(store.engine).standing()
    assert (alarm.name, alarm.subject) == ("watch.reconciliation", DAY.isoformat())
    assert "1 NEVER_CAME" in alarm.message
    assert daily.last_counts() is not None
    assert not any("PID-SECRET" in str(entry) for entry in logs)
    report = (store.data_dir / "reconciliation" / f"{DAY}.json").read_text()
    assert "PID-SECRET" not in report
    assert json.loads(report)["counts"]["ANSWERED"] == 1

    store.clock.now = at(2, 7)
    daily.tick()
    assert AlarmStore(store.engine).standing(), "the next day alone makes nothing good"
    store.finish(store.queued_and_claimed(f"{STUDY}.2"), destinations=())
    store.clock.now = at(3, 7)
    daily.tick()
    assert AlarmStore(store.engine).standing() == ()


def test_a_pacs_that_falls_silent_half_way_hides_nothing(
    store: StoreUnderTest, archive: Archive, daily: Reconciler
) -> None:
    """The report of the first day is written and will not be made again: its trouble is said."""
    days = [DAY + timedelta(days=n) for n in range(3)]
    store.clock.now = at(1, 7)
    archive.days[days[0]] = [f"{STUDY}.1"]
    assert daily.tick() == days[:1]
    archive.days[days[1]] = [f"{STUDY}.2"]
    archive.fails = {days[2]}
    store.clock.now = at(3, 7)
    assert daily.tick() == days[:2]
    standing = {a.subject for a in AlarmStore(store.engine).standing()}
    assert standing == {days[0].isoformat(), days[1].isoformat()}
    # And where the first of all is the one that cannot be compared, the others go on standing.
    archive.fails = set(days)
    assert daily.tick() == []
    assert {a.subject for a in AlarmStore(store.engine).standing()} == standing
    archive.fails = set()
    assert days[2] in daily.tick()


def test_a_clock_that_ran_ahead_does_not_end_the_comparison(
    store: StoreUnderTest, archive: Archive, daily: Reconciler
) -> None:
    store.clock.now = at(400, 7)
    daily.tick()
    (store.data_dir / "reconciliation" / "9999-99-99.json").write_text("{")
    store.clock.now = at(1, 7)
    assert daily.tick() == [DAY]
    store.clock.now = at(2, 7)
    assert daily.tick() == [DAY + timedelta(days=1)]


def test_a_report_that_was_cut_short_stops_no_look(
    store: StoreUnderTest, archive: Archive, daily: Reconciler
) -> None:
    store.clock.now = at(1, 7)
    daily.tick()
    (store.data_dir / "reconciliation" / f"{DAY}.json").write_text("")
    assert daily.last_counts() is None


def test_a_pacs_that_does_not_answer_is_an_alarm_after_an_hour(
    store: StoreUnderTest, archive: Archive, daily: Reconciler
) -> None:
    archive.away = True
    store.clock.now = at(1, 7)
    assert daily.tick() == []
    assert AlarmStore(store.engine).standing() == ()
    store.clock.forward(3601)
    assert daily.tick() == []
    assert [a.name for a in AlarmStore(store.engine).standing()] == ["watch.reconciliation_failed"]
    archive.away = False
    assert daily.tick() == [DAY]
    assert AlarmStore(store.engine).standing() == ()
