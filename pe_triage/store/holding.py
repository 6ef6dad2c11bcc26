"""Results of a study whose patient is in doubt are not sent until a person has settled it."""

from __future__ import annotations

from sqlalchemy import Connection, Select, select, update

from pe_triage.domain import DeliveryState
from pe_triage.store import schema
from pe_triage.store.engine import db_now
from pe_triage.store.notices import Topic, notify

HELD_BACK = "not sent: the study's patient is in doubt, see pe-triage quarantine list"

_deliveries = schema.deliveries


def hold_back(connection: Connection, study_uid: str) -> None:
    """Park what waits to be sent of a study, saying why."""
    connection.execute(
        update(_deliveries)
        .where(
            _deliveries.c.job_id.in_(_jobs_of(study_uid)),
            _deliveries.c.state == DeliveryState.PENDING.value,
        )
        .values(state=DeliveryState.PARKED.value, last_error=HELD_BACK)
    )


def send_held(connection: Connection, study_uid: str) -> None:
    """Let what `hold_back` parked go on its way."""
    connection.execute(
        update(_deliveries)
        .where(
            _deliveries.c.job_id.in_(_jobs_of(study_uid)),
            _deliveries.c.state == DeliveryState.PARKED.value,
            _deliveries.c.last_error == HELD_BACK,
        )
        .values(
            state=DeliveryState.PENDING.value,
            last_error=None,
            next_attempt_at=db_now(),
            queued_at=db_now(),
        )
    )
    notify(connection, Topic.DELIVERIES)


def _jobs_of(study_uid: str) -> Select[tuple[int]]:
    return select(schema.jobs.c.job_id).where(schema.jobs.c.study_uid == study_uid)
