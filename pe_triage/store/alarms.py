"""Alarms that stand, and the notices of them that webhooks get.

A notice's body is written when the alarm changes and kept, so that a repetition sends the same
bytes under the same id.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, update

from pe_triage.domain import DeliveryState
from pe_triage.store import schema
from pe_triage.store.engine import db_now, read, write
from pe_triage.watch.alarms import Finding

EVENTS = ("raised", "standing", "cleared")

_alarms, _notices = schema.alarms, schema.alarm_notices


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm that stands."""

    alarm_id: int
    name: str
    subject: str
    message: str
    facts: Mapping[str, Any]
    raised_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a look at the node has changed."""

    raised: tuple[Alarm, ...]
    reminded: tuple[Alarm, ...]
    cleared: tuple[Alarm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message about one alarm on its way to one webhook."""

    notice_id: int
    alarm_id: int
    destination: str
    body: bytes
    attempts: int
    age_s: float


class AlarmStore:
    """Alarms, shared by whoever looks.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    aet
        Names this node in what is sent.
    destinations
        Webhooks that get alarms.
    """

    def __init__(self, engine: Engine, *, aet: str = "", destinations: Sequence[str] = ()) -> None:
        self._engine = engine
        self._aet = aet
        self._destinations = tuple(destinations)

    def settle(
        self,
        findings: Sequence[Finding],
        *,
        names: Collection[str],
        at: datetime,
        remind_s: float,
    ) -> Changes:
        """Make the standing alarms of these `names` exactly `findings`, and queue the notices.

        Parameters
        ----------
        names
            Alarms that this look speaks of; what stands under other names is left alone.
        remind_s
            A standing alarm is sent again after so long.
        """
        wanted = {(f.name, f.subject): f for f in findings}

        def work(connection: Connection) -> Changes:
            raised, reminded, cleared = [], [], []
            standing: set[tuple[str, str]] = set()
            for row in connection.execute(
                select(_alarms).where(_alarms.c.cleared_at.is_(None)).with_for_update()
            ).all():
                if row.name not in names:
                    continue
                standing.add((row.name, row.subject))
                finding = wanted.get((row.name, row.subject))
                if finding is None:
                    self._update(connection, row, cleared_at=at)
                    cleared.append(_alarm(row))
                    self._notify(connection, _alarm(row), "cleared", at)
                    continue
                due = (at - row.reminded_at).total_seconds() >= remind_s
                self._update(
                    connection,
                    row,
                    message=finding.message,
                    facts=dict(finding.facts),
                    **({"reminded_at": at} if due else {}),
                )
                if due:
                    alarm = Alarm(
                        alarm_id=row.alarm_id,
                        name=row.name,
                        subject=row.subject,
                        message=finding.message,
                        facts=finding.facts,
                        raised_at=row.raised_at,
                    )
                    reminded.append(alarm)
                    self._notify(connection, alarm, "standing", at)
            for key in wanted.keys() - standing:
                alarm = self._raise(connection, wanted[key], at)
                raised.append(alarm)
                self._notify(connection, alarm, "raised", at)
            return Changes(raised=tuple(raised), reminded=tuple(reminded), cleared=tuple(cleared))

        return write(self._engine, work)

    def standing(self) -> tuple[Alarm, ...]:
        """Alarms that stand, oldest first."""
        with read(self._engine) as connection:
            rows = connection.execute(
                select(_alarms)
                .where(_alarms.c.cleared_at.is_(None))
                .order_by(_alarms.c.raised_at, _alarms.c.alarm_id)
            )
            return tuple(_alarm(row) for row in rows)

    def due(self, destination: str, limit: int = 32) -> tuple[Notice, ...]:
        """Notices to send now, oldest first."""
        statement = (
            select(_notices, (db_now() - _notices.c.queued_at).label("age_s"))
            .where(
                _notices.c.destination == destination,
                _notices.c.state == DeliveryState.PENDING.value,
                _notices.c.next_attempt_at <= db_now(),
            )
            .order_by(_notices.c.notice_id)
            .limit(limit)
        )
        with read(self._engine) as connection:
            return tuple(
                Notice(
                    notice_id=row.notice_id,
                    alarm_id=row.alarm_id,
                    destination=row.destination,
                    body=row.body.encode(),
                    attempts=row.attempts,
                    age_s=max(0.0, float(row.age_s)),
                )
                for row in connection.execute(statement)
            )

    def mark(
        self,
        notice: Notice,
        state: DeliveryState,
        *,
        error: str | None = None,
        retry_in_s: float | None = None,
    ) -> None:
        """Say what became of an attempt; `retry_in_s` goes with PENDING."""
        values: dict[str, Any] = {
            "state": state.value,
            "attempts": notice.attempts + 1,
            "last_error": error,
        }
        if retry_in_s is not None:
            values["next_attempt_at"] = db_now() + retry_in_s
        statement = (
            update(_notices).where(_notices.c.notice_id == notice.notice_id).values(**values)
        )
        write(self._engine, lambda connection: connection.execute(statement))

    def _raise(self, connection: Connection, finding: Finding, at: datetime) -> Alarm:
        alarm_id = connection.execute(
            insert(_alarms)
            .values(
                name=finding.name,
                subject=finding.subject,
                message=finding.message,
                facts=dict(finding.facts),
                raised_at=at,
                reminded_at=at,
            )
            .returning(_alarms.c.alarm_id)
        ).scalar_one()
        return Alarm(
            alarm_id=alarm_id,
            name=finding.name,
            subject=finding.subject,
            message=finding.message,
            facts=finding.facts,
            raised_at=at,
        )

    def _update(self, connection: Connection, row: Row[Any], **values: Any) -> None:
        connection.execute(
            update(_alarms).where(_alarms.c.alarm_id == row.alarm_id).values(**values)
        )

    def _notify(self, connection: Connection, alarm: Alarm, event: str, at: datetime) -> None:
        body = json.dumps(
            {
                "id": f"alarm-{alarm.alarm_id}-{event}-{at:%Y%m%dT%H%M%S}",
                "type": f"pe_triage.alarm.{event}",
                "timestamp": at.isoformat(),
                "data": {
                    "alarm": alarm.name,
                    "subject": alarm.subject,
                    "message": alarm.message,
                    "facts": dict(alarm.facts),
                    "raised_at": alarm.raised_at.isoformat(),
                    "node": self._aet,
                },
            },
            ensure_ascii=False,
            sort_keys=True,
        )
        for destination in self._destinations:
            connection.execute(
                insert(_notices).values(
                    alarm_id=alarm.alarm_id,
                    destination=destination,
                    body=body,
                    state=DeliveryState.PENDING.value,
                    attempts=0,
                    queued_at=db_now(),
                    next_attempt_at=db_now(),
                )
            )


def _alarm(row: Row[Any]) -> Alarm:
    return Alarm(
        alarm_id=row.alarm_id,
        name=row.name,
        subject=row.subject,
        message=row.message,
        facts=row.facts,
        raised_at=row.raised_at,
    )
