"""What archives are asked to commit to, and what they answered (PS3.4 Annex J).

A request is written down before it is sent, so that its report is known even where the sender died
in between; a report may come seconds or days later, twice, or for a request that another one has
followed. Two rules make that safe. A yes counts whenever it comes, for it is a fact about the
archive. A no counts only for the newest request about an object, and only once: by then an older
one may speak of a time before the object was sent again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    case,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from pe_triage.clock import utc_now
from pe_triage.commitment import (
    CommitmentReport,
    Reference,
    Remedy,
    describe_failure,
    failure_rule,
)
from pe_triage.domain import DeliveryState
from pe_triage.store import schema
from pe_triage.store.engine import db_now, read, write
from pe_triage.store.holding import HELD_BACK
from pe_triage.store.jobs import CLOCK_SLACK_S
from pe_triage.store.notices import Topic, notify
from pe_triage.store.outbox import COMMITMENT_ENDED, complete_job
from pe_triage.store.recording import chunks

TAKEN = (DeliveryState.SENT.value, DeliveryState.WARNING.value)
"""Where the destination has said that it took the object, and not yet that it keeps it."""

PRUNED_AT_ONCE = 500

_deliveries = schema.deliveries
_commitments = schema.commitments
_items = schema.commitment_items


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncommitted:
    """A delivered object to which its destination is to commit."""

    delivery_id: int
    study_uid: str
    reference: Reference
    attempts: int
    """How often it was asked."""
    age_s: float
    """Since it was delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a report has changed."""

    peer: str
    committed: int = 0
    failed: Mapping[Remedy, int]
    """Remedy to number of objects for which it was taken."""
    stale: bool = False
    """It was answered before: only what is committed counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """How a destination stands with its commitments."""

    destination: str
    waiting: int
    oldest_s: float


