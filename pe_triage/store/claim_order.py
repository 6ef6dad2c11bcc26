"""Who is next: the most urgent rank first, the oldest first within it, and nobody for ever last.

So that no flood of urgent work starves the rest, each tenth claim of a queue goes to a lower rank,
in turn, where its oldest job has waited for longer than `STARVING_S` allows. An archive that is
analysed again in the background takes no more than that from studies that arrive, and only after a
day.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from sqlalchemy import Connection, Select, exists, func, literal, select

from pe_triage.store import schema
from pe_triage.store.engine import db_now
from pe_triage.store.runs import ACTIVE, QUEUED
from pe_triage.store.schema import Rank

_jobs = schema.jobs

FAIR_EVERY = 10
"""Of so many claims one may go to a rank that starves."""

STARVING_S: Mapping[int, float] = {Rank.ROUTINE: 600.0, Rank.BACKFILL: 86_400.0}
"""How long the oldest job of a rank may wait behind more urgent ones; between two entries, and
beyond the last, that of the entry before holds."""


def starving_s(rank: int) -> float:
    """How long a job of `rank` may wait behind more urgent ones."""
    limits = [limit for least, limit in sorted(STARVING_S.items()) if rank >= least]
    return limits[-1] if limits else min(STARVING_S.values())


@cache
def claimable(*, lock: bool, rank: int | None = None) -> Select[tuple[int]]:
    """Next job to work on: by rank, then by age; with `lock`, none that another is taking.

    Parameters
    ----------
    rank
        Only of this rank, and only one that starves.
    """
    job, earlier = _jobs.alias("job"), _jobs.alias("earlier")
    statement = (
        select(job.c.job_id)
        .where(
            job.c.state == QUEUED,
            job.c.available_at <= db_now(),
            ~exists(
                select(literal(1)).where(
                    earlier.c.study_uid == job.c.study_uid,
                    earlier.c.run < job.c.run,
                    earlier.c.state.in_(ACTIVE),
                )
            ),
        )
        .order_by(job.c.rank, job.c.available_at, job.c.job_id)
        .limit(1)
    )
    if rank is not None:
        waited = db_now() - job.c.available_at
        statement = statement.where(job.c.rank == rank, waited > starving_s(rank))
    # Said to PostgreSQL only: SQLite has one writer, and SQLAlchemy leaves the words out there.
    return statement.with_for_update(skip_locked=True, of=job) if lock else statement


def starving(connection: Connection, turn: int) -> int | None:
    """Rank whose turn it is, of those that starve behind the most urgent one that waits.

    Each step is one look into the index of what is queued, however much that is.
    """
    ranks: list[int] = []
    while True:
        least = select(func.min(_jobs.c.rank)).where(_jobs.c.state == QUEUED)
        if ranks:
            least = least.where(_jobs.c.rank > ranks[-1])
        found = connection.execute(least).scalar_one()
        if found is None:
            break
        ranks.append(int(found))
    behind = [
        rank
        for rank in ranks[1:]
        if connection.execute(claimable(lock=False, rank=rank)).first() is not None
    ]
    return behind[turn % len(behind)] if behind else None
