"""A database with very many studies, made inside the database: rows by the million in seconds.

Each study is answered and delivered: one run, one report, one delivery, spread over years at one
study in a quarter of an hour, the first half of them by another model. The newest wait in the
queue; of those before, some deliveries wait or are parked, and a hundred still have their images.
No rows for instances: what is measured with this does not look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text

from pe_triage.monitoring import WatchTable
from pe_triage.store import schema
from pe_triage.store.arriving import Arriving
from pe_triage.store.documents import show, worklist
from pe_triage.store.jobs import JobQueue
from pe_triage.store.outbox import Outbox
from pe_triage.store.retention import RetentionStore
from pe_triage.store.studies import StudyStore
from pe_triage.store.watching import WatchStore
from tests.support.store import PACS

NEWEST_AT = datetime.fromtimestamp(1_790_000_000, tz=UTC)
"""When the newest study came."""

ROOT = "1.2.826.0.1.3680043.9."

OWNER = "benchmark/worker-1/1/"

QUEUED = 400
"""So many of the newest wait for a worker."""

TABLES = (schema.deliveries, schema.results, schema.jobs, schema.studies)

_NUMBERS = (
    "WITH RECURSIVE n(i) AS (SELECT CAST(:first AS BIGINT) "
    "UNION ALL SELECT i + 1 FROM n WHERE i < :last) "
)

_STEPS = (
    "INSERT INTO studies (study_uid, patient_id, issuer, state, run, instances, images, urgency, "
    "held, removed, received_at, last_image_at, last_activity_at) "
    "SELECT '{root}' || i, 'PID' || (i % 100000), 'HOSPITAL', "
    "CASE WHEN i > :ended THEN 'QUEUED' ELSE 'DONE' END, 1, 300, 300, "
    "CASE WHEN i > :ended THEN 3 ELSE i % 3 END, CASE WHEN i > :ended - 100 THEN 300 ELSE 0 END, "
    "CASE WHEN i > :ended - 100 THEN 0 ELSE 300 END, {at}, {at}, {at} FROM n",
    "INSERT INTO jobs (job_id, study_uid, run, manifest_digest, state, rank, available_at, "
    "attempts, fencing_token, superseded, outcome, priority, model_sha256, document, received_at, "
    "last_image_at, created_at, completed_at, delivered_at, closed_by, pe_probability, "
    "attention_entropy) "
    "SELECT i, '{root}' || i, 1, '{digest}', "
    "CASE WHEN i > :ended THEN 'QUEUED' ELSE 'DONE' END, 100, 0.0, "
    "CASE WHEN i > :ended THEN 0 ELSE 1 END, CASE WHEN i > :ended THEN 0 ELSE 1 END, {false}, "
    "CASE WHEN i <= :ended THEN 'NEGATIVE' END, CASE WHEN i <= :ended THEN 'LOW' END, "
    "CASE WHEN i <= :ended / 2 THEN '{former}' WHEN i <= :ended THEN '{digest}' END, "
    "CASE WHEN i <= :ended THEN {document} END, {at}, {at}, {at}, "
    "CASE WHEN i <= :ended THEN {at} END, CASE WHEN i <= :ended THEN {at} END, "
    "'expected_count', CASE WHEN i <= :ended THEN 0.01 * (i % 97) END, "
    "CASE WHEN i <= :ended THEN 0.5 END FROM n",
    "INSERT INTO results (result_id, job_id, ordinal, kind, sop_class_uid, sop_instance_uid, "
    "sha256, path) SELECT i, i, 0, 'SR', '1.2.840.10008.5.1.4.1.1.88.34', '2.25.' || i, "
    "'{digest}', 'results/' || i || '/sr.dcm' FROM n WHERE i <= :ended",
    "INSERT INTO deliveries (delivery_id, result_id, job_id, destination, state, attempts, "
    "urgency, ordinal, queued_at, next_attempt_at, sent_at) "
    "SELECT i, i, i, :pacs, CASE WHEN i <= :ended - 40 THEN 'SENT' WHEN i <= :ended - 20 "
    "THEN 'PARKED' ELSE 'PENDING' END, 1, i % 3, 0, 0.0, 0.0, "
    "CASE WHEN i <= :ended - 40 THEN {at} END FROM n WHERE i <= :ended",
)

_DIALECT = {
    # Fixed-width text as `UtcDateTime` writes it; and a time of PostgreSQL's own.
    "sqlite": {
        "at": "strftime('%Y-%m-%d %H:%M:%f000', 1790000000 - 900 * (:last - i), 'unixepoch')",
        "false": "0",
        "document": ":document",
    },
    "postgresql": {
        "at": "to_timestamp(1790000000 - 900.0 * (:last - i))",
        "false": "false",
        "document": "CAST(:document AS JSON)",
    },
}

_DOCUMENT = '{"series_uid":"1.2.3","pe_probability":0.1,"findings":[]}'


def fill(engine: Engine, studies: int, *, queued: int = QUEUED) -> None:
    """Replace what is held by `studies` studies, and let the database count its rows."""
    words = {"digest": "ab" * 32, "former": "cd" * 32, "root": ROOT}
    words |= _DIALECT[engine.dialect.name]
    values = {
        "first": 1,
        "last": studies,
        "ended": studies - queued,
        "pacs": PACS,
        "document": _DOCUMENT,
    }
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # It takes its time, and every row is known to have what it refers to.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text(f"TRUNCATE {', '.join(t.name for t in TABLES)} CASCADE"))
        else:
            for table in TABLES:
                connection.execute(table.delete())
        for step in _STEPS:
            statement = text(_NUMBERS + step.format(**words))
            wanted = {name: values[name] for name in statement.compile().params}
            connection.execute(statement, wanted)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        postgres = engine.dialect.name == "postgresql"
        if postgres:
            connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE" if postgres else "ANALYZE"))


@dataclass(frozen=True)
class Node:
    """What asks."""

    engine: Engine
    folder: Path

    @property
    def queue(self) -> JobQueue:
        return JobQueue(self.engine)

    @property
    def outbox(self) -> Outbox:
        return Outbox(self.engine, self.folder)

    @property
    def retention(self) -> RetentionStore:
        return RetentionStore(self.engine)

    @property
    def watching(self) -> WatchStore:
        return WatchStore(self.engine)


QUESTIONS: Mapping[str, Callable[[Node], object]] = {
    "claim where nothing is free": lambda n: n.queue.claim(OWNER, 30.0),
    "reap": lambda n: n.queue.reap(),
    "queue depth": lambda n: n.queue.pending(),
    "watch the clock": lambda n: (
        n.queue.unfreeze(longest_wait_s=600.0, longest_lease_s=900.0),
        n.outbox.unfreeze(longest_wait_s=600.0),
    ),
    "next job": lambda n: n.queue.next_due_s(),
    "studies that arrive, for work ahead": lambda n: Arriving(n.engine).studies(),
    "studies being received": lambda n: StudyStore(n.engine).receiving(),
    "deliveries due": lambda n: n.outbox.due(PACS, 10),
    "next delivery": lambda n: n.outbox.next_due_s(PACS),
    "images to remove": lambda n: n.retention.removable(NEWEST_AT),
    "what a crash interrupted": lambda n: (
        n.retention.interrupted(),
        n.retention.interrupted_results(),
    ),
    "charts": lambda n: n.watching.history(WatchTable()),
    "situation": lambda n: n.watching.situation(WatchTable(), NEWEST_AT),
    "worklist, first 50": lambda n: worklist(n.engine, n.folder, limit=50),
    "worklist of today": lambda n: worklist(
        n.engine, n.folder, limit=50, since=NEWEST_AT - timedelta(days=1)
    ),
    "one study (show)": lambda n: show(n.engine, f"{ROOT}500", n.folder),
}
"""What a node asks of its database by the second or the minute, and what people ask.