class CommitmentStore:
    """Requests for commitment, shared by any number of processes.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    clock
        For ``delivered_at``.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._engine = engine
        self._clock = clock

    # ------------------------------------------------------------------ asking

    def due(
        self, destination: str, limit: int, *, longest_wait_s: float = math.inf
    ) -> list[Uncommitted]:
        """Delivered objects about which it is time to ask, the oldest first.

        Parameters
        ----------
        longest_wait_s
            Nothing waits longer than this: what does was dated by a clock that was set back since.
        """
        now = db_now()
        time_has_come = _deliveries.c.commit_next_at <= now
        if math.isfinite(longest_wait_s):
            time_has_come |= _deliveries.c.commit_next_at > now + longest_wait_s + CLOCK_SLACK_S
        results, jobs = schema.results, schema.jobs
        statement = (
            select(
                _deliveries.c.delivery_id,
                jobs.c.study_uid,
                results.c.sop_class_uid,
                results.c.sop_instance_uid,
                _deliveries.c.commit_attempts,
                (db_now() - _deliveries.c.commit_since).label("age_s"),
            )
            .join(results, _deliveries.c.result_id == results.c.result_id)
            .join(jobs, _deliveries.c.job_id == jobs.c.job_id)
            .where(
                _deliveries.c.destination == destination,
                time_has_come,
                _deliveries.c.state.in_(TAKEN),
                _deliveries.c.abandoned_at.is_(None),
            )
            .order_by(_deliveries.c.commit_next_at, _deliveries.c.delivery_id)
            .limit(limit)
        )
        with read(self._engine) as connection:
            return [
                Uncommitted(
                    delivery_id=row.delivery_id,
                    study_uid=row.study_uid,
                    reference=Reference(
                        sop_class_uid=row.sop_class_uid, sop_instance_uid=row.sop_instance_uid
                    ),
                    attempts=row.commit_attempts,
                    age_s=max(0.0, float(row.age_s)),
                )
                for row in connection.execute(statement)
            ]

    def begin(
        self,
        peer: str,
        transaction_uid: str,
        items: Sequence[Uncommitted],
        *,
        ask_again_s: Callable[[Uncommitted], float],
    ) -> None:
        """Write down a request that is about to be sent, and when to ask again without an answer.

        Parameters
        ----------
        ask_again_s
            Seconds for one object.
        """

        def work(connection: Connection) -> None:
            self._insert(
                connection,
                peer,
                transaction_uid,
                [
                    {
                        "sop_instance_uid": item.reference.sop_instance_uid,
                        "sop_class_uid": item.reference.sop_class_uid,
                        "delivery_id": item.delivery_id,
                        "request_id": None,
                    }
                    for item in items
                ],
            )
            for item in items:
                connection.execute(
                    update(_deliveries)
                    .where(_deliveries.c.delivery_id == item.delivery_id)
                    .values(
                        commit_attempts=_deliveries.c.commit_attempts + 1,
                        # By it alarms and people count; the future has no age.
                        commit_since=case(
                            (_deliveries.c.commit_since > db_now(), db_now()),
                            else_=_deliveries.c.commit_since,
                        ),
                        commit_next_at=db_now() + ask_again_s(item),
                    )
                )

        write(self._engine, work)

    def begin_for_request(
        self, peer: str, transaction_uid: str, request_id: int, references: Sequence[Reference]
    ) -> None:
        """Write down that an archive is asked in our turn what a scanner asked of us."""
        rows = [
            {
                "sop_instance_uid": reference.sop_instance_uid,
                "sop_class_uid": reference.sop_class_uid,
                "delivery_id": None,
                "request_id": request_id,
            }
            for reference in references
        ]
        write(self._engine, lambda c: self._insert(c, peer, transaction_uid, rows))

    @staticmethod
    def _insert(
        connection: Connection, peer: str, transaction_uid: str, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        commitment_id = connection.execute(
            insert(_commitments)
            .values(transaction_uid=transaction_uid, peer=peer, asked_at=db_now())
            .returning(_commitments.c.commitment_id)
        ).scalar_one()
        connection.execute(
            insert(_items), [{**row, "commitment_id": commitment_id} for row in rows]
        )

    def put_off(self, items: Sequence[Uncommitted], error: str, wait_s: float | None) -> None:
        """Say that the request did not reach the archive, and when to ask again.

        Parameters
        ----------
        wait_s
            None: no more, and `show` says so. It remains uncommitted all the same, for the alarm
            and for what is kept: silence is no commitment.
        """
        ended = {"commit_next_at": None, "last_error": error}
        values = ended if wait_s is None else {"commit_next_at": db_now() + wait_s}
        statement = (
            update(_deliveries)
            .where(
                _deliveries.c.delivery_id.in_([item.delivery_id for item in items]),
                _deliveries.c.state.in_(TAKEN),
            )
            .values(commit_error=error, **values)
        )
        write(self._engine, lambda connection: connection.execute(statement))

    def ask_again(self, destination: str | None = None) -> int:
        """Ask about all that is uncommitted, given up or abandoned again; returns how many."""
        wanted = _deliveries.c.state.in_(TAKEN) & (
            _deliveries.c.commit_since.is_not(None) | _deliveries.c.commit_error.is_not(None)
        )
        if destination is not None:
            wanted &= _deliveries.c.destination == destination
        statement = (
            update(_deliveries)
            .where(wanted)
            .values(commit_next_at=db_now(), commit_since=db_now(), abandoned_at=None)
            .returning(_deliveries.c.delivery_id)
        )
        return write(self._engine, lambda c: len(c.execute(statement).all()))

    # ------------------------------------------------------------------ being answered

    def peer_of(self, transaction_uid: str) -> str | None:
        """Who was asked under this UID; None where nobody was."""
        statement = select(_commitments.c.peer).where(
            _commitments.c.transaction_uid == transaction_uid
        )
        with read(self._engine) as connection:
            found: str | None = connection.execute(statement).scalar_one_or_none()
        return found

    def settle(
        self, report: CommitmentReport, *, redeliveries: int, retry_s: float
    ) -> Settled | None:
        """Act on a report; idempotent.

        Parameters
        ----------
        redeliveries
            How often an object that the archive lacks is sent again before it is parked.
        retry_s
            Seconds after which to ask again about what failed for a passing reason.

        Returns
        -------
        Settled or None
            None where nobody was asked under this transaction UID: nothing done.
        """

        def work(connection: Connection) -> Settled | None:
            asked = connection.execute(
                select(_commitments)
                .where(_commitments.c.transaction_uid == report.transaction_uid)
                .with_for_update()
            ).one_or_none()
            if asked is None:
                return None
            rows = {
                row.sop_instance_uid: row
                for row in connection.execute(
                    select(_items).where(_items.c.commitment_id == asked.commitment_id)
                )
            }
            _lock_studies(connection, {r.delivery_id for r in rows.values()} - {None})
            committed = 0
            for reference in report.committed:
                row = rows.get(reference.sop_instance_uid)
                # What was not asked, or under another class, is no answer to our question.
                if row is not None and row.sop_class_uid == reference.sop_class_uid:
                    committed += self._commit(connection, row)
            failed: dict[Remedy, int] = {}
            stale = asked.answered_at is not None
            for reference, reason in () if stale else report.failed:
                row = rows.get(reference.sop_instance_uid)
                if row is not None:
                    remedy = self._refuse(connection, row, reason, redeliveries, retry_s)
                    if remedy is not None:
                        failed[remedy] = failed.get(remedy, 0) + 1
            for request_id in {r.request_id for r in rows.values()} - {None}:
                _wake(connection, request_id)
            if not stale:
                connection.execute(
                    update(_commitments)
                    .where(_commitments.c.commitment_id == asked.commitment_id)
                    .values(answered_at=db_now())
                )
            return Settled(peer=asked.peer, committed=committed, failed=failed, stale=stale)

        return write(self._engine, work)

    def _commit(self, connection: Connection, row: Row[Any]) -> int:
        if row.request_id is not None:
            requested = schema.commitment_request_items
            return connection.execute(
                update(requested)
                .where(
                    requested.c.request_id == row.request_id,
                    requested.c.sop_instance_uid == row.sop_instance_uid,
                    requested.c.held.is_not(True),
                )
                .values(held=True, failure=None)
            ).rowcount
        delivery = _locked(connection, row.delivery_id)
        if delivery is None or delivery.state == DeliveryState.COMMITTED:
            return 0
        values = {**COMMITMENT_ENDED, "state": DeliveryState.COMMITTED.value}
        if delivery.sent_at is None:
            values["sent_at"] = self._clock()
        connection.execute(
            update(_deliveries).where(_deliveries.c.delivery_id == row.delivery_id).values(**values)
        )
        complete_job(connection, delivery.job_id, self._clock())
        return 1

    @staticmethod
    def _refuse(
        connection: Connection, row: Row[Any], reason: int, redeliveries: int, retry_s: float
    ) -> Remedy | None:
        """Take what `FAILURE_RULES` says; None where this no is not heeded."""
        if row.request_id is not None:
            requested = schema.commitment_request_items
            connection.execute(
                update(requested)
                .where(
                    requested.c.request_id == row.request_id,
                    requested.c.sop_instance_uid == row.sop_instance_uid,
                    requested.c.held.is_not(True),
                )
                .values(held=False, failure=reason)
            )
            return Remedy.ASK_AGAIN
        delivery = _locked(connection, row.delivery_id)
        if delivery is None or delivery.state not in TAKEN:
            return None
        newer = exists().where(
            _items.c.delivery_id == row.delivery_id, _items.c.commitment_id > row.commitment_id
        )
        if connection.execute(select(newer)).scalar_one():
            return None
        remedy = failure_rule(reason).remedy
        error = describe_failure(reason)
        if remedy is Remedy.REDELIVER and delivery.redeliveries >= redeliveries:
            remedy = Remedy.PARK
        if remedy is Remedy.REDELIVER:
            hindrance = _hindrance(connection, delivery)
            if hindrance is not None:
                remedy = Remedy.PARK
                # Exactly these words are what `holding.send_held` looks for.
                error = hindrance if hindrance == HELD_BACK else f"{error}; {hindrance}"
        values: dict[str, Any] = {
            Remedy.ASK_AGAIN: {"commit_error": error, "commit_next_at": db_now() + retry_s},
            Remedy.REDELIVER: {
                **COMMITMENT_ENDED,
                "state": DeliveryState.PENDING.value,
                "redeliveries": delivery.redeliveries + 1,
                "last_error": error,
                "sent_at": None,
                "queued_at": db_now(),
                "next_attempt_at": db_now(),
            },
            Remedy.PARK: {
                **COMMITMENT_ENDED,
                "state": DeliveryState.PARKED.value,
                "last_error": error,
            },
        }[remedy]
        connection.execute(
            update(_deliveries).where(_deliveries.c.delivery_id == row.delivery_id).values(**values)
        )
        if remedy is not Remedy.ASK_AGAIN:
            # It is not delivered after all.
            connection.execute(
                update(schema.jobs)
                .where(schema.jobs.c.job_id == delivery.job_id)
                .values(delivered_at=None)
            )
        if remedy is Remedy.REDELIVER:
            notify(connection, Topic.DELIVERIES)
        return remedy

    # ------------------------------------------------------------------ looking

    def lacking(self) -> list[Lacking]:
        """Destinations with objects to which they have not committed, and since when."""
        statement = (
            select(
                _deliveries.c.destination,
                func.count().label("waiting"),
                (db_now() - func.min(_deliveries.c.commit_since)).label("oldest_s"),
            )
            .where(
                _deliveries.c.commit_since.is_not(None),
                _deliveries.c.state.in_(TAKEN),
                _deliveries.c.abandoned_at.is_(None),
            )
            .group_by(_deliveries.c.destination)
            .order_by(_deliveries.c.destination)
        )
        with read(self._engine) as connection:
            return [
                Lacking(
                    destination=row.destination,
                    waiting=row.waiting,
                    oldest_s=max(0.0, float(row.oldest_s)),
                )
                for row in connection.execute(statement)
            ]

    def prune(self, older_than_s: float) -> int:
        """Forget some requests of long ago, answered or not. Returns how many."""
        old = select(_commitments.c.commitment_id).where(
            _commitments.c.asked_at < db_now() - older_than_s
        )
        with read(self._engine) as connection:
            found = list(connection.execute(old.limit(PRUNED_AT_ONCE)).scalars())
        statement = delete(_commitments).where(_commitments.c.commitment_id.in_(found))
        if found:
            write(self._engine, lambda connection: connection.execute(statement))
        return len(found)


def _wake(connection: Connection, request_id: int) -> None:
    """Make a scanner's request due of which everything is held now."""
    requests, items = schema.commitment_requests, schema.commitment_request_items
    lacking = exists().where(items.c.request_id == request_id, items.c.held.is_not(True))
    connection.execute(
        update(requests)
        .where(requests.c.request_id == request_id, requests.c.ended_at.is_(None), ~lacking)
        .values(next_attempt_at=db_now())
    )


