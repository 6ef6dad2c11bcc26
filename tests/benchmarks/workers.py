"""Studies per hour with 1, 2 and 4 workers on one machine, on PostgreSQL.

    python tests/benchmarks/workers.py [--quick] [--studies N] [--dir DIRECTORY]

Every worker is a `pe-triage worker` of its own, with one thread, that does everything of a run:
claims it, reads and measures 60 slices of 256², predicts, draws, writes and syncs the results. Only
the model is a stand-in, an untrained one of 64². The studies are received by `serve --workers 0`;
the clock runs from the moment at which all of them may be claimed by workers that are ready. Beside
the rate stands the processor time of a study, which says what the machine had to give. JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydicom import dcmread
from sqlalchemy import Engine, update

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.model.builtin import materialize_untrained
from pe_triage.model.spec import ATTENTION_BILSTM
from pe_triage.phantom import generate_study, write_study
from pe_triage.store import schema
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue
from pe_triage.store.migrate import upgrade
from pe_triage.store.notices import Topic, notify
from pe_triage.store.studies import StudyStore
from tests.support.node import RunningNode, RunningWorker, send, wait_for
from tests.support.peers import dcmtk_environment, require_program
from tests.support.postgres import postgres_server

NEVER = 1e12
"""Seconds since 1970 at which nothing here will happen."""


def write_studies(folder: Path, count: int) -> dict[str, list[Path]]:
    """Copies of one phantom study, each under UIDs of its own: Study Instance UID to files."""
    made = write_study(
        generate_study(5, "pe-acute", n_slices=60, coverage_mm=(-110.0, 70.0)),
        folder / "phantom",
        mask=False,
    ).dicom_dir
    slices = [dcmread(path) for path in sorted(made.iterdir())]
    found: dict[str, list[Path]] = {}
    for number in range(1, count + 1):
        study_uid, into = f"2.25.{number}1", folder / f"{number}"
        into.mkdir()
        for z, ds in enumerate(slices):
            ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, f"2.25.{number}2"
            ds.SOPInstanceUID = f"2.25.{number}3{z:04d}"
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            ds.save_as(into / f"{z:04d}.dcm", enforce_file_format=True)
        found[study_uid] = sorted(into.iterdir())
    return found


def receive(data_dir: Path, url: str, studies: dict[str, list[Path]]) -> None:
    """Let a node without workers take the studies in, until all of them are queued."""
    settings = {"grace_s": 0.2, "min_free_mb": 1}
    with RunningNode(
        data_dir, "--workers", 0, "--quiet-s", 2, database=url, settings=settings
    ) as node:
        program = require_program("storescu", "dcmtk")
        for files in studies.values():
            sent = send(program, node, files, environment=dcmtk_environment())
            assert sent.returncode == 0, sent.stdout + sent.stderr
        wait_for(
            lambda: sum(doc["state"] == "QUEUED" for doc in node.worklist()) == len(studies),
            60,
            "all studies queued",
        )


def hold(engine: Engine, until: float) -> None:
    """Let no queued run be claimed before `until`, seconds since 1970."""
    jobs = schema.jobs
    with engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.state == "QUEUED").values(available_at=until))
        # As the queue does, or they would sleep on for seconds.
        notify(connection, Topic.JOBS)


def cpu_s(worker: RunningWorker) -> float:
    """Processor time that it has taken so far."""
    times = psutil.Process(worker.process.pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def workers(count: int, data_dir: Path, url: str, bundle: Path) -> Iterator[list[RunningWorker]]:
    """`count` workers that are ready."""
    flags = ("--no-send", "--model", bundle, "--data-dir", data_dir, "--database", url)
    # One thread, also in the libraries below: more workers are what is measured.
    environment = {"PE_TRIAGE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        started = [
            stack.enter_context(RunningWorker(*flags, environment=environment))
            for _ in range(count)
        ]
        yield [worker.wait_ready(300) for worker in started]
        assert [worker.stop() for worker in started] == [0] * count


def race(engine: Engine, running: list[RunningWorker], studies: int) -> dict[str, float]:
    """Let the workers go and wait until nothing is left."""
    queue = JobQueue(engine)
    before = sum(cpu_s(worker) for worker in running)
    started = time.monotonic()
    hold(engine, 0.0)
    while queue.pending().total:
        assert all(worker.process.poll() is None for worker in running)
        time.sleep(0.05)
    took = time.monotonic() - started
    spent = sum(cpu_s(worker) for worker in running) - before
    return {
        "studies_per_hour": round(3600 * studies / took, 1),
        "cpu_s_per_study": round(spent / studies, 2),
        "cores_used": round(spent / took, 2),
    }


def queue_again(engine: Engine, study_uids: list[str]) -> None:
    """A further run of each study, which nobody may claim yet."""
    queue, studies = JobQueue(engine), StudyStore(engine)
    for study_uid in study_uids:
        queue.enqueue(study_uid, studies.manifest(study_uid).digest, forced=True)
    hold(engine, NEVER)


def all_done(engine: Engine, study_uids: list[str]) -> None:
    """See that every study has an answer: a run that failed is quick, too."""
    studies = StudyStore(engine)
    states = {str(studies.get(uid).state) for uid in study_uids}
    assert states == {"DONE"}, states


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 studies, 1 and 2 workers")
    parser.add_argument("--studies", type=int, default=None)
    parser.add_argument("--dir", type=Path, default=None)
    options = parser.parse_args()
    count = options.studies or (3 if options.quick else 12)
    found: dict[str, Any] = {"cores": os.cpu_count(), "studies": count, "workers": {}}
    with (
        tempfile.TemporaryDirectory(dir=options.dir) as work,
        postgres_server(durable=True) as server,
    ):
        folder, url = Path(work), server.url
        spec = dataclasses.replace(ATTENTION_BILSTM, size=64)
        bundle = materialize_untrained(folder / "bundle", spec)
        upgrade(url)
        studies = write_studies(folder, count)
        receive(folder / "data", url, studies)
        engine = open_engine(url)
        hold(engine, NEVER)
        for number in (1, 2) if options.quick else (1, 2, 4):
            with workers(number, folder / "data", url, bundle) as running:
                found["workers"][number] = race(engine, running, count)
            all_done(engine, list(studies))
            queue_again(engine, list(studies))
        engine.dispose()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
