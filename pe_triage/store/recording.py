"""How a batch of received instances becomes rows: what is new, what is known, what contradicts.

One `Recorder` works inside one transaction. Studies are locked in the order of their UIDs, so that
two recorders cannot wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from pe_triage.domain import (
    TERMINAL_STATES,
    InstanceRole,
    PatientIdentity,
    ReceivedInstance,
    StudyState,
)
from pe_triage.identity import same_patient
from pe_triage.store import schema
from pe_triage.store.holding import hold_back
from pe_triage.store.notices import Topic, notify
from pe_triage.store.schema import NO_URGENCY, QuarantineKind, QuarantineState
from pe_triage.store.types import clean_text, storable

CHUNK = 500
"""Values in one IN list; SQLite of some builds takes 999 parameters at most."""

BatchItem = tuple[ReceivedInstance, Mapping[str, Any], str]


class RecordStatus(StrEnum):
    """What became of one received instance."""

    NEW = "NEW"
    DUPLICATE = "DUPLICATE"
    """Held already with the same bytes."""
    CONFLICT_CONTENT = "CONFLICT_CONTENT"
    """Held already with other bytes; the file goes to quarantine."""
    CONFLICT_IDENTITY = "CONFLICT_IDENTITY"
    """Its study is held under another patient, or it is held under another study; the file goes
    to quarantine, and its study too unless that has ended already or the file is no image."""

    @property
    def conflict(self) -> bool:
        """Whether the file must be set aside."""
        return self in (RecordStatus.CONFLICT_CONTENT, RecordStatus.CONFLICT_IDENTITY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of one instance of a batch."""

    status: RecordStatus
    study_uid: str
    sop_instance_uid: str
    path: Path
    """NEW and DUPLICATE: where the held copy belongs, as stored. Conflict: path of the quarantine
    row; call `Quarantine.moved` after the file was moved."""
    reason: str | None = None
    quarantine_id: int | None = None


REASONS = {
    QuarantineKind.CONTENT: "SOP Instance UID is held with other content",
    QuarantineKind.IDENTITY: "Study Instance UID is held under another patient",
    QuarantineKind.ELSEWHERE: "SOP Instance UID is held under another study",
}

RESUMED_STATES = frozenset(
    {StudyState.QUEUED, StudyState.DONE, StudyState.NOT_EVALUATED, StudyState.FAILED}
)
"""A new instance puts a study of these back to RECEIVING; QUARANTINED only once settled."""

OPEN_STATES = frozenset({StudyState.RECEIVING, StudyState.QUARANTINED})
"""A study of these will be judged complete: now, or once a person has settled whose it is."""

FIRST_STATE = {
    InstanceRole.IMAGE: StudyState.RECEIVING,
    InstanceRole.OTHER: StudyState.RECEIVING,
    # Our own result came back of a study that this node does not know: there is nothing to wait
    # for, and nothing was evaluated here.
    InstanceRole.OWN_RESULT: StudyState.NOT_EVALUATED,
}
"""State of a study whose first instance has this role."""

# Built once: building them takes longer than the database does, and each batch sends several.
_UPDATE_STUDY = update(schema.studies).where(schema.studies.c.study_uid == bindparam("of"))
_THIS_ARRIVAL = (schema.arrivals.c.study_uid == bindparam("of")) & (
    schema.arrivals.c.association_id == bindparam("by")
)
_ARRIVAL = select(schema.arrivals).where(_THIS_ARRIVAL)
_UPDATE_ARRIVAL = update(schema.arrivals).where(_THIS_ARRIVAL)


def chunks(values: Iterable[str]) -> Iterator[list[str]]:
    """Cut sorted distinct `values` into lists of at most `CHUNK`."""
    ordered = sorted(set(values))
    for start in range(0, len(ordered), CHUNK):
        yield ordered[start : start + CHUNK]


class _Held(NamedTuple):
    """What is known of a SOP Instance UID."""

    study_uid: str
    sha256: str
    path: str
    removed: bool
    """Its file was removed: what comes now takes its place, whatever its bytes. A PACS that gives
    an image back has often changed attributes or the transfer syntax."""


