"""What one more study costs the database while ever more are held.

    python tests/benchmarks/growth.py [--quick] [--held 0 1000 10000 100000] [--images 300 1000]
                                      [--database URL]

A database (SQLite in a scratch directory, or an empty PostgreSQL by URL) is filled with ended
studies, and at each size studies of so many images go the way from the receivers to a worker: each
is recorded in batches, looked at as the assembler and a worker that works ahead look at it, queued
and claimed; then what the deliverer asks for. For each step the number of SQL statements, and the
median of the milliseconds that it takes over five studies, are printed as JSON: first the processor
time (with SQLite that is all of it but the disk), then the wall time; beside them the memory that a
process which does nothing else had at most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, insert, text

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.node.files import to_received
from pe_triage.store import schema
from pe_triage.store.arriving import Arriving
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import upgrade
from tests.support.store import PACS, PATIENT, START, StoreUnderTest, instance, sha

IMAGES_HELD = 4
"""Images of each study that is held already."""
BATCH = 256
STUDIES = 5
CHUNK = 2000
LAST_ID = 10**9
"""Rows that are filled in count down from it, those that the database numbers up."""


def fill(engine: Engine, first: int, last: int) -> None:
    """Add ended studies with numbers from `first` to before `last`."""
    times = {"received_at": START, "last_image_at": START}
    for start in range(first, last, CHUNK):
        numbers = range(start, min(start + CHUNK, last))
        rows: dict[Any, list[dict[str, Any]]] = {
            schema.studies: [
                {"study_uid": f"1.2.9.{n}", "patient_id": f"P{n}", "issuer": "", "state": "DONE",
                 "run": 1, "instances": IMAGES_HELD, "images": IMAGES_HELD, "held": IMAGES_HELD,
                 "urgency": n % 4, "last_activity_at": START, **times}
                for n in numbers
            ],
            schema.instances: [
                {"study_uid": f"1.2.9.{n}", "sop_instance_uid": f"1.2.9.{n}.{k}",
                 "series_uid": f"1.2.9.{n}.0", "role": "IMAGE", "sop_class_uid": "1.2.840",
                 "transfer_syntax_uid": "1.2.840", "sha256": sha(f"{n}.{k}"), "size_bytes": 525_000,
                 "path": f"spool/{n}/{k}.dcm", "association_id": f"a-{n}", "calling_aet": "CT",
                 "received_at": START, "run": 1, "facts": {"rows": 512}}
                for n in numbers
                for k in range(IMAGES_HELD)
            ],
            schema.arrivals: [
                {"study_uid": f"1.2.9.{n}", "association_id": f"a-{n}", "calling_aet": "CT",
                 "instances": IMAGES_HELD, "first_at": START, "last_at": START}
                for n in numbers
            ],
            schema.jobs: [
                {"job_id": LAST_ID - n, "study_uid": f"1.2.9.{n}", "run": 1,
                 "manifest_digest": sha(str(n)), "state": "DONE", "rank": 100,
                 "available_at": 0.0, "attempts": 1, "fencing_token": 1, "superseded": False,
                 "created_at": START, **times}
                for n in numbers
            ],
            schema.results: [
                {"result_id": LAST_ID - n, "job_id": LAST_ID - n, "ordinal": 0, "kind": "SR",
                 "path": "x"}
                for n in numbers
            ],
            schema.deliveries: [
                {"result_id": LAST_ID - n, "job_id": LAST_ID - n, "destination": PACS,
                 "state": "SENT", "attempts": 1, "urgency": n % 4, "ordinal": 0, "queued_at": 0.0,
                 "next_attempt_at": 0.0}
                for n in numbers
            ],
        }  # fmt: skip
        with engine.begin() as connection:
            for table, values in rows.items():
                connection.execute(insert(table), values)


def one_study(store: StoreUnderTest, number: int, count: int) -> dict[str, Callable[[], object]]:
    """Return the steps of one study's way, to be taken in their order."""
    uid = f"1.2.7.{number}"
    facts = {"rows": 512, "columns": 512, "image_position_mm": [0.0, 0.0, 1.0]}
    images = [
        instance(uid, n, store.data_dir, identity=PATIENT) for n in range(1, count + 1)
    ]  # fmt: skip
    arriving = Arriving(store.engine)

    def record() -> None:
        for start in range(0, count, BATCH):
            store.studies.record([(i, facts, f"b-{number}") for i in images[start : start + BATCH]])

    def look() -> None:
        for row in store.studies.instances(uid):
            to_received(row, store.data_dir)

    return {
        "record the images": record,
        "studies that are received": store.studies.receiving,
        "images of the study": look,
        "what has arrived, for work ahead": lambda: (arriving.studies(), arriving.after(uid, 0)),
        "queue it": lambda: store.enqueue(uid),
        "claim it": lambda: store.claimed(),
        "deliveries that are due": lambda: store.outbox.due(PACS, 32),
        "end it": lambda: store.queue.release_owner("node/"),
    }


