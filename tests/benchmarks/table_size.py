"""What the node asks of its database all day, timed with few and with very many studies in it.

    python tests/benchmarks/table_size.py [--quick] [--work] [--sizes N,N,N] [--dir DIRECTORY]

SQLite and PostgreSQL, both with commits that wait for the disk. Every study but the newest 400 is
answered and delivered. Medians in milliseconds are printed as JSON, with the ratio of the largest
table to the smallest: about 1 where the time does not depend on how much is held. With --work the
databases' own counts stand in place of times, the same on a busy machine: pages that PostgreSQL
looks at, hundreds of steps of SQLite's machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.domain import Outcome, Priority, StudyState
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue
from pe_triage.store.migrate import upgrade
from tests.support.many_studies import OWNER, QUESTIONS, Node, cost, fill
from tests.support.postgres import postgres_server
from tests.support.store import EMPTY_ANSWER

SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000)


def timed(what: Callable[[], object], times: int) -> float:
    """Median of `times` calls in milliseconds, after one that warms up."""
    what()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        what()
        found.append(time.perf_counter() - started)
    return statistics.median(found) * 1000


def claims(queue: JobQueue, times: int) -> dict[str, float]:
    """Medians of claiming a run and of ending it, in milliseconds."""
    claiming, finishing = [], []
    for _ in range(times + 1):
        started = time.perf_counter()
        job = queue.claim(OWNER, 30.0)
        claimed = time.perf_counter()
        assert job is not None
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
        claiming.append(claimed - started)
        finishing.append(time.perf_counter() - claimed)
    return {
        "claim": statistics.median(claiming[1:]) * 1000,
        "finish": statistics.median(finishing[1:]) * 1000,
    }


def measure(engine: Engine, folder: Path, size: int, times: int | None) -> dict[str, float]:
    """Fill with `size` studies and time everything, or count its work (`times` None)."""
    started = time.perf_counter()
    if engine.dialect.name == "sqlite":
        with fast(engine):
            fill(engine, size)
    else:
        fill(engine, size)
    print(f"{engine.dialect.name} {size}: filled in {time.perf_counter() - started:.0f} s",
          file=sys.stderr)  # fmt: skip
    queue, node = JobQueue(engine), Node(engine, folder)
    if times is None:
        asked = {"claim": lambda n: n.queue.claim(OWNER, 30.0), **QUESTIONS}
        return {name: cost(node, ask) for name, ask in asked.items()}
    found = claims(queue, times)
    while (job := queue.claim(OWNER, 30.0)) is not None:
        queue.fail(job, "the benchmark has no more use for it", retry=False)
    for name, ask in QUESTIONS.items():
        found[name] = timed(lambda ask=ask: ask(node), times)  # type: ignore[misc]
    return found


class fast:  # noqa: N801 - reads as a word
    """Let a SQLite engine neither wait for the disk nor check keys while it is filled."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def _hurry(self, dbapi: Any, *_: object) -> None:
        for pragma in (
            *("synchronous = OFF", "journal_mode = OFF"),
            *("foreign_keys = OFF", "cache_size = -400000"),
        ):
            dbapi.execute(f"PRAGMA {pragma}")

    def __enter__(self) -> None:
        self._engine.dispose()
        event.listen(self._engine, "connect", self._hurry)

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "connect", self._hurry)
        self._engine.dispose()


def table(by_size: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Milliseconds by question and size, and how much the largest table costs more."""
    sizes = sorted(by_size)
    return {
        name: {
            **{f"{size:,}": round(by_size[size][name], 2) for size in sizes},
            "ratio": round(by_size[sizes[-1]][name] / max(by_size[sizes[0]][name], 1e-9), 2),
        }
        for name in by_size[sizes[0]]
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small tables, fewer calls")
    parser.add_argument("--work", action="store_true", help="count the work, take no times")
    parser.add_argument("--sizes", help="numbers of studies, with commas between")
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--dir", type=Path, default=None)
    options = parser.parse_args()
    sizes = QUICK_SIZES if options.quick else SIZES
    if options.sizes:
        sizes = tuple(int(size) for size in options.sizes.split(","))
    times = None if options.work else 20 if options.quick else 100
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.dir) as work:
        folder = Path(work)
        if "sqlite" in options.databases:
            url = f"sqlite:///{folder / 'node.sqlite3'}"
            found["sqlite"] = over(url, folder, sizes, times)
        if "postgresql" in options.databases:
            with postgres_server(durable=True) as server:
                found["postgresql"] = over(server.url, folder, sizes, times)
    print(json.dumps({"work" if options.work else "median_ms": found}, indent=2))


def over(url: str, folder: Path, sizes: tuple[int, ...], times: int | None) -> dict[str, Any]:
    """All sizes on one database."""
    upgrade(url)
    engine = open_engine(url)
    try:
        return table({size: measure(engine, folder, size, times) for size in sizes})
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
