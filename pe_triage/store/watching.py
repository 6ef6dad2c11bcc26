"""What the watching side asks of the database: ended runs, what waits, what is known of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, func, select, union

from pe_triage.domain import DeliveryState, InstanceRole, Outcome, StudyState
from pe_triage.monitoring import WatchTable
from pe_triage.store import schema
from pe_triage.store.engine import db_now, read
from pe_triage.store.recording import chunks
from pe_triage.store.schema import QuarantineState, Rank
from pe_triage.store.studies import newest_job, study_state
from pe_triage.watch.samples import History, RunSample, Situation, Waiting

ENDED = (StudyState.DONE.value, StudyState.NOT_EVALUATED.value, StudyState.FAILED.value)
ANSWERED = (StudyState.DONE.value, StudyState.NOT_EVALUATED.value)
ACTIVE = (StudyState.QUEUED.value, StudyState.RUNNING.value)
REMEMBERED = 200
"""Newest runs that a moving average still remembers anything of."""
DAY = timedelta(days=1)

_jobs = schema.jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a study stands, for the comparison with what a PACS has."""

    study_uid: str
    state: StudyState
    reason: str | None
    images: int
    series: dict[str, int]
    """Series UID to CT images held."""
    last_image_at: datetime
    completed_at: datetime | None
    answered: bool
    """Its newest run ended with an answer."""
    undelivered: int
    """Results of its newest run that a destination has not taken."""
    parked: int


