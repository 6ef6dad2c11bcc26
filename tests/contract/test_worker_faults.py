"""What a fault of the machine, or a stop, costs a study: waiting, and never its attempts."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from pe_triage.domain import Job, StudyState
from pe_triage.errors import ConfigurationError, DeviceFaultError, PermanentError, RetryableError
from pe_triage.node.worker import STOPPED, Worker, WorkerOptions, is_environment
from pe_triage.store import hand_back, schema
from pe_triage.store.engine import StoreUnavailableError
from tests.support.store import STUDY, StoreUnderTest

OWNER = "node/worker-1/77/"


def make_worker(store: StoreUnderTest, work: Callable[[Job, Any], None], **options: Any) -> Worker:
    values: dict[str, Any] = {"lease_s": 30.0, "retry_s": 0.0, "poll_s": 0.01}
    worker = Worker(
        queue=store.queue,
        studies=store.studies,
        predictor=None,  # type: ignore[arg-type]
        analysis=None,  # type: ignore[arg-type]
        options=WorkerOptions(owner=OWNER, data_dir=store.data_dir, routes=(), **values | options),
        clock=store.clock,
    )
    worker._run_job = lambda job, heart, log, _work: work(job, heart)  # type: ignore[method-assign]
    return worker


def job_row(store: StoreUnderTest) -> Any:
    with store.engine.begin() as connection:
        return connection.execute(select(schema.jobs).where(schema.jobs.c.study_uid == STUDY)).one()


def raising(error: Exception) -> Callable[[Job, Any], None]:
    def work(_job: Job, _heart: Any) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    "error",
    [
        RetryableError("cannot write results: No space left on device"),
        StoreUnavailableError("database not available"),
        OSError(errno.ENOSPC, "No space left on device"),
        ConfigurationError("database: unable to open database file"),
        DeviceFaultError("the GPU is out of memory", process_is_lost=False),
    ],
)
def test_a_fault_of_the_machine_is_tried_for_as_long_as_it_lasts(
    store: StoreUnderTest, error: Exception
) -> None:
    store.queued()
    worker = make_worker(store, raising(error))
    for _ in range(store.max_attempts + 2):
        assert worker.step()
        row = job_row(store)
        assert (row.state, row.attempts) == ("QUEUED", 0)
        assert row.last_error
    make_worker(store, lambda job, _heart: store.finish(job)).step()
    assert store.state() is StudyState.DONE


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(errno.ENOENT, "no such file")])
def test_what_nobody_foresaw_counts(store: StoreUnderTest, error: Exception) -> None:
    store.queued()
    worker = make_worker(store, raising(error))
    for _ in range(store.max_attempts):
        assert worker.step()
    assert store.state() is StudyState.FAILED
    assert not is_environment(error)


def test_the_waits_double(store: StoreUnderTest) -> None:
    store.queued()
    waits: list[float] = []
    fail = store.queue.fail

    def noting(*args: Any, **values: Any) -> StudyState:
        waits.append(values["delay_s"])
        return fail(*args, **values | {"delay_s": 0.0})

    store.queue.fail = noting  # type: ignore[method-assign]
    worker = make_worker(store, raising(RetryableError("disk full")), retry_s=10.0)
    for _ in range(8):
        worker.step()
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600]


def test_a_lost_device_ends_the_process_and_not_the_study(store: StoreUnderTest) -> None:
    store.queued()
    worker = make_worker(store, raising(DeviceFaultError("gone", process_is_lost=True)))
    with pytest.raises(DeviceFaultError):
        worker.run(threading.Event())
    assert (job_row(store).state, job_row(store).attempts) == ("QUEUED", 0)


def test_an_answer_waits_for_the_database(
    store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pe_triage.node.worker.PATIENCE_S", 0.01)
    store.queued()
    calls: list[int] = []

    def work(job: Job, heart: Any) -> None:
        def finish() -> None:
            calls.append(1)
            if len(calls) < 4:
                raise StoreUnavailableError("database not available")
            store.finish(job)

        heart.patiently(finish)

    make_worker(store, work).step()
    assert (len(calls), store.state()) == (4, StudyState.DONE)


def test_a_stop_hands_the_job_back_uncounted(store: StoreUnderTest) -> None:
    """However often a node is restarted: the study is analysed once there is time for it."""
    store.queued()
    for _ in range(store.max_attempts + 1):
        stop, running = threading.Event(), threading.Event()

        def deaf(_job: Job, heart: Any, running: threading.Event = running) -> None:
            # Deep in a library: it looks up only long after the time was up.
            running.set()
            deadline = time.monotonic() + 10
            while not heart.handed_back and time.monotonic() < deadline:
                time.sleep(0.01)
            heart.check()
            raise AssertionError("was not told that the job is not its own any more")

        worker = make_worker(store, deaf, drain_s=0.05)
        thread = threading.Thread(target=worker.run, args=(stop,))
        thread.start()
        assert running.wait(5)
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        row = job_row(store)
        assert (row.state, row.attempts, row.last_error) == ("QUEUED", 0, STOPPED)


def test_a_stop_leaves_time_to_finish(store: StoreUnderTest) -> None:
    store.queued()
    stop = threading.Event()

    def quick(job: Job, heart: Any) -> None:
        stop.set()
        time.sleep(0.4)
        heart.check()
        store.finish(job)

    make_worker(store, quick, drain_s=20.0).run(stop)
    assert store.state() is StudyState.DONE


def test_a_killed_but_stopped_worker_costs_no_attempt(store: StoreUnderTest) -> None:
    store.queued()
    for _ in range(store.max_attempts + 1):
        job = store.claimed(OWNER)
        assert job.attempt == 1
        assert store.queue.release_owner(OWNER, "the node was stopped", counted=False) == 1
    store.claimed(OWNER)
    assert store.queue.release_owner(OWNER) == 1
    assert store.claimed(OWNER).attempt == 2


def test_an_outage_of_the_database_makes_no_worker_dead(
    store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.queued()
    job = store.claimed(OWNER, lease_s=0.0)
    time.sleep(0.005)
    true_read = hand_back.read

    def away(_engine: Any) -> Any:
        raise StoreUnavailableError("database not available")

    monkeypatch.setattr(hand_back, "read", away)
    with pytest.raises(StoreUnavailableError):
        store.queue.reap()
    monkeypatch.setattr(hand_back, "read", true_read)
    assert store.queue.reap() == 0
    # The worker is alive: it renews its lease as soon as the database answers.
    store.queue.heartbeat(job, OWNER, 30.0)
    monkeypatch.setattr(hand_back, "OUTAGE_GRACE_S", 0.0)
    assert store.queue.reap() == 0
    store.queue.heartbeat(job, OWNER, 0.0)
    time.sleep(0.005)
    assert store.queue.reap() == 1


def test_a_permanent_error_still_ends_the_run(store: StoreUnderTest) -> None:
    store.queued()
    make_worker(store, raising(PermanentError("another patient"))).step()
    assert store.state() is StudyState.FAILED
