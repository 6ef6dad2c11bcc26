"""Days of outage on a simulated clock: what is sent when, what is given up, what is asked again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import Double, literal, select

from pe_triage.archive import CommitmentTable
from pe_triage.commitment import CommitmentReport, CommitmentRequest
from pe_triage.deliver.backoff import GIVE_UP_AFTER_S, MAX_DELAY_S
from pe_triage.deliver.commitment import OnReport, Said
from pe_triage.deliver.outcomes import Sent, all_unreachable
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Delivery, DeliveryState, Priority
from pe_triage.node.commitments import Committer, Reports
from pe_triage.node.deliverer import Deliverer
from pe_triage.store import commitments, finishing, outbox, schema
from pe_triage.store.commitments import CommitmentStore
from pe_triage.store.outbox import Outbox
from tests.support.store import PACS, StoreUnderTest

HOUR_S, DAY_S = 3600.0, 86400.0
RIS = "RIS@127.0.0.1:105"


class Simulated:
    """The database's clock, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1.7e9
        for module in (outbox, finishing, commitments):
            monkeypatch.setattr(module, "db_now", lambda: literal(self.now_s, Double))


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    return Simulated(monkeypatch)


class Peer:
    """A destination that is away until told otherwise."""

    def __init__(self, clock: Simulated, *, away: bool = True) -> None:
        self.clock = clock
        self.away = away
        self.tried_at: list[float] = []
        self.took: list[Delivery] = []

    def send(self, batch: Sequence[Delivery]) -> Iterator[tuple[int, Sent]]:
        self.tried_at.append(self.clock.now_s)
        if self.away:
            yield from all_unreachable(batch, "connection refused")
            return
        for item in batch:
            self.took.append(item)
            yield item.delivery_id, Sent(verdict=Verdict.SENT)


def deliverer(store: StoreUnderTest, box: Outbox, name: str, peer: Peer) -> Deliverer:
    made = Deliverer(name, outbox=box, studies=store.studies, send=peer.send, jitter=lambda: 0.5)
    # What the files hold is the matter of test_deliverer.py.
    made._is_for_its_patient = lambda _item: True  # type: ignore[method-assign]
    return made


def answered(store: StoreUnderTest, uid: str, priority: Priority | None) -> None:
    store.queued(uid)
    store.finish(store.claimed(), priority=priority, destinations=(PACS, RIS))


def states(store: StoreUnderTest, destination: str) -> set[str]:
    table = schema.deliveries
    with store.engine.connect() as connection:
        return set(
            connection.execute(
                select(table.c.state).where(table.c.destination == destination)
            ).scalars()
        )


def live(box: Outbox, clock: Simulated, worker: Deliverer, until_s: float) -> None:
    """Let a deliverer act whenever something is due, up to `until_s`."""
    while (wait_s := box.next_due_s(PACS)) is not None and clock.now_s + wait_s <= until_s:
        clock.now_s += wait_s
        if not worker.step():
            # A difference in the last binary place.
            clock.now_s += 0.001
    clock.now_s = max(clock.now_s, until_s)


@pytest.mark.parametrize(
    "left_out_s", [pytest.param(0.0, marks=pytest.mark.long), 66 * HOUR_S], ids=["all", "ends"]
)
def test_72_hours_without_the_pacs(
    store: StoreUnderTest, simulated: Simulated, left_out_s: float
) -> None:
    """Every attempt of them in the long run; otherwise those of the first and the last hours."""
    box, start_s = Outbox(store.engine, store.data_dir), simulated.now_s
    dead, ris = Peer(simulated), Peer(simulated, away=False)
    to_pacs = deliverer(store, box, PACS, dead)
    to_ris = deliverer(store, box, RIS, ris)
    answered(store, "1.2.826.1", Priority.LOW)
    assert to_ris.step()
    live(box, simulated, to_pacs, start_s + 3 * HOUR_S)
    simulated.now_s += left_out_s
    live(box, simulated, to_pacs, start_s + 71 * HOUR_S)
    # It was tried all the time, ever more slowly, and never more than ten minutes apart.
    gaps = [b - a for a, b in zip(dead.tried_at, dead.tried_at[1:], strict=False)]
    assert gaps[0] < 3
    assert sorted(gaps)[-2] <= MAX_DELAY_S + 1
    assert max(gaps) <= MAX_DELAY_S + 1 + left_out_s
    assert len(dead.tried_at) < 500
    # The other destination has had its own since the first moment, and new ones at once.
    assert {d.study_uid for d in ris.took} == {"1.2.826.1"}
    answered(store, "1.2.826.2", None)
    answered(store, "1.2.826.3", Priority.HIGH)
    assert to_ris.step()
    assert states(store, RIS) == {"SENT"}
    live(box, simulated, to_pacs, start_s + 72 * HOUR_S)
    assert states(store, PACS) == {"PENDING"}
    dead.away = False
    live(box, simulated, to_pacs, start_s + 72 * HOUR_S + MAX_DELAY_S + 1)
    # The most urgent is the first that it hears, whatever happened to be due.
    assert [d.study_uid for d in dead.took] == [
        *["1.2.826.3"] * 2,
        *["1.2.826.1"] * 2,
        *["1.2.826.2"] * 2,
    ]
    assert states(store, PACS) == {"SENT"}


