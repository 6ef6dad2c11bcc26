"""Claims per second of 1, 4 and 16 workers on PostgreSQL, beside procrastinate doing the same.

    pip install 'procrastinate>=3.10,<4'
    python tests/benchmarks/claims.py [--quick]

Each worker is a process that claims a job, marks it done, and so on until none is left. Both queues
lie in one server whose commits wait for the disk, and are filled anew and worked in turns. Both let
only one job of a study run at a time: procrastinate by a job's lock, pe-triage by the order of a
study's runs. pe-triage's job is also leased and fenced, and its end writes the study's row and the
answer with it. Medians over the rounds are printed as JSON; --ours leaves the peer out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.domain import Outcome, Priority, StudyState
from pe_triage.logs import setup_logging
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue
from pe_triage.store.migrate import upgrade
from tests.support.many_studies import fill
from tests.support.postgres import postgres_server
from tests.support.store import EMPTY_ANSWER

WORKERS = (1, 4, 16)
READY_S = 120.0

Work = Callable[[str, int, Any, Any], None]


def ours(url: str, number: int, barrier: Any, done: Any) -> None:
    """One worker of pe-triage."""
    setup_logging(level="WARNING")
    engine = open_engine(url)
    queue, owner, ended = JobQueue(engine), f"benchmark/worker-{number}/1/", 0
    queue.pending()
    barrier.wait(READY_S)
    started = time.monotonic()
    while (job := queue.claim(owner, 30.0)) is not None:
        queue.finish(
            job,
            state=StudyState.DONE,
            outcome=Outcome.NEGATIVE,
            reason=None,
            priority=Priority.LOW,
            document=EMPTY_ANSWER,
            model_sha256="ab" * 32,
            results=(),
            routes=(),
        )
        ended += 1
    done.put((ended, started, time.monotonic()))
    engine.dispose()


def fill_ours(url: str, jobs: int) -> None:
    """Studies that wait, and none that has ended."""
    engine = open_engine(url)
    fill(engine, jobs, queued=jobs)
    engine.dispose()


def peers(url: str, number: int, barrier: Any, done: Any) -> None:
    """One worker of procrastinate: its own manager of jobs, without the tasks around it."""
    asyncio.run(_peers(url, barrier, done))


async def _peers(url: str, barrier: Any, done: Any) -> None:
    from procrastinate import PsycopgConnector
    from procrastinate.jobs import Status
    from procrastinate.manager import JobManager

    connector = PsycopgConnector(conninfo=url, min_size=1, max_size=1)
    await connector.open_async()
    manager, ended = JobManager(connector), 0
    worker = await manager.register_worker()
    barrier.wait(READY_S)
    started = time.monotonic()
    while (job := await manager.fetch_job(["triage"], worker)) is not None:
        await manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
        ended += 1
    done.put((ended, started, time.monotonic()))
    await connector.close_async()


def fill_peers(url: str, jobs: int) -> None:
    """Jobs that wait, each under the lock of a study of its own."""
    asyncio.run(_fill_peers(url, jobs))


async def _fill_peers(url: str, jobs: int) -> None:
    from procrastinate import PsycopgConnector
    from procrastinate.jobs import Job
    from procrastinate.manager import JobManager

    connector = PsycopgConnector(conninfo=url)
    await connector.open_async()
    await connector.execute_query_async("TRUNCATE procrastinate_jobs CASCADE")
    await JobManager(connector).batch_defer_jobs_async(
        [
            Job(id=None, queue="triage", task_name="analyse", queueing_lock=None,
                lock=f"1.2.826.0.1.3680043.9.{number}", task_kwargs={"run": 1})
            for number in range(jobs)
        ]
    )  # fmt: skip
    await connector.close_async()
    engine = open_engine(url)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


async def _prepare_peers(url: str) -> None:
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=url))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


def race(work: Work, url: str, workers: int, jobs: int) -> float:
    """Jobs ended per second by `workers` processes, from the first claim to the last end."""
    context = multiprocessing.get_context("spawn")
    barrier, done = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=work, args=(url, number, barrier, done)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    told = [done.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert sum(ended for ended, *_ in told) == jobs, "a job was lost or ended twice"
    return jobs / (max(end for *_, end in told) - min(start for _, start, _ in told))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few jobs, one round")
    parser.add_argument("--ours", action="store_true", help="without procrastinate")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=None)
    options = parser.parse_args()
    jobs = options.jobs or (200 if options.quick else 1500)
    rounds = options.rounds or (1 if options.quick else 3)
    rates: dict[str, dict[int, list[float]]] = {}
    with postgres_server(durable=True) as server:
        url = server.url
        upgrade(url)
        sides: list[tuple[str, Callable[[str, int], None], Work]] = [("pe-triage", fill_ours, ours)]
        if not options.ours:
            asyncio.run(_prepare_peers(url))
            sides.append(("procrastinate", fill_peers, peers))
        for _ in range(rounds):
            for workers in WORKERS:
                for name, refill, work in sides:
                    refill(url, jobs)
                    rate = race(work, url, workers, jobs)
                    rates.setdefault(name, {}).setdefault(workers, []).append(rate)
    found: dict[str, Any] = {
        name: {workers: round(statistics.median(r), 1) for workers, r in of.items()}
        for name, of in rates.items()
    }
    if not options.ours:
        found["ratio"] = {
            workers: round(found["pe-triage"][workers] / found["procrastinate"][workers], 2)
            for workers in WORKERS
        }
    print(json.dumps({"jobs": jobs, "rounds": rounds, "claims_per_s": found}, indent=2))


if __name__ == "__main__":
    main()
