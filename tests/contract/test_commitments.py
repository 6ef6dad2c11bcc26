"""Requests for storage commitment, ours and those of scanners, on both databases."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from sqlalchemy import select, update

from pe_triage.archive import CommitmentTable
from pe_triage.commitment import (
    CLASS_CONFLICT,
    DUPLICATE_TRANSACTION,
    FAILURE_RULES,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    CommitmentReport,
    CommitmentRequest,
    Reference,
    Remedy,
)
from pe_triage.deliver.commitment import OnReport, Said
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import DeliveryState, PatientIdentity
from pe_triage.errors import QueryUnavailableError
from pe_triage.node.commitments import Committer, Confirmer, Reports
from pe_triage.store import schema
from pe_triage.store.abandoning import abandon
from pe_triage.store.commitment_requests import (
    CommitmentRequestStore,
    Place,
    RequestState,
    Taken,
)
from pe_triage.store.commitments import CommitmentStore, Settled, Uncommitted
from pe_triage.store.engine import db_now
from pe_triage.store.outbox import Outbox
from tests.support.store import CT, PACS, SR, STUDY, StoreUnderTest, instance, sha

SCANNER = "CT1@127.0.0.1:104"
RIS = "RIS@127.0.0.1:105"
NUMBERS = itertools.count(1)
DAY_S = 86400.0


class Asked:
    """A store whose run was delivered to a destination that is asked to commit."""

    def __init__(self, store: StoreUnderTest, destinations: tuple[str, ...] = (PACS,)) -> None:
        self.store = store
        self.outbox = Outbox(store.engine, store.data_dir, clock=store.clock, commits={PACS: 0.0})
        self.commitments = CommitmentStore(store.engine, clock=store.clock)
        store.queued()
        store.finish(store.claimed(), destinations=destinations)
        for destination in destinations:
            self.deliver(destination)

    def deliver(self, destination: str = PACS) -> None:
        for item in self.outbox.due(destination, 10):
            assert self.outbox.mark(item.delivery_id, DeliveryState.SENT)

    def ask(self, uid: str = "") -> tuple[str, list[Uncommitted]]:
        items = self.commitments.due(PACS, 10)
        uid = uid or f"2.25.9.{next(NUMBERS)}"
        self.commitments.begin(PACS, uid, items, ask_again_s=lambda _: 3600.0)
        return uid, items

    def settle(
        self, uid: str, committed: Any = (), failed: Any = (), redeliveries: int = 3
    ) -> Settled | None:
        report = CommitmentReport(
            transaction_uid=uid,
            committed=tuple(i.reference for i in committed),
            failed=tuple((i.reference, reason) for i, reason in failed),
        )
        return self.commitments.settle(report, redeliveries=redeliveries, retry_s=60.0)

    def states(self, destination: str = PACS) -> list[str]:
        table = schema.deliveries
        with self.store.engine.connect() as connection:
            return list(
                connection.execute(
                    select(table.c.state)
                    .where(table.c.destination == destination)
                    .order_by(table.c.ordinal)
                ).scalars()
            )

    def make_due(self) -> None:
        with self.store.engine.begin() as connection:
            connection.execute(update(schema.deliveries).values(commit_next_at=0.0))

    def delivered_at(self) -> object:
        with self.store.engine.connect() as connection:
            return connection.execute(select(schema.jobs.c.delivered_at)).scalar_one()


def test_all_committed(store: StoreUnderTest) -> None:
    asked = Asked(store)
    uid, items = asked.ask()
    assert [i.reference.sop_class_uid for i in items] == [SR, SR]
    assert asked.commitments.due(PACS, 10) == []
    assert asked.commitments.peer_of(uid) == PACS
    settled = asked.settle(uid, committed=items)
    assert settled is not None
    assert (settled.committed, settled.failed, settled.stale) == (2, {}, False)
    assert asked.states() == ["COMMITTED"] * 2
    assert asked.commitments.lacking() == []
    assert asked.delivered_at() is not None
    # The same report again changes nothing, and takes nothing back.
    again = asked.settle(uid, failed=[(items[0], NO_SUCH_INSTANCE)])
    assert again is not None
    assert again.stale
    assert asked.states() == ["COMMITTED"] * 2


def test_only_destinations_that_are_configured_are_asked(store: StoreUnderTest) -> None:
    asked = Asked(store, (PACS, RIS))
    assert asked.commitments.due(RIS, 10) == []
    assert {item.destination for item in asked.commitments.lacking()} == {PACS}
    assert asked.states(RIS) == ["SENT"] * 2


def test_an_unknown_transaction_changes_nothing(store: StoreUnderTest) -> None:
    asked = Asked(store)
    _, items = asked.ask()
    assert asked.settle("2.25.404", committed=items) is None
    assert asked.states() == ["SENT"] * 2


def test_what_was_not_asked_is_no_answer(store: StoreUnderTest) -> None:
    asked = Asked(store)
    uid, (first, second) = asked.ask()
    foreign = Reference(sop_class_uid=SR, sop_instance_uid="1.2.3.4")
    other_class = Reference(sop_class_uid=CT, sop_instance_uid=first.reference.sop_instance_uid)
    report = CommitmentReport(
        transaction_uid=uid, committed=(foreign, other_class, second.reference)
    )
    settled = asked.commitments.settle(report, redeliveries=3, retry_s=60.0)
    assert settled is not None
    assert settled.committed == 1
    assert sorted(asked.states()) == ["COMMITTED", "SENT"]


@pytest.mark.parametrize("reason", [*FAILURE_RULES, 0xC999])
def test_each_failure_reason(store: StoreUnderTest, reason: int) -> None:
    asked = Asked(store)
    uid, (first, second) = asked.ask()
    settled = asked.settle(uid, committed=[second], failed=[(first, reason)])
    assert settled is not None
    (remedy,) = settled.failed
    expected = {
        Remedy.ASK_AGAIN: ("SENT", True),
        Remedy.REDELIVER: ("PENDING", False),
        Remedy.PARK: ("PARKED", False),
    }
    state, delivered = expected[remedy]
    assert sorted(asked.states()) == sorted(["COMMITTED", state])
    assert (asked.delivered_at() is not None) is delivered
    if remedy is Remedy.PARK:
        (parked,) = asked.outbox.undelivered()
        assert f"{reason:04X}" in (parked.last_error or "")
    if remedy is Remedy.REDELIVER:
        asked.deliver()
        assert asked.delivered_at() is not None
        uid, items = asked.ask()
        assert [i.delivery_id for i in items] == [first.delivery_id]
        asked.settle(uid, committed=items)
        assert asked.states() == ["COMMITTED"] * 2


def test_an_object_is_sent_again_so_often_and_then_parked(store: StoreUnderTest) -> None:
    asked = Asked(store)
    for _ in range(2):
        uid, items = asked.ask()
        asked.settle(uid, failed=[(i, NO_SUCH_INSTANCE) for i in items], redeliveries=2)
        assert asked.states() == ["PENDING"] * 2
        asked.deliver()
    uid, items = asked.ask()
    asked.settle(uid, failed=[(i, NO_SUCH_INSTANCE) for i in items], redeliveries=2)
    assert asked.states() == ["PARKED"] * 2
    # A person asks, and it goes on from there.
    assert asked.outbox.requeue_parked() == 2
    asked.deliver()
    uid, items = asked.ask()
    asked.settle(uid, committed=items)
    assert asked.states() == ["COMMITTED"] * 2


def test_a_late_no_of_an_older_request_is_not_heeded_and_a_late_yes_is(
    store: StoreUnderTest,
) -> None:
    asked = Asked(store)
    old, (first, second) = asked.ask()
    asked.make_due()
    new, _ = asked.ask()
    late = asked.settle(old, committed=[first], failed=[(second, NO_SUCH_INSTANCE)])
    assert late is not None
    assert (late.committed, late.failed) == (1, {})
    assert sorted(asked.states()) == ["COMMITTED", "SENT"]
    asked.settle(new, committed=[second])
    assert asked.states() == ["COMMITTED"] * 2


def test_no_answer_is_asked_again_and_counted(store: StoreUnderTest) -> None:
    asked = Asked(store)
    for attempts in (0, 1, 2):
        assert [i.attempts for i in asked.commitments.due(PACS, 10)] == [attempts] * 2
        asked.ask()
        assert asked.commitments.due(PACS, 10) == []
        asked.make_due()
    (lacking,) = asked.commitments.lacking()
    assert (lacking.destination, lacking.waiting) == (PACS, 2)
    items = asked.commitments.due(PACS, 10)
    asked.commitments.put_off(items, "no answer", None)
    assert asked.commitments.due(PACS, 10) == []
    (lacking,) = asked.commitments.lacking()
    assert lacking.waiting == 2
    assert asked.commitments.ask_again(PACS) == 2
    assert len(asked.commitments.due(PACS, 10)) == 2


def test_results_are_kept_until_committed(store: StoreUnderTest) -> None:
    """By `commit_since`, which `store.retention` looks at."""
    asked = Asked(store)
    uid, (first, second) = asked.ask()

    def kept() -> set[int]:
        table = schema.deliveries
        with store.engine.connect() as connection:
            return set(
                connection.execute(
                    select(table.c.delivery_id).where(table.c.commit_since.is_not(None))
                ).scalars()
            )

    assert kept() == {first.delivery_id, second.delivery_id}
    asked.settle(uid, committed=[first], failed=[(second, NO_SUCH_INSTANCE)])
    # The other is on its way again, and kept for that.
    assert kept() == set()
    assert sorted(asked.states()) == ["COMMITTED", "PENDING"]
    asked.deliver()
    assert kept() == {second.delivery_id}
    asked.commitments.put_off([second], "never", None)
    assert kept() == {second.delivery_id}, "silence is no commitment"


# ------------------------------------------------------------------ what is not sent again


def last_errors(store: StoreUnderTest) -> set[str]:
    with store.engine.connect() as connection:
        return set(connection.execute(select(schema.deliveries.c.last_error)).scalars())


def test_what_is_lacking_is_not_sent_while_the_patient_is_in_doubt(store: StoreUnderTest) -> None:
    asked = Asked(store)
    uid, items = asked.ask()
    stranger = instance(STUDY, 9, identity=PatientIdentity(patient_id="OTHER"))
    (entry,) = store.record(stranger)
    asked.settle(uid, failed=[(i, NO_SUCH_INSTANCE) for i in items])
    assert asked.states() == ["PARKED"] * 2
    assert asked.outbox.due(PACS, 10) == []
    assert entry.quarantine_id is not None
    # Once it is settled whose study it is, it goes by itself.
    store.quarantine.discard(entry.quarantine_id)
    assert asked.states() == ["PENDING"] * 2


def test_what_is_lacking_and_no_longer_here_is_parked_and_others_flow(
    store: StoreUnderTest,
) -> None:
    """The site's limit was over and the files went; then the archive says that it lacks them."""
    asked = Asked(store)
    uid, items = asked.ask()
    with store.engine.begin() as connection:
        connection.execute(update(schema.results).values(path=None, removed_at=store.clock.now))
    asked.settle(uid, failed=[(i, NO_SUCH_INSTANCE) for i in items])
    assert asked.states() == ["PARKED"] * 2
    assert all("no longer held here" in words for words in last_errors(store))
    assert asked.outbox.requeue_parked() == 0
    store.queued("1.2.3")
    store.finish(store.claimed())
    assert {item.study_uid for item in asked.outbox.due(PACS, 10)} == {"1.2.3"}