def test_seven_days_without_the_pacs(store: StoreUnderTest, simulated: Simulated) -> None:
    box, start_s = Outbox(store.engine, store.data_dir), simulated.now_s
    dead = Peer(simulated)
    worker = deliverer(store, box, PACS, dead)
    answered(store, "1.2.826.1", Priority.HIGH)
    live(box, simulated, worker, start_s + HOUR_S)
    simulated.now_s = start_s + GIVE_UP_AFTER_S - HOUR_S
    live(box, simulated, worker, start_s + GIVE_UP_AFTER_S - 1)
    assert states(store, PACS) == {"PENDING"}
    live(box, simulated, worker, start_s + GIVE_UP_AFTER_S + HOUR_S)
    assert states(store, PACS) == {"PARKED"}
    parked = [i for i in box.undelivered() if i.destination == PACS]
    assert {i.last_error for i in parked} == {"connection refused"}
    # A person asks for more patience, and gets another seven days.
    assert box.requeue_parked(PACS) == 2
    live(box, simulated, worker, simulated.now_s + HOUR_S)
    assert states(store, PACS) == {"PENDING"}
    dead.away = False
    live(box, simulated, worker, simulated.now_s + HOUR_S)
    assert states(store, PACS) == {"SENT"}


class Archive:
    """Takes requests for commitment; reports when told."""

    def __init__(self, clock: Simulated) -> None:
        self.clock = clock
        self.asked: list[tuple[float, CommitmentRequest]] = []
        self.away = False

    def request(self, request: CommitmentRequest, _on_report: OnReport) -> Said:
        if self.away:
            return Said(verdict=Verdict.RETRY, error="connection refused", unreachable=True)
        self.asked.append((self.clock.now_s, request))
        return Said(verdict=Verdict.SENT)

    def report(self, _report: CommitmentReport) -> Said:
        raise AssertionError


def committing(store: StoreUnderTest, clock: Simulated) -> tuple[Archive, Any, Reports, Outbox]:
    box = Outbox(store.engine, store.data_dir, commits={PACS: 10.0})
    kept, table = CommitmentStore(store.engine), CommitmentTable(of=(PACS,))
    archive = Archive(clock)
    reports = Reports(kept, table, {PACS: {"PACS"}})
    worker = Committer(
        PACS,
        commitments=kept,
        peer=archive,
        aet="PACS",
        table=table,
        reports=reports,
        make_uid=lambda: generate_uid(prefix=None),
        jitter=lambda: 0.5,
    )
    store.queued()
    store.finish(store.claimed())
    for item in box.due(PACS, 10):
        box.mark(item.delivery_id, DeliveryState.SENT)
    return archive, worker, reports, box


def pass_time(clock: Simulated, worker: Any, seconds: float, step_s: float = 600.0) -> None:
    until_s = clock.now_s + seconds
    while clock.now_s < until_s:
        clock.now_s += step_s
        worker.step()


def test_an_archive_that_never_reports(store: StoreUnderTest, simulated: Simulated) -> None:
    archive, worker, _, _ = committing(store, simulated)
    start_s = simulated.now_s
    assert not worker.step()
    pass_time(simulated, worker, 6.5 * DAY_S, HOUR_S / 2)
    hours = [round((at - start_s) / HOUR_S) for at, _ in archive.asked]
    # After 1, 2, 4, 8, 16, 24, 24 … hours, each time under a UID of its own.
    assert hours == pytest.approx([0, 2, 4, 8, 16, 32, 56, 80, 104, 128, 152], abs=6)
    assert len({request.transaction_uid for _, request in archive.asked}) == len(archive.asked)
    (lacking,) = CommitmentStore(store.engine).lacking()
    assert lacking.oldest_s > 6 * DAY_S
    pass_time(simulated, worker, 1.6 * DAY_S, HOUR_S / 2)
    # It is asked no more, and still counts as what it is: the alarm stays.
    (lacking,) = CommitmentStore(store.engine).lacking()
    assert lacking.oldest_s > 8 * DAY_S
    count = len(archive.asked)
    pass_time(simulated, worker, 2 * DAY_S, HOUR_S)
    assert len(archive.asked) == count
    assert states(store, PACS) == {"SENT"}


def test_a_report_after_days(store: StoreUnderTest, simulated: Simulated) -> None:
    archive, worker, reports, _ = committing(store, simulated)
    pass_time(simulated, worker, 3 * DAY_S, HOUR_S)
    _, first = archive.asked[0]
    # On the very first request, though others have followed.
    report = CommitmentReport(transaction_uid=first.transaction_uid, committed=first.references)
    reports.take(report, "STRANGER")
    assert states(store, PACS) == {"SENT"}
    reports.take(report, "PACS")
    assert states(store, PACS) == {"COMMITTED"}
    count = len(archive.asked)
    pass_time(simulated, worker, 2 * DAY_S, HOUR_S)
    assert len(archive.asked) == count


def test_an_archive_that_is_away_is_asked_once_it_is_back(
    store: StoreUnderTest, simulated: Simulated
) -> None:
    archive, worker, _, _ = committing(store, simulated)
    archive.away = True
    pass_time(simulated, worker, 3 * HOUR_S)
    archive.away = False
    pass_time(simulated, worker, 2 * MAX_DELAY_S)
    assert len(archive.asked) == 1