def measure(store: StoreUnderTest, first: int, images: int) -> dict[str, dict[str, float]]:
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(store.engine, "before_cursor_execute", note)
    found: dict[str, list[tuple[int, float, float]]] = {}
    for number in range(first, first + STUDIES):
        for name, step in one_study(store, number, images).items():
            statements.clear()
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            step()
            spent = time.process_time() - cpu_s, time.perf_counter() - wall_s
            found.setdefault(name, []).append((len(statements), *spent))
        with store.engine.begin() as connection:
            # Out of the way of the next one's claim.
            connection.execute(text("UPDATE jobs SET state = 'DONE' WHERE state <> 'DONE'"))
            connection.execute(text("UPDATE studies SET state = 'DONE' WHERE state <> 'DONE'"))
    event.remove(store.engine, "before_cursor_execute", note)
    return {
        name: {
            "statements": max(n for n, _, _ in runs),
            "cpu_ms": round(1000 * statistics.median(cpu for _, cpu, _ in runs), 2),
            "wall_ms": round(1000 * statistics.median(wall for _, _, wall in runs), 2),
        }
        for name, runs in found.items()
        if name != "end it"
    }


def measure_apart(url: str, place: Path, first: int, images: int) -> dict[str, Any]:
    """Figures of `measure`, and the peak memory of this process, which should do nothing else."""
    store = StoreUnderTest(engine=open_engine(url), url=url, data_dir=place)
    steps = measure(store, first, images)
    store.engine.dispose()
    status = Path("/proc/self/status").read_text().splitlines()
    # Not getrusage's, which begins with that of the process that started this one.
    peak_mib = next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))
    return {"images": images, "peak_mib": peak_mib, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 5,000 studies")
    parser.add_argument("--held", type=int, nargs="+", default=[0, 1000, 10_000, 100_000])
    parser.add_argument("--images", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--database", help="empty PostgreSQL [default: SQLite]")
    options = parser.parse_args()
    sizes = [0, 1000, 5000] if options.quick else sorted(options.held)
    with tempfile.TemporaryDirectory() as scratch:
        url = options.database or f"sqlite:///{scratch}/held.sqlite3"
        upgrade(url)
        store = StoreUnderTest(engine=open_engine(url), url=url, data_dir=Path(scratch))
        held, number = 0, 0
        for size in sizes:
            fill(store.engine, held, size)
            held = size
            with store.engine.begin() as connection:
                connection.execute(text("ANALYZE"))
            for images in options.images:
                with get_context("spawn").Pool(1) as apart:
                    found = apart.apply(measure_apart, (url, Path(scratch), number, images))
                number += STUDIES
                print(json.dumps({"held": size, **found}), flush=True)
        store.engine.dispose()


if __name__ == "__main__":
    main()
