"""How a study gets a run: a new row in the queue, or a larger manifest for one that still waits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from pe_triage.domain import TERMINAL_STATES, InstanceRole, Job, StudyState
from pe_triage.errors import (
    ImagesNotHeldError,
    InputError,
    RetryableError,
    StudyNotFoundError,
)
from pe_triage.store import schema
from pe_triage.store.engine import db_now
from pe_triage.store.notices import Topic, notify
from pe_triage.store.schema import NO_URGENCY, Rank
from pe_triage.store.studies import manifest

QUEUED = StudyState.QUEUED.value
RUNNING = StudyState.RUNNING.value
ACTIVE = (QUEUED, RUNNING)
"""States of a run that has not ended."""
NOT_HELD = "images_not_held"
"""What closed a run that could not be made: files of the study had been removed."""

_jobs = schema.jobs
_studies = schema.studies

JOB_COLUMNS = (
    _jobs.c.job_id,
    _jobs.c.study_uid,
    _jobs.c.run,
    _jobs.c.manifest_digest,
    _jobs.c.attempts,
    _jobs.c.fencing_token,
    _jobs.c.received_at,
    _jobs.c.last_image_at,
    _jobs.c.created_at,
)
"""What `job_of` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What closed a study, kept with the run that follows, so that a forced end stays visible.

    Attributes
    ----------
    sign, reason
        As in the event ``study.complete``.
    expected_images
        Images that the PACS said it holds of it; None where it was not asked or did not say.
    """

    sign: str
    reason: str
    expected_images: int | None = None


class StudyChangedError(RetryableError):
    """The manifest to queue is not the one that the store holds now; look again."""


def job_of(row: Row[Any, *tuple[Any, ...]]) -> Job:
    """Turn a row that holds `JOB_COLUMNS` into the domain's value."""
    return Job(
        job_id=row.job_id,
        study_uid=row.study_uid,
        run=row.run,
        manifest_digest=row.manifest_digest,
        attempt=row.attempts,
        fencing_token=row.fencing_token,
        received_at=row.received_at,
        last_image_at=row.last_image_at,
        dated_at=_dated_at(row.run, row.last_image_at, row.created_at),
    )


def _dated_at(run: int, last_image_at: datetime, created_at: datetime) -> datetime:
    """See `Job.dated_at`.

    A first run that a restored database queues anew is then the same as before. A later one may be
    about the same images as the run before it, and must not bear the same date.
    """
    return last_image_at if run == 1 else created_at


def lock_study(connection: Connection, study_uid: str) -> Row[Any]:
    """Lock a study's row. Whoever also locks its jobs locks the study first: no dead-locks.

    Raises
    ------
    StudyNotFoundError
        No study of that UID is known.
    """
    row = connection.execute(
        select(_studies).where(_studies.c.study_uid == study_uid).with_for_update()
    ).one_or_none()
    if row is None:
        raise StudyNotFoundError(study_uid)
    return row


def queue_run(
    connection: Connection,
    study_uid: str,
    manifest_digest: str,
    *,
    rank: int,
    forced: bool,
    at: datetime,
    closing: Closing | None = None,
) -> Job | None:
    """Queue a run; see `JobQueue.enqueue`."""
    study = lock_study(connection, study_uid)
    if study.state == StudyState.QUARANTINED or study.quarantine_reason is not None:
        if forced:
            raise InputError(f"study is quarantined: {study_uid}")
        return None
    held = manifest(connection, study_uid)
    if not held.entries:
        raise StudyNotFoundError(study_uid)
    if held.digest != manifest_digest:
        raise StudyChangedError(f"study changed while it was being queued: {study_uid}")
    newest = connection.execute(
        select(_jobs).where(_jobs.c.study_uid == study_uid, _jobs.c.run == study.run)
    ).one_or_none()
    if closing is None and newest is not None and newest.manifest_digest == manifest_digest:
        # Analysed again, the same images are as incomplete as before.
        closing = closing_of(newest)
    missing = _not_held(connection, study)
    if missing and forced:
        raise ImagesNotHeldError(study_uid, missing, study.removed_at)
    if newest is not None and not forced:
        # A run that quarantine ended says nothing of these instances, nor does one that lacked
        # files which are here again.
        says_nothing = newest.state == StudyState.QUARANTINED or (
            newest.closed_by == NOT_HELD and not missing
        )
        if newest.manifest_digest == manifest_digest and not says_nothing:
            state = newest.state if newest.state in TERMINAL_STATES else QUEUED
            _set_study(connection, study_uid, state=state)
            return None
        if newest.state == QUEUED and newest.attempts == 0:
            return _widen(connection, study, newest, manifest_digest, rank, at, closing)
    if missing:
        _add_unheld(connection, study, manifest_digest, missing, at)
        return None
    return _add_run(connection, study, manifest_digest, rank, at, closing)


