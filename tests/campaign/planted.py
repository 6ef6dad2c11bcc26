"""Faults put into the node on purpose, from outside: the campaign must find each of them.

They are applied in a child process of the node that the campaign started, and nowhere else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EARLY_S = 0.15
"""How long after the answer the planted receiver writes what it has answered for."""


def without_fsync() -> None:
    """The spool writes and renames, and never asks the disk to keep it."""
    from pe_triage.receive.files import RealFiles

    RealFiles.fsync = lambda _self, _descriptor: None  # type: ignore[method-assign]
    RealFiles.fsync_directory = lambda _self, _directory: None  # type: ignore[method-assign]


def without_fence() -> None:
    """Nobody compares the fencing token: a claim that was lost may still end the job."""
    from sqlalchemy import select, update

    from pe_triage.store import jobs, schema
    from pe_triage.store.engine import db_now, write

    table = schema.jobs

    def held(connection: Any, job: Any) -> Any:
        row = connection.execute(select(table).where(table.c.job_id == job.job_id)).one_or_none()
        return row if row is not None and row.state == "RUNNING" else None

    def heartbeat(self: Any, job: Any, _owner: str, lease_s: float) -> None:
        statement = (
            update(table).where(table.c.job_id == job.job_id).values(lease_until=db_now() + lease_s)
        )
        write(self._engine, lambda c: c.execute(statement))

    jobs._held_job = held
    jobs.JobQueue.heartbeat = heartbeat  # type: ignore[method-assign]


def early_answer() -> None:
    """0000 is answered first and the instance written a moment later."""
    from pe_triage.receive.spool import Spool

    store = Spool.store

    def later(self: Spool, parts: Sequence[Any], *, association: int, sequence: int) -> Path:
        kept = [bytes(part) for part in parts]

        def write() -> None:
            time.sleep(EARLY_S)
            store(self, kept, association=association, sequence=sequence)

        threading.Thread(target=write, daemon=True).start()
        return self.incoming / f"{self._stem(association, sequence)}.dcm"

    Spool.store = later  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    "no-fsync": without_fsync,
    "no-fence": without_fence,
    "early-answer": early_answer,
}


def apply(name: str) -> None:
    """Apply the fault of this name, if it is one."""
    if name:
        PLANTS[name]()