class Recorder:
    """Records one batch inside `connection`'s transaction."""

    def __init__(self, connection: Connection, data_dir: Path | None) -> None:
        self._connection = connection
        self._data_dir = data_dir
        self._studies: dict[str, dict[str, Any]] = {}
        self._states: dict[str, str] = {}
        """Of the studies as they were before."""
        self._new_studies: set[str] = set()
        self._changed: set[str] = set()
        self._held: dict[str, _Held] = {}
        self._restored: list[tuple[ReceivedInstance, Mapping[str, Any], str]] = []
        self._arrivals: dict[tuple[str, str], dict[str, Any]] = {}
        self._instances: list[dict[str, Any]] = []

    def record(self, batch: Sequence[BatchItem]) -> list[Recorded]:
        """Record `batch`; see `StudyStore.record`."""
        self._load(batch)
        recorded = [self._one(*item) for item in batch]
        self._flush()
        return recorded

    def _load(self, batch: Sequence[BatchItem]) -> None:
        held = schema.instances
        self._load_studies(i.study_uid for i, _, _ in batch)
        for uids in chunks(i.sop_instance_uid for i, _, _ in batch):
            rows = self._connection.execute(
                select(
                    held.c.sop_instance_uid,
                    held.c.study_uid,
                    held.c.sha256,
                    held.c.path,
                    held.c.removed_at,
                ).where(held.c.sop_instance_uid.in_(uids))
            )
            for row in rows:
                self._held[row.sop_instance_uid] = _Held(
                    row.study_uid, row.sha256, row.path, row.removed_at is not None
                )
        # Between the two reads another recorder may have committed a study with its instances.
        named = {i.study_uid for i, _, _ in batch} & {h.study_uid for h in self._held.values()}
        self._load_studies(named - self._studies.keys())

    def _load_studies(self, study_uids: Iterable[str]) -> None:
        studies = schema.studies
        for uids in chunks(study_uids):
            rows = self._connection.execute(
                select(studies)
                .where(studies.c.study_uid.in_(uids))
                .order_by(studies.c.study_uid)
                .with_for_update()
            )
            for row in rows:
                self._studies[row.study_uid] = dict(row._mapping)
                self._states[row.study_uid] = row.state

    def _one(
        self, instance: ReceivedInstance, facts: Mapping[str, Any], association_id: str
    ) -> Recorded:
        study = self._studies.get(instance.study_uid)
        held = self._held.get(instance.sop_instance_uid)
        if held is not None and held.study_uid != instance.study_uid:
            return self._conflict(instance, QuarantineKind.ELSEWHERE)
        other_patient = study is not None and not _same_patient(study, instance)
        if other_patient:
            return self._conflict(instance, QuarantineKind.IDENTITY)
        if held is not None:
            if held.removed:
                return self._restore(instance, facts, association_id)
            if held.sha256 != instance.sha256:
                self._arrive_again(instance, association_id)
                return self._conflict(instance, QuarantineKind.CONTENT)
            self._arrive_again(instance, association_id)
            return self._recorded(instance, RecordStatus.DUPLICATE, held.path)
        if study is None:
            study = self._open_study(instance, FIRST_STATE[instance.role])
        corrected = study.get("corrected_at") is not None
        if instance.role is InstanceRole.IMAGE and not study["issuer"] and not corrected:
            # The first image that says who issued the identifier: another issuer is then seen.
            study["issuer"] = clean_text(instance.identity.issuer)
        self._count(study, instance, association_id)
        study["held"] += 1
        path = self._path(instance.path)
        self._held[instance.sop_instance_uid] = _Held(
            instance.study_uid, instance.sha256, path, removed=False
        )
        self._instances.append(
            {
                "study_uid": instance.study_uid,
                "series_uid": instance.series_uid,
                "role": instance.role.value,
                "sop_instance_uid": instance.sop_instance_uid,
                "sop_class_uid": instance.sop_class_uid,
                "transfer_syntax_uid": instance.transfer_syntax_uid,
                "sha256": instance.sha256,
                "size_bytes": instance.size_bytes,
                "path": path,
                "association_id": association_id,
                # Unknown where its association's opening was not seen; never a reason to fail.
                "calling_aet": instance.calling_aet or "",
                "received_at": instance.received_at,
                "run": None,
                "facts": storable(facts),
            }
        )
        return self._recorded(instance, RecordStatus.NEW, path)

    def _restore(
        self, instance: ReceivedInstance, facts: Mapping[str, Any], association_id: str
    ) -> Recorded:
        """Take back an instance whose file was removed.

        A study that has its answer keeps it: images sent again change nothing. One that FAILED is
        assembled again, since what it lacked may be this.
        """
        study = self._studies[instance.study_uid]
        path = self._path(instance.path)
        self._held[instance.sop_instance_uid] = _Held(
            instance.study_uid, instance.sha256, path, removed=False
        )
        self._restored.append((instance, facts, path))
        study["held"] += 1
        if instance.role is not InstanceRole.OWN_RESULT:
            study["removed"] = max(0, study["removed"] - 1)
            if study["state"] == StudyState.FAILED and study["quarantine_reason"] is None:
                study["state"] = StudyState.RECEIVING.value
        self._arrive_again(instance, association_id)
        # Whoever fetched it wants it here for a while.
        study["last_activity_at"] = max(study["last_activity_at"], instance.received_at)
        self._changed.add(instance.study_uid)
        return self._recorded(instance, RecordStatus.DUPLICATE, path)

    def _open_study(self, instance: ReceivedInstance, state: StudyState) -> dict[str, Any]:
        study: dict[str, Any] = {
            "study_uid": instance.study_uid,
            "patient_id": clean_text(instance.identity.patient_id),
            "issuer": clean_text(instance.identity.issuer),
            "state": state.value,
            "run": 0,
            "instances": 0,
            "images": 0,
            "urgency": NO_URGENCY,
            "received_at": instance.received_at,
            "last_image_at": instance.received_at,
            "last_activity_at": instance.received_at,
            "quarantine_reason": None,
            "held": 0,
            "removed": 0,
            "removing": False,
            "removed_at": None,
            "removed_why": None,
        }
        self._studies[instance.study_uid] = study
        self._new_studies.add(instance.study_uid)
        return study

    def _count(
        self, study: dict[str, Any], instance: ReceivedInstance, association_id: str
    ) -> None:
        """Count a new instance, and let the study grow by it where a run would be about it."""
        self._changed.add(instance.study_uid)
        if instance.role is InstanceRole.OWN_RESULT:
            return
        study["instances"] += 1
        if instance.role is InstanceRole.IMAGE:
            study["images"] += 1
        elif study["images"]:
            # A dose report or a presentation state is no reason for another run. Who brought it
            # counts all the same: an association that ended badly may have had images to follow.
            self._arrive(instance, association_id)
            return
        if study["quarantine_reason"] is not None:
            # It grew, but whose study it is must be settled before it is analysed again.
            study["state"] = StudyState.QUARANTINED.value
        elif study["state"] in RESUMED_STATES or study["state"] == StudyState.QUARANTINED:
            study["state"] = StudyState.RECEIVING.value
        study["received_at"] = min(study["received_at"], instance.received_at)
        study["last_image_at"] = max(study["last_image_at"], instance.received_at)
        self._arrive(instance, association_id)

    def _arrive_again(self, instance: ReceivedInstance, association_id: str) -> None:
        """Note what brings nothing new, where its study will still be judged complete."""
        if self._studies[instance.study_uid]["state"] in OPEN_STATES:
            self._arrive(instance, association_id)

    def _arrive(self, instance: ReceivedInstance, association_id: str) -> None:
        at = instance.received_at
        study = self._studies[instance.study_uid]
        study["last_activity_at"] = max(study["last_activity_at"], at)
        self._changed.add(instance.study_uid)
        arrival = self._arrivals.setdefault(
            (instance.study_uid, association_id),
            {
                "calling_aet": instance.calling_aet or "",
                "instances": 0,
                "first_at": at,
                "last_at": at,
            },
        )
        arrival["instances"] += 1
        arrival["first_at"] = min(arrival["first_at"], at)
        arrival["last_at"] = max(arrival["last_at"], at)

    def _conflict(self, instance: ReceivedInstance, kind: QuarantineKind) -> Recorded:
        reason = REASONS[kind]
        status = (
            RecordStatus.CONFLICT_CONTENT
            if kind is QuarantineKind.CONTENT
            else RecordStatus.CONFLICT_IDENTITY
        )
        if kind is not QuarantineKind.CONTENT and instance.role is not InstanceRole.IMAGE:
            # A dose report or a result that strayed here says nothing of the images held.
            kind = QuarantineKind.STRAY
        elif kind is not QuarantineKind.CONTENT:
            study = self._studies.get(instance.study_uid)
            if study is None:
                # Visible as a study of its own, though nothing of it is held.
                study = self._open_study(instance, StudyState.QUARANTINED)
            study["quarantine_reason"] = reason
            self._changed.add(instance.study_uid)
            hold_back(self._connection, instance.study_uid)
            if study["state"] not in TERMINAL_STATES:
                study["state"] = StudyState.QUARANTINED.value
                self._end_jobs(instance.study_uid, reason, instance.received_at)
        path, quarantine_id = self._set_aside(instance, kind, reason)
        return self._recorded(instance, status, path, reason, quarantine_id)

    def _end_jobs(self, study_uid: str, reason: str, at: datetime) -> None:
        # A worker that holds one is fenced off: its result may stand under the wrong patient.
        jobs = schema.jobs
        self._connection.execute(
            update(jobs)
            .where(
                jobs.c.study_uid == study_uid,
                jobs.c.state.in_([StudyState.QUEUED.value, StudyState.RUNNING.value]),
            )
            .values(
                state=StudyState.QUARANTINED.value,
                reason=reason,
                fencing_token=jobs.c.fencing_token + 1,
                lease_owner=None,
                lease_until=None,
                completed_at=at,
            )
        )

    def _set_aside(
        self, instance: ReceivedInstance, kind: QuarantineKind, reason: str
    ) -> tuple[str, int]:
        table = schema.quarantine
        known = self._connection.execute(
            select(table.c.quarantine_id, table.c.path)
            .where(
                table.c.study_uid == instance.study_uid,
                table.c.sop_instance_uid == instance.sop_instance_uid,
                table.c.sha256 == instance.sha256,
                table.c.state == QuarantineState.HELD.value,
            )
            .limit(1)
        ).one_or_none()
        if known is not None:
            return known.path, known.quarantine_id
        path = self._path(instance.path)
        quarantine_id = self._connection.execute(
            insert(table)
            .values(
                study_uid=instance.study_uid,
                sop_instance_uid=instance.sop_instance_uid,
                sha256=instance.sha256,
                path=path,
                kind=kind.value,
                reason=reason,
                state=QuarantineState.HELD.value,
                created_at=instance.received_at,
            )
            .returning(table.c.quarantine_id)
        ).scalar_one()
        return path, quarantine_id

    def _flush(self) -> None:
        changed = [self._studies[uid] for uid in sorted(self._changed - self._new_studies)]
        new = [self._studies[uid] for uid in sorted(self._new_studies)]
        if new:
            self._connection.execute(insert(schema.studies), new)
        if changed:
            self._connection.execute(
                _UPDATE_STUDY,
                [{"of" if key == "study_uid" else key: v for key, v in s.items()} for s in changed],
            )
        if self._instances:
            self._connection.execute(insert(schema.instances), self._instances)
        table = schema.instances
        for instance, facts, path in self._restored:
            self._connection.execute(
                update(table)
                .where(table.c.sop_instance_uid == instance.sop_instance_uid)
                .values(
                    removed_at=None,
                    path=path,
                    sha256=instance.sha256,
                    size_bytes=instance.size_bytes,
                    transfer_syntax_uid=instance.transfer_syntax_uid,
                    facts=storable(facts),
                )
            )
        self._flush_arrivals()
        receiving = {s["study_uid"] for s in changed + new if s["state"] == StudyState.RECEIVING}
        if any(self._states.get(uid) != StudyState.RECEIVING for uid in receiving):
            notify(self._connection, Topic.ARRIVALS)

    def _flush_arrivals(self) -> None:
        table = schema.arrivals
        for (study_uid, association_id), arrival in sorted(self._arrivals.items()):
            key = {"of": study_uid, "by": association_id}
            old = self._connection.execute(_ARRIVAL, key).one_or_none()
            if old is None:
                self._connection.execute(
                    insert(table).values(
                        study_uid=study_uid, association_id=association_id, **arrival
                    )
                )
                continue
            self._connection.execute(
                _UPDATE_ARRIVAL,
                {
                    **key,
                    "instances": old.instances + arrival["instances"],
                    "first_at": min(old.first_at, arrival["first_at"]),
                    "last_at": max(old.last_at, arrival["last_at"]),
                },
            )

    def _path(self, path: Path) -> str:
        if self._data_dir is not None and path.is_relative_to(self._data_dir):
            path = path.relative_to(self._data_dir)
        return path.as_posix()

    @staticmethod
    def _recorded(
        instance: ReceivedInstance,
        status: RecordStatus,
        path: str,
        reason: str | None = None,
        quarantine_id: int | None = None,
    ) -> Recorded:
        return Recorded(
            status=status,
            study_uid=instance.study_uid,
            sop_instance_uid=instance.sop_instance_uid,
            path=Path(path),
            reason=reason,
            quarantine_id=quarantine_id,
        )


def _same_patient(study: Mapping[str, Any], instance: ReceivedInstance) -> bool:
    known = [PatientIdentity(patient_id=study["patient_id"], issuer=study["issuer"])]
    if study.get("former_patient_id") is not None:
        # The scanner, or an archive that sends again, need not know of a correction.
        known.append(
            PatientIdentity(
                patient_id=study["former_patient_id"], issuer=study["former_issuer"] or ""
            )
        )
    given = PatientIdentity(
        patient_id=clean_text(instance.identity.patient_id),
        issuer=clean_text(instance.identity.issuer),
    )
    return any(same_patient(one, given) for one in known)
