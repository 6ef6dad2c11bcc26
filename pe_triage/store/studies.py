"""Studies and the instances that they hold.

The spool is the journal: files are durable before anything here is called, and `StudyStore.record`
may be called again for the same files after a crash at any point. It never overwrites: what
contradicts what is held becomes a quarantine row beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    bindparam,
    func,
    select,
    update,
)

from pe_triage.domain import (
    InstanceRole,
    PatientIdentity,
    ReceivedInstance,
    StudyManifest,
    StudyState,
)
from pe_triage.errors import StudyNotFoundError
from pe_triage.store import schema
from pe_triage.store.engine import read, write
from pe_triage.store.recording import Recorded, Recorder, RecordStatus
from pe_triage.store.schema import IN_DOUBT

AnyRow: TypeAlias = "Row[Any, *tuple[Any, ...]]"

__all__ = [
    "Arrival",
    "AssociationEnd",
    "RecordStatus",
    "Recorded",
    "StoredInstance",
    "StudyProgress",
    "StudyRecord",
    "StudyStore",
    "study_state",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """A row of `instances`; the caller rebuilds `InstanceFacts` from `facts`."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    size_bytes: int
    path: Path
    """Relative to the data directory (absolute only where it was recorded so)."""
    association_id: str
    calling_aet: str
    received_at: datetime
    identity: PatientIdentity
    """That of its study."""
    role: InstanceRole
    run: int | None
    """First run whose manifest holds it; None while no run does."""
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedPatient:
    """Whom the PACS has a study under, where that is not whom its images name."""

    patient_id: str = field(repr=False)
    issuer: str = field(default="", repr=False)
    name: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)
    sex: str = field(default="", repr=False)


