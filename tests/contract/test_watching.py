"""The database's side of watching, on both engines: history, situation, alarms and notices."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from pe_triage.assemble.completeness import FORCED
from pe_triage.domain import DeliveryState, Outcome, Priority, StudyState
from pe_triage.monitoring import WatchTable
from pe_triage.node.worker import Worker
from pe_triage.store import schema
from pe_triage.store.alarms import AlarmStore
from pe_triage.store.documents import show
from pe_triage.store.engine import db_now
from pe_triage.store.jobs import Closing, Rank
from pe_triage.store.watching import WatchStore
from pe_triage.watch.alarms import Finding
from tests.support.store import EMPTY_ANSWER, PACS, START, STUDY, StoreUnderTest

SETTINGS = WatchTable(baseline=20, window=10)


def answered(store: StoreUnderTest, number: int, **values: Any) -> str:
    """Record, queue and end one study; a minute passes."""
    study_uid = f"{STUDY}.{number}"
    store.receive(study_uid, 1)
    store.enqueue(study_uid, **{k: values.pop(k) for k in ("rank", "closing") if k in values})
    job = store.claimed()
    assert job.study_uid == study_uid
    probability = values.pop("pe_probability", 0.01 * number)
    document = EMPTY_ANSWER | {"pe_probability": probability, "attention_entropy": 0.8}
    values = {"outcome": Outcome.NEGATIVE, "priority": None, "document": document} | values
    store.clock.forward(60)
    store.finish(job, **values)
    return study_uid


def watch(store: StoreUnderTest) -> WatchStore:
    return WatchStore(store.engine)


def test_history_is_that_of_the_model_in_force(store: StoreUnderTest) -> None:
    for number in range(1, 4):
        answered(store, number)
    with store.engine.begin() as connection:
        connection.execute(update(schema.jobs).values(model_sha256="old"))
    for number in range(4, 30):
        answered(store, number, outcome=Outcome.POSITIVE, priority=Priority.HIGH)
    history = watch(store).history(SETTINGS)
    assert [s.study_uid for s in history.baseline] == [f"{STUDY}.{n}" for n in range(4, 24)]
    assert [s.study_uid for s in history.recent] == [f"{STUDY}.{n}" for n in range(24, 30)]
    assert len(history.latest) == 29
    newest = history.latest[-1]
    assert newest.pe_probability == pytest.approx(0.29)
    assert newest.attention_entropy == pytest.approx(0.8)
    assert newest.outcome is Outcome.POSITIVE
    assert newest.latency_s is None, "not delivered yet"
    since = SETTINGS.model_copy(update={"baseline_since": START + timedelta(minutes=25)})
    assert watch(store).history(since).baseline[0].study_uid == f"{STUDY}.25"


def test_backfill_and_superseded_runs_do_not_count(store: StoreUnderTest) -> None:
    answered(store, 1, rank=Rank.BACKFILL)
    uid = answered(store, 2)
    store.enqueue(uid, forced=True)
    store.finish(store.claimed(), document=EMPTY_ANSWER | {"pe_probability": 0.7})
    found = watch(store).history(SETTINGS).latest
    assert [(s.study_uid, s.pe_probability) for s in found] == [(uid, 0.7)]


def test_latency_is_from_complete_to_the_last_delivery(store: StoreUnderTest) -> None:
    answered(store, 1)
    store.clock.forward(30)
    for item in store.outbox.due(PACS, 9):
        store.outbox.mark(item.delivery_id, DeliveryState.SENT)
    (sample,) = watch(store).history(SETTINGS).latest
    assert sample.latency_s == pytest.approx(90)


def test_what_closed_a_study_is_shown_and_kept_by_a_reprocess(store: StoreUnderTest) -> None:
    closing = Closing(sign="quiet", reason="nothing new for 300 s; 1 of 9", expected_images=9)
    uid = answered(store, 1, closing=closing)
    wanted = {"sign": "quiet", "reason": closing.reason, "expected_images": 9}
    assert show(store.engine, uid, store.data_dir)["completeness"] == wanted
    store.enqueue(uid, forced=True)
    store.finish(store.claimed())
    document = show(store.engine, uid, store.data_dir)
    assert (document["run"], document["completeness"]) == (2, wanted)


def test_a_run_that_was_closed_short_is_a_caution(store: StoreUnderTest) -> None:
    """`report.policy.decide` makes a negative answer INDETERMINATE by it."""
    closing = Closing(sign="quiet", reason="2 of 9 instances have arrived", expected_images=9)
    store.receive(STUDY, 2)
    store.enqueue(closing=closing)
    job = store.claimed()
    assert store.queue.closing(job) == closing
    worker: Any = SimpleNamespace(_queue=store.queue)
    assert Worker._cautions(worker, job, 2) == ("only 2 of the 9 images at the PACS had come",)
    assert Worker._cautions(worker, job, 9) == ()
    for sign, words in FORCED.items():
        forced: Any = SimpleNamespace(closing=lambda _job, s=sign: Closing(sign=s, reason="why"))
        worker = SimpleNamespace(_queue=forced)
        assert Worker._cautions(worker, job, 2) == (words,)
    worker = SimpleNamespace(_queue=store.queue)
    store.finish(job)
    store.queued(f"{STUDY}.2")
    assert Worker._cautions(worker, store.claimed(), 2) == ()


def test_situation(store: StoreUnderTest) -> None:
    now = store.clock
    empty = watch(store).situation(SETTINGS, now())
    assert (empty.queued, empty.since_came_s, empty.waiting) == (0, None, ())
    answered(store, 1)
    store.finish(store.queued_and_claimed(f"{STUDY}.2"), state=StudyState.FAILED, outcome=None,
                 priority=None, results=[])  # fmt: skip
    store.queued(f"{STUDY}.3")
    store.receive(f"{STUDY}.4", 1)
    with store.engine.begin() as connection:
        connection.execute(
            update(schema.jobs)
            .where(schema.jobs.c.study_uid == f"{STUDY}.3")
            .values(available_at=db_now() - 5000)
        )
    now.forward(5 * 3600)
    (first, _second) = store.outbox.due(PACS, 9)
    store.outbox.mark(first.delivery_id, DeliveryState.PARKED, error="refused")
    seen = watch(store).situation(SETTINGS, now())
    assert (seen.queued, seen.running, seen.failed, seen.unanswered) == (1, 0, 1, 2)
    assert seen.longest_wait_s == pytest.approx(5000, abs=60)
    assert seen.since_answer_s == pytest.approx(5 * 3600)
    (waiting,) = seen.waiting
    assert (waiting.destination, waiting.pending, waiting.parked) == (PACS, 1, 1)
    assert waiting.since_taken_s is None
    assert seen.states == {"DONE": 1, "FAILED": 1, "QUEUED": 1, "RECEIVING": 1}


def test_standings_for_the_comparison_with_a_pacs(store: StoreUnderTest) -> None:
    uid = answered(store, 1)
    store.receive(f"{STUDY}.2", 3)
    found = watch(store).standings([uid, f"{STUDY}.2", "2.25.404"])
    assert set(found) == {uid, f"{STUDY}.2"}
    assert (found[uid].answered, found[uid].undelivered, found[uid].parked) == (True, 2, 0)
    assert found[f"{STUDY}.2"].state is StudyState.RECEIVING
    assert found[f"{STUDY}.2"].series == {f"{STUDY}.2.0": 3}


def alarm(name: str = "queue.stalled", message: str = "3 wait", **facts: Any) -> Finding:
    return Finding(name=name, message=message, facts=facts)


def test_an_alarm_is_raised_once_reminded_and_cleared(store: StoreUnderTest) -> None:
    alarms = AlarmStore(store.engine, aet="NODE", destinations=("pager",))
    names = {"queue.stalled"}

    def settle(*findings: Finding) -> list[list[str]]:
        changes = alarms.settle(findings, names=names, at=store.clock(), remind_s=3600)
        return [[a.message for a in c] for c in (changes.raised, changes.reminded, changes.cleared)]

    assert settle(alarm()) == [["3 wait"], [], []]
    store.clock.forward(60)
    assert settle(alarm(message="4 wait")) == [[], [], []]
    assert [a.message for a in alarms.standing()] == ["4 wait"]
    store.clock.forward(3600)
    assert settle(alarm(message="5 wait")) == [[], ["5 wait"], []]
    alarms.settle([alarm("watch.other")], names={"watch.other"}, at=store.clock(), remind_s=9)
    assert settle() == [[], [], ["5 wait"]]
    assert [a.name for a in alarms.standing()] == ["watch.other"], "another look's alarm stands"
    assert settle(alarm()) == [["3 wait"], [], []], "the next time is another alarm"

    bodies = [json.loads(n.body) for n in alarms.due("pager")]
    assert [b["type"].rpartition(".")[2] for b in bodies] == [
        "raised", "standing", "raised", "cleared", "raised",
    ]  # fmt: skip
    assert len({b["id"] for b in bodies}) == 5
    assert bodies[0]["data"]["alarm"] == "queue.stalled"
    assert bodies[0]["data"]["node"] == "NODE"


def test_a_notice_keeps_its_appointment(store: StoreUnderTest) -> None:
    alarms = AlarmStore(store.engine, destinations=("pager",))
    alarms.settle([alarm()], names={"queue.stalled"}, at=store.clock(), remind_s=9)
    (notice,) = alarms.due("pager")
    alarms.mark(notice, DeliveryState.PENDING, error="away", retry_in_s=60)
    assert alarms.due("pager") == ()
    alarms.mark(notice, DeliveryState.SENT)
    assert alarms.due("pager") == ()
    assert alarms.due("nobody") == ()
