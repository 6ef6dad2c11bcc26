"""A person's decision that a result need not arrive: it stands, and is not tried any more."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Engine, select, update

from pe_triage.domain import DeliveryState
from pe_triage.errors import InputError
from pe_triage.store import schema
from pe_triage.store.engine import write


def abandon(
    engine: Engine,
    *,
    destination: str | None,
    study_uid: str | None,
    by: str,
    why: str | None,
    at: datetime,
) -> int:
    """Park what a destination or a study still waits for, and count it as settled.

    Nothing of such a study waits any more, so its files may go with the others. ``deliveries
    retry`` takes the decision back.

    Parameters
    ----------
    destination, study_uid
        At least one.

    Returns
    -------
    int
        Deliveries that were PENDING or PARKED, or whose commitment was waited for.

    Raises
    ------
    InputError
        Neither is given: everything would be.
    """
    if destination is None and study_uid is None:
        raise InputError("name a destination or a study: everything cannot be abandoned at once")
    table, jobs = schema.deliveries, schema.jobs
    open_: ColumnElement[bool] = table.c.abandoned_at.is_(None)
    if destination is not None:
        open_ &= table.c.destination == destination
    if study_uid is not None:
        open_ &= table.c.job_id.in_(select(jobs.c.job_id).where(jobs.c.study_uid == study_uid))
    unsent = table.c.state.in_([DeliveryState.PENDING.value, DeliveryState.PARKED.value])
    decision = {"abandoned_at": at, "abandoned_by": by, "abandoned_why": why}
    parked = (
        update(table)
        .where(open_, unsent)
        .values(state=DeliveryState.PARKED.value, last_error=f"abandoned by {by}", **decision)
        .returning(table.c.delivery_id)
    )
    uncommitted = (
        update(table)
        .where(open_, ~unsent, table.c.commit_since.is_not(None))
        .values(**decision)
        .returning(table.c.delivery_id)
    )
    return write(engine, lambda c: len(c.execute(uncommitted).all()) + len(c.execute(parked).all()))