def _lock_studies(connection: Connection, delivery_ids: set[int]) -> None:
    """Lock the studies of deliveries, before the deliveries: as whoever holds them back does."""
    jobs, studies = schema.jobs, schema.studies
    for part in chunks(map(str, delivery_ids)):
        mine = (
            select(jobs.c.study_uid)
            .join(_deliveries, _deliveries.c.job_id == jobs.c.job_id)
            .where(_deliveries.c.delivery_id.in_([int(number) for number in part]))
        )
        connection.execute(
            select(studies.c.study_uid)
            .where(studies.c.study_uid.in_(mine))
            .order_by(studies.c.study_uid)
            .with_for_update()
        )


def _hindrance(connection: Connection, delivery: Row[Any]) -> str | None:
    """Why an object may not be sent again by itself; None where it may."""
    if delivery.abandoned_at is not None:
        return "it was abandoned"
    results, jobs, studies = schema.results, schema.jobs, schema.studies
    row = connection.execute(
        select(results.c.path, results.c.removed_at, studies.c.quarantine_reason)
        .join(jobs, results.c.job_id == jobs.c.job_id)
        .join(studies, jobs.c.study_uid == studies.c.study_uid)
        .where(results.c.result_id == delivery.result_id)
    ).one()
    if row.quarantine_reason is not None:
        return HELD_BACK
    if row.path is None or row.removed_at is not None:
        return "its file is no longer held here; reprocess the study"
    return None


def _locked(connection: Connection, delivery_id: int) -> Row[Any] | None:
    return connection.execute(
        select(_deliveries).where(_deliveries.c.delivery_id == delivery_id).with_for_update()
    ).one_or_none()