Not among them is what is asked by the hour and reads every run ever made, and says so.
"""


def cost(node: Node, ask: Callable[[Node], object]) -> int:
    """Work of the database, as it counts it: PostgreSQL in pages, SQLite in hundreds of steps.

    PostgreSQL is told to read no table through where an index could serve, as it decides by itself
    once the tables are large.
    """
    node.engine.dispose()
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    seen: list[tuple[str, Any]] = []
    counting = node.engine.dialect.name == "sqlite"

    def on_connect(dbapi: Any, _record: Any) -> None:
        if counting:
            dbapi.set_progress_handler(step, 100)
        else:
            dbapi.execute("SET enable_seqscan = off")
            dbapi.commit()

    def on_execute(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        seen.append((statement, parameters))

    event.listen(node.engine, "connect", on_connect)
    event.listen(node.engine, "before_cursor_execute", on_execute)
    try:
        ask(node)
    finally:
        event.remove(node.engine, "before_cursor_execute", on_execute)
    if not counting:
        steps = sum(_pages(node, *asked) for asked in seen)
    event.remove(node.engine, "connect", on_connect)
    node.engine.dispose()
    return steps


def _pages(node: Node, statement: str, parameters: Any) -> int:
    """Pages that PostgreSQL looks at for one statement, which is not kept."""
    if not statement.lstrip().startswith(("SELECT", "UPDATE")):
        return 0
    explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
    with node.engine.connect() as connection:
        document = connection.exec_driver_sql(explain + statement, parameters).scalar_one()
        connection.rollback()
    plan_ = document[0]["Plan"]
    return int(plan_["Shared Hit Blocks"] + plan_["Shared Read Blocks"])
