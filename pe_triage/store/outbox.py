"""The outbox: every result object on its way to every destination, most urgent first.

What is persisted is sent, also where a newer run has superseded it: a PACS that holds the newer
result can then resolve the predecessor that it names. When to try again is the caller's decision;
this room keeps the appointment, on the database's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Update, case, exists, func, select, true, update

from pe_triage.clock import utc_now
from pe_triage.domain import Delivery, DeliveryState, ResultKind
from pe_triage.routing import MESSAGE_KINDS
from pe_triage.store import schema
from pe_triage.store.engine import db_now, read, write
from pe_triage.store.jobs import CLOCK_SLACK_S
from pe_triage.store.notices import Topic, notify

PENDING = DeliveryState.PENDING
SENT = DeliveryState.SENT
WARNING = DeliveryState.WARNING
COMMITTED = DeliveryState.COMMITTED
PARKED = DeliveryState.PARKED

DELIVERED: tuple[DeliveryState, ...] = (SENT, WARNING, COMMITTED)
"""The destination has it."""

TRANSITIONS: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    PENDING: frozenset({PENDING, SENT, WARNING, COMMITTED, PARKED}),
    # A late word from a slower sender never takes back that the object arrived.
    SENT: frozenset({COMMITTED}),
    WARNING: frozenset({COMMITTED}),
    COMMITTED: frozenset(),
    # By `requeue_parked`, which a person asks for; not by `mark`.
    PARKED: frozenset(),
}
"""From which state `mark` may lead where; anything else is ignored and said so."""

REMOVED = "results/removed"
"""Where the file of a result would be that is not held any more: nothing ever lies there, so that
whoever opens it parks the delivery, and the others flow."""

COMMITMENT_ENDED: Mapping[str, Any] = {
    "commit_since": None,
    "commit_next_at": None,
    "commit_error": None,
}
"""Columns of a delivery of which nobody is asked to commit any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """One object or message that a destination has not taken, as people look at it."""

    delivery_id: int
    study_uid: str
    destination: str
    kind: ResultKind
    state: DeliveryState
    attempts: int
    last_error: str | None
    retry_in_s: float | None
    """None where it is parked."""