def test_a_waiting_result_without_a_file_holds_up_no_destination(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    with store.engine.begin() as connection:
        connection.execute(update(schema.results).values(path=None, removed_at=store.clock.now))
    due = store.outbox.due(PACS, 10)
    assert len(due) == 2
    # Its sender finds nothing to open, and parks it.
    assert not any(item.path.exists() for item in due)


def test_what_is_claimed_for_removal_is_not_queued_again(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    for item in store.outbox.due(PACS, 10):
        store.outbox.mark(item.delivery_id, DeliveryState.PARKED, error="refused")
    with store.engine.begin() as connection:
        connection.execute(update(schema.results).values(removed_at=store.clock.now))
    assert store.outbox.requeue_parked() == 0


def test_what_a_person_gave_up_is_neither_asked_nor_sent_until_taken_back(
    store: StoreUnderTest,
) -> None:
    asked = Asked(store)
    uid, items = asked.ask()
    asked.make_due()
    decision: Any = {"by": "physicist", "why": "gone", "at": store.clock.now}
    assert abandon(store.engine, destination=PACS, study_uid=None, **decision) == 2
    assert asked.commitments.due(PACS, 10) == []
    assert asked.commitments.lacking() == []
    assert asked.commitments.ask_again(PACS) == 2
    assert len(asked.commitments.due(PACS, 10)) == 2
    (lacking,) = asked.commitments.lacking()
    assert lacking.waiting == 2
    abandon(store.engine, destination=PACS, study_uid=None, **decision)
    asked.settle(uid, failed=[(i, NO_SUCH_INSTANCE) for i in items])
    assert asked.states() == ["PARKED"] * 2


def test_what_a_clock_that_was_ahead_has_dated_is_asked_all_the_same(
    store: StoreUnderTest,
) -> None:
    """A year ahead at delivery, then set right: no archive would be asked, and no alarm raised."""
    asked = Asked(store)
    with store.engine.begin() as connection:
        connection.execute(
            update(schema.deliveries).values(
                commit_since=db_now() + 365 * DAY_S, commit_next_at=db_now() + 365 * DAY_S
            )
        )
    assert asked.commitments.due(PACS, 10) == []
    items = asked.commitments.due(PACS, 10, longest_wait_s=DAY_S)
    assert len(items) == 2
    asked.commitments.begin(PACS, "2.25.77", items, ask_again_s=lambda _: 3600.0)
    assert asked.commitments.due(PACS, 10, longest_wait_s=DAY_S) == []
    table = schema.deliveries
    with store.engine.connect() as connection:
        ahead = select(table.c.delivery_id).where(table.c.commit_since > db_now())
        assert connection.execute(ahead).all() == []


def test_a_request_that_a_clock_ahead_has_dated_is_answered(store: StoreUnderTest) -> None:
    store.receive(count=1)
    requests = CommitmentRequestStore(store.engine)
    requests.take(SCANNER, request_of(1))
    future = db_now() + 365 * DAY_S
    with store.engine.begin() as connection:
        connection.execute(
            update(schema.commitment_requests).values(received_at=future, next_attempt_at=future)
        )
    # The archive never has it: the answer comes when `settle_s` is over, and not in a year.
    answer = decided(store, confirmer(store, Archive(find={}), by_find=True))
    assert answer == {f"{STUDY}.1": NO_SUCH_INSTANCE}


def test_one_archive_does_not_speak_for_another(store: StoreUnderTest) -> None:
    """A report on the association of our own request is that archive's word, and no other's."""
    asked = Asked(store, (PACS, RIS))
    uid, items = asked.ask()
    report = CommitmentReport(transaction_uid=uid, committed=tuple(i.reference for i in items))

    class Talkative:
        def request(self, request: CommitmentRequest, on_report: OnReport) -> Said:
            assert on_report(report)
            return Said(verdict=Verdict.SENT)

        def report(self, report: CommitmentReport) -> Said:
            raise AssertionError

    table = CommitmentTable(of=(PACS, RIS))
    reports = Reports(asked.commitments, table, {PACS: {"PACS"}, RIS: {"RIS"}})

    def ask(name: str, aet: str) -> None:
        with store.engine.begin() as connection:
            connection.execute(
                update(schema.deliveries).values(commit_next_at=0.0, commit_since=db_now())
            )
        committer = Committer(
            name, commitments=asked.commitments, peer=Talkative(), aet=aet, table=table,
            reports=reports, make_uid=lambda: f"2.25.9.{next(NUMBERS)}", jitter=lambda: 0.5,
        )  # fmt: skip
        assert committer.step()

    ask(RIS, "RIS")
    assert asked.states() == ["SENT"] * 2
    ask(PACS, "PACS")
    assert asked.states() == ["COMMITTED"] * 2


def test_old_requests_are_forgotten(store: StoreUnderTest) -> None:
    asked = Asked(store)
    uid, items = asked.ask()
    assert asked.commitments.prune(3600.0) == 0
    assert asked.commitments.prune(-1.0) == 1
    assert asked.settle(uid, committed=items) is None
    with store.engine.connect() as connection:
        assert connection.execute(select(schema.commitment_items)).all() == []


# ------------------------------------------------------------------ requests of scanners


def request_of(*numbers: int, uid: str = "2.25.7", sop_class: str = CT) -> CommitmentRequest:
    return CommitmentRequest(
        transaction_uid=uid,
        references=tuple(
            Reference(sop_class_uid=sop_class, sop_instance_uid=f"{STUDY}.{n}") for n in numbers
        ),
    )


def test_a_request_is_open_until_decided_and_then_reported(store: StoreUnderTest) -> None:
    requests = CommitmentRequestStore(store.engine)
    assert requests.take(SCANNER, request_of(1, 2, 3)) is Taken.NEW
    (waiting,) = requests.due(RequestState.OPEN)
    assert (waiting.requester, waiting.transaction_uid) == (SCANNER, "2.25.7")
    requests.note(waiting.request_id, {f"{STUDY}.1": None, f"{STUDY}.2": CLASS_CONFLICT})
    # The archive's yes is not taken back by a later no.
    requests.note(waiting.request_id, {f"{STUDY}.1": NO_SUCH_INSTANCE})
    requests.put_off(waiting.request_id, 60.0, "wait")
    assert requests.due(RequestState.OPEN) == []
    requests.decide(waiting.request_id)
    (decided,) = requests.due(RequestState.REPORTING, requester=SCANNER)
    report = requests.answer(decided)
    assert [r.sop_instance_uid for r in report.committed] == [f"{STUDY}.1"]
    assert {r.sop_instance_uid: reason for r, reason in report.failed} == {
        f"{STUDY}.2": CLASS_CONFLICT,
        f"{STUDY}.3": PROCESSING_FAILURE,
    }
    requests.end(decided.request_id, RequestState.REPORTED)
    assert requests.due(RequestState.REPORTING) == []
    # It asks again: the same answer once more.
    assert requests.take(SCANNER, request_of(3, 2, 1)) is Taken.AGAIN
    (again,) = requests.due(RequestState.REPORTING)
    assert requests.answer(again) == report


def test_a_transaction_uid_that_is_in_use(store: StoreUnderTest) -> None:
    requests = CommitmentRequestStore(store.engine)
    requests.take(SCANNER, request_of(1))
    assert requests.take(SCANNER, request_of(1)) is Taken.AGAIN
    assert requests.take(SCANNER, request_of(1, 2)) is Taken.DUPLICATE
    (answer,) = requests.due(RequestState.REPORTING)
    assert {reason for _, reason in requests.answer(answer).failed} == {DUPLICATE_TRANSACTION}
    # Of somebody else it is no duplicate.
    assert requests.take("CT2@127.0.0.1:104", request_of(1, 2)) is Taken.NEW
    assert requests.counts()[RequestState.OPEN] == 2


def test_the_archive_asked_in_our_turn(store: StoreUnderTest) -> None:
    requests, commitments = CommitmentRequestStore(store.engine), CommitmentStore(store.engine)
    requests.take(SCANNER, request_of(1, 2))
    (waiting,) = requests.due(RequestState.OPEN)
    references = [item.reference for item in requests.items(waiting.request_id)]
    commitments.begin_for_request(PACS, "2.25.8", waiting.request_id, references)
    report = CommitmentReport(
        transaction_uid="2.25.8",
        committed=(references[0],),
        failed=((references[1], NO_SUCH_INSTANCE),),
    )
    settled = commitments.settle(report, redeliveries=3, retry_s=60.0)
    assert settled is not None
    assert settled.committed == 1
    assert [(i.held, i.failure) for i in requests.items(waiting.request_id)] == [
        (True, None),
        (False, NO_SUCH_INSTANCE),
    ]


def test_where_an_instance_stands(store: StoreUnderTest) -> None:
    store.receive(count=2)
    requests = CommitmentRequestStore(store.engine)
    found = requests.places([f"{STUDY}.1", f"{STUDY}.99"])
    assert list(found) == [f"{STUDY}.1"]
    assert (found[f"{STUDY}.1"].study_uid, found[f"{STUDY}.1"].series_uid) == (STUDY, f"{STUDY}.0")


class Archive:
    """Takes requests for commitment, and is asked by C-FIND."""

    def __init__(self, *, find: dict[str, str] | None = None) -> None:
        self.asked: list[CommitmentRequest] = []
        self.found = find

    def request(self, request: CommitmentRequest, _on_report: OnReport) -> Said:
        self.asked.append(request)
        return Said(verdict=Verdict.SENT)

    def report(self, _report: CommitmentReport) -> Said:
        raise AssertionError

    def find(self, _place: Place) -> dict[str, str]:
        if self.found is None:
            raise QueryUnavailableError("PACS: connection refused")
        return self.found


def confirmer(store: StoreUnderTest, archive: Archive, *, by_find: bool) -> Confirmer:
    return Confirmer(
        requests=CommitmentRequestStore(store.engine),
        commitments=CommitmentStore(store.engine),
        table=CommitmentTable(settle_s=0.4, check_every_s=0.05),
        make_uid=lambda: f"2.25.8.{next(NUMBERS)}",
        archive=PACS,
        find=archive.find if by_find else None,
        peer=None if by_find else archive,
    )


def decided(store: StoreUnderTest, worker: Confirmer) -> dict[str, int | None]:
    """Let it ask until it has decided; SOP Instance UID to the Failure Reason of the answer."""
    requests = CommitmentRequestStore(store.engine)
    deadline_s = time.monotonic() + 30
    while not (ready := requests.due(RequestState.REPORTING)):
        assert time.monotonic() < deadline_s
        worker.step()
        time.sleep(0.05)
    report = requests.answer(ready[0])
    return {r.sop_instance_uid: None for r in report.committed} | {
        r.sop_instance_uid: reason for r, reason in report.failed
    }


@pytest.mark.parametrize(
    ("found", "reasons"),
    [
        ({f"{STUDY}.1": CT, f"{STUDY}.2": ""}, [None, None]),
        ({f"{STUDY}.1": SR}, [CLASS_CONFLICT, NO_SUCH_INSTANCE]),
        ({}, [NO_SUCH_INSTANCE] * 2),
        (None, [PROCESSING_FAILURE] * 2),
    ],
)
def test_an_archive_that_is_asked_by_find(
    store: StoreUnderTest, found: dict[str, str] | None, reasons: list[int | None]
) -> None:
    """That this node holds both is no reason to say so."""
    store.receive(count=2)
    CommitmentRequestStore(store.engine).take(SCANNER, request_of(1, 2))
    answer = decided(store, confirmer(store, Archive(find=found), by_find=True))
    assert [answer[f"{STUDY}.{n}"] for n in (1, 2)] == reasons


@pytest.mark.parametrize("by_find", [True, False])
def test_two_objects_under_one_uid_are_not_confirmed(store: StoreUnderTest, by_find: bool) -> None:
    """The archive has one of them; the scanner would delete the other."""
    store.receive(count=2)
    (entry,) = store.record(instance(STUDY, 1, store.data_dir, sha256=sha("another")))
    requests = CommitmentRequestStore(store.engine)
    requests.take(SCANNER, request_of(1, 2))
    archive = Archive(find={f"{STUDY}.1": CT, f"{STUDY}.2": CT})
    worker = confirmer(store, archive, by_find=by_find)
    if not by_find:
        worker.step()
        (asked,) = archive.asked
        assert [r.sop_instance_uid for r in asked.references] == [f"{STUDY}.2"]
    answer = decided(store, worker)
    assert answer[f"{STUDY}.1"] == PROCESSING_FAILURE
    assert answer[f"{STUDY}.2"] == (None if by_find else PROCESSING_FAILURE)
    # Once a person has decided, the archive's word counts.
    assert entry.quarantine_id is not None
    store.quarantine.discard(entry.quarantine_id)
    assert requests.contradicted([f"{STUDY}.1"]) == set()


def test_what_never_came_here_is_not_confirmed(store: StoreUnderTest) -> None:
    CommitmentRequestStore(store.engine).take(SCANNER, request_of(1))
    archive = Archive(find={f"{STUDY}.1": CT})
    answer = decided(store, confirmer(store, archive, by_find=True))
    assert answer == {f"{STUDY}.1": NO_SUCH_INSTANCE}


@pytest.mark.parametrize("reports", [True, False])
def test_an_archive_that_is_asked_by_commitment(store: StoreUnderTest, reports: bool) -> None:
    CommitmentRequestStore(store.engine).take(SCANNER, request_of(1, 2))
    archive = Archive()
    worker = confirmer(store, archive, by_find=False)
    worker.step()
    (request,) = archive.asked
    assert {r.sop_instance_uid for r in request.references} == {f"{STUDY}.1", f"{STUDY}.2"}
    if reports:
        CommitmentStore(store.engine).settle(
            CommitmentReport(transaction_uid=request.transaction_uid, committed=request.references),
            redeliveries=3,
            retry_s=60.0,
        )
    answer = decided(store, worker)
    assert set(answer.values()) == ({None} if reports else {PROCESSING_FAILURE})


def test_ended_requests_are_forgotten(store: StoreUnderTest) -> None:
    requests = CommitmentRequestStore(store.engine)
    requests.take(SCANNER, request_of(1))
    (waiting,) = requests.due(RequestState.OPEN)
    assert requests.prune(-1.0) == 0
    requests.end(waiting.request_id, RequestState.PARKED, "never taken")
    assert requests.counts()[RequestState.PARKED] == 1
    assert requests.prune(-1.0) == 1
    assert requests.items(waiting.request_id) == []
