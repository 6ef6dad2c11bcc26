"""How a run ends: its row, its study's row, its results and their deliveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from pe_triage.domain import DeliveryState, Job, Priority, ResultKind, StudyState
from pe_triage.store import schema
from pe_triage.store.engine import db_now
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
    """Relative to the data directory."""


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


def write_results(
    connection: Connection,
    job: Job,
    priority: Priority | None,
    results: Sequence[ResultRow],
    destinations: Sequence[str],
) -> None:
    """Write the results of `job`, and one delivery of each to each destination."""
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
    rows = connection.execute(
        select(table.c.result_id, table.c.ordinal)
        .where(table.c.job_id == job.job_id, table.c.sop_instance_uid.is_not(None))
        .order_by(table.c.ordinal)
    ).all()
    if not rows or not destinations:
        return
    now = connection.execute(select(db_now())).scalar_one()
    connection.execute(
        insert(schema.deliveries),
        [
            {
                "result_id": row.result_id,
                "job_id": job.job_id,
                "destination": destination,
                "state": DeliveryState.PENDING.value,
                "attempts": 0,
                "urgency": URGENCY[priority],
                "ordinal": row.ordinal,
                "queued_at": now,
                "next_attempt_at": now,
            }
            for row in rows
            for destination in dict.fromkeys(destinations)
        ],
    )