class Outbox:
    """Deliveries, shared by any number of processes.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    data_dir
        `Delivery.path` is absolute: inside it.
    clock
        For ``sent_at`` and ``delivered_at``.
    commits
        Destination to the seconds after which it is asked to commit to what it took; see
        `commitments`. Others are not asked.
    """

    def __init__(
        self,
        engine: Engine,
        data_dir: Path,
        *,
        clock: Callable[[], datetime] = utc_now,
        commits: Mapping[str, float] | None = None,
    ) -> None:
        self._engine = engine
        self._data_dir = data_dir
        self._clock = clock
        self._commits = dict(commits or {})

    def due(self, destination: str, limit: int, *, early: bool = False) -> list[Delivery]:
        """Deliveries to `destination` whose time has come.

        HIGH, MEDIUM, LOW, then without priority; within each the oldest run first, and the objects
        of a run in their order.

        Parameters
        ----------
        early
            Also those whose time has not come: what to try first at a destination that was away.
        """
        deliveries, results, jobs = schema.deliveries, schema.results, schema.jobs
        statement = (
            select(deliveries, results, jobs.c.study_uid)
            .join(results, deliveries.c.result_id == results.c.result_id)
            .join(jobs, deliveries.c.job_id == jobs.c.job_id)
            .where(
                deliveries.c.destination == destination,
                deliveries.c.state == PENDING.value,
                true() if early else deliveries.c.next_attempt_at <= db_now(),
            )
            .order_by(
                deliveries.c.urgency,
                deliveries.c.queued_at,
                deliveries.c.job_id,
                deliveries.c.ordinal,
            )
            .limit(limit)
        )
        with read(self._engine) as connection:
            return [self._delivery(row._mapping) for row in connection.execute(statement)]

    def destinations_with_due(self) -> list[str]:
        """Destinations that have something due now, by name."""
        deliveries = schema.deliveries
        statement = (
            select(deliveries.c.destination)
            .where(deliveries.c.state == PENDING.value, deliveries.c.next_attempt_at <= db_now())
            .distinct()
            .order_by(deliveries.c.destination)
        )
        with read(self._engine) as connection:
            return list(connection.execute(statement).scalars())

    def next_due_s(self, destination: str) -> float | None:
        """Seconds until something is due to `destination`: 0 now, None where nothing waits."""
        deliveries = schema.deliveries
        statement = select(func.min(deliveries.c.next_attempt_at) - db_now()).where(
            deliveries.c.destination == destination, deliveries.c.state == PENDING.value
        )
        with read(self._engine) as connection:
            seconds = connection.execute(statement).scalar_one()
        return None if seconds is None else max(0.0, float(seconds))

    def waiting(self) -> dict[str, int]:
        """Destination to number of objects that it has not taken yet (parked ones excepted)."""
        deliveries = schema.deliveries
        statement = (
            select(deliveries.c.destination, func.count().label("waiting"))
            .where(deliveries.c.state == PENDING.value)
            .group_by(deliveries.c.destination)
        )
        with read(self._engine) as connection:
            return {row.destination: row.waiting for row in connection.execute(statement)}

    def age_s(self, delivery_id: int) -> float:
        """Seconds since the result was persisted, by which a caller gives up.

        Raises
        ------
        LookupError
            No such delivery.
        """
        deliveries = schema.deliveries
        statement = select(db_now() - deliveries.c.queued_at).where(
            deliveries.c.delivery_id == delivery_id
        )
        with read(self._engine) as connection:
            age = connection.execute(statement).scalar_one_or_none()
        if age is None:
            raise LookupError(f"no delivery {delivery_id}")
        return max(0.0, float(age))

    def mark(
        self,
        delivery_id: int,
        state: DeliveryState,
        error: str | None = None,
        retry_in_s: float | None = None,
    ) -> bool:
        """Say what became of an attempt, which counts it (a commitment is no attempt).

        The run's ``delivered_at`` is set when this was the last of its deliveries.

        Parameters
        ----------
        error
            What the destination said; kept with WARNING too. One line without patient identity.
        retry_in_s
            With PENDING: seconds until the next attempt.

        Returns
        -------
        bool
            False where `TRANSITIONS` does not lead from where the delivery stands: nothing done.

        Raises
        ------
        LookupError
            No such delivery.
        """
        if (state is PENDING) != (retry_in_s is not None):
            raise ValueError("retry_in_s goes with PENDING, and only with it")
        deliveries = schema.deliveries

        def work(connection: Connection) -> bool:
            row = _locked(connection, delivery_id)
            was = DeliveryState(row.state)
            if state not in TRANSITIONS[was]:
                return False
            values: dict[str, Any] = {"state": state.value}
            if was is PENDING:
                values |= {"attempts": row.attempts + 1, "last_error": error}
            elif error is not None:
                values["last_error"] = error
            if retry_in_s is not None:
                values["next_attempt_at"] = db_now() + retry_in_s
            if state in DELIVERED and row.sent_at is None:
                values["sent_at"] = self._clock()
            values |= self._commitment(row.destination, was, state)
            connection.execute(
                update(deliveries).where(deliveries.c.delivery_id == delivery_id).values(**values)
            )
            if state in DELIVERED:
                complete_job(connection, row.job_id, self._clock())
            return True

        return write(self._engine, work)

    def bring_forward(self, destination: str, *, but: Collection[int] = ()) -> int:
        """Make everything that waits for `destination` due: it is back. Returns how many.

        Parameters
        ----------
        but
            Deliveries that have just been tried and wait for a reason of their own.
        """
        deliveries = schema.deliveries
        statement = (
            update(deliveries)
            .where(
                deliveries.c.destination == destination,
                deliveries.c.state == PENDING.value,
                deliveries.c.next_attempt_at > db_now(),
                deliveries.c.delivery_id.not_in(list(but)),
            )
            .values(next_attempt_at=db_now())
            .returning(deliveries.c.delivery_id)
        )
        return write(self._engine, lambda c: _made_due(c, statement))

    def unfreeze(self, *, longest_wait_s: float) -> int:
        """Make due what a clock set backwards has put out of reach. Returns how many.

        Parameters
        ----------
        longest_wait_s
            No delivery that was tried waits longer than this for its next attempt.
        """
        deliveries, now = schema.deliveries, db_now()
        longest = case((deliveries.c.attempts == 0, CLOCK_SLACK_S), else_=longest_wait_s)
        frozen = (deliveries.c.state == PENDING.value) & (
            deliveries.c.next_attempt_at > now + longest
        )
        with read(self._engine) as connection:
            if not connection.execute(select(exists().where(frozen))).scalar_one():
                return 0
        # queued_at too: by it a caller gives up, and the future has no age.
        statement = (
            update(deliveries)
            .where(frozen)
            .values(next_attempt_at=now, queued_at=now)
            .returning(deliveries.c.delivery_id)
        )
        return write(self._engine, lambda c: _made_due(c, statement))

    def undelivered(self) -> list[Undelivered]:
        """What no destination has taken yet, waiting or parked, by destination, oldest first."""
        deliveries, results, jobs = schema.deliveries, schema.results, schema.jobs
        statement = (
            select(
                deliveries.c.delivery_id,
                jobs.c.study_uid,
                deliveries.c.destination,
                results.c.kind,
                deliveries.c.state,
                deliveries.c.attempts,
                deliveries.c.last_error,
                (deliveries.c.next_attempt_at - db_now()).label("wait_s"),
            )
            .join(results, deliveries.c.result_id == results.c.result_id)
            .join(jobs, deliveries.c.job_id == jobs.c.job_id)
            .where(
                deliveries.c.state.in_([PENDING.value, PARKED.value]),
                deliveries.c.abandoned_at.is_(None),
            )
            .order_by(deliveries.c.destination, deliveries.c.queued_at, deliveries.c.delivery_id)
        )
        with read(self._engine) as connection:
            return [
                Undelivered(
                    delivery_id=row.delivery_id,
                    study_uid=row.study_uid,
                    destination=row.destination,
                    kind=ResultKind(row.kind),
                    state=DeliveryState(row.state),
                    attempts=row.attempts,
                    last_error=row.last_error,
                    retry_in_s=max(0.0, float(row.wait_s)) if row.state == PENDING.value else None,
                )
                for row in connection.execute(statement)
            ]

    def requeue_parked(
        self, destination: str | None = None, *, study_uid: str | None = None
    ) -> int:
        """Try parked deliveries again from now on; to one destination, of one study, or all.

        Messages that a newer run superseded, and those that could not be written, stay parked.

        Returns
        -------
        int
            How many were parked.
        """
        deliveries = schema.deliveries
        results, jobs = schema.results, schema.jobs
        # A DICOM object has a UID of its own; an old message would overwrite a newer answer.
        sendable = (
            select(results.c.result_id)
            .join(jobs, results.c.job_id == jobs.c.job_id)
            .where(
                results.c.path.is_not(None),
                results.c.removed_at.is_(None),
                # Whose study it is must be settled first; then they go by themselves.
                jobs.c.study_uid.not_in(
                    select(schema.studies.c.study_uid).where(
                        schema.studies.c.quarantine_reason.is_not(None)
                    )
                ),
                jobs.c.superseded.is_(False)
                | results.c.kind.not_in(sorted(k.value for k in MESSAGE_KINDS)),
            )
        )
        parked = (deliveries.c.state == PARKED.value) & deliveries.c.result_id.in_(sendable)
        # These name the patient as before a correction.
        parked &= func.coalesce(deliveries.c.last_error, "") != schema.CORRECTED
        if destination is not None:
            parked &= deliveries.c.destination == destination
        if study_uid is not None:
            parked &= deliveries.c.job_id.in_(
                select(jobs.c.job_id).where(jobs.c.study_uid == study_uid)
            )
        # queued_at too: a caller gives up by age, and a person has just asked for more patience.
        statement = (
            update(deliveries)
            .where(parked)
            .values(
                state=PENDING.value,
                next_attempt_at=db_now(),
                queued_at=db_now(),
                abandoned_at=None,
            )
            .returning(deliveries.c.delivery_id)
        )
        return write(self._engine, lambda c: _made_due(c, statement))

    def _commitment(
        self, destination: str, was: DeliveryState, state: DeliveryState
    ) -> dict[str, Any]:
        if state is COMMITTED:
            return dict(COMMITMENT_ENDED)
        delay_s = self._commits.get(destination)
        if was is not PENDING or state not in DELIVERED or delay_s is None:
            return {}
        return {
            "commit_since": db_now(),
            "commit_next_at": db_now() + delay_s,
            "commit_attempts": 0,
            "commit_error": None,
        }

    def _delivery(self, row: Mapping[Any, Any]) -> Delivery:
        deliveries, results = schema.deliveries, schema.results
        return Delivery(
            delivery_id=row[deliveries.c.delivery_id],
            study_uid=row[schema.jobs.c.study_uid],
            destination=row[deliveries.c.destination],
            kind=ResultKind(row[results.c.kind]),
            sop_class_uid=row[results.c.sop_class_uid],
            sop_instance_uid=row[results.c.sop_instance_uid],
            path=self._data_dir / (row[results.c.path] or REMOVED),
            state=DeliveryState(row[deliveries.c.state]),
            attempts=row[deliveries.c.attempts],
            last_error=row[deliveries.c.last_error],
            sha256=row[results.c.sha256],
        )


def complete_job(connection: Connection, job_id: int, at: datetime) -> None:
    """Say that a run was delivered at `at`, if nothing of it is left."""
    jobs, deliveries = schema.jobs, schema.deliveries
    # The job's lock orders two senders that mark its last two deliveries at the same moment:
    # the second one's next statement sees what the first has committed.
    connection.execute(select(jobs.c.job_id).where(jobs.c.job_id == job_id).with_for_update())
    undelivered = exists().where(
        deliveries.c.job_id == job_id,
        deliveries.c.state.not_in([s.value for s in DELIVERED]),
    )
    connection.execute(
        update(jobs)
        .where(jobs.c.job_id == job_id, jobs.c.delivered_at.is_(None), ~undelivered)
        .values(delivered_at=at)
    )


def _made_due(connection: Connection, statement: Update) -> int:
    """Run a statement that makes deliveries due; returns how many."""
    made = len(connection.execute(statement).all())
    if made:
        notify(connection, Topic.DELIVERIES)
    return made


def _locked(connection: Connection, delivery_id: int) -> Row[Any]:
    deliveries = schema.deliveries
    row = connection.execute(
        select(deliveries).where(deliveries.c.delivery_id == delivery_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise LookupError(f"no delivery {delivery_id}")
    return row
