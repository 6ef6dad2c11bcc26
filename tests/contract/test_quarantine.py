from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pe_triage.app import requeue
from pe_triage.cli.tables import worklist_table
from pe_triage.domain import InstanceRole, PatientIdentity, StudyState
from pe_triage.errors import InputError
from pe_triage.store.documents import show, worklist
from pe_triage.store.quarantine import CONSEQUENCES
from pe_triage.store.recording import RecordStatus
from pe_triage.store.schema import QuarantineKind, QuarantineState
from tests.support.store import PACS, PATIENT, STUDY, StoreUnderTest, instance, sha

STRANGER = PatientIdentity(patient_id="PID-OTHER")


def set_aside(store: StoreUnderTest, number: int = 3) -> int:
    (recorded,) = store.record(instance(STUDY, number, store.data_dir, identity=STRANGER))
    assert recorded.quarantine_id is not None
    return recorded.quarantine_id


def test_the_study_goes_on_when_all_its_doubts_are_settled(store: StoreUnderTest) -> None:
    store.queued()
    first, second = set_aside(store, 3), set_aside(store, 4)
    store.clock.forward(60)
    entry = store.quarantine.discard(first)
    assert (entry.state, entry.decided_at) == (QuarantineState.DISCARDED, store.clock.now)
    assert store.state() is StudyState.QUARANTINED
    store.quarantine.discard(second)
    assert store.state() is StudyState.RECEIVING
    assert store.studies.get(STUDY).quarantine_reason is None
    assert store.studies.receiving()[0].last_activity_at == store.clock.now
    # The run that quarantine ended is no answer: the same instances run again.
    job = store.enqueue()
    assert job is not None
    assert job.run == 2
    store.finish(store.claimed())
    assert store.state() is StudyState.DONE
    assert store.quarantine.list() == []
    assert len(store.quarantine.list(decided=True)) == 2


def test_another_patients_image_is_never_released(store: StoreUnderTest) -> None:
    """A run over two patients' images could only end FAILED."""
    store.receive()
    quarantine_id = set_aside(store)
    with pytest.raises(InputError, match=r"two patients.*discard"):
        store.quarantine.release(quarantine_id)
    assert store.quarantine.list()[0].state is QuarantineState.HELD
    assert store.state() is StudyState.QUARANTINED


def test_other_content_can_never_be_released(store: StoreUnderTest) -> None:
    store.receive()
    changed = replace(instance(STUDY, 1, store.data_dir), sha256=sha("changed"))
    (recorded,) = store.record(changed)
    assert recorded.quarantine_id is not None
    with pytest.raises(InputError, match="cannot be released"):
        store.quarantine.release(recorded.quarantine_id)
    assert store.quarantine.discard(recorded.quarantine_id).state is QuarantineState.DISCARDED
    assert store.state() is StudyState.RECEIVING


def test_decided_once(store: StoreUnderTest) -> None:
    store.receive()
    quarantine_id = set_aside(store)
    store.quarantine.discard(quarantine_id)
    with pytest.raises(InputError, match="DISCARDED already"):
        store.quarantine.release(quarantine_id)
    with pytest.raises(InputError, match="no quarantine entry 99"):
        store.quarantine.discard(99)
    # It came again, so it is in doubt again.
    assert set_aside(store) != quarantine_id
    assert store.state() is StudyState.QUARANTINED


def test_where_the_file_went(store: StoreUnderTest) -> None:
    store.receive()
    quarantine_id = set_aside(store)
    store.quarantine.moved(quarantine_id, Path("quarantine/x.dcm"))
    assert store.quarantine.list()[0].path == Path("quarantine/x.dcm")
    with pytest.raises(InputError):
        store.quarantine.moved(99, Path("x"))


def test_a_file_that_cannot_be_indexed(store: StoreUnderTest) -> None:
    path = Path("quarantine/unreadable.dcm")
    first = store.quarantine.add(path=path, reason="no preamble")
    assert store.quarantine.add(path=path, reason="no preamble") == first
    (entry,) = store.quarantine.list()
    assert (entry.kind, entry.reason, entry.study_uid) == (
        QuarantineKind.OTHER,
        "no preamble",
        None,
    )
    assert store.quarantine.release(first).state is QuarantineState.RELEASED


def test_a_study_that_holds_nothing_stays_visible(store: StoreUnderTest) -> None:
    store.receive(count=1)
    thief = instance("1.2.826.0.1.2", 1, store.data_dir, sop_instance_uid=f"{STUDY}.1")
    (recorded,) = store.record(thief)
    assert recorded.quarantine_id is not None
    store.quarantine.discard(recorded.quarantine_id)
    assert store.state("1.2.826.0.1.2") is StudyState.QUARANTINED
    # Images of its own bring it back.
    store.record(instance("1.2.826.0.1.2", 2, store.data_dir))
    assert store.state("1.2.826.0.1.2") is StudyState.RECEIVING


