"""Random walks through the whole store, beside a model that says what must be true.

A short one in the suite; a hundred thousand steps over each database in the long run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, func, select

from pe_triage.domain import TERMINAL_STATES, DeliveryState, Job, Priority, StudyState
from pe_triage.errors import LeaseLostError
from pe_triage.store import schema
from pe_triage.store.documents import show, worklist
from pe_triage.store.engine import open_engine
from pe_triage.store.outbox import DELIVERED
from tests.support.store import PACS, StoreUnderTest, instance

UIDS = [f"1.2.826.0.9.{n}" for n in range(3)]
ENDS = {state.value for state in TERMINAL_STATES}


@dataclass
class Expected:
    """What the model knows of one study."""

    held: set[int] = field(default_factory=set)
    runs: int = 0
    answers: int = 0


class StoreMachine(RuleBasedStateMachine):
    make_store: Callable[[], StoreUnderTest]
    steps = 0
    """Taken by all walks of this class."""

    @initialize()
    def start(self) -> None:
        self.store = type(self).make_store()
        self.expected = {uid: Expected() for uid in UIDS}
        self.claims: list[Job] = []
        self.lost: list[Job] = []
        self.finished: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.engine.dispose()

    @rule(uid=st.sampled_from(UIDS), number=st.integers(1, 4))
    def receive(self, uid: str, number: int) -> None:
        (recorded,) = self.store.record(instance(uid, number, self.store.data_dir))
        known = number in self.expected[uid].held
        assert recorded.status == ("DUPLICATE" if known else "NEW")
        self.expected[uid].held.add(number)
        if not known:
            assert self.store.state(uid) is StudyState.RECEIVING

    @rule(uid=st.sampled_from(UIDS), forced=st.booleans(), rank=st.sampled_from([0, 100, 200]))
    def enqueue(self, uid: str, forced: bool, rank: int) -> None:
        expected = self.expected[uid]
        if not expected.held:
            return
        before = self.store.queue.latest(uid)
        job = self.store.enqueue(uid, forced=forced, rank=rank)
        held = len(expected.held)
        if job is None:
            assert not forced
            assert before is not None
            assert self.store.studies.manifest(uid, run=before.run).entries == (
                self.store.studies.manifest(uid).entries
            )
            return
        assert job.run in (expected.runs, expected.runs + 1)
        if forced:
            assert job.run == expected.runs + 1
        expected.runs = job.run
        assert len(self.store.studies.instances(uid, run=job.run)) == held

    @rule()
    def claim(self) -> None:
        job = self.store.queue.claim("worker/", 600.0)
        if job is None:
            return
        assert all(other.study_uid != job.study_uid for other in self.claims)
        digest = self.store.studies.manifest(job.study_uid, run=job.run).digest
        assert digest == job.manifest_digest
        self.claims.append(job)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), priority=st.sampled_from([None, *Priority]))
    def finish(self, data: st.DataObject, priority: Priority | None) -> None:
        job = data.draw(st.sampled_from(self.claims))
        self.store.finish(job, priority=priority)
        self.claims.remove(job)
        self.finished.add(job.job_id)
        self.expected[job.study_uid].answers += 1

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), retry=st.booleans())
    def fail(self, data: st.DataObject, retry: bool) -> None:
        job = data.draw(st.sampled_from(self.claims))
        state = self.store.queue.fail(job, "broken", retry=retry)
        self.claims.remove(job)
        self.lost.append(job)
        assert (state is StudyState.QUEUED) == (retry and job.attempt < self.store.max_attempts)

    @rule()
    def worker_dies(self) -> None:
        assert self.store.queue.release_owner("worker/") == len(self.claims)
        self.lost += self.claims
        self.claims = []

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def the_dead_come_back(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.lost))
        with contextlib.suppress(LeaseLostError):
            # Ended by this very claim: harmless. Anything else: refused.
            self.store.finish(job)
            assert self.row_state(job.job_id) == "FAILED"

    @rule(state=st.sampled_from([*DELIVERED, DeliveryState.PARKED]), count=st.integers(1, 3))
    def deliver(self, state: DeliveryState, count: int) -> None:
        for delivery in self.store.outbox.due(PACS, count):
            assert self.store.outbox.mark(delivery.delivery_id, state)
            assert not self.store.outbox.mark(
                delivery.delivery_id, DeliveryState.PENDING, retry_in_s=0
            )

    @rule()
    def ask_again(self) -> None:
        self.store.outbox.requeue_parked()

    def row_state(self, job_id: int) -> str:
        with self.store.engine.begin() as connection:
            jobs = schema.jobs
            statement = select(jobs.c.state).where(jobs.c.job_id == job_id)
            return str(connection.execute(statement).scalar_one())

    @invariant()
    def one_more_step(self) -> None:
        type(self).steps += 1

    @invariant()
    def nothing_is_lost_and_nothing_exists_twice(self) -> None:
        if not hasattr(self, "store"):
            return
        jobs, results, deliveries = schema.jobs, schema.results, schema.deliveries
        with self.store.engine.begin() as connection:
            rows = connection.execute(select(jobs)).all()
            counts = dict(
                connection.execute(
                    select(results.c.job_id, func.count()).group_by(results.c.job_id)
                ).all()
            )
            sends = dict(
                connection.execute(
                    select(deliveries.c.job_id, func.count()).group_by(deliveries.c.job_id)
                ).all()
            )
            undelivered = set(
                connection.execute(
                    select(deliveries.c.job_id).where(
                        deliveries.c.state.not_in([s.value for s in DELIVERED])
                    )
                ).scalars()
            )
        assert {r.job_id for r in rows if r.state == "RUNNING"} == {j.job_id for j in self.claims}
        for row in rows:
            expected = 2 if row.job_id in self.finished else 0
            assert counts.get(row.job_id, 0) == sends.get(row.job_id, 0) == expected
            assert (row.state == "DONE") == (row.job_id in self.finished)
            assert (row.completed_at is not None) == (row.state in ENDS)
            done = row.job_id in self.finished and row.job_id not in undelivered
            assert (row.delivered_at is not None) == done
        for uid, study in self.expected.items():
            if not study.held:
                continue
            document = show(self.store.engine, uid, self.store.data_dir)
            assert document["instances"] == len(study.held)
            runs = sorted(r.run for r in rows if r.study_uid == uid)
            assert runs == list(range(1, study.runs + 1))
            newest = max((r for r in rows if r.study_uid == uid), key=lambda r: r.run, default=None)
            if newest is not None and document["state"] != "RECEIVING":
                assert document["state"] == newest.state
            if study.answers and document["pending_run"] is not None:
                assert document["run"] < document["pending_run"]

    @invariant()
    def the_worklist_is_in_order(self) -> None:
        if not hasattr(self, "store"):
            return
        order = ["HIGH", "MEDIUM", "LOW", None]
        documents = worklist(self.store.engine, self.store.data_dir)
        ranks = [order.index(d["priority"]) for d in documents]
        assert ranks == sorted(ranks)
        assert len(documents) == sum(bool(e.held) for e in self.expected.values())


LONG = [pytest.mark.long, pytest.mark.timeout(4 * 3600)]


@pytest.mark.parametrize(
    ("walks", "length", "at_least"),
    [pytest.param(8, 20, 0, id="short"), pytest.param(2600, 50, 100_000, id="long", marks=LONG)],
)
def test_random_walks(
    walks: int, length: int, at_least: int, new_database: Callable[[], str]
) -> None:
    def make_store() -> StoreUnderTest:
        url = new_database()
        engine = open_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(
                engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA synchronous = OFF")
            )
        return StoreUnderTest(engine=engine, url=url, data_dir=Path("/data"))

    machine = type("Machine", (StoreMachine,), {"make_store": staticmethod(make_store)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=walks,
            stateful_step_count=length,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert machine.steps >= at_least
