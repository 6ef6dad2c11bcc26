"""How a claimed job comes back: given back, taken from the dead, freed after a step of the clock.

A claim counts as an attempt where the study itself may be at fault. What gives up after
`max_attempts` ends FAILED with its reason, where people see it, while the other jobs flow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    and_,
    case,
    exists,
    literal,
    select,
    update,
)

from pe_triage.domain import Job, StudyState
from pe_triage.errors import LeaseLostError
from pe_triage.store import schema
from pe_triage.store.engine import StoreUnavailableError, db_now, read, write
from pe_triage.store.finishing import end_run
from pe_triage.store.notices import Topic, notify
from pe_triage.store.runs import QUEUED, RUNNING, job_of, lock_study

CLOCK_SLACK_S = 5.0
"""By so much two looks at the database's clock may differ without it having been set back."""

OUTAGE_GRACE_S = 30.0
"""How long after an outage of the database no worker is taken for dead."""

_jobs = schema.jobs


def expired() -> ColumnElement[bool]:
    """Jobs whose lease ran out."""
    return and_(_jobs.c.state == RUNNING, _jobs.c.lease_until < db_now())


def lease_lost(job: Job) -> LeaseLostError:
    """What a worker is told whose job is no longer its own."""
    return LeaseLostError(f"run {job.run} of study {job.study_uid} is no longer held")


class Outage:
    """Remembers that the database was away: living workers could not renew their leases then."""

    def __init__(self) -> None:
        self._away_at: float | None = None

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Notice where the database does not answer."""
        try:
            yield
        except StoreUnavailableError:
            self._away_at = time.monotonic()
            raise

    def over(self, engine: Engine) -> bool:
        """Whether it answers, and has for `OUTAGE_GRACE_S`.

        Raises
        ------
        StoreUnavailableError
            It is still away.
        """
        if self._away_at is None:
            return True
        with self.noticing(), read(engine) as connection:
            connection.execute(select(literal(1)))
        if time.monotonic() - self._away_at < OUTAGE_GRACE_S:
            return False
        self._away_at = None
        return True


def give_back(
    connection: Connection,
    study: Row[Any],
    row: Row[Any],
    error: str,
    *,
    retry: bool,
    delay_s: float | None,
    counted: bool,
    max_attempts: int,
    at: datetime,
) -> StudyState:
    """Queue a held job again, in `delay_s` or keeping its place (None); or end it FAILED.

    Parameters
    ----------
    study, row
        Both locked by the caller.
    """
    if not retry or (counted and row.attempts >= max_attempts):
        reason = error if not retry else f"gave up after {row.attempts} attempts: {error}"
        end_run(
            connection,
            study,
            job_of(row),
            state=StudyState.FAILED,
            at=at,
            values={"last_error": error, "reason": reason},
        )
        return StudyState.FAILED
    values: dict[str, Any] = {
        "state": QUEUED,
        "lease_owner": None,
        "lease_until": None,
        "last_error": error,
    }
    if not counted:
        values["attempts"] = max(0, row.attempts - 1)
    if delay_s is not None:
        values["available_at"] = db_now() + delay_s
    connection.execute(update(_jobs).where(_jobs.c.job_id == row.job_id).values(**values))
    notify(connection, Topic.JOBS)
    return StudyState.QUEUED


def release(
    engine: Engine,
    which: ColumnElement[bool],
    error: str,
    *,
    counted: bool,
    max_attempts: int,
    clock: Callable[[], datetime],
) -> int:
    """Give back every running job of `which`, keeping its place; returns how many."""
    candidates = select(_jobs.c.job_id, _jobs.c.study_uid).where(_jobs.c.state == RUNNING, which)
    with read(engine) as connection:
        # Sorted here: asked for in that order, SQLite reads every run ever made.
        found = sorted(connection.execute(candidates).all(), key=lambda row: int(row.job_id))

    def one(job_id: int, study_uid: str) -> int:
        # One transaction each, and the study before the job, as everywhere.
        def work(connection: Connection) -> int:
            study = lock_study(connection, study_uid)
            row = connection.execute(
                select(_jobs)
                .where(_jobs.c.job_id == job_id, _jobs.c.state == RUNNING, which)
                .with_for_update()
            ).one_or_none()
            if row is None:
                return 0
            give_back(
                connection,
                study,
                row,
                error,
                retry=True,
                delay_s=None,
                counted=counted,
                max_attempts=max_attempts,
                at=clock(),
            )
            return 1

        return write(engine, work)

    return sum(one(row.job_id, row.study_uid) for row in found)


def unfreeze(engine: Engine, *, longest_wait_s: float, longest_lease_s: float) -> int:
    """Bring back what a clock set backwards has put out of reach. Returns how many jobs.

    Parameters
    ----------
    longest_wait_s
        No job waits longer than this for its next attempt.
    longest_lease_s
        No lease runs longer than this; a living worker renews its own.
    """
    now = db_now()
    # A job that never failed waits for nothing: it was queued a moment ago at the earliest.
    longest = case((_jobs.c.last_error.is_(None), CLOCK_SLACK_S), else_=longest_wait_s)
    waiting = (
        update(_jobs)
        .where(_jobs.c.state == QUEUED, _jobs.c.available_at > now + longest)
        .values(available_at=now)
        .returning(_jobs.c.job_id)
    )
    held = (
        update(_jobs)
        .where(_jobs.c.state == RUNNING, _jobs.c.lease_until > now + longest_lease_s)
        .values(lease_until=now + longest_lease_s)
        .returning(_jobs.c.job_id)
    )
    with read(engine) as connection:
        # Seldom anything: looked for without SQLite's one write lock.
        found = [
            connection.execute(
                select(exists().where(_jobs.c.state == state, column > now + limit))
            ).scalar_one()
            for state, column, limit in (
                (QUEUED, _jobs.c.available_at, longest),
                (RUNNING, _jobs.c.lease_until, longest_lease_s),
            )
        ]
    if not any(found):
        return 0

    def work(connection: Connection) -> int:
        freed = len(connection.execute(waiting).all())
        notify(connection, Topic.JOBS)
        return freed + len(connection.execute(held).all())

    return write(engine, work)
