"""The invariant, as a function of what was sent, what the node holds and what the PACS got.

1. Every instance answered 0000 is stored byte-exact, under its own study and series.
2. Every study of which an instance was acknowledged ends in exactly one terminal state, and since
   every study of the campaign is a good one and every fault passes, that state is DONE.
3. No result stands under a wrong study or patient, or speaks of other images than its study's.
4. No logical result exists twice: one object of each kind for each run, always the same bytes, of
   the claim that held the job; and one claim at most says that it has finished a run.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from pe_triage.domain import TERMINAL_STATES, StudyState
from pe_triage.receive.part10 import dataset_offset
from pe_triage.store import schema
from pe_triage.store.engine import read
from tests.campaign.pacs import Arrival
from tests.campaign.studies import SentStudy

ENDS = frozenset(state.value for state in TERMINAL_STATES)
SENT = frozenset({"SENT", "WARNING", "COMMITTED"})
KINDS = ("NARRATIVE", "SR")
"""Objects of one run under the campaign's configuration."""
REPORT_CLASSES = {
    "SR": "1.2.840.10008.5.1.4.1.1.88.34",
    "NARRATIVE": "1.2.840.10008.5.1.4.1.1.88.22",
}
ANSWERS = frozenset({"DONE", "NOT_EVALUATED"})
"""Ends that have results. A run that was closed while its sender was away may be NOT_EVALUATED:
what had come of the study by then was too little. The next run supersedes it."""
ROUNDING = 1e-4
"""Of a probability in a report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a node's database says of one thing, as plain values."""

    studies: Mapping[str, Any] = field(default_factory=dict)
    """Study Instance UID to (state, patient id)."""
    instances: Mapping[str, tuple[str, str, Path]] = field(default_factory=dict)
    """SOP Instance UID to (study, SHA-256, path)."""
    jobs: Sequence[Any] = ()
    """Rows: job_id, study_uid, run, state, fencing_token."""
    results: Sequence[Any] = ()
    """Rows: job_id, kind, sop_instance_uid, path."""
    deliveries: Sequence[Any] = ()
    """Rows: job_id, destination, state."""


def held_in(engine: Engine, data_dir: Path) -> Held:
    """Read everything that the check looks at."""
    studies, instances = schema.studies, schema.instances
    jobs, results, deliveries = schema.jobs, schema.results, schema.deliveries
    with read(engine) as c:
        return Held(
            studies={
                r.study_uid: (r.state, r.patient_id)
                for r in c.execute(
                    select(studies.c.study_uid, studies.c.state, studies.c.patient_id)
                )
            },
            instances={
                r.sop_instance_uid: (r.study_uid, r.sha256, data_dir / r.path)
                for r in c.execute(
                    select(
                        instances.c.sop_instance_uid,
                        instances.c.study_uid,
                        instances.c.sha256,
                        instances.c.path,
                    )
                )
            },
            jobs=c.execute(
                select(
                    jobs.c.job_id,
                    jobs.c.study_uid,
                    jobs.c.run,
                    jobs.c.state,
                    jobs.c.fencing_token,
                )
            ).all(),
            results=c.execute(
                select(results.c.job_id, results.c.kind, results.c.sop_instance_uid, results.c.path)
            ).all(),
            deliveries=c.execute(
                select(deliveries.c.job_id, deliveries.c.destination, deliveries.c.state)
            ).all(),
        )


def dataset_digest(path: Path) -> str | None:
    """SHA-256 of a Part 10 file's data set; None where the file is not there or not one."""
    try:
        offset = dataset_offset(path)
        return hashlib.sha256(path.read_bytes()[offset:]).hexdigest()
    except Exception:
        return None


@dataclass(kw_only=True)
class Seen:
    """Everything that one check is about."""

    sent: Mapping[str, SentStudy]
    acked: Iterable[str]
    held: Held
    data_dir: Path
    arrivals: Sequence[Arrival]
    finished: Sequence[tuple[str, int]] = ()
    """(study, run) of each event ``job.finished``."""


def violations(seen: Seen) -> list[str]:
    """Everything that breaks the invariant, in words; empty where it holds."""
    return [
        *_instances(seen),
        *_ends(seen),
        *_results(seen),
        *_at_the_pacs(seen),
        *(
            f"run {run} of {uid} was finished by {count} claims"
            for (uid, run), count in Counter(seen.finished).items()
            if count > 1
        ),
    ]


def _acked_studies(seen: Seen) -> dict[str, SentStudy]:
    acked = set(seen.acked)
    return {
        uid: study
        for uid, study in seen.sent.items()
        if any(image.sop_instance_uid in acked for image in study.images)
    }


def _instances(seen: Seen) -> list[str]:
    acked, found = set(seen.acked), []
    for uid, study in seen.sent.items():
        for sop, sha256 in study.digests.items():
            if sop not in acked:
                continue
            row = seen.held.instances.get(sop)
            if row is None:
                found.append(f"instance {sop} was answered 0000 and is not held")
            elif row[0] != uid:
                found.append(f"instance {sop} is held under study {row[0]}")
            elif row[1] != sha256:
                found.append(f"instance {sop} was recorded with other bytes than were sent")
            elif dataset_digest(row[2]) != sha256:
                found.append(f"the file of instance {sop} is not what was sent")
    return found


