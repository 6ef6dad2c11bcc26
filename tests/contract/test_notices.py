"""Whoever waits hears at once that there is work, and finds it also where nothing is heard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Engine, event, literal, text

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import StudyState
from pe_triage.node.ahead import Ahead
from pe_triage.node.deliverer import Deliverer
from pe_triage.node.preparing import Preparing
from pe_triage.node.worker import Worker, WorkerOptions
from pe_triage.store import listener as listening_module
from pe_triage.store.arriving import Arriving
from pe_triage.store.listener import Listener
from pe_triage.store.notices import Bell, Looking, Topic, listening, notify
from tests.support.node import wait_for
from tests.support.store import PACS, STUDY, StoreUnderTest, instance

NEVER_S = 3600.0
ON_POSTGRES = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
"""SQLite has nothing to listen to."""


@pytest.fixture
def listener(store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """A listener that looks by itself only while it cannot listen."""
    monkeypatch.setattr(listening_module, "IDLE_LOOK_S", NEVER_S)
    with Listener(store.engine, poll_s=0.05).running() as running:
        wait_for(lambda: running.listening, 30, "listening")
        yield running


@contextmanager
def waiting_worker(store: StoreUnderTest, bell: Bell) -> Iterator[None]:
    """A worker in a thread, which ends each job that it finds."""
    worker = Worker(
        queue=store.queue,
        studies=store.studies,
        predictor=None,  # type: ignore[arg-type]
        analysis=None,  # type: ignore[arg-type]
        options=WorkerOptions(owner="w/", data_dir=store.data_dir, routes=(), lease_s=30.0),
        clock=store.clock,
        bell=bell,
    )
    worker._run_job = lambda job, heart, log, _work: store.finish(job)  # type: ignore[method-assign]
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """Statements that `engine` is asked to run."""
    asked: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)


def ended(store: StoreUnderTest, study_uid: str = STUDY) -> None:
    wait_for(lambda: store.state(study_uid) is StudyState.DONE, 20, f"end of {study_uid}")


def listening_backends(store: StoreUnderTest) -> list[int]:
    with store.engine.connect() as connection:
        return list(
            connection.execute(
                text("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN pe_triage%'")
            ).scalars()
        )


@ON_POSTGRES
def test_a_word_comes_with_the_commit_and_only_then(
    store: StoreUnderTest, listener: Listener
) -> None:
    bell = listener.bell(Topic.JOBS)
    heard = bell.heard()
    with store.engine.connect() as connection:
        with connection.begin() as transaction:
            notify(connection, Topic.JOBS)
            transaction.rollback()
        with connection.begin():
            notify(connection, Topic.DELIVERIES)
    # What is sent later comes later: the first was not sent at all.
    wait_for(lambda: listener.bell(Topic.DELIVERIES).heard() > 1, 20, "the word")
    assert bell.heard() == heard
    store.queued()
    wait_for(lambda: bell.heard() > heard, 20, "the word")


@ON_POSTGRES
def test_a_waiting_worker_starts_and_an_idle_one_asks_nothing(
    store: StoreUnderTest, listener: Listener
) -> None:
    with waiting_worker(store, listener.bell(Topic.JOBS)):
        store.queued("1.2.3.1")
        ended(store, "1.2.3.1")
        with counted(store.engine) as asked:
            # Long enough for the last look, and for several where it was polling.
            threading.Event().wait(0.6)
            asked.clear()
            threading.Event().wait(0.6)
            assert asked == []
        store.queued("1.2.3.2")
        ended(store, "1.2.3.2")


@ON_POSTGRES
def test_a_job_that_waits_for_its_time_is_found_then(
    store: StoreUnderTest, listener: Listener
) -> None:
    store.queued()
    store.queue.fail(store.claimed(), "broken", retry=True, delay_s=0.5)
    with waiting_worker(store, listener.bell(Topic.JOBS)):
        ended(store)


@ON_POSTGRES
def test_a_run_that_waited_for_an_earlier_one_is_found(
    store: StoreUnderTest, listener: Listener
) -> None:
    store.queued()
    first = store.claimed()
    assert store.enqueue(forced=True) is not None
    with waiting_worker(store, listener.bell(Topic.JOBS)):
        wait_for(lambda: store.queue.next_due_s() is None, 5, "a look that finds nothing")
        store.finish(first)
        ended(store)


@ON_POSTGRES
def test_what_a_dead_worker_held_is_heard_of(store: StoreUnderTest, listener: Listener) -> None:
    store.queued()
    store.claimed("dead/")
    with waiting_worker(store, listener.bell(Topic.JOBS)):
        assert store.queue.release_owner("dead/") == 1
        ended(store)


@ON_POSTGRES
def test_deliveries_ring_too(store: StoreUnderTest, listener: Listener) -> None:
    took: list[int] = []

    def send(batch: Any) -> Iterator[Any]:
        took.extend(item.delivery_id for item in batch)
        yield from ()

    deliverer = Deliverer(
        PACS,
        outbox=store.outbox,
        studies=store.studies,
        send=send,
        jitter=lambda: 0.5,
        bell=listener.bell(Topic.DELIVERIES),
    )
    deliverer._is_for_its_patient = lambda _item: True  # type: ignore[method-assign]
    stop = threading.Event()
    thread = threading.Thread(target=deliverer.run, args=(stop,))
    thread.start()
    try:
        threading.Event().wait(0.3)
        store.queued()
        store.finish(store.claimed())
        wait_for(lambda: took, 20, "a delivery")
    finally:
        stop.set()
        thread.join(10)


@ON_POSTGRES
def test_a_lost_connection_loses_no_job(store: StoreUnderTest, listener: Listener) -> None:
    with waiting_worker(store, listener.bell(Topic.JOBS)):
        pids = listening_backends(store)
        assert pids
        with store.engine.begin() as connection:
            for pid in pids:
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        store.queued("1.2.3.1")
        ended(store, "1.2.3.1")
        wait_for(lambda: listener.listening and listening_backends(store), 30, "listening again")
        assert set(listening_backends(store)).isdisjoint(pids)
        store.queued("1.2.3.2")
        ended(store, "1.2.3.2")


@ON_POSTGRES
def test_a_pooler_that_swallows_words_is_found_out(
    store: StoreUnderTest, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_module, "IDLE_LOOK_S", NEVER_S)
    monkeypatch.setattr(listening_module, "PROBE_WAIT_S", 0.2)
    swallowed = SimpleNamespace(pg_notify=lambda _channel, _word: literal(1))
    monkeypatch.setattr(listening_module, "func", swallowed)
    with Listener(store.engine, poll_s=0.05).running() as deaf:
        with waiting_worker(store, deaf.bell(Topic.JOBS)):
            store.queued()
            ended(store)
        assert not deaf.listening


@ON_POSTGRES
def test_a_study_that_begins_to_arrive_rings_once_and_again_when_it_goes_on(
    store: StoreUnderTest, listener: Listener
) -> None:
    bell = listener.bell(Topic.ARRIVALS)

    def rings(act: Callable[[], object]) -> int:
        before, others = bell.heard(), listener.bell(Topic.DELIVERIES)
        act()
        heard = others.heard()
        with store.engine.begin() as connection:
            notify(connection, Topic.DELIVERIES)
        wait_for(lambda: others.heard() > heard, 20, "the word")
        return bell.heard() - before

    def arrive(first: int, study_uid: str = STUDY) -> None:
        store.record(*(instance(study_uid, n) for n in range(first, first + 2)))

    wait_for(lambda: listener.listening, 20, "listening")
    assert rings(lambda: arrive(0)) == 1
    assert rings(lambda: arrive(2)) == 0
    assert rings(lambda: arrive(2)) == 0
    assert rings(lambda: arrive(0, "1.2.3.9")) == 1
    store.queued("1.2.3.7")
    store.finish(store.claimed())
    rings(lambda: None)  # whatever of these is still on its way
    assert rings(lambda: arrive(70, "1.2.3.7")) == 1


@ON_POSTGRES
def test_work_ahead_asks_nothing_while_nothing_arrives(
    store: StoreUnderTest, listener: Listener, tmp_path: Path
) -> None:
    looked: list[int] = []
    ahead = Ahead(
        arriving=Arriving(store.engine),
        recall=cast(Any, SimpleNamespace(sweep=lambda: 0)),
        runtime=cast(Any, None),
        prepare=cast(Any, None),
        preparing=Preparing(cast(Any, None), 5),
        rules=EligibilityRules(),
        data_dir=store.data_dir,
        kept_in=tmp_path,
        bell=listener.bell(Topic.ARRIVALS),
    )
    look = ahead.look
    ahead.look = lambda interrupted=lambda: False: looked.append(1) or look(interrupted)  # type: ignore[method-assign]
    # Nothing of it is to be encoded here: that is tested elsewhere.
    ahead._read = lambda *_: False  # type: ignore[method-assign]
    with ahead.running(threading.Event()):
        wait_for(lambda: looked and listener.listening, 20, "a look")
        with counted(store.engine) as asked:
            threading.Event().wait(0.6)
            asked.clear()
            threading.Event().wait(1.5)
            assert asked == []
        seen = len(looked)
        store.record(instance(STUDY, 0))
        wait_for(lambda: STUDY in ahead._studies, 20, "the study")
        assert len(looked) > seen


def test_sqlite_looks(store: StoreUnderTest, backend: str) -> None:
    with listening(store.engine, poll_s=0.01) as bells:
        assert isinstance(bells[Topic.JOBS], Looking) is (backend == "sqlite")
        with waiting_worker(store, bells[Topic.JOBS]):
            store.queued()
            ended(store)
