from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, update

from pe_triage.domain import DeliveryState, Outcome, Priority, ResultKind, StudyState
from pe_triage.store import schema
from pe_triage.store.jobs import ResultRow
from pe_triage.store.outbox import TRANSITIONS
from tests.support.store import PACS, STUDY, StoreUnderTest

RIS = "RIS@127.0.0.1:105"


def done(store: StoreUnderTest, study_uid: str, priority: Priority | None) -> None:
    store.queued(study_uid)
    job = store.claimed()
    if priority is None:
        store.finish(
            job, state=StudyState.NOT_EVALUATED, outcome=Outcome.NOT_EVALUATED, priority=None
        )
    else:
        store.finish(job, priority=priority)


def delivered_at(store: StoreUnderTest, study_uid: str = STUDY) -> object:
    with store.engine.begin() as connection:
        jobs = schema.jobs
        return connection.execute(
            select(jobs.c.delivered_at).where(jobs.c.study_uid == study_uid)
        ).scalar_one()


def test_every_object_to_every_destination(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed(), destinations=(PACS, RIS, PACS))
    assert store.outbox.destinations_with_due() == [PACS, RIS]
    assert store.outbox.waiting() == {PACS: 2, RIS: 2}
    first, second = store.outbox.due(PACS, 10)
    assert (first.kind, second.kind) == (ResultKind.SR, ResultKind.SUMMARY)
    assert (first.state, first.attempts, first.last_error) == (DeliveryState.PENDING, 0, None)
    assert first.study_uid == STUDY
    assert first.path == store.data_dir / "results/1/run-1/0.dcm"
    assert len(store.outbox.due(PACS, 1)) == 1


def test_most_urgent_first_then_the_oldest_then_in_order(store: StoreUnderTest) -> None:
    for number, priority in enumerate(
        (None, Priority.LOW, Priority.HIGH, Priority.MEDIUM, Priority.HIGH)
    ):
        done(store, f"1.2.826.0.1.{number}", priority)
        time.sleep(0.005)
    due = store.outbox.due(PACS, 100)
    assert [d.study_uid[-1] for d in due[::2]] == ["2", "4", "3", "1", "0"]
    assert [d.kind for d in due] == [ResultKind.SR, ResultKind.SUMMARY] * 5


def test_sent_once_and_delivered_when_all_are(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed(), destinations=(PACS, RIS))
    deliveries = store.outbox.due(PACS, 10) + store.outbox.due(RIS, 10)
    states = (DeliveryState.SENT, DeliveryState.WARNING, DeliveryState.SENT)
    for delivery, state in zip(deliveries, states, strict=False):
        assert store.outbox.mark(delivery.delivery_id, state)
        assert delivered_at(store) is None
    now = store.clock.forward(60)
    assert store.outbox.mark(deliveries[3].delivery_id, DeliveryState.SENT)
    assert delivered_at(store) == now
    store.clock.forward(60)
    assert store.outbox.mark(deliveries[3].delivery_id, DeliveryState.COMMITTED)
    assert delivered_at(store) == now
    assert store.outbox.destinations_with_due() == []
    assert store.outbox.next_due_s(PACS) is None