class WatchStore:
    """Reads only.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def history(self, settings: WatchTable) -> History:
        """Baseline and newest runs of the model in force."""
        with read(self._engine) as connection:
            since = _epoch(connection, settings.baseline_since)
            latest = _samples(connection, since=None, newest=max(REMEMBERED, settings.window))
            if since is None:
                return History(wanted=settings.baseline, latest=latest)
            baseline = _samples(connection, since=since, oldest=settings.baseline)
            recent = _samples(connection, since=since, newest=max(REMEMBERED, settings.window))
        first = {(s.study_uid, s.completed_at) for s in baseline}
        return History(
            baseline=baseline,
            recent=tuple(s for s in recent if (s.study_uid, s.completed_at) not in first),
            wanted=settings.baseline,
            latest=latest,
        )

    def days(self, first: datetime, until: datetime) -> tuple[RunSample, ...]:
        """Runs that ended in ``[first, until)``, oldest first."""
        with read(self._engine) as connection:
            statement = (
                _statement()
                .where(_jobs.c.completed_at >= first, _jobs.c.completed_at < until)
                .order_by(_jobs.c.completed_at, _jobs.c.job_id)
            )
            return tuple(_sample(row) for row in connection.execute(statement))

    def situation(self, settings: WatchTable, now: datetime) -> Situation:
        """Where the node stands at `now`."""
        studies, quarantine = schema.studies, schema.quarantine
        with read(self._engine) as connection:

            def one(statement: Any) -> Any:
                return connection.execute(statement).one()

            unanswered = one(
                select(func.count()).where(
                    studies.c.state == StudyState.RECEIVING.value,
                    studies.c.last_image_at < now - timedelta(seconds=settings.absent_s),
                )
            )[0]
            # A run that hangs, too, and one that is tried again and again for ever.
            late = (
                # One question for each state: each has an index that holds nothing else.
                select(_jobs.c.study_uid).where(
                    _jobs.c.state == state,
                    _jobs.c.rank < Rank.BACKFILL,
                    _jobs.c.created_at < now - timedelta(seconds=settings.absent_s),
                )
                for state in ACTIVE
            )
            unanswered += one(select(func.count()).select_from(union(*late).subquery()))[0]
            came_at = one(select(func.max(studies.c.received_at)))[0]
            ended_at = one(select(func.max(_jobs.c.completed_at)))[0]
            answer_at = one(
                select(func.max(_jobs.c.completed_at)).where(_jobs.c.state.in_(ANSWERED))
            )[0]
            queue = one(
                select(func.count(), func.max(db_now() - _jobs.c.available_at)).where(
                    _jobs.c.state == StudyState.QUEUED.value, _jobs.c.available_at <= db_now()
                )
            )
            running = one(select(func.count()).where(_jobs.c.state == StudyState.RUNNING.value))[0]
            failed = one(
                select(func.count())
                .select_from(studies.join(_jobs, newest_job()))
                .where(_jobs.c.state == StudyState.FAILED.value, _jobs.c.completed_at >= now - DAY)
            )[0]
            held = one(
                select(func.count()).where(quarantine.c.state == QuarantineState.HELD.value)
            )[0]
            states = {
                row.state: row.studies
                for row in connection.execute(
                    select(studies.c.state, func.count().label("studies"))
                    .where(studies.c.received_at >= now - DAY)
                    .group_by(studies.c.state)
                )
            }
            waiting = _waiting(connection, now)
        return Situation(
            unanswered=unanswered,
            since_answer_s=_since(now, answer_at),
            since_came_s=_since(now, came_at),
            queued=queue[0],
            running=running,
            longest_wait_s=None if queue[1] is None else max(0.0, float(queue[1])),
            since_ended_s=_since(now, ended_at),
            failed=failed,
            quarantined=held,
            waiting=waiting,
            states=states,
        )

    def standings(self, study_uids: Iterable[str]) -> dict[str, Standing]:
        """Study Instance UID to where it stands; what is not known here is left out."""
        studies, instances = schema.studies, schema.instances
        found: dict[str, Standing] = {}
        with read(self._engine) as connection:
            for uids in chunks(study_uids):
                series: dict[str, dict[str, int]] = {}
                for row in connection.execute(
                    select(instances.c.study_uid, instances.c.series_uid, func.count().label("n"))
                    .where(
                        instances.c.study_uid.in_(uids),
                        instances.c.role == InstanceRole.IMAGE.value,
                    )
                    .group_by(instances.c.study_uid, instances.c.series_uid)
                ):
                    series.setdefault(row.study_uid, {})[row.series_uid] = row.n
                open_deliveries = _undelivered(connection, uids)
                for row in connection.execute(
                    select(
                        studies,
                        _jobs.c.state.label("job_state"),
                        _jobs.c.reason.label("job_reason"),
                        _jobs.c.last_error,
                        _jobs.c.completed_at,
                    )
                    .outerjoin(_jobs, newest_job())
                    .where(studies.c.study_uid.in_(uids))
                ):
                    pending, parked = open_deliveries.get(row.study_uid, (0, 0))
                    found[row.study_uid] = Standing(
                        study_uid=row.study_uid,
                        state=study_state(row.state, row.job_state),
                        reason=row.quarantine_reason or row.job_reason or row.last_error,
                        images=row.images,
                        series=series.get(row.study_uid, {}),
                        last_image_at=row.last_image_at,
                        completed_at=row.completed_at,
                        answered=row.state in ANSWERED,
                        undelivered=pending,
                        parked=parked,
                    )
        return found


def _since(now: datetime, at: datetime | None) -> float | None:
    return None if at is None else max(0.0, (now - at).total_seconds())


def _counted() -> ColumnElement[bool]:
    """Runs that say what the node does for new studies: no backfill, nothing superseded."""
    return and_(
        _jobs.c.state.in_(ENDED),
        _jobs.c.completed_at.is_not(None),
        _jobs.c.superseded.is_(False),
        _jobs.c.rank < Rank.BACKFILL,
    )


def _statement() -> Any:
    return select(
        _jobs.c.study_uid,
        _jobs.c.state,
        _jobs.c.outcome,
        _jobs.c.created_at,
        _jobs.c.completed_at,
        _jobs.c.delivered_at,
        _jobs.c.pe_probability,
        _jobs.c.attention_entropy,
        _jobs.c.model_sha256,
    ).where(_counted())


def _epoch(connection: Connection, since: datetime | None) -> datetime | None:
    """When the model in force gave its first answer; None where none ever answered."""
    newest = (
        select(_jobs.c.model_sha256)
        .where(_counted(), _jobs.c.model_sha256.is_not(None))
        .order_by(_jobs.c.completed_at.desc(), _jobs.c.job_id.desc())
        .limit(1)
    )
    model = connection.execute(newest).scalar_one_or_none()
    if model is None:
        return None
    # Its first in the order of models and times. Asked for the least time of this model, PostgreSQL
    # goes by time alone and reads all that earlier models ever answered.
    first: datetime = connection.execute(
        select(_jobs.c.completed_at)
        .where(_counted(), _jobs.c.model_sha256 >= model)
        .order_by(_jobs.c.model_sha256, _jobs.c.completed_at)
        .limit(1)
    ).scalar_one()
    return first if since is None else max(first, since)


def _samples(
    connection: Connection,
    *,
    since: datetime | None,
    oldest: int | None = None,
    newest: int | None = None,
) -> tuple[RunSample, ...]:
    statement = _statement()
    if since is not None:
        statement = statement.where(_jobs.c.completed_at >= since)
    if oldest is not None:
        ordered = statement.order_by(_jobs.c.completed_at, _jobs.c.job_id).limit(oldest)
        return tuple(_sample(row) for row in connection.execute(ordered))
    ordered = statement.order_by(_jobs.c.completed_at.desc(), _jobs.c.job_id.desc()).limit(newest)
    return tuple(_sample(row) for row in reversed(connection.execute(ordered).all()))


def _sample(row: Row[Any]) -> RunSample:
    delivered = row.delivered_at
    return RunSample(
        study_uid=row.study_uid,
        state=StudyState(row.state),
        outcome=None if row.outcome is None else Outcome(row.outcome),
        completed_at=row.completed_at,
        latency_s=None if delivered is None else (delivered - row.created_at).total_seconds(),
        pe_probability=row.pe_probability,
        attention_entropy=row.attention_entropy,
        model_sha256=row.model_sha256,
    )


def _waiting(connection: Connection, now: datetime) -> tuple[Waiting, ...]:
    table = schema.deliveries
    state = table.c.state
    pending = {
        row.destination: row
        for row in connection.execute(
            select(
                table.c.destination,
                func.count().label("count_"),
                (db_now() - func.min(table.c.queued_at)).label("oldest_s"),
            )
            .where(state == DeliveryState.PENDING.value)
            .group_by(table.c.destination)
        )
    }
    parked = {
        row.destination: row.count_
        for row in connection.execute(
            select(table.c.destination, func.count().label("count_"))
            .join(_jobs, table.c.job_id == _jobs.c.job_id)
            # What a newer answer took the place of is no one's task.
            .where(
                state == DeliveryState.PARKED.value,
                _jobs.c.superseded.is_(False),
                table.c.abandoned_at.is_(None),
            )
            .group_by(table.c.destination)
        )
    }
    found = []
    for name in sorted(pending.keys() | parked.keys()):
        taken_at = connection.execute(
            select(func.max(table.c.sent_at)).where(
                table.c.destination == name, table.c.sent_at.is_not(None)
            )
        ).scalar_one()
        row = pending.get(name)
        found.append(
            Waiting(
                destination=name,
                pending=0 if row is None else int(row.count_),
                oldest_s=0.0 if row is None else max(0.0, float(row.oldest_s)),
                since_taken_s=_since(now, taken_at),
                parked=parked.get(name, 0),
            )
        )
    return tuple(found)


def _undelivered(connection: Connection, uids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Study to deliveries of its newest run that wait, and that are parked."""
    table, studies = schema.deliveries, schema.studies
    found: dict[str, tuple[int, int]] = {}
    statement = (
        select(studies.c.study_uid, table.c.state, func.count().label("n"))
        .select_from(
            studies.join(_jobs, newest_job()).join(table, table.c.job_id == _jobs.c.job_id)
        )
        .where(
            studies.c.study_uid.in_(uids),
            table.c.state.in_([DeliveryState.PENDING.value, DeliveryState.PARKED.value]),
            table.c.abandoned_at.is_(None),
        )
        .group_by(studies.c.study_uid, table.c.state)
    )
    for row in connection.execute(statement):
        pending, parked = found.get(row.study_uid, (0, 0))
        if row.state == DeliveryState.PENDING:
            found[row.study_uid] = (row.n, parked)
        else:
            found[row.study_uid] = (pending, row.n)
    return found
