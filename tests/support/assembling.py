"""The node's own assembler, store and queue under a simulated clock, driven by a script of chance.

Nothing that decides is a stand-in: `StudyStore`, `JobQueue`, `Quarantine`, `Assembler` and
`Expectations` are the node's. What is left out has no say in what belongs to which study: sockets,
files (the indexer hands the store the same values here) and the network (a run's answer is the
choice of a series by headers). SQLite runs without waiting for the disk.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, event

from pe_triage.assemble.completeness import CompletenessRules
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.deliver.find_scu import PacsSeries
from pe_triage.domain import (
    InstanceRole,
    Job,
    Outcome,
    PatientIdentity,
    ReceivedInstance,
    StudyManifest,
    StudyState,
)
from pe_triage.errors import LeaseLostError, QueryUnavailableError, StudyNotFoundError
from pe_triage.imaging.facts import facts_to_json
from pe_triage.node.assembler import Asking, Assembler
from pe_triage.node.expectations import Expectations
from pe_triage.node.files import to_received
from pe_triage.node.selection import judge_study
from pe_triage.receive.spool import AssociationEvent, EventRecord
from pe_triage.store import schema
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue
from pe_triage.store.migrate import upgrade
from pe_triage.store.quarantine import Quarantine
from pe_triage.store.recording import RecordStatus
from pe_triage.store.studies import StudyStore
from tests.unit.assemble.conftest import make_series

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
DATA = Path("/nowhere")
SLICES = 7
RULES = EligibilityRules(min_slices=4, min_coverage_mm=5.0)
WAITS = CompletenessRules(
    quiet_s=60.0, grace_s=2.0, max_wait_s=600.0, min_coverage_mm=8.0, expected_wait_s=120.0
)
ANN, BEN = PatientIdentity(patient_id="P1", issuer="H"), PatientIdentity(patient_id="P2")
STUDIES = {"1.7.1": ANN, "1.7.2": ANN, "1.7.3": BEN}
"""Study Instance UID to the patient it belongs to; two are of one patient."""
SR = "1.2.840.10008.5.1.4.1.1.88.67"
OF_THE_STUDY = (RecordStatus.DUPLICATE, RecordStatus.CONFLICT_CONTENT)
"""What is no news, but is of the patient that the study is held under."""


@cache
def images(study_uid: str) -> tuple[ReceivedInstance, ...]:
    """A chest of seven slices and one localizer."""
    common = {"study_uid": study_uid, "identity": STUDIES[study_uid]}
    chest = make_series(SLICES, series=f"{study_uid}.1", **common)
    scout = make_series(
        1, series=f"{study_uid}.2", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), **common
    )
    return (*chest, *scout)


@cache
def facts_of(study_uid: str, number: int) -> dict[str, Any]:
    return facts_to_json(images(study_uid)[number].facts)


@contextmanager
def fast_engine(path: Path) -> Iterator[Engine]:
    """A migrated SQLite database that survives no power cut, and is quick."""
    url = f"sqlite:///{path}"
    upgrade(url)
    engine = open_engine(url)

    def hasten(dbapi: Any, _record: Any) -> None:
        dbapi.execute("PRAGMA synchronous = OFF")
        dbapi.execute("PRAGMA journal_mode = MEMORY")
        dbapi.execute("PRAGMA locking_mode = EXCLUSIVE")

    event.listen(engine, "connect", hasten)
    try:
        yield engine
    finally:
        engine.dispose()


def emptied(engine: Engine) -> Engine:
    """Throw every row away."""
    with engine.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(delete(table))
    return engine


class Log:
    """Keeps what the node says."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.errors: list[tuple[str, dict[str, Any]]] = []

    bound: Mapping[str, Any] = {}

    def bind(self, **values: Any) -> Log:
        other = Log()
        other.events, other.errors, other.bound = self.events, self.errors, values
        return other

    def info(self, name: str, **values: Any) -> None:
        self.events.append((name, {**self.bound, **values}))

    warning = debug = info

    def error(self, name: str, **values: Any) -> None:
        self.errors.append((name, {**self.bound, **values}))


@dataclass(frozen=True)
class Sent:
    """One object on its way, as a sender sends it."""

    study_uid: str
    number: int
    patient: PatientIdentity
    sha256: str
    sop_instance_uid: str
    role: InstanceRole = InstanceRole.IMAGE


def image(study_uid: str, number: int) -> Sent:
    known = images(study_uid)[number]
    return Sent(study_uid, number, known.identity, known.sha256, known.sop_instance_uid)


@dataclass
class Association:
    """What a sender means to do on one association; objects of several studies may be mixed."""

    number: int
    aet: str
    todo: list[Sent]
    ends: AssociationEvent
    state: str = "new"

    def id(self, boot: str) -> str:
        return f"{boot}-{self.number:08d}"


@dataclass
class Finished:
    """A run that gave an answer."""

    job: Job
    rows: list[Any]
    outcome: Outcome


