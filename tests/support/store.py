"""A store under test, and values to put into it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from pe_triage.domain import (
    InstanceFacts,
    InstanceRole,
    Job,
    Outcome,
    PatientIdentity,
    Priority,
    ReceivedInstance,
    ResultKind,
    StudyState,
)
from pe_triage.imaging.facts import read_instance
from pe_triage.node.roles import role_of
from pe_triage.routing import Route
from pe_triage.store.jobs import JobQueue, ResultRow
from pe_triage.store.outbox import Outbox
from pe_triage.store.quarantine import Quarantine
from pe_triage.store.recording import Recorded
from pe_triage.store.studies import StudyStore

START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
STUDY = "1.2.826.0.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
SR = "1.2.840.10008.5.1.4.1.1.88.34"
PACS = "PACS@127.0.0.1:104"
PATIENT = PatientIdentity(patient_id="PID-SECRET", issuer="HOSP")
SHA_LENGTH = 64

EMPTY_ANSWER: dict[str, Any] = {
    "series_uid": None,
    "exam": None,
    "pe_probability": None,
    "findings": None,
    "model": None,
    "slices": [],
}


@dataclass
class FakeClock:
    """Stands still until told."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@dataclass
class StoreUnderTest:
    engine: Engine
    url: str
    data_dir: Path
    max_attempts: int = 3
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.studies = StudyStore(self.engine, self.data_dir)
        self.queue = JobQueue(self.engine, max_attempts=self.max_attempts, clock=self.clock)
        self.outbox = Outbox(self.engine, self.data_dir, clock=self.clock)
        self.quarantine = Quarantine(self.engine, clock=self.clock)

    def record(self, *instances: ReceivedInstance, association: str = "assoc-1") -> list[Recorded]:
        return self.studies.record([(i, {"rows": 512}, association) for i in instances])

    def receive(self, study_uid: str = STUDY, count: int = 2, **changes: Any) -> None:
        """Record a study of `count` images."""
        self.record(
            *(instance(study_uid, n, self.data_dir, **changes) for n in range(1, count + 1))
        )

    def enqueue(self, study_uid: str = STUDY, **options: Any) -> Job | None:
        digest = self.studies.manifest(study_uid).digest
        return self.queue.enqueue(study_uid, digest, **options)

    def queued(self, study_uid: str = STUDY, **options: Any) -> Job:
        """Record a study and queue it."""
        self.receive(study_uid)
        job = self.enqueue(study_uid, **options)
        assert job is not None
        return job

    def claimed(self, owner: str = "node/worker-0/1", lease_s: float = 30.0) -> Job:
        job = self.queue.claim(owner, lease_s)
        assert job is not None
        return job

    def queued_and_claimed(self, study_uid: str) -> Job:
        """Record, queue and claim a study; no other may be waiting."""
        self.queued(study_uid)
        return self.claimed()

    def finish(
        self,
        job: Job,
        *,
        state: StudyState = StudyState.DONE,
        outcome: Outcome | None = Outcome.POSITIVE,
        reason: str | None = None,
        priority: Priority | None = Priority.HIGH,
        document: dict[str, Any] | None = None,
        results: Sequence[ResultRow] | None = None,
        destinations: Sequence[str | Route] = (PACS,),
    ) -> None:
        self.queue.finish(
            job,
            state=state,
            outcome=outcome,
            reason=reason,
            priority=priority,
            document=EMPTY_ANSWER if document is None else document,
            model_sha256="ab" * 32,
            results=result_rows(job) if results is None else results,
            routes=[d if isinstance(d, Route) else Route(name=d) for d in destinations],
        )

    def state(self, study_uid: str = STUDY) -> StudyState:
        return self.studies.get(study_uid).state


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def instance(
    study_uid: str, number: int, data_dir: Path = Path("/data"), **changes: Any
) -> ReceivedInstance:
    """Image `number` of a study, a second after the one before it."""
    uid = f"{study_uid}.{number}"
    values: dict[str, Any] = {
        "study_uid": study_uid,
        "series_uid": f"{study_uid}.0",
        "sop_instance_uid": uid,
        "sop_class_uid": CT,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "identity": PATIENT,
        "sha256": sha(uid),
        "size_bytes": 525_000,
        "path": data_dir / "studies" / f"{uid}.dcm",
        "received_at": START + timedelta(seconds=number),
        "calling_aet": "SCANNER",
        "facts": InstanceFacts(),
        "role": InstanceRole.IMAGE,
    }
    return ReceivedInstance(**values | changes)


def result_rows(job: Job) -> list[ResultRow]:
    """A report and a capture."""
    base = f"2.25.{job.job_id}.{job.run}"
    return [
        ResultRow(
            kind=kind,
            sop_class_uid=SR,
            sop_instance_uid=f"{base}.{number}",
            sha256=sha(f"{base}.{number}"),
            path=Path(f"results/{job.job_id}/run-{job.run}/{number}.dcm"),
        )
        for number, kind in enumerate((ResultKind.SR, ResultKind.SUMMARY))
    ]


def received_file(path: Path, **changes: Any) -> ReceivedInstance:
    """The instance in a file, as if it had just been received."""
    record = read_instance(path)
    values: dict[str, Any] = {
        "study_uid": record.study_uid,
        "series_uid": record.series_uid,
        "sop_instance_uid": record.sop_instance_uid,
        "sop_class_uid": record.sop_class_uid,
        "transfer_syntax_uid": record.transfer_syntax_uid,
        "identity": record.identity,
        "sha256": "0" * SHA_LENGTH,
        "size_bytes": path.stat().st_size,
        "path": path,
        "received_at": datetime.now(UTC),
        "calling_aet": "CT",
        "facts": record.facts,
        "role": role_of(record.sop_class_uid, record.facts),
    }
    return ReceivedInstance(**values | changes)