def test_retry_keeps_its_appointment(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    first, second = store.outbox.due(PACS, 10)
    assert store.outbox.next_due_s(PACS) == 0
    store.outbox.mark(first.delivery_id, DeliveryState.PENDING, error="no route", retry_in_s=0.3)
    assert [d.delivery_id for d in store.outbox.due(PACS, 10)] == [second.delivery_id]
    store.outbox.mark(second.delivery_id, DeliveryState.SENT)
    wait = store.outbox.next_due_s(PACS)
    assert wait is not None
    assert 0 < wait <= 0.3
    assert store.outbox.destinations_with_due() == []
    time.sleep(0.35)
    (again,) = store.outbox.due(PACS, 10)
    assert (again.delivery_id, again.attempts, again.last_error) == (
        first.delivery_id,
        1,
        "no route",
    )
    assert delivered_at(store) is None


def test_one_dead_destination_holds_up_no_other(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed(), destinations=(PACS, RIS))
    for delivery in store.outbox.due(PACS, 10):
        store.outbox.mark(delivery.delivery_id, DeliveryState.PENDING, error="down", retry_in_s=900)
    assert store.outbox.destinations_with_due() == [RIS]
    assert len(store.outbox.due(RIS, 10)) == 2


def test_parked_until_a_person_asks(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed(), destinations=(PACS, RIS))
    for destination in (PACS, RIS):
        for delivery in store.outbox.due(destination, 10):
            store.outbox.mark(delivery.delivery_id, DeliveryState.PARKED, error="0122 refused")
    assert store.outbox.destinations_with_due() == []
    assert store.outbox.requeue_parked(PACS) == 2
    again = store.outbox.due(PACS, 10)
    assert [(d.attempts, d.last_error) for d in again] == [(1, "0122 refused")] * 2
    assert store.outbox.age_s(again[0].delivery_id) < 5
    assert store.outbox.requeue_parked() == 2
    assert store.outbox.requeue_parked() == 0


@pytest.mark.parametrize("was", list(DeliveryState))
def test_what_arrived_is_never_taken_back(store: StoreUnderTest, was: DeliveryState) -> None:
    store.queued()
    store.finish(store.claimed())
    delivery_id = store.outbox.due(PACS, 1)[0].delivery_id
    table = schema.deliveries
    for now in DeliveryState:
        with store.engine.begin() as connection:
            connection.execute(update(table).values(state=was.value, attempts=1))
        retry = 1.0 if now is DeliveryState.PENDING else None
        allowed = now in TRANSITIONS[was]
        assert store.outbox.mark(delivery_id, now, retry_in_s=retry) is allowed
        with store.engine.begin() as connection:
            row = connection.execute(select(table).where(table.c.delivery_id == delivery_id)).one()
        assert row.state == (now if allowed else was)
        assert row.attempts == (2 if was is DeliveryState.PENDING else 1)


def test_the_last_two_at_the_same_moment(store: StoreUnderTest) -> None:
    """Neither of two senders may think that the other's object is still on its way."""
    with ThreadPoolExecutor(2) as pool:
        for number in range(8):
            uid = f"1.2.826.0.1.{number}"
            store.queued(uid)
            store.finish(store.claimed())
            due = [d.delivery_id for d in store.outbox.due(PACS, 10)]
            assert all(pool.map(lambda i: store.outbox.mark(i, DeliveryState.SENT), due))
            assert delivered_at(store, uid) is not None


def test_superseded_results_are_still_sent(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    store.enqueue(forced=True)
    time.sleep(0.005)
    store.finish(store.claimed())
    assert [d.path.parent.name for d in store.outbox.due(PACS, 10)] == [
        "run-1",
        "run-1",
        "run-2",
        "run-2",
    ]


def test_what_is_no_dicom_object_is_not_sent(store: StoreUnderTest) -> None:
    store.queued()
    narrative = ResultRow(
        kind=ResultKind.NARRATIVE,
        sop_class_uid=None,
        sop_instance_uid=None,
        sha256=None,
        path=Path("results/1/narrative.txt"),
    )
    store.finish(store.claimed(), results=[narrative, narrative])
    assert store.outbox.due(PACS, 10) == []


def test_misuse(store: StoreUnderTest) -> None:
    with pytest.raises(LookupError):
        store.outbox.mark(7, DeliveryState.SENT)
    with pytest.raises(LookupError):
        store.outbox.age_s(7)
    with pytest.raises(ValueError, match="retry_in_s"):
        store.outbox.mark(7, DeliveryState.PENDING)
    with pytest.raises(ValueError, match="retry_in_s"):
        store.outbox.mark(7, DeliveryState.SENT, retry_in_s=1)


def test_a_person_sees_what_is_parked_and_asks_for_one_study(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed(), destinations=(PACS, RIS))
    for delivery in store.outbox.due(PACS, 10):
        store.outbox.mark(delivery.delivery_id, DeliveryState.PARKED, error="0122 refused")
    listed = store.outbox.undelivered()
    assert [(i.destination, i.state) for i in listed] == sorted(
        [(PACS, DeliveryState.PARKED)] * 2 + [(RIS, DeliveryState.PENDING)] * 2
    )
    assert [i.retry_in_s is None for i in listed] == [i.destination == PACS for i in listed]
    assert {i.last_error for i in listed} == {None, "0122 refused"}
    assert store.outbox.requeue_parked(study_uid="9.9.9") == 0
    assert store.outbox.requeue_parked(study_uid=listed[0].study_uid) == 2
