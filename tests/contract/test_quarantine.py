from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pe_triage.domain import PatientIdentity, StudyState
from pe_triage.errors import InputError
from pe_triage.store.recording import RecordStatus
from pe_triage.store.schema import QuarantineKind, QuarantineState
from tests.support.store import STUDY, StoreUnderTest, instance, sha

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


def test_released_means_taken_when_it_comes_again(store: StoreUnderTest) -> None:
    store.receive()
    entry = store.quarantine.release(set_aside(store))
    assert entry.kind is QuarantineKind.IDENTITY
    (again,) = store.record(instance(STUDY, 3, store.data_dir, identity=STRANGER))
    assert again.status is RecordStatus.NEW
    assert (store.state(), store.studies.get(STUDY).instances) == (StudyState.RECEIVING, 3)
    # That word was about one object only.
    (other,) = store.record(instance(STUDY, 4, store.data_dir, identity=STRANGER))
    assert other.status is RecordStatus.CONFLICT_IDENTITY


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