@dataclass
class World:
    """One node, its senders, its PACS and its workers."""

    engine: Engine
    rng: random.Random
    now_s: float = 0.0
    boot: str = "b0"
    drained_at_s: float | None = None
    journal: list[tuple[int, int, str, Any]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    taken: dict[str, Sent] = field(default_factory=dict)
    """SOP Instance UID to what was recorded as new under it."""
    running: list[Job] = field(default_factory=list)
    owners: dict[int, str] = field(default_factory=dict)
    finished: list[Finished] = field(default_factory=list)
    pacs: dict[str, dict[str, int]] = field(default_factory=dict)
    pacs_away: bool = False
    log: Log = field(default_factory=Log)
    restarts: int = 0
    lost: int = 0
    claims: int = 0
    waiting: bool = False
    """Whether a run may be waiting: what is not, is not asked for."""
    written: int = 0
    brought: dict[str, set[str]] = field(default_factory=dict)
    """Study Instance UID to the associations that brought something new of it, or brought again
    what is held while the study was not closed yet."""
    heard: dict[str, AssociationEvent] = field(default_factory=dict)
    """What the assembler was ever told of associations: how they ended it must not forget."""
    acknowledged: dict[str, dict[str, int]] = field(default_factory=dict)
    """Association to study to the number of instances, as its receiver counts them."""

    def __post_init__(self) -> None:
        self.studies = StudyStore(self.engine, DATA)
        self.queue = JobQueue(self.engine, max_attempts=50, clock=self.clock)
        self.quarantine = Quarantine(self.engine, clock=self.clock)
        self._start()

    def clock(self) -> datetime:
        return T0 + timedelta(seconds=self.now_s)

    def _start(self) -> None:
        self.expectations = Expectations(
            {"P": self._ask}, clock=self.clock, monotonic=lambda: self.now_s
        )
        self.assembler = Assembler(
            studies=self.studies,
            queue=self.queue,
            data_dir=DATA,
            completeness=WAITS,
            eligibility=RULES,
            clock=self.clock,
            living_boots=lambda: frozenset({self.boot}),
            asking=Asking(expectations=self.expectations, peer="P") if self.pacs else None,
        )
        self.assembler._log = self.expectations._log = self.log
        self.drained_at_s = None

    def _ask(self, study_uid: str) -> Sequence[PacsSeries]:
        if self.pacs_away:
            raise QueryUnavailableError("away")
        return [
            PacsSeries(series_uid=uid, modality="CT", description="", instances=count)
            for uid, count in self.pacs.get(study_uid, {}).items()
        ]

    # ------------------------------------------------------------- what may happen

    def restart(self) -> None:
        """The coordinator and the receivers die; what was acknowledged lies in the journal."""
        self.restarts += 1
        self.boot = f"b{self.restarts}"
        self._start()

    def open(self, association: Association) -> None:
        association.state = "open"
        self._journal(association, "event", AssociationEvent.OPENED)

    def arrive(self, association: Association, what: Sent) -> None:
        self.sent.append(what)
        known = images(what.study_uid)[what.number]
        received = replace(
            known,
            identity=what.patient,
            sha256=what.sha256,
            sop_instance_uid=what.sop_instance_uid,
            role=what.role,
            sop_class_uid=known.sop_class_uid if what.role is InstanceRole.IMAGE else SR,
            received_at=self.clock(),
            calling_aet=association.aet,
        )
        counts = self.acknowledged.setdefault(association.id(self.boot), {})
        counts[what.study_uid] = counts.get(what.study_uid, 0) + 1
        self._journal(association, "store", (what, received))

    def end(self, association: Association) -> None:
        association.state = "ended"
        self._journal(association, "event", association.ends)

    def _journal(self, association: Association, kind: str, what: Any) -> None:
        self.written += 1
        key = (association.number, self.written)
        self.journal.append((*key, kind, (association, association.id(self.boot), what)))

    def index(self, most: int) -> None:
        """As `Indexer.step`: oldest association first, an event after all that came before it."""
        entries = sorted(self.journal, key=lambda e: e[:2])
        batch, rest = entries[:most], entries[most:]
        pending: list[tuple[Sent, ReceivedInstance, str]] = []
        for _, _, kind, (association, association_id, what) in batch:
            if kind == "store":
                pending.append((*what, association_id))
                continue
            self._record(pending)
            pending = []
            record = EventRecord(
                event=what,
                calling_aet=association.aet,
                host="h",
                at=self.clock(),
                instances=self.acknowledged.get(association_id, {}),
            )
            self.assembler.note_event(association_id, record)
            self.heard[association_id] = what
        self._record(pending)
        self.journal = rest
        if not rest:
            self.drained_at_s = self.now_s

    def _record(self, pending: list[tuple[Sent, ReceivedInstance, str]]) -> None:
        if not pending:
            return
        open_uids = {uid for uid in {w.study_uid for w, _, _ in pending} if self._is_open(uid)}
        outcomes = self.studies.record(
            [(r, facts_of(s.study_uid, s.number), a) for s, r, a in pending]
        )
        for (what, _, association_id), recorded in zip(pending, outcomes, strict=True):
            if recorded.status is RecordStatus.NEW:
                assert what.sop_instance_uid not in self.taken
                self.taken[what.sop_instance_uid] = what
                open_uids.add(what.study_uid)
                self.brought.setdefault(what.study_uid, set()).add(association_id)
            elif what.study_uid in open_uids and recorded.status in OF_THE_STUDY:
                self.brought.setdefault(what.study_uid, set()).add(association_id)

    def _is_open(self, uid: str) -> bool:
        try:
            return self.studies.get(uid).state in (StudyState.RECEIVING, StudyState.QUARANTINED)
        except StudyNotFoundError:
            return False

    def tick(self) -> None:
        if self.drained_at_s is not None:
            self.assembler.note_drained(time.monotonic() - (self.now_s - self.drained_at_s))
        before = len(self.log.events)
        self.waiting |= self.assembler.tick() > 0
        for name, facts in self.log.events[before:]:
            if name == "study.complete" and facts["run"] is not None:
                self._closed(facts["study_uid"], facts)

    def _closed(self, uid: str, facts: dict[str, Any]) -> None:
        """An early sign must be true at the very moment that it closes a study."""
        held: dict[str, int] = {}
        for what in self.taken.values():
            if what.study_uid == uid and what.role is InstanceRole.IMAGE:
                series = images(uid)[what.number].series_uid
                held[series] = held.get(series, 0) + 1
        if facts["sign"] == "released_and_contiguous":
            assert all(self.heard.get(a) is AssociationEvent.RELEASED for a in self.brought[uid]), (
                "closed though an association is open or ended badly"
            )
            assert held[f"{uid}.1"] >= SLICES
        elif facts["sign"] == "quiet":
            assert any(map(self._ended_well, self.brought[uid])), (
                "closed as quiet though every sender broke off"
            )
        elif facts["sign"] == "expected_count":
            assert held, "nothing came"
            assert all(self.pacs[uid].get(series) == n for series, n in held.items())

    def _ended_well(self, association_id: str) -> bool:
        """Whether it was released, or is open still."""
        event = self.heard.get(association_id)
        lives = association_id.startswith(f"{self.boot}-")
        return event is AssociationEvent.RELEASED or (
            event is not AssociationEvent.ABORTED and lives
        )

    def work(self) -> None:
        """A worker claims, ends, fails or dies."""
        if self.running and self.rng.random() < 0.6:
            job = self.running.pop(self.rng.randrange(len(self.running)))
            chance = self.rng.random()
            self.waiting = True
            if chance < 0.1:
                self.queue.release_owner(self.owners.pop(job.job_id))
            elif chance < 0.2:
                self._unless_fenced(job, lambda: self.queue.fail(job, "x", retry=True))
            else:
                self._unless_fenced(job, lambda: self._finish(job))
            return
        if not self.waiting:
            return
        self.claims += 1
        job = self.queue.claim(f"w{self.claims}/", 3600.0)
        if job is not None:
            self.owners[job.job_id] = f"w{self.claims}/"
            self.running.append(job)
        elif not self.running:
            self.waiting = False

    def _unless_fenced(self, job: Job, act: Callable[[], object]) -> None:
        try:
            act()
        except LeaseLostError:
            # Only doubt about the patient takes a job away from a living worker here.
            self.lost += 1
            assert self.studies.get(job.study_uid).quarantine_reason is not None or any(
                e.study_uid == job.study_uid for e in self.quarantine.list(decided=True)
            )

    def _finish(self, job: Job) -> None:
        rows = self.studies.instances(job.study_uid, run=job.run)
        instances = [to_received(row, DATA) for row in rows]
        assert StudyManifest.of(job.study_uid, instances).digest == job.manifest_digest
        choice = judge_study(instances, RULES)
        outcome = Outcome.NOT_EVALUATED if choice.series_uid is None else Outcome.NEGATIVE
        state = StudyState.DONE if choice.series_uid else StudyState.NOT_EVALUATED
        self.queue.finish(
            job,
            state=state,
            outcome=outcome,
            reason=None,
            priority=None,
            document={},
            model_sha256="ab" * 32,
            results=[],
            routes=[],
        )
        self.finished.append(Finished(job, rows, outcome))

    def run_out(self) -> None:
        """Let everything that was begun end, with no further arrival."""
        for _ in range(60):
            self.index(1000)
            while self.expectations.step():
                pass
            self.tick()
            while self.running or self.waiting:
                self.work()
            if not self.studies.receiving() and not self.queue.pending().total:
                return
            self.now_s += 31.0
        raise AssertionError("a study was left open")
