"""Many workers on one queue: threads here, and processes that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pe_triage.domain import StudyState
from pe_triage.errors import LeaseLostError
from pe_triage.store.claim_order import claimable
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue
from tests.support.store import PACS, StoreUnderTest

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys, time
from pathlib import Path
from tests.support.store import StoreUnderTest
from pe_triage.store.engine import open_engine
url, name, pause_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
store = StoreUnderTest(engine=open_engine(url), url=url, data_dir=Path("/data"))
print("ready", flush=True)
idle = 0
while idle < 5:
    job = store.queue.claim(name, 30.0)
    if job is None:
        idle += 1
        time.sleep(0.02)
        continue
    idle = 0
    print("claimed", job.job_id, flush=True)
    time.sleep(pause_s)
    store.finish(job)
    print("finished", job.job_id, flush=True)
"""


def start_worker(store: StoreUnderTest, name: str, pause_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WORKER, store.url, name, str(pause_s)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(worker: subprocess.Popen[str]) -> list[str]:
    output, _ = worker.communicate(timeout=60)
    return output.splitlines()


def test_processes_claim_each_job_once(store: StoreUnderTest) -> None:
    jobs = [store.queued(f"1.2.826.0.1.{n}").job_id for n in range(24)]
    workers = [start_worker(store, f"w{n}/", 0.0) for n in range(2)]
    lines = [line for worker in workers for line in ended(worker)]
    assert all(worker.returncode == 0 for worker in workers)
    assert Counter(line for line in lines if line.startswith("claimed")) == {
        f"claimed {job_id}": 1 for job_id in jobs
    }
    assert lines.count("ready") == 2
    assert store.queue.pending().total == 0
    assert len(store.outbox.due(PACS, 1000)) == 2 * len(jobs)


def test_threads_never_work_on_one_study_at_once(store: StoreUnderTest) -> None:
    """Four runs of each of three studies: in order, and never two of one study together."""
    uids = [f"1.2.826.0.1.{n}" for n in range(3)]
    for uid in uids:
        store.receive(uid)
        for _ in range(4):
            assert store.enqueue(uid, forced=True) is not None
    busy: Counter[str] = Counter()
    done: list[tuple[str, int]] = []

    def work(worker: int) -> None:
        queue = JobQueue(store.engine, clock=store.clock)
        idle = 0
        while idle < 30:
            job = queue.claim(f"w{worker}", 30.0)
            if job is None:
                idle += 1
                time.sleep(0.005)
                continue
            idle = 0
            busy[job.study_uid] += 1
            assert busy[job.study_uid] == 1
            done.append((job.study_uid, job.run))
            busy[job.study_uid] -= 1
            store.finish(job)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(done) == 12
    for uid in uids:
        assert [run for study, run in done if study == uid] == [1, 2, 3, 4]


def test_an_expired_lease_has_one_heir(store: StoreUnderTest) -> None:
    store.queued()
    old = store.claimed("slow", lease_s=0.05)
    time.sleep(0.06)
    with ThreadPoolExecutor(4) as pool:
        heirs = list(pool.map(lambda n: store.queue.claim(f"w{n}", 30.0), range(8)))
    claims = [job for job in heirs if job is not None]
    assert [job.attempt for job in claims] == [2]
    assert claims[0].fencing_token > old.fencing_token


def test_racing_finishes_leave_one_result(store: StoreUnderTest) -> None:
    """The slow worker and its heir finish at the same moment: one of them counts."""
    with ThreadPoolExecutor(2) as pool:
        for number in range(6):
            uid = f"1.2.826.0.1.{number}"
            store.queued(uid)
            old = store.claimed("slow", lease_s=0.0)
            time.sleep(0.003)
            new = store.claimed("quick")

            def finish(job: object) -> bool:
                try:
                    store.finish(job)  # type: ignore[arg-type]
                except LeaseLostError:
                    return False
                return True

            assert list(pool.map(finish, (old, new))) == [False, True]
            assert store.state(uid) is StudyState.DONE
    assert len(store.outbox.due(PACS, 100)) == 12


def test_a_killed_worker_costs_one_attempt_and_nothing_else(store: StoreUnderTest) -> None:
    jobs = [store.queued(f"1.2.826.0.1.{n}").job_id for n in range(4)]
    victim = start_worker(store, "node/worker-0/", 0.15)
    assert victim.stdout is not None
    for line in victim.stdout:
        if line.startswith("claimed"):
            break
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=30)
    assert store.queue.release_owner("node/worker-0/") == 1
    lines = ended(start_worker(store, "node/worker-1/", 0.0))
    assert sum(line.startswith("finished") for line in lines) == len(jobs)
    assert store.queue.pending().total == 0
    assert len(store.outbox.due(PACS, 100)) == 2 * len(jobs)


def test_a_kill_at_any_moment_leaves_all_or_nothing(store: StoreUnderTest) -> None:
    """Workers are killed at arbitrary moments until all is done: once, with all its results."""
    jobs = [store.queued(f"1.2.826.0.1.{n}").job_id for n in range(6)]
    queue = JobQueue(store.engine, max_attempts=100, clock=store.clock)
    for moment in range(3):
        victim = start_worker(store, "w/", 0.01)
        assert victim.stdout is not None
        victim.stdout.readline()
        time.sleep(0.004 + 0.007 * moment)
        victim.send_signal(signal.SIGKILL)
        victim.communicate(timeout=30)
        queue.release_owner("w/")
    while queue.pending().total:
        job = queue.claim("heir", 30.0)
        assert job is not None
        store.finish(job)
    due = store.outbox.due(PACS, 1000)
    assert len(due) == len({d.sop_instance_uid for d in due}) == 2 * len(jobs)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_claim_under_way_holds_no_other_up(store: StoreUnderTest) -> None:
    """What another is taking at this moment is passed over; SQLite has one writer at a time."""
    jobs = [store.queued(f"1.2.826.0.1.{n}") for n in range(3)]
    with store.engine.connect() as connection, connection.begin() as transaction:
        taken = connection.execute(claimable(lock=True)).scalar_one()
        assert taken == jobs[0].job_id
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(store.queue.claim, "w", 30.0).result(timeout=30)
        assert other is not None
        assert other.job_id == jobs[1].job_id
        transaction.rollback()
    assert store.claimed("w").job_id == jobs[0].job_id


def test_engines_of_two_processes_see_each_other(store: StoreUnderTest) -> None:
    store.queued()
    other = open_engine(store.url)
    job = JobQueue(other).claim("w", 30.0)
    assert job is not None
    assert store.state() is StudyState.RUNNING
    other.dispose()