def corrected_patient(row: AnyRow) -> CorrectedPatient | None:
    """Read it from a row of `studies`; None where nothing was corrected."""
    if row.corrected_at is None:
        return None
    return CorrectedPatient(
        patient_id=row.patient_id,
        issuer=row.issuer,
        name=row.corrected_name or "",
        birth_date=row.corrected_birth_date or "",
        sex=row.corrected_sex or "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A row of `studies`, with the state that people see."""

    study_uid: str
    identity: PatientIdentity
    state: StudyState
    run: int
    """Newest run; 0 where none was queued yet."""
    instances: int
    """Held, our own results not counted."""
    images: int
    """CT images among them."""
    received_at: datetime
    last_image_at: datetime
    last_activity_at: datetime
    quarantine_reason: str | None
    removed: int = 0
    """Of `instances`, those whose files are no longer here."""
    corrected: CorrectedPatient | None = None
    """Whom results name in place of the images' patient; `identity` is then theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What one association has brought of one study, duplicates included."""

    association_id: str
    calling_aet: str
    instances: int
    first_at: datetime
    last_at: datetime
    ended: str | None = None
    """How the association ended, in the words of its event; None: it has not, as far as is known.
    ``unknown``: nobody wrote it down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationEnd:
    """How an association ended."""

    association_id: str
    ended: str
    study_uids: tuple[str, ...]
    """Studies of which it brought something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyProgress:
    """A study that is still being received, for the decision whether it is complete."""

    study_uid: str
    instances: int
    """Those whose files are here."""
    images: int
    run: int
    """Newest run so far: above 0 when a finished or queued study has grown."""
    received_at: datetime
    last_image_at: datetime
    last_activity_at: datetime
    """Includes duplicates: a sender that repeats itself is still sending."""
    arrivals: tuple[Arrival, ...]
    settled_at: datetime | None = None
    """When a person last settled whose study it is; None where nobody had to."""

    @property
    def association_ids(self) -> frozenset[str]:
        """Associations that brought it."""
        return frozenset(a.association_id for a in self.arrivals)

    @property
    def calling_aets(self) -> frozenset[str]:
        """Application entities that sent it."""
        return frozenset(a.calling_aet for a in self.arrivals)


def study_state(stored: str, newest_job_state: str | None) -> StudyState:
    """State that people see, of what the study's row and its newest job's row say.

    RUNNING is derived, not stored: a claim then touches one row only, and an expired lease needs
    no second table put right.
    """
    if stored == StudyState.QUEUED and newest_job_state == StudyState.RUNNING:
        return StudyState.RUNNING
    return StudyState(stored)


def newest_job() -> ColumnElement[bool]:
    """Join condition of a study and its newest job."""
    return (schema.jobs.c.study_uid == schema.studies.c.study_uid) & (
        schema.jobs.c.run == schema.studies.c.run
    )


def instance_rows(
    connection: Connection, study_uid: str, run: int | None = None
) -> list[StoredInstance]:
    """Instances of a study whose files are here, in the order of their SOP Instance UIDs.

    Parameters
    ----------
    run
        Only those that this run is about; None: all that are held now.
    """
    mine = schema.instances.c.study_uid == study_uid
    if run is None:
        return instances_where(connection, mine)
    return _subject(instances_where(connection, mine & (schema.instances.c.run <= run)))


def instances_where(connection: Connection, which: ColumnElement[bool]) -> list[StoredInstance]:
    """Instances whose files are here and that `which` names, by their SOP Instance UIDs."""
    table, studies = schema.instances, schema.studies
    statement = (
        select(table, studies.c.patient_id, studies.c.issuer)
        .join(studies, table.c.study_uid == studies.c.study_uid)
        .where(which, table.c.removed_at.is_(None))
        .order_by(table.c.sop_instance_uid)
    )
    return [_stored_instance(row) for row in connection.execute(statement)]


def manifest(connection: Connection, study_uid: str, run: int | None = None) -> StudyManifest:
    """Manifest of what has come of a study, or of one run; files that were removed count.

    Without them a study of which one image came again would look like a study of one image.
    """
    table = schema.instances
    statement = select(table.c.sop_instance_uid, table.c.sha256, table.c.role).where(
        table.c.study_uid == study_uid
    )
    if run is not None:
        statement = statement.where(table.c.run <= run)
    rows = _subject(connection.execute(statement).all())
    # StudyManifest.of reads these two attributes of its instances, and nothing else.
    return StudyManifest.of(study_uid, cast("list[ReceivedInstance]", rows))


def _subject(rows: Sequence[Any]) -> list[Any]:
    """Rows that a run is about: the CT images; without any, everything but our own results."""
    images = [row for row in rows if row.role == InstanceRole.IMAGE]
    return images or [row for row in rows if row.role == InstanceRole.OTHER]


def _stored_instance(row: Row[Any]) -> StoredInstance:
    values = dict(row._mapping)
    del values["instance_id"], values["removed_at"]
    values["path"] = Path(values["path"])
    values["role"] = InstanceRole(values["role"])
    values["identity"] = PatientIdentity(
        patient_id=values.pop("patient_id"), issuer=values.pop("issuer")
    )
    return StoredInstance(**values)


_is_receiving = schema.studies.c.state == StudyState.RECEIVING.value
# Built once: they are asked twice a second.
_RECEIVING = select(schema.studies).where(_is_receiving).order_by(schema.studies.c.last_activity_at)
_ARRIVALS = (
    select(schema.arrivals)
    .join(schema.studies, schema.arrivals.c.study_uid == schema.studies.c.study_uid)
    .where(_is_receiving)
    .order_by(schema.arrivals.c.first_at, schema.arrivals.c.association_id)
)
_END_ARRIVAL = (
    update(schema.arrivals)
    .where(
        schema.arrivals.c.study_uid == bindparam("of"),
        schema.arrivals.c.association_id == bindparam("by"),
    )
    .values(ended=bindparam("how"))
)
_SETTLED = (
    select(schema.quarantine.c.study_uid, func.max(schema.quarantine.c.decided_at).label("at"))
    .join(schema.studies, schema.quarantine.c.study_uid == schema.studies.c.study_uid)
    .where(_is_receiving, schema.quarantine.c.kind.in_([kind.value for kind in IN_DOUBT]))
    .group_by(schema.quarantine.c.study_uid)
)


class StudyStore:
    """Which studies this node knows, and which instances it holds of them.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    data_dir
        Where given, absolute paths inside it are stored relative to it, so that the data directory
        can be moved or mounted elsewhere.
    """

    def __init__(self, engine: Engine, data_dir: Path | None = None) -> None:
        self._engine = engine
        self._data_dir = data_dir

    def record(
        self, batch: Sequence[tuple[ReceivedInstance, Mapping[str, Any], str]]
    ) -> list[Recorded]:
        """Record instances in one transaction; idempotent.

        Parameters
        ----------
        batch
            Each an instance, its facts as JSON values, and the association that brought it.
            `ReceivedInstance.path` is where the file will stay: record first, then move it there,
            so that a crash between the two is seen by the next look into ``incoming/``.

        Returns
        -------
        list of Recorded
            In the order of the batch. For DUPLICATE, `Recorded.path` is where the held copy
            belongs; if no file is there (a crash before the move), put this one there, and only
            otherwise delete this one.

        Raises
        ------
        StoreUnavailableError
            Nothing was recorded, or it is not known whether it was: record the same batch again.
        """
        if not batch:
            return []
        return write(self._engine, lambda c: Recorder(c, self._data_dir).record(batch))

    def note_ends(self, ends: Sequence[AssociationEnd]) -> None:
        """Write down how associations ended, all in one transaction.

        Raises
        ------
        StoreUnavailableError
            Nothing was written, or it is not known whether it was: do it again.
        """
        rows = sorted(
            (uid, end.association_id, end.ended) for end in ends for uid in end.study_uids
        )
        if rows:
            values = [{"of": uid, "by": number, "how": ended} for uid, number, ended in rows]
            write(self._engine, lambda connection: connection.execute(_END_ARRIVAL, values))

    def receiving(self) -> list[StudyProgress]:
        """Studies in state RECEIVING, the longest silent first."""
        with read(self._engine) as connection:
            rows = connection.execute(_RECEIVING).all()
            brought: dict[str, list[Arrival]] = {row.study_uid: [] for row in rows}
            settled: dict[str, datetime | None] = {}
            if rows:
                settled = {row.study_uid: row.at for row in connection.execute(_SETTLED)}
                for row in connection.execute(_ARRIVALS):
                    values = dict(row._mapping)
                    brought[values.pop("study_uid")].append(Arrival(**values))
        return [
            StudyProgress(
                study_uid=row.study_uid,
                instances=row.instances - row.removed,
                images=row.images,
                run=row.run,
                received_at=row.received_at,
                last_image_at=row.last_image_at,
                last_activity_at=row.last_activity_at,
                arrivals=tuple(brought[row.study_uid]),
                settled_at=settled.get(row.study_uid),
            )
            for row in rows
        ]

    def instances(self, study_uid: str, *, run: int | None = None) -> list[StoredInstance]:
        """Instances held of a study, by SOP Instance UID; empty where none is.

        Parameters
        ----------
        run
            Only those in this run's manifest (CT images; without any, everything but our own
            results). A worker passes `Job.run`: a slice that came after the job was queued belongs
            to the next run.
        """
        with read(self._engine) as connection:
            return instance_rows(connection, study_uid, run)

    def manifest(self, study_uid: str, *, run: int | None = None) -> StudyManifest:
        """Manifest of what is held of a study, or of one run; `JobQueue.enqueue` takes its digest.

        It names the CT images; where there is none, everything but our own results.

        Raises
        ------
        StudyNotFoundError
            Nothing that a run could be about is held.
        """
        with read(self._engine) as connection:
            found = manifest(connection, study_uid, run)
        if not found.entries:
            raise StudyNotFoundError(study_uid)
        return found

    def get(self, study_uid: str) -> StudyRecord:
        """One study.

        Raises
        ------
        StudyNotFoundError
            No study of that UID is known.
        """
        studies, jobs = schema.studies, schema.jobs
        with read(self._engine) as connection:
            row = connection.execute(
                select(studies, jobs.c.state.label("job_state"))
                .outerjoin(jobs, newest_job())
                .where(studies.c.study_uid == study_uid)
            ).one_or_none()
        if row is None:
            raise StudyNotFoundError(study_uid)
        return StudyRecord(
            study_uid=row.study_uid,
            identity=PatientIdentity(patient_id=row.patient_id, issuer=row.issuer),
            state=study_state(row.state, row.job_state),
            run=row.run,
            instances=row.instances,
            images=row.images,
            received_at=row.received_at,
            last_image_at=row.last_image_at,
            last_activity_at=row.last_activity_at,
            quarantine_reason=row.quarantine_reason,
            removed=row.removed,
            corrected=corrected_patient(row),
        )

    def touch(self, study_uid: str, at: datetime) -> None:
        """Say that something of this study was heard at `at`, which postpones its quiet time."""
        table = schema.studies
        statement = (
            update(table)
            .where(table.c.study_uid == study_uid, table.c.last_activity_at < at)
            .values(last_activity_at=at)
        )
        write(self._engine, lambda connection: connection.execute(statement))