def test_an_absent_issuer_is_no_other_patient(store: StoreUnderTest) -> None:
    bare = PatientIdentity(patient_id=PATIENT.patient_id)
    other = PatientIdentity(patient_id=PATIENT.patient_id, issuer="ELSEWHERE")
    store.record(instance(STUDY, 1, store.data_dir, identity=bare))
    (known,) = store.record(instance(STUDY, 2, store.data_dir))
    (again,) = store.record(instance(STUDY, 3, store.data_dir, identity=bare))
    assert {known.status, again.status} == {RecordStatus.NEW}
    # The issuer is known by now, so that another one is seen.
    assert store.studies.get(STUDY).identity == PATIENT
    (third,) = store.record(instance(STUDY, 4, store.data_dir, identity=other))
    assert third.status is RecordStatus.CONFLICT_IDENTITY


@pytest.mark.parametrize("role", [InstanceRole.OTHER, InstanceRole.OWN_RESULT])
def test_what_is_no_image_is_set_aside_alone(store: StoreUnderTest, role: InstanceRole) -> None:
    job = store.queued()
    stray = instance(STUDY, 9, store.data_dir, identity=STRANGER, role=role)
    (recorded,) = store.record(stray)
    assert recorded.status is RecordStatus.CONFLICT_IDENTITY
    (entry,) = store.quarantine.list()
    assert (entry.kind, entry.study_uid) == (QuarantineKind.STRAY, STUDY)
    assert (store.state(), store.studies.get(STUDY).quarantine_reason) == (StudyState.QUEUED, None)
    assert store.claimed().job_id == job.job_id
    thief = instance("1.2.826.0.1.2", 1, store.data_dir, sop_instance_uid=f"{STUDY}.1", role=role)
    assert store.record(thief)[0].status is RecordStatus.CONFLICT_IDENTITY
    assert store.state() is StudyState.RUNNING
    store.quarantine.discard(entry.quarantine_id)
    assert store.state() is StudyState.RUNNING


def test_a_corrected_patient_stops_new_results(store: StoreUnderTest) -> None:
    """The same images under a corrected Patient ID: nothing more leaves under the old one."""
    store.queued()
    store.finish(store.claimed())
    assert len(store.outbox.due(PACS, 9)) == 2
    corrected = [instance(STUDY, n, store.data_dir, identity=STRANGER) for n in (1, 2)]
    assert {r.status for r in store.record(*corrected)} == {RecordStatus.CONFLICT_IDENTITY}
    document = show(store.engine, STUDY, store.data_dir)
    assert (document["state"], document["quarantine_reason"] is not None) == ("DONE", True)
    assert document["results"][0]["deliveries"][0]["state"] == "PARKED"
    assert "in doubt" in document["results"][0]["deliveries"][0]["last_error"]
    assert store.outbox.due(PACS, 9) == []
    assert store.outbox.requeue_parked() == 0
    with pytest.raises(InputError, match="another patient"):
        requeue(store.engine, STUDY, rank=None)
    with pytest.raises(InputError):
        store.enqueue(forced=True)
    # More of the first patient comes: it is kept, and not analysed before the doubt is settled.
    store.record(instance(STUDY, 3, store.data_dir))
    assert store.state() is StudyState.QUARANTINED
    assert store.enqueue() is None
    for entry in store.quarantine.list():
        store.quarantine.discard(entry.quarantine_id)
    assert store.state() is StudyState.RECEIVING
    assert len(store.outbox.due(PACS, 9)) == 2
    assert store.enqueue() is not None


def test_the_worklist_marks_a_patient_in_doubt(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    set_aside(store)
    with (console := Console(width=150)).capture() as seen:
        console.print(worklist_table(worklist(store.engine, store.data_dir)))
    assert "! Study Instance UID is held under another patient" in seen.get()


def test_who_decided_and_why_is_kept(store: StoreUnderTest) -> None:
    store.receive()
    quarantine_id = set_aside(store)
    before = store.quarantine.get(quarantine_id)
    assert list(before.consequence) == ["discard"]
    assert "held back is sent" in before.consequence["discard"]
    store.clock.forward(60)
    store.quarantine.discard(quarantine_id, by="physicist", why="wrong worklist entry")
    entry = store.quarantine.get(quarantine_id)
    assert (entry.decided_by, entry.decided_why) == ("physicist", "wrong worklist entry")
    assert entry.decided_at == store.clock.now
    assert entry.consequence == {}


@pytest.mark.parametrize("kind", QuarantineKind)
def test_each_kind_says_what_a_decision_leads_to(kind: QuarantineKind) -> None:
    decisions = CONSEQUENCES[kind]
    assert "discard" in decisions
    assert ("release" in decisions) == (kind is QuarantineKind.OTHER)