def _not_held(connection: Connection, study: Row[Any]) -> int:
    """How many instances that a run would be about are not here any more."""
    if not study.removed:
        return 0
    table = schema.instances
    gone = select(func.count()).where(
        table.c.study_uid == study.study_uid,
        table.c.removed_at.is_not(None),
        table.c.role == (InstanceRole.IMAGE if study.images else InstanceRole.OTHER).value,
    )
    return int(connection.execute(gone).scalar_one())


def _add_unheld(
    connection: Connection, study: Row[Any], digest: str, missing: int, at: datetime
) -> None:
    """End a run that cannot be made, visibly: an answer on a part would pass for one on the whole.

    It is no answer: what an earlier run said and sent is not superseded.
    """
    reason = str(ImagesNotHeldError(study.study_uid, missing, study.removed_at).reason)
    closing = Closing(sign=NOT_HELD, reason=reason)
    job = _add_run(connection, study, digest, Rank.ROUTINE, at, closing)
    failed = StudyState.FAILED.value
    connection.execute(
        update(_jobs)
        .where(_jobs.c.job_id == job.job_id)
        .values(state=failed, reason=reason, completed_at=at)
    )
    _set_study(connection, study.study_uid, state=failed, urgency=NO_URGENCY)


def closing_of(row: Row[Any]) -> Closing | None:
    """What closed the study, of a row of `jobs`."""
    if row.closed_by is None:
        return None
    return Closing(
        sign=row.closed_by, reason=row.closed_reason or "", expected_images=row.expected_images
    )


def _closed(closing: Closing | None) -> dict[str, Any]:
    if closing is None:
        return {}
    return {
        "closed_by": closing.sign,
        "closed_reason": closing.reason,
        "expected_images": closing.expected_images,
    }


def _widen(
    connection: Connection,
    study: Row[Any],
    newest: Row[Any],
    digest: str,
    rank: int,
    at: datetime,
    closing: Closing | None,
) -> Job:
    row = connection.execute(
        update(_jobs)
        .where(_jobs.c.job_id == newest.job_id, _jobs.c.state == QUEUED, _jobs.c.attempts == 0)
        .values(
            manifest_digest=digest,
            rank=min(int(rank), newest.rank),
            received_at=study.received_at,
            last_image_at=study.last_image_at,
            **_closed(closing),
        )
        .returning(*JOB_COLUMNS)
    ).one_or_none()
    if row is None:
        # It was claimed at this moment: what is new makes the next run.
        return _add_run(connection, study, digest, rank, at, closing)
    _take_instances(connection, study.study_uid, newest.run)
    _set_study(connection, study.study_uid, state=QUEUED)
    return job_of(row)


def _add_run(
    connection: Connection,
    study: Row[Any],
    digest: str,
    rank: int,
    at: datetime,
    closing: Closing | None,
) -> Job:
    run = study.run + 1
    # Runs of a study go in order: an earlier one of lower rank must not hold this one up.
    connection.execute(
        update(_jobs)
        .where(
            _jobs.c.study_uid == study.study_uid, _jobs.c.state == QUEUED, _jobs.c.rank > int(rank)
        )
        .values(rank=int(rank))
    )
    job_id = connection.execute(
        insert(_jobs)
        .values(
            study_uid=study.study_uid,
            run=run,
            manifest_digest=digest,
            state=QUEUED,
            rank=int(rank),
            available_at=db_now(),
            attempts=0,
            fencing_token=0,
            superseded=False,
            received_at=study.received_at,
            last_image_at=study.last_image_at,
            created_at=at,
            **_closed(closing),
        )
        .returning(_jobs.c.job_id)
    ).scalar_one()
    _take_instances(connection, study.study_uid, run)
    _set_study(connection, study.study_uid, state=QUEUED, run=run)
    notify(connection, Topic.JOBS)
    return Job(
        job_id=job_id,
        study_uid=study.study_uid,
        run=run,
        manifest_digest=digest,
        attempt=0,
        fencing_token=0,
        received_at=study.received_at,
        last_image_at=study.last_image_at,
        dated_at=_dated_at(run, study.last_image_at, at),
    )


def _take_instances(connection: Connection, study_uid: str, run: int) -> None:
    instances = schema.instances
    connection.execute(
        update(instances)
        .where(instances.c.study_uid == study_uid, instances.c.run.is_(None))
        .values(run=run)
    )


def _set_study(connection: Connection, study_uid: str, **values: Any) -> None:
    connection.execute(update(_studies).where(_studies.c.study_uid == study_uid).values(**values))
