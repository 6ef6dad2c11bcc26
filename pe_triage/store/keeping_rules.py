"""What keeps files here, as conditions on a row of `studies`; aliases let them stand anywhere."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from sqlalchemy import ColumnElement, FromClause, and_, literal, or_, select

from pe_triage.domain import DeliveryState, StudyState
from pe_triage.store import schema
from pe_triage.store.engine import db_now
from pe_triage.store.runs import ACTIVE
from pe_triage.store.schema import QuarantineState

_studies, _jobs, _deliveries = schema.studies, schema.jobs, schema.deliveries


def _unsettled(
    deliveries: FromClause, jobs: FromClause, commit_limit_s: float | None
) -> ColumnElement[bool]:
    """A delivery that is somebody's task still; both tables are joined by the caller.

    This is where storage commitment comes in: a result that an archive was asked to commit to is
    not delivered before it has, or before the site's limit.
    """
    state = deliveries.c.state
    # What a newer answer took the place of is no one's task.
    parked = and_(state == DeliveryState.PARKED.value, jobs.c.superseded.is_(False))
    uncommitted: ColumnElement[bool] = and_(
        state.in_([DeliveryState.SENT.value, DeliveryState.WARNING.value]),
        deliveries.c.commit_since.is_not(None),
    )
    if commit_limit_s is not None:
        uncommitted &= deliveries.c.commit_since > db_now() - commit_limit_s
    return or_(
        state == DeliveryState.PENDING.value,
        and_(or_(parked, uncommitted), deliveries.c.abandoned_at.is_(None)),
    )


def has_undelivered(commit_limit_s: float | None) -> ColumnElement[bool]:
    """Something of it is owed to a destination; see `_unsettled`."""
    table, job = _deliveries.alias("owed"), _jobs.alias("owing")
    return (
        select(literal(1))
        .select_from(table.join(job, table.c.job_id == job.c.job_id))
        .where(job.c.study_uid == _studies.c.study_uid, _unsettled(table, job, commit_limit_s))
        .correlate(_studies)
        .exists()
    )


def is_unsent(before: datetime | None) -> ColumnElement[bool]:
    """Its answer was sent nowhere on purpose, and nothing says that anybody has it.

    Parameters
    ----------
    before
        What was answered before this is nobody's task any more; None: it is for ever.
    """

    def owed(job: FromClause) -> ColumnElement[bool]:
        # A later answer takes its place, and has deliveries of its own to wait for.
        standing = and_(job.c.unsent, job.c.superseded.is_(False))
        return standing if before is None else and_(standing, job.c.completed_at >= before)

    return _has_job(owed)


def is_in_doubt() -> ColumnElement[bool]:
    """It is in quarantine, or something of it is."""
    table = schema.quarantine
    return or_(
        _studies.c.quarantine_reason.is_not(None),
        _studies.c.state == StudyState.QUARANTINED.value,
        select(literal(1))
        .select_from(table)
        .where(
            table.c.study_uid == _studies.c.study_uid,
            table.c.state == QuarantineState.HELD.value,
        )
        .correlate(_studies)
        .exists(),
    )


def is_active() -> ColumnElement[bool]:
    """It is received, queued or analysed."""
    return or_(
        _studies.c.state.in_([StudyState.RECEIVING.value, StudyState.QUEUED.value]),
        _has_job(lambda job: job.c.state.in_(ACTIVE)),
    )


def _has_job(which: Callable[[FromClause], ColumnElement[bool]]) -> ColumnElement[bool]:
    job = _jobs.alias("other_run")
    return (
        select(literal(1))
        .select_from(job)
        .where(job.c.study_uid == _studies.c.study_uid, which(job))
        .correlate(_studies)
        .exists()
    )


def settled(
    before: datetime,
    states: Collection[StudyState],
    commit_limit_s: float | None,
    unsent_before: datetime | None,
) -> ColumnElement[bool]:
    """Studies that may lose files: nothing came, ended or is owed since `before`."""
    return and_(
        _studies.c.state.in_([state.value for state in states]),
        _studies.c.last_activity_at < before,
        ~_has_job(lambda job: job.c.completed_at >= before),
        ~is_active(),
        ~is_in_doubt(),
        ~has_undelivered(commit_limit_s),
        ~is_unsent(unsent_before),
    )
