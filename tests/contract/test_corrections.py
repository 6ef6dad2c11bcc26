"""A study goes over to the patient that the PACS has corrected it to."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from pe_triage.domain import DeliveryState, PatientIdentity, StudyState
from pe_triage.errors import InputError, LeaseLostError
from pe_triage.store import schema
from pe_triage.store.corrections import MOST, correct_patient
from pe_triage.store.recording import RecordStatus
from pe_triage.store.schema import CORRECTED
from pe_triage.store.studies import CorrectedPatient
from tests.support.store import PACS, PATIENT, STUDY, StoreUnderTest, instance

NEW = CorrectedPatient(patient_id="PID-NEW", issuer="HOSP", name="Doe^Jane", birth_date="19500102")
NEW_ID = PatientIdentity(patient_id="PID-NEW", issuer="HOSP")


def answered(store: StoreUnderTest) -> None:
    store.queued_and_claimed(STUDY)
    job = store.queue.latest(STUDY)
    assert job is not None
    store.finish(job)


def words_of(store: StoreUnderTest) -> set[tuple[DeliveryState, str | None]]:
    return {(item.state, item.last_error) for item in store.outbox.undelivered()}


def test_what_waits_is_parked_for_good_and_the_study_is_answered_anew(
    store: StoreUnderTest,
) -> None:
    answered(store)
    assert correct_patient(store.engine, STUDY, NEW, clock=store.clock) == 2
    assert words_of(store) == {(DeliveryState.PARKED, CORRECTED)}
    assert store.outbox.requeue_parked() == 0, "no request sends it under the patient as before"
    assert store.outbox.requeue_parked(study_uid=STUDY) == 0
    study = store.studies.get(STUDY)
    assert (study.identity, study.corrected, study.state) == (NEW_ID, NEW, StudyState.QUEUED)
    again = store.claimed()
    assert again.run == 2
    assert {i.identity for i in store.studies.instances(STUDY, run=2)} == {NEW_ID}
    store.finish(again)
    due = store.outbox.due(PACS, 10)
    assert {item.sop_instance_uid.split(".")[-2] for item in due if item.sop_instance_uid} == {"2"}


def test_what_a_person_had_parked_is_not_forgotten(store: StoreUnderTest) -> None:
    answered(store)
    for item in store.outbox.due(PACS, 10):
        store.outbox.mark(item.delivery_id, DeliveryState.PARKED, error="another patient")
    correct_patient(store.engine, STUDY, NEW)
    assert words_of(store) == {(DeliveryState.PARKED, CORRECTED)}


def test_a_worker_that_writes_the_patient_as_before_is_fenced_off(store: StoreUnderTest) -> None:
    job = store.queued_and_claimed(STUDY) or store.queue.latest(STUDY)
    assert job is not None
    assert correct_patient(store.engine, STUDY, NEW) == 1, "the same run, made again"
    with pytest.raises(LeaseLostError):
        store.finish(job)
    with pytest.raises(LeaseLostError):
        store.queue.heartbeat(job, "node/worker-0/1", 30.0)
    assert store.outbox.undelivered() == []
    again = store.claimed()
    assert (again.run, again.attempt) == (1, 1), "and its claim did not count"


def test_a_run_that_waits_is_made_once(store: StoreUnderTest) -> None:
    store.queued(STUDY)
    assert correct_patient(store.engine, STUDY, NEW) == 1
    store.finish(store.claimed())
    assert store.queue.claim("w/", 30.0) is None


def test_a_study_that_still_arrives_is_queued_when_it_is_complete(store: StoreUnderTest) -> None:
    store.receive()
    assert correct_patient(store.engine, STUDY, NEW) is None
    assert store.state() is StudyState.RECEIVING
    assert store.enqueue() is not None


def test_what_comes_later_belongs_to_the_study_under_either_patient(store: StoreUnderTest) -> None:
    answered(store)
    correct_patient(store.engine, STUDY, NEW)
    third = CorrectedPatient(patient_id="PID-THIRD")
    correct_patient(store.engine, STUDY, third)

    def arrives(number: int, **change: object) -> RecordStatus:
        return store.record(instance(STUDY, number, store.data_dir, **change))[0].status

    assert arrives(11) is RecordStatus.NEW, "the scanner does not know of it"
    assert arrives(12, identity=PatientIdentity(patient_id="PID-THIRD")) is RecordStatus.NEW
    assert store.studies.get(STUDY).identity.issuer == "", "not that of the former identifier"
    stranger = PatientIdentity(patient_id="PID-SOMEBODY")
    assert arrives(13, identity=stranger) is RecordStatus.CONFLICT_IDENTITY
    assert store.studies.get(STUDY).quarantine_reason


def test_refusals_change_nothing(store: StoreUnderTest) -> None:
    answered(store)
    correct_patient(store.engine, STUDY, NEW)
    with pytest.raises(InputError, match="already"):
        correct_patient(store.engine, STUDY, NEW)
    for n in range(1, MOST):
        correct_patient(store.engine, STUDY, CorrectedPatient(patient_id=f"P{n}"))
    with pytest.raises(InputError, match="3 times"):
        correct_patient(store.engine, STUDY, CorrectedPatient(patient_id="ONCE-MORE"))
    assert store.studies.get(STUDY).identity.patient_id == f"P{MOST - 1}"
    last = CorrectedPatient(patient_id="ONCE-MORE")
    assert correct_patient(store.engine, STUDY, last, by_person=True) == 2
    with store.engine.begin() as connection:
        connection.execute(update(schema.studies).values(quarantine_reason="two patients"))
    with pytest.raises(InputError, match="quarantine"):
        correct_patient(store.engine, STUDY, NEW, by_person=True)
    assert store.studies.get(STUDY).identity.patient_id == "ONCE-MORE"


def test_the_first_identity_is_kept_whatever_follows(store: StoreUnderTest) -> None:
    store.receive()
    for n in range(2):
        correct_patient(store.engine, STUDY, CorrectedPatient(patient_id=f"P{n}"))
    with store.engine.connect() as connection:
        row = connection.execute(schema.studies.select()).one()
    assert (row.former_patient_id, row.former_issuer) == (PATIENT.patient_id, PATIENT.issuer)
    assert row.corrections == 2