def _ends(seen: Seen) -> list[str]:
    found = []
    states: defaultdict[str, list[str]] = defaultdict(list)
    for job in seen.held.jobs:
        states[job.study_uid].append(job.state)
    for uid, study in _acked_studies(seen).items():
        state, patient_id = seen.held.studies.get(uid, (None, None))
        if state != StudyState.DONE.value:
            found.append(f"study {uid} stands in {state}, not in DONE")
        if patient_id not in (None, study.patient_id):
            found.append(f"study {uid} is held under another patient")
        open_runs = [s for s in states[uid] if s not in ENDS]
        if open_runs:
            found.append(f"study {uid} has a run that did not end")
        if state == StudyState.DONE.value and not states[uid]:
            found.append(f"study {uid} ended without a run")
    return found


def _results(seen: Seen) -> list[str]:
    found = []
    kinds: defaultdict[int, list[str]] = defaultdict(list)
    jobs = {job.job_id: job for job in seen.held.jobs}
    for row in seen.held.results:
        job = jobs[row.job_id]
        kinds[row.job_id].append(row.kind)
        if row.path is not None and not _is_of_claim(Path(row.path), job.run, job.fencing_token):
            found.append(
                f"a result of run {job.run} of {job.study_uid} is of a claim that had lost the job"
            )
    for job in jobs.values():
        expected = list(KINDS) if job.state in ANSWERS else []
        if sorted(kinds[job.job_id]) != expected:
            found.append(
                f"run {job.run} of {job.study_uid} ({job.state}) has results {kinds[job.job_id]}"
            )
    found += [
        f"a delivery of {jobs[row.job_id].study_uid} stands in {row.state}"
        for row in seen.held.deliveries
        if row.state not in SENT
    ]
    return found


def _is_of_claim(path: Path, run: int, token: int) -> bool:
    """Whether a result lies in the directory of this claim (`node.files.result_dir`)."""
    return path.parent.name == f"run-{run:03d}-{token}"


def _at_the_pacs(seen: Seen) -> list[str]:
    found: list[str] = []
    jobs = {job.job_id: job for job in seen.held.jobs}
    rows = {row.sop_instance_uid: row for row in seen.held.results}
    by_uid: defaultdict[str, list[Arrival]] = defaultdict(list)
    for arrival in seen.arrivals:
        by_uid[arrival.sop_instance_uid].append(arrival)
    for uid, arrivals in by_uid.items():
        if len({a.sha256 for a in arrivals}) > 1:
            found.append(f"result {uid} came with different bytes")
        row = rows.get(uid)
        if row is None:
            found.append(f"the PACS has result {uid}, which the node does not know")
            continue
        study_uid = jobs[row.job_id].study_uid
        path = seen.data_dir / row.path if row.path else None
        if path is not None and dataset_digest(path) != arrivals[0].sha256:
            found.append(f"result {uid} came with other bytes than were persisted")
        for arrival in arrivals[:1]:
            found += _of_its_study(arrival, study_uid, seen.sent.get(study_uid))
    # Counted at the PACS alone, whatever the node believes: one report for each run that ended.
    counts = Counter((a[0].study_uid, a[0].sop_class_uid) for a in by_uid.values())
    done = Counter(job.study_uid for job in jobs.values() if job.state in ANSWERS)
    for study_uid in {*done, *(uid for uid, _ in counts)}:
        for kind, class_uid in REPORT_CLASSES.items():
            count = counts[study_uid, class_uid]
            if count != done[study_uid]:
                found.append(
                    f"the PACS has {count} {kind} of {study_uid} for {done[study_uid]} answers"
                )
    return found


def _of_its_study(arrival: Arrival, study_uid: str, study: SentStudy | None) -> list[str]:
    uid = arrival.sop_instance_uid
    if study is None:
        return [f"result {uid} is of a study that was never sent"]
    found = []
    if arrival.study_uid != study_uid:
        found.append(f"result {uid} stands under study {arrival.study_uid}, not {study_uid}")
    if arrival.patient_id != study.patient_id:
        found.append(f"result {uid} stands under patient {arrival.patient_id}")
    if arrival.images - study.digests.keys():
        found.append(f"result {uid} refers to images of another study")
    return found


def answers(arrivals: Sequence[Arrival], study: SentStudy) -> bool:
    """Whether the PACS holds the answer that the stand-in gives on the whole study."""
    return any(
        abs(number - study.probability) < ROUNDING
        for arrival in arrivals
        if arrival.study_uid == study.study_uid
        for number in arrival.numbers
    )


def database_problem(data_dir: Path) -> str | None:
    """What SQLite says of its own file; None where it is whole or not there."""
    path = data_dir / "pe-triage.sqlite3"
    if not path.exists():
        return None
    with sqlite3.connect(path) as connection:
        said = connection.execute("PRAGMA integrity_check").fetchone()[0]
    connection.close()
    return None if said == "ok" else f"the database is damaged: {said}"
