"""What scanners ask of this node before they delete, until they have their answer.

A scanner deletes on our word, so the word is the archive's: an instance is `held` only where the
archive has said so. A request is OPEN while the archive is asked, REPORTING once it is decided,
and ends REPORTED, or PARKED where the scanner never took the answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, Engine, case, delete, exists, insert, select, update

from pe_triage.commitment import (
    DUPLICATE_TRANSACTION,
    PROCESSING_FAILURE,
    CommitmentReport,
    CommitmentRequest,
    Reference,
)
from pe_triage.store import schema
from pe_triage.store.engine import db_now, read, write
from pe_triage.store.hand_back import CLOCK_SLACK_S
from pe_triage.store.recording import chunks
from pe_triage.store.schema import QuarantineKind, QuarantineState

_requests = schema.commitment_requests
_items = schema.commitment_request_items


class RequestState(StrEnum):
    """Where a scanner's request stands."""

    OPEN = "OPEN"
    REPORTING = "REPORTING"
    REPORTED = "REPORTED"
    PARKED = "PARKED"


class Taken(StrEnum):
    """What became of a request that was received."""

    NEW = "NEW"
    AGAIN = "AGAIN"
    """The same as an earlier one: answered again where that was answered."""
    DUPLICATE = "DUPLICATE"
    """Its transaction UID is that of another request: answered 0131H."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A request that waits for something."""

    request_id: int
    requester: str
    transaction_uid: str
    age_s: float
    attempts: int
    """At what it waits for now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One instance of a request, and what the archive has said of it."""

    reference: Reference
    held: bool | None
    failure: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an instance stands in the hierarchy, as this node received it."""

    study_uid: str
    series_uid: str


class CommitmentRequestStore:
    """Requests of scanners.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, requester: str, request: CommitmentRequest, *, delay_s: float = 0.0) -> Taken:
        """Write down what was asked; idempotent.

        Parameters
        ----------
        requester
            ``AET@HOST:PORT`` to which the answer goes.
        delay_s
            Seconds before the archive is asked: what was just sent may be on its way there.
        """
        digest = _digest(request)

        def work(connection: Connection) -> Taken:
            mine = (_requests.c.requester == requester) & (
                _requests.c.transaction_uid == request.transaction_uid
            )
            same = connection.execute(
                select(_requests).where(mine, _requests.c.digest == digest).with_for_update()
            ).one_or_none()
            if same is not None:
                if same.ended_at is not None:
                    # It may not have heard us: the same answer once more.
                    connection.execute(
                        update(_requests)
                        .where(_requests.c.request_id == same.request_id)
                        .values(
                            state=RequestState.REPORTING.value,
                            ended_at=None,
                            attempts=0,
                            received_at=db_now(),
                            next_attempt_at=db_now(),
                        )
                    )
                return Taken.AGAIN
            duplicate = connection.execute(select(exists().where(mine))).scalar_one()
            state = RequestState.REPORTING if duplicate else RequestState.OPEN
            request_id = connection.execute(
                insert(_requests)
                .values(
                    transaction_uid=request.transaction_uid,
                    requester=requester,
                    digest=digest,
                    state=state.value,
                    received_at=db_now(),
                    next_attempt_at=db_now() + (0.0 if duplicate else delay_s),
                    attempts=0,
                )
                .returning(_requests.c.request_id)
            ).scalar_one()
            connection.execute(
                insert(_items),
                [
                    {
                        "request_id": request_id,
                        "sop_instance_uid": reference.sop_instance_uid,
                        "sop_class_uid": reference.sop_class_uid,
                        "held": False if duplicate else None,
                        "failure": DUPLICATE_TRANSACTION if duplicate else None,
                    }
                    # One instance under two classes: the archive can hold one of them at most.
                    for reference in {r.sop_instance_uid: r for r in request.references}.values()
                ],
            )
            return Taken.DUPLICATE if duplicate else Taken.NEW

        return write(self._engine, work)

    def due(
        self,
        state: RequestState,
        *,
        requester: str | None = None,
        longest_wait_s: float = math.inf,
    ) -> list[OpenRequest]:
        """Requests whose time has come, the oldest first.

        Parameters
        ----------
        longest_wait_s
            As of `commitments.CommitmentStore.due`.
        """
        time_has_come = _requests.c.next_attempt_at <= db_now()
        if math.isfinite(longest_wait_s):
            late = db_now() + longest_wait_s + CLOCK_SLACK_S
            time_has_come |= _requests.c.next_attempt_at > late
        statement = (
            select(
                _requests.c.request_id,
                _requests.c.requester,
                _requests.c.transaction_uid,
                _requests.c.attempts,
                (db_now() - _requests.c.received_at).label("age_s"),
            )
            .where(
                _requests.c.ended_at.is_(None),
                _requests.c.state == state.value,
                time_has_come,
            )
            .order_by(_requests.c.next_attempt_at, _requests.c.request_id)
            .limit(100)
        )
        if requester is not None:
            statement = statement.where(_requests.c.requester == requester)
        with read(self._engine) as connection:
            return [
                OpenRequest(
                    request_id=row.request_id,
                    requester=row.requester,
                    transaction_uid=row.transaction_uid,
                    age_s=max(0.0, float(row.age_s)),
                    attempts=row.attempts,
                )
                for row in connection.execute(statement)
            ]

    def items(self, request_id: int) -> list[Item]:
        """What a request asks about, by SOP Instance UID."""
        statement = (
            select(_items)
            .where(_items.c.request_id == request_id)
            .order_by(_items.c.sop_instance_uid)
        )
        with read(self._engine) as connection:
            return [
                Item(
                    reference=Reference(
                        sop_class_uid=row.sop_class_uid, sop_instance_uid=row.sop_instance_uid
                    ),
                    held=row.held,
                    failure=row.failure,
                )
                for row in connection.execute(statement)
            ]

    def places(self, sop_instance_uids: Sequence[str]) -> dict[str, Place]:
        """Study and series of instances that this node has received and still knows."""
        table = schema.instances
        found: dict[str, Place] = {}
        with read(self._engine) as connection:
            for part in chunks(sop_instance_uids):
                statement = select(
                    table.c.sop_instance_uid, table.c.study_uid, table.c.series_uid
                ).where(table.c.sop_instance_uid.in_(part))
                for row in connection.execute(statement):
                    found[row.sop_instance_uid] = Place(
                        study_uid=row.study_uid, series_uid=row.series_uid
                    )
        return found

    def contradicted(self, sop_instance_uids: Sequence[str]) -> set[str]:
        """Those under which this node was sent two different objects, and nobody has decided."""
        table = schema.quarantine
        found: set[str] = set()
        with read(self._engine) as connection:
            for part in chunks(sop_instance_uids):
                statement = select(table.c.sop_instance_uid).where(
                    table.c.sop_instance_uid.in_(part),
                    table.c.kind != QuarantineKind.OTHER.value,
                    table.c.state == QuarantineState.HELD.value,
                )
                found.update(connection.execute(statement).scalars())
        return found

    def note(self, request_id: int, verdicts: Mapping[str, int | None]) -> None:
        """Keep what the archive said: SOP Instance UID to a Failure Reason, None where it holds.

        What it holds stays held.
        """

        def work(connection: Connection) -> None:
            for uid, failure in sorted(verdicts.items()):
                connection.execute(
                    update(_items)
                    .where(
                        _items.c.request_id == request_id,
                        _items.c.sop_instance_uid == uid,
                        _items.c.held.is_not(True),
                    )
                    .values(held=failure is None, failure=failure)
                )

        write(self._engine, work)

    def put_off(self, request_id: int, wait_s: float, error: str | None) -> None:
        """Wait, and count the attempt."""
        statement = (
            update(_requests)
            .where(_requests.c.request_id == request_id, _requests.c.ended_at.is_(None))
            .values(
                next_attempt_at=db_now() + wait_s,
                attempts=_requests.c.attempts + 1,
                last_error=error,
                # Dated by a clock that was set back since, it would never grow old.
                received_at=case(
                    (_requests.c.received_at > db_now(), db_now()), else_=_requests.c.received_at
                ),
            )
        )
        write(self._engine, lambda connection: connection.execute(statement))

    def decide(self, request_id: int) -> None:
        """What is known now is the answer; what the archive never spoke of has failed (0110H)."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(_items)
                .where(_items.c.request_id == request_id, _items.c.held.is_(None))
                .values(held=False, failure=PROCESSING_FAILURE)
            )
            connection.execute(
                update(_requests)
                .where(
                    _requests.c.request_id == request_id,
                    _requests.c.state == RequestState.OPEN.value,
                )
                .values(
                    state=RequestState.REPORTING.value,
                    attempts=0,
                    next_attempt_at=db_now(),
                    last_error=None,
                )
            )

        write(self._engine, work)

    def answer(self, request: OpenRequest) -> CommitmentReport:
        """What the requester is told."""
        items = self.items(request.request_id)
        return CommitmentReport(
            transaction_uid=request.transaction_uid,
            committed=tuple(item.reference for item in items if item.held),
            failed=tuple(
                (item.reference, item.failure or PROCESSING_FAILURE)
                for item in items
                if not item.held
            ),
        )

    def end(self, request_id: int, state: RequestState, error: str | None = None) -> None:
        """REPORTED, or PARKED where the requester never took the answer."""
        statement = (
            update(_requests)
            .where(_requests.c.request_id == request_id)
            .values(state=state.value, ended_at=db_now(), last_error=error)
        )
        write(self._engine, lambda connection: connection.execute(statement))

    def counts(self) -> dict[RequestState, int]:
        """How many requests stand where, those that ended well excepted."""
        found = dict.fromkeys((RequestState.OPEN, RequestState.REPORTING, RequestState.PARKED), 0)
        with read(self._engine) as connection:
            for state in connection.execute(
                select(_requests.c.state).where(_requests.c.state != RequestState.REPORTED.value)
            ).scalars():
                found[RequestState(state)] += 1
        return found

    def prune(self, older_than_s: float) -> int:
        """Forget some requests that ended long ago. Returns how many."""
        old = select(_requests.c.request_id).where(_requests.c.ended_at < db_now() - older_than_s)
        with read(self._engine) as connection:
            found = list(connection.execute(old.limit(500)).scalars())
        statement = delete(_requests).where(_requests.c.request_id.in_(found))
        if found:
            write(self._engine, lambda connection: connection.execute(statement))
        return len(found)


def _digest(request: CommitmentRequest) -> str:
    lines = sorted(f"{r.sop_class_uid} {r.sop_instance_uid}" for r in request.references)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
