"""The documents that people and scripts read: one study, and the triage worklist.

The answer shown is that of the newest run that has ended; a newer run that is still queued or
running is seen in ``state`` and ``pending_run``, and takes the answer's place when it ends. So a
positive study does not leave the top of the worklist because a late slice came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, select

from pe_triage.domain import TERMINAL_STATES, Outcome, StudyState
from pe_triage.errors import StudyNotFoundError
from pe_triage.store import schema
from pe_triage.store.engine import read
from pe_triage.store.recording import chunks
from pe_triage.store.studies import study_state

ONLY_OWN_RESULTS = "holds nothing but results that pe-triage itself has made"

DOCUMENT_KEYS = ("series_uid", "exam", "pe_probability", "findings", "model")

_jobs = schema.jobs
_ANSWER_COLUMNS = tuple(column for column in _jobs.c if column.name != "slices")


def show(engine: Engine, study_uid: str, data_dir: Path) -> dict[str, Any]:
    """Everything known of one study, as ``pe-triage show --json`` prints it.

    Parameters
    ----------
    data_dir
        Result paths are absolute: inside it.

    Raises
    ------
    StudyNotFoundError
        No study of that UID is known.
    """
    studies = schema.studies
    with read(engine) as connection:
        study = connection.execute(
            select(studies).where(studies.c.study_uid == study_uid)
        ).one_or_none()
        if study is None:
            raise StudyNotFoundError(study_uid)
        return _documents(connection, [study], data_dir, with_slices=True)[0]


def worklist(
    engine: Engine,
    data_dir: Path,
    limit: int | None = None,
    since: datetime | None = None,
) -> list[dict[str, Any]]:
    """Studies in the order in which a radiologist should read them, without ``slices``.

    HIGH, MEDIUM, LOW, then without priority; within each the oldest unread first. The node is not
    told what was read, so every study counts as unread.

    Parameters
    ----------
    limit
        At most so many; None: all.
    since
        Only studies whose first image came at or after this time (aware).
    """
    studies = schema.studies
    statement = select(studies).order_by(
        studies.c.urgency, studies.c.received_at, studies.c.study_uid
    )
    if since is not None:
        # With the urgencies named, the worklist's own order is searched and not read through.
        statement = statement.where(
            studies.c.urgency.in_(sorted(schema.URGENCY.values())), studies.c.received_at >= since
        )
    if limit is not None:
        statement = statement.limit(limit)
    with read(engine) as connection:
        rows = connection.execute(statement).all()
        return _documents(connection, rows, data_dir, with_slices=False)


def _documents(
    connection: Connection, studies: Sequence[Row[Any]], data_dir: Path, *, with_slices: bool
) -> list[dict[str, Any]]:
    newest, answers = _runs(connection, [study.study_uid for study in studies])
    shown = [answers[study.study_uid] for study in studies if study.study_uid in answers]
    results = _results(connection, [job.job_id for job in shown], data_dir)
    documents = []
    for study in studies:
        answer = answers.get(study.study_uid)
        slices = _slices(connection, answer) if with_slices else None
        found = [] if answer is None else results.get(answer.job_id, [])
        documents.append(_document(study, newest.get(study.study_uid), answer, slices, found))
    return documents


def _runs(
    connection: Connection, study_uids: Iterable[str]
) -> tuple[dict[str, Row[Any]], dict[str, Row[Any]]]:
    """Newest run of each study, and the run whose answer is shown (ended if any has)."""
    newest: dict[str, Row[Any]] = {}
    answers: dict[str, Row[Any]] = {}
    for uids in chunks(study_uids):
        statement = (
            select(*_ANSWER_COLUMNS)
            .where(_jobs.c.study_uid.in_(uids))
            .order_by(_jobs.c.study_uid, _jobs.c.run)
        )
        for row in connection.execute(statement):
            newest[row.study_uid] = row
            if row.state in TERMINAL_STATES or row.study_uid not in answers:
                answers[row.study_uid] = row
    return newest, answers


def _slices(connection: Connection, answer: Row[Any] | None) -> list[Any]:
    if answer is None:
        return []
    statement = select(_jobs.c.slices).where(_jobs.c.job_id == answer.job_id)
    return list(connection.execute(statement).scalar_one() or ())


def _results(
    connection: Connection, job_ids: Sequence[int], data_dir: Path
) -> dict[int, list[dict[str, Any]]]:
    results, deliveries = schema.results, schema.deliveries
    found: dict[int, list[dict[str, Any]]] = {}
    by_id: dict[int, dict[str, Any]] = {}
    for start in range(0, len(job_ids), 500):
        ids = job_ids[start : start + 500]
        for row in connection.execute(
            select(results)
            .where(results.c.job_id.in_(ids))
            .order_by(results.c.job_id, results.c.ordinal)
        ):
            result = {
                "kind": row.kind,
                "sop_class_uid": row.sop_class_uid,
                "sop_instance_uid": row.sop_instance_uid,
                "path": None if row.path is None else str((data_dir / row.path).absolute()),
                "deliveries": [],
            }
            found.setdefault(row.job_id, []).append(result)
            by_id[row.result_id] = result
        for row in connection.execute(
            select(deliveries)
            .where(deliveries.c.job_id.in_(ids))
            .order_by(deliveries.c.result_id, deliveries.c.destination)
        ):
            by_id[row.result_id]["deliveries"].append(
                {
                    "destination": row.destination,
                    "state": row.state,
                    "attempts": row.attempts,
                    "last_error": row.last_error,
                }
            )
    return found


def _document(
    study: Row[Any],
    newest: Row[Any] | None,
    answer: Row[Any] | None,
    slices: list[Any] | None,
    results: list[dict[str, Any]],
) -> dict[str, Any]:
    state = study_state(study.state, None if newest is None else newest.state)
    said: Mapping[str, Any] = {} if answer is None else (answer.document or {})
    # Times of one run belong together: an answer's latency is not measured from a later slice.
    times = study if answer is None else answer
    completed_at = None if answer is None else answer.completed_at
    delivered_at = None if answer is None else answer.delivered_at
    outcome = None if answer is None else answer.outcome
    reason = None if answer is None else answer.reason
    if answer is None and state is StudyState.NOT_EVALUATED:
        outcome, reason = Outcome.NOT_EVALUATED.value, ONLY_OWN_RESULTS
    elif answer is None or answer.state not in TERMINAL_STATES:
        reason = study.quarantine_reason
    pending = newest is not None and newest.state not in TERMINAL_STATES
    document: dict[str, Any] = {
        "study_uid": study.study_uid,
        "state": state.value,
        "outcome": outcome,
        "reason": reason,
        "priority": None if answer is None else answer.priority,
        "series_uid": None,
        "instances": study.instances,
        # Fewer where retention has removed files: the study keeps its row and its answer.
        "instances_held": study.instances - study.removed,
        "images_removed_at": _iso(study.removed_at) if study.removed else None,
        "images_removed_why": study.removed_why if study.removed else None,
        "run": 0 if answer is None else answer.run,
        "pending_run": newest.run if pending and newest is not None else None,
    }
    document |= {key: said.get(key) for key in DOCUMENT_KEYS}
    if slices is not None:
        document["slices"] = slices
    document |= {
        "results": results,
        "received_at": times.received_at.isoformat(),
        "last_image_at": times.last_image_at.isoformat(),
        "completed_at": _iso(completed_at),
        "delivered_at": _iso(delivered_at),
        "latency_s": None
        if delivered_at is None
        else (delivered_at - times.last_image_at).total_seconds(),
        "quarantine_reason": study.quarantine_reason,
        # What ended the wait for images, and whether the PACS held more of them.
        "completeness": None
        if answer is None or answer.closed_by is None
        else {
            "sign": answer.closed_by,
            "reason": answer.closed_reason,
            "expected_images": answer.expected_images,
        },
        # Why a run that waits was given back: a full disk, a GPU or a database that was away.
        "last_error": newest.last_error if pending and newest is not None else None,
    }
    return document | {key: value for key, value in said.items() if key not in document}


def _iso(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()
