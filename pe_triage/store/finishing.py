"""How a run ends: its row, its study's row, its results and their deliveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from pe_triage.domain import DeliveryState, Job, Outcome, Priority, ResultKind, StudyState
from pe_triage.routing import MESSAGE_KINDS, Route, plan_deliveries
from pe_triage.store import schema
from pe_triage.store.engine import db_now
from pe_triage.store.notices import Topic, notify
from pe_triage.store.schema import NO_URGENCY, URGENCY

ANSWERS = frozenset({StudyState.DONE, StudyState.NOT_EVALUATED})
"""Ends that say something of the study, and so supersede what earlier runs said."""

EMPTY_DOCUMENT: Mapping[str, Any] = {"document": None, "slices": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One result of a run, as stored; its file is durable before this is written."""

    kind: ResultKind
    sop_class_uid: str | None
    sop_instance_uid: str | None
    sha256: str | None
    path: Path | None
    """Relative to the data directory; None for a message that could not be written."""
    addressee: str | None = None
    """Destination that a message was written for; None for a DICOM object."""
    refused: str | None = None
    """Why a message could not be written: its delivery is parked with these words."""


def end_run(
    connection: Connection,
    study: Row[Any],
    job: Job,
    *,
    state: StudyState,
    at: datetime,
    values: Mapping[str, Any],
) -> None:
    """End `job` in `state`; both rows are locked by the caller.

    The study follows only where this is its newest run and nothing has come since: a study that
    grew stays RECEIVING, and one with a newer run stays QUEUED.
    """
    jobs, studies = schema.jobs, schema.studies
    connection.execute(
        update(jobs)
        .where(jobs.c.job_id == job.job_id)
        .values(
            **{
                **EMPTY_DOCUMENT,
                "state": state.value,
                "lease_owner": None,
                "lease_until": None,
                "completed_at": at,
                **values,
            }
        )
    )
    if state in ANSWERS:
        withdraw_messages(connection, job)
        connection.execute(
            update(jobs)
            .where(jobs.c.study_uid == job.study_uid, jobs.c.run < job.run)
            .values(superseded=True)
        )
    priority = values.get("priority")
    changes: dict[str, Any] = {
        "urgency": NO_URGENCY if priority is None else URGENCY[Priority(priority)]
    }
    if study.state == StudyState.QUEUED and study.run == job.run:
        changes["state"] = state.value
    connection.execute(
        update(studies).where(studies.c.study_uid == job.study_uid).values(**changes)
    )
    if study.run != job.run:
        # A newer run has waited for this one to end.
        notify(connection, Topic.JOBS)


def write_results(
    connection: Connection,
    job: Job,
    priority: Priority | None,
    outcome: Outcome | None,
    results: Sequence[ResultRow],
    routes: Sequence[Route],
) -> None:
    """Write the results of `job` and their deliveries, as `plan_deliveries` says."""
    if not results:
        return
    table = schema.results
    connection.execute(
        insert(table),
        [
            {
                "job_id": job.job_id,
                "ordinal": ordinal,
                "kind": result.kind.value,
                "sop_class_uid": result.sop_class_uid,
                "sop_instance_uid": result.sop_instance_uid,
                "sha256": result.sha256,
                "path": None if result.path is None else result.path.as_posix(),
            }
            for ordinal, result in enumerate(results)
        ],
    )
    plan = [
        (ordinal, destination)
        for ordinal, destination in plan_deliveries(results, routes, outcome)
        if results[ordinal].kind in MESSAGE_KINDS or results[ordinal].sop_instance_uid is not None
    ]
    if not plan:
        return
    result_ids = {
        row.ordinal: row.result_id
        for row in connection.execute(
            select(table.c.result_id, table.c.ordinal).where(table.c.job_id == job.job_id)
        )
    }
    now = connection.execute(select(db_now())).scalar_one()
    connection.execute(
        insert(schema.deliveries),
        [
            {
                "result_id": result_ids[ordinal],
                "job_id": job.job_id,
                "destination": destination,
                "state": _first_state(results[ordinal]).value,
                "attempts": 0,
                "urgency": URGENCY[priority],
                "ordinal": ordinal,
                "queued_at": now,
                "next_attempt_at": now,
                "last_error": results[ordinal].refused,
            }
            for ordinal, destination in plan
        ],
    )
    notify(connection, Topic.DELIVERIES)


def withdraw_messages(connection: Connection, job: Job) -> None:
    """Park the messages of earlier runs that no peer has taken yet.

    A DICOM object of an earlier run is still sent: it has a UID of its own, and the newer report
    names it as its predecessor. A message has neither: whichever came last would count, and since
    urgency goes before age that may be the older answer.
    """
    jobs, results, deliveries = schema.jobs, schema.results, schema.deliveries
    earlier = select(jobs.c.job_id).where(jobs.c.study_uid == job.study_uid, jobs.c.run < job.run)
    messages = select(results.c.result_id).where(
        results.c.job_id.in_(earlier), results.c.kind.in_(sorted(k.value for k in MESSAGE_KINDS))
    )
    connection.execute(
        update(deliveries)
        .where(
            deliveries.c.result_id.in_(messages),
            deliveries.c.state == DeliveryState.PENDING.value,
        )
        .values(
            state=DeliveryState.PARKED.value,
            last_error=f"not sent: run {job.run} has superseded this answer",
        )
    )


def _first_state(result: ResultRow) -> DeliveryState:
    return DeliveryState.PENDING if result.refused is None else DeliveryState.PARKED
