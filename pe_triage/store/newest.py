"""When anything was last written down: what a clock that is wrong from the start is told by."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Engine, func, select

from pe_triage.store import schema
from pe_triage.store.engine import read


def newest_at(engine: Engine) -> datetime | None:
    """Latest time at which a study began to come or a run ended; None where none did.

    Both are read from an index, however much is held.
    """
    columns = (schema.studies.c.received_at, schema.jobs.c.completed_at)
    with read(engine) as connection:
        found = [connection.execute(select(func.max(column))).scalar() for column in columns]
    return max((at.astimezone(UTC) for at in found if at is not None), default=None)
