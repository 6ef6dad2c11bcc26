"""Messages beside objects in the outbox, on both databases."""

from __future__ import annotations

from pathlib import Path

from pe_triage.domain import DeliveryState, Outcome, Priority, ResultKind
from pe_triage.routing import Route
from pe_triage.store.documents import show
from pe_triage.store.jobs import ResultRow
from tests.support.store import PACS, STUDY, StoreUnderTest, result_rows

RIS = Route(name="ris", kinds=frozenset({ResultKind.HL7}))
READING = Route(name="reading", kinds=frozenset({ResultKind.SUMMARY}))
PAGER = Route(
    name="pager",
    kinds=frozenset({ResultKind.WEBHOOK}),
    outcomes=frozenset({Outcome.POSITIVE}),
)


def message(kind: ResultKind, addressee: str, *, refused: str | None = None) -> ResultRow:
    return ResultRow(
        kind=kind,
        sop_class_uid=None,
        sop_instance_uid=None,
        sha256=None if refused else "ab" * 32,
        path=None if refused else Path(f"results/{addressee}.txt"),
        addressee=addressee,
        refused=refused,
    )


def finish(store: StoreUnderTest, *, outcome: Outcome = Outcome.POSITIVE) -> None:
    job = store.claimed()
    store.finish(
        job,
        outcome=outcome,
        priority=Priority.HIGH if outcome is Outcome.POSITIVE else None,
        results=[
            *result_rows(job),
            message(ResultKind.HL7, "ris"),
            message(ResultKind.WEBHOOK, "pager"),
            message(ResultKind.FHIR, "ehr", refused="the message could not be written"),
        ],
        destinations=[PACS, READING, RIS, PAGER, Route(name="ehr", kinds=frozenset(ResultKind))],
    )


def test_each_destination_gets_its_set(store: StoreUnderTest) -> None:
    store.queued()
    finish(store)
    sets = {
        name: [d.kind for d in store.outbox.due(name, 10)]
        for name in store.outbox.destinations_with_due()
    }
    pictures = [ResultKind.SR, ResultKind.SUMMARY]
    assert sets == {
        PACS: pictures,
        "ehr": pictures,
        "pager": [ResultKind.WEBHOOK],
        "reading": [ResultKind.SUMMARY],
        "ris": [ResultKind.HL7],
    }
    (hl7,) = store.outbox.due("ris", 10)
    assert (hl7.sop_instance_uid, hl7.sha256) == (None, "ab" * 32)
    (refused,) = [
        r for r in show(store.engine, STUDY, store.data_dir)["results"] if r["kind"] == "FHIR"
    ]
    (delivery,) = refused["deliveries"]
    assert (delivery["destination"], delivery["state"]) == ("ehr", "PARKED")
    assert delivery["last_error"] == "the message could not be written"
    assert store.outbox.requeue_parked() == 0


def test_an_outcome_that_a_destination_does_not_take(store: StoreUnderTest) -> None:
    store.queued()
    finish(store, outcome=Outcome.NEGATIVE)
    assert store.outbox.due("pager", 10) == []
    assert len(store.outbox.due("ris", 10)) == 1


def test_a_newer_answer_withdraws_messages_and_no_objects(store: StoreUnderTest) -> None:
    store.queued()
    finish(store, outcome=Outcome.NEGATIVE)
    store.enqueue(forced=True)
    assert len(store.outbox.due("ris", 10)) == 1  # until the newer one has an answer
    finish(store)
    assert len(store.outbox.due("ris", 10)) == 1
    assert len(store.outbox.due(PACS, 10)) == 4
    assert store.outbox.requeue_parked("ris") == 0


def test_a_destination_that_comes_back(store: StoreUnderTest) -> None:
    for number, priority in enumerate((Priority.LOW, Priority.HIGH, Priority.MEDIUM)):
        store.queued(f"1.2.826.0.2.{number}")
        store.finish(
            store.claimed(),
            priority=priority,
            results=[message(ResultKind.HL7, "ris")],
            destinations=[RIS],
        )
    waiting = store.outbox.due("ris", 10)
    for delivery in waiting:
        store.outbox.mark(delivery.delivery_id, DeliveryState.PENDING, "away", retry_in_s=600)
    assert store.outbox.due("ris", 10) == []
    early = store.outbox.due("ris", 2, early=True)
    assert [d.study_uid[-1] for d in early] == ["1", "2"]
    assert store.outbox.bring_forward("elsewhere") == 0
    assert store.outbox.bring_forward("ris", but=[early[0].delivery_id]) == 2
    assert [d.study_uid[-1] for d in store.outbox.due("ris", 10)] == ["2", "0"]
