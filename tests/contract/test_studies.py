from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pe_triage.domain import InstanceRole, PatientIdentity, StudyState
from pe_triage.errors import StudyNotFoundError
from pe_triage.store.engine import StoreRefusedError
from pe_triage.store.recording import RecordStatus
from pe_triage.store.schema import QuarantineKind
from pe_triage.store.studies import AssociationEnd, StudyStore
from tests.support.store import PATIENT, SR, START, STUDY, StoreUnderTest, instance, sha

OTHER_PATIENT = PatientIdentity(patient_id="PID-OTHER", issuer="HOSP")


def test_new_instances_open_a_study(store: StoreUnderTest) -> None:
    first, second = instance(STUDY, 1, store.data_dir), instance(STUDY, 2, store.data_dir)
    recorded = store.record(second, first)
    assert [r.status for r in recorded] == [RecordStatus.NEW] * 2
    assert [r.sop_instance_uid for r in recorded] == [f"{STUDY}.2", f"{STUDY}.1"]
    study = store.studies.get(STUDY)
    assert study.state is StudyState.RECEIVING
    assert (study.instances, study.images, study.run) == (2, 2, 0)
    assert study.identity == PATIENT
    assert study.received_at == START + timedelta(seconds=1)
    assert study.last_image_at == START + timedelta(seconds=2)
    assert study.last_image_at.utcoffset() == timedelta(0)


def test_rows_hold_what_was_recorded(store: StoreUnderTest) -> None:
    original = instance(STUDY, 1, store.data_dir)
    store.studies.record([(original, {"rows": 512, "kernel": ["B30f"]}, "assoc-9")])
    (row,) = store.studies.instances(STUDY)
    assert row.path == Path("studies") / f"{STUDY}.1.dcm"
    assert store.data_dir / row.path == original.path
    assert row.facts == {"rows": 512, "kernel": ["B30f"]}
    assert (row.association_id, row.calling_aet) == ("assoc-9", "SCANNER")
    assert (row.sha256, row.size_bytes, row.received_at) == (
        original.sha256,
        original.size_bytes,
        original.received_at,
    )
    assert (row.identity, row.role, row.run) == (PATIENT, InstanceRole.IMAGE, None)


def test_recording_twice_changes_nothing(store: StoreUnderTest) -> None:
    batch = [instance(STUDY, n, store.data_dir) for n in (1, 2)]
    store.record(*batch)
    again = store.record(*batch, association="assoc-2")
    assert [r.status for r in again] == [RecordStatus.DUPLICATE] * 2
    assert again[0].path == Path("studies") / f"{STUDY}.1.dcm"
    assert store.studies.get(STUDY).instances == 2
    assert len(store.studies.instances(STUDY)) == 2
    assert store.quarantine.list() == []


def test_one_object_twice_in_a_batch(store: StoreUnderTest) -> None:
    one = instance(STUDY, 1, store.data_dir)
    other = replace(one, sha256=sha("other"), path=store.data_dir / "x.dcm")
    statuses = [r.status for r in store.record(one, one, other)]
    assert statuses == [
        RecordStatus.NEW,
        RecordStatus.DUPLICATE,
        RecordStatus.CONFLICT_CONTENT,
    ]


def test_other_bytes_are_set_aside_and_the_first_stay(store: StoreUnderTest) -> None:
    one = instance(STUDY, 1, store.data_dir)
    store.record(one)
    changed = replace(one, sha256=sha("changed"), path=store.data_dir / "incoming" / "x.dcm")
    (recorded,) = store.record(changed)
    assert recorded.status is RecordStatus.CONFLICT_CONTENT
    assert recorded.status.conflict
    (row,) = store.studies.instances(STUDY)
    assert row.sha256 == one.sha256
    (entry,) = store.quarantine.list()
    assert entry.quarantine_id == recorded.quarantine_id
    assert (entry.kind, entry.sha256) == (QuarantineKind.CONTENT, sha("changed"))
    assert entry.path == Path("incoming/x.dcm")
    assert store.state() is StudyState.RECEIVING
    # A crash before the file was moved: the same again is the same entry.
    (again,) = store.record(changed)
    assert again.quarantine_id == recorded.quarantine_id
    assert len(store.quarantine.list()) == 1


def test_two_patients_in_one_study_are_not_merged(store: StoreUnderTest) -> None:
    store.receive(count=2)
    (recorded,) = store.record(instance(STUDY, 3, store.data_dir, identity=OTHER_PATIENT))
    assert recorded.status is RecordStatus.CONFLICT_IDENTITY
    study = store.studies.get(STUDY)
    assert study.state is StudyState.QUARANTINED
    assert study.identity == PATIENT
    assert study.instances == 2
    assert study.quarantine_reason is not None
    assert "PID" not in study.quarantine_reason
    # It stays set aside while more of the first patient comes.
    assert store.record(instance(STUDY, 4, store.data_dir))[0].status is RecordStatus.NEW
    assert store.state() is StudyState.QUARANTINED
    assert store.studies.receiving() == []


def test_issuer_is_part_of_identity(store: StoreUnderTest) -> None:
    store.receive()
    same_id = PatientIdentity(patient_id=PATIENT.patient_id, issuer="ELSEWHERE")
    (recorded,) = store.record(instance(STUDY, 3, store.data_dir, identity=same_id))
    assert recorded.status is RecordStatus.CONFLICT_IDENTITY


def test_an_ended_study_keeps_its_state_under_identity_conflict(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    store.record(instance(STUDY, 3, store.data_dir, identity=OTHER_PATIENT))
    study = store.studies.get(STUDY)
    assert study.state is StudyState.DONE
    assert study.quarantine_reason is not None


def test_an_instance_of_another_study_is_a_conflict(store: StoreUnderTest) -> None:
    store.receive(count=1)
    thief = instance("1.2.826.0.1.2", 1, store.data_dir, sop_instance_uid=f"{STUDY}.1")
    (recorded,) = store.record(thief)
    assert recorded.status is RecordStatus.CONFLICT_IDENTITY
    study = store.studies.get("1.2.826.0.1.2")
    assert (study.state, study.instances) == (StudyState.QUARANTINED, 0)
    assert store.studies.get(STUDY).state is StudyState.RECEIVING
    assert store.quarantine.list()[0].kind is QuarantineKind.ELSEWHERE


def test_receiving_tells_associations_and_senders(store: StoreUnderTest) -> None:
    store.record(instance(STUDY, 1, store.data_dir), association="a")
    store.record(instance(STUDY, 2, store.data_dir), association="a")
    # A repetition by another association is still somebody sending.
    store.record(
        instance(
            STUDY,
            2,
            store.data_dir,
            calling_aet="PACS",
            received_at=START + timedelta(seconds=9),
        ),
        association="b",
    )
    store.receive("1.2.826.0.1.2", count=1)
    by_uid = {p.study_uid: p for p in store.studies.receiving()}
    progress = by_uid[STUDY]
    assert progress.association_ids == {"a", "b"}
    assert progress.calling_aets == {"SCANNER", "PACS"}
    assert [a.instances for a in progress.arrivals] == [2, 1]
    assert progress.last_image_at == START + timedelta(seconds=2)
    assert progress.last_activity_at == START + timedelta(seconds=9)
    assert by_uid["1.2.826.0.1.2"].association_ids == {"assoc-1"}


def test_how_associations_ended_is_kept(store: StoreUnderTest) -> None:
    other = "1.2.826.0.1.2"
    for association in ("a", "b", "c"):
        store.record(instance(STUDY, 1, store.data_dir), association=association)
    store.record(instance(other, 1, store.data_dir), association="b")
    released = AssociationEnd(association_id="a", ended="released", study_uids=(STUDY, "1.2.99"))
    aborted = AssociationEnd(association_id="b", ended="aborted", study_uids=(other, STUDY))
    empty = AssociationEnd(association_id="c", ended="aborted", study_uids=())
    for _ in range(2):
        # Whatever dies in between, it is done again.
        store.studies.note_ends([released, aborted, empty])
    ends = {
        p.study_uid: {a.association_id: a.ended for a in p.arrivals}
        for p in store.studies.receiving()
    }
    assert ends == {
        STUDY: {"a": "released", "b": "aborted", "c": None},
        other: {"b": "aborted"},
    }
    # What a receiver's journal still held of it changes nothing of that.
    store.record(instance(STUDY, 2, store.data_dir), association="b")
    (progress,) = [p for p in store.studies.receiving() if p.study_uid == STUDY]
    assert {a.association_id: a.ended for a in progress.arrivals} == ends[STUDY]


def test_who_sends_while_a_patient_is_in_doubt_is_remembered(store: StoreUnderTest) -> None:
    """The study goes on once a person has settled the doubt; by then it is asked who brought it."""
    store.record(instance(STUDY, 1, store.data_dir), association="first")
    stranger = instance(STUDY, 2, store.data_dir, identity=OTHER_PATIENT)
    (aside,) = store.record(stranger, association="stranger")
    report = instance(STUDY, 8, store.data_dir, role=InstanceRole.OTHER, sop_class_uid=SR)
    again = instance(STUDY, 1, store.data_dir)
    changed = replace(again, sha256=sha("changed"))
    for what, association in ((report, "report"), (again, "again"), (changed, "changed")):
        store.record(what, association=association)
    assert store.state() is StudyState.QUARANTINED
    assert aside.quarantine_id is not None
    store.quarantine.discard(aside.quarantine_id)
    (progress,) = store.studies.receiving()
    # The stranger brought nothing of this patient's study.
    assert progress.association_ids == {"first", "report", "again", "changed"}


def test_who_brought_a_report_of_a_finished_study_is_remembered(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    report = instance(STUDY, 8, store.data_dir, role=InstanceRole.OTHER, sop_class_uid=SR)
    store.record(report, association="report")
    # What is sent again of it is no arrival.
    store.record(instance(STUDY, 1, store.data_dir), association="again")
    assert store.state() is StudyState.DONE
    store.record(instance(STUDY, 3, store.data_dir), association="late")
    (progress,) = store.studies.receiving()
    assert progress.association_ids == {"assoc-1", "report", "late"}


def test_touch_only_moves_forward(store: StoreUnderTest) -> None:
    store.receive(count=1)
    store.studies.touch(STUDY, START + timedelta(seconds=30))
    store.studies.touch(STUDY, START)
    assert store.studies.receiving()[0].last_activity_at == START + timedelta(seconds=30)


def test_what_lies_beside_the_images_is_no_reason_for_a_run(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    before = store.studies.manifest(STUDY)
    for number, role in ((8, InstanceRole.OTHER), (9, InstanceRole.OWN_RESULT)):
        beside = instance(STUDY, number, store.data_dir, role=role, sop_class_uid=SR)
        assert store.record(beside)[0].status is RecordStatus.NEW
        assert store.state() is StudyState.DONE
    assert store.studies.manifest(STUDY) == before
    study = store.studies.get(STUDY)
    assert (study.instances, study.images) == (3, 2)
    assert study.last_image_at == START + timedelta(seconds=2)


def test_a_study_without_images_is_about_the_rest(store: StoreUnderTest) -> None:
    report = instance(STUDY, 1, store.data_dir, role=InstanceRole.OTHER)
    own = instance(STUDY, 2, store.data_dir, role=InstanceRole.OWN_RESULT)
    store.record(report, own)
    assert [uid for uid, _ in store.studies.manifest(STUDY).entries] == [f"{STUDY}.1"]
    job = store.enqueue()
    assert job is not None
    assert [i.sop_instance_uid for i in store.studies.instances(STUDY, run=1)] == [f"{STUDY}.1"]
    store.finish(store.claimed(), state=StudyState.NOT_EVALUATED, outcome=None, priority=None)
    # Images make another run, which is about them only.
    store.record(instance(STUDY, 3, store.data_dir))
    assert store.state() is StudyState.RECEIVING
    second = store.enqueue()
    assert second is not None
    assert [i.sop_instance_uid for i in store.studies.instances(STUDY, run=2)] == [f"{STUDY}.3"]


def test_own_results_alone_never_wait_for_anything(store: StoreUnderTest) -> None:
    store.record(instance(STUDY, 1, store.data_dir, role=InstanceRole.OWN_RESULT))
    assert store.state() is StudyState.NOT_EVALUATED
    assert store.studies.receiving() == []
    with pytest.raises(StudyNotFoundError):
        store.studies.manifest(STUDY)
    store.record(instance(STUDY, 2, store.data_dir))
    assert store.state() is StudyState.RECEIVING


def test_unknown_study(store: StoreUnderTest) -> None:
    with pytest.raises(StudyNotFoundError, match=r"9\.9"):
        store.studies.get("9.9")
    with pytest.raises(StudyNotFoundError):
        store.studies.manifest("9.9")
    assert store.studies.instances("9.9") == []


def test_text_that_a_database_would_refuse(store: StoreUnderTest) -> None:
    odd = PatientIdentity(patient_id="A\x00B\udc80", issuer="")
    batch = [instance(STUDY, n, store.data_dir, identity=odd) for n in (1, 2)]
    store.studies.record([(batch[0], {"series_description": "x\x00\udc80"}, "a")])
    assert store.record(batch[1])[0].status is RecordStatus.NEW


def test_a_path_outside_the_data_directory_stays_absolute(store: StoreUnderTest) -> None:
    outside = instance(STUDY, 1, store.data_dir, path=Path("/elsewhere/x.dcm"))
    store.record(outside)
    assert store.studies.instances(STUDY)[0].path == Path("/elsewhere/x.dcm")


def test_an_empty_batch(store: StoreUnderTest) -> None:
    assert store.studies.record([]) == []


def test_numbers_that_json_has_no_word_for(store: StoreUnderTest) -> None:
    facts = {"rescale_slope": float("nan"), "image_position_mm": [1.0, float("inf"), 2.0]}
    store.studies.record([(instance(STUDY, 1, store.data_dir), facts, "a")])
    assert store.studies.instances(STUDY)[0].facts == {
        "rescale_slope": None,
        "image_position_mm": [1.0, None, 2.0],
    }


def test_a_batch_is_all_or_nothing(store: StoreUnderTest) -> None:
    good, bad = instance(STUDY, 1, store.data_dir), instance("1.2.3", 1, store.data_dir)
    with pytest.raises(StoreRefusedError, match="cannot be stored"):
        store.studies.record([(good, {}, "a"), (bad, {"rows": object()}, "a")])
    with pytest.raises(StudyNotFoundError):
        store.studies.get(STUDY)


def test_the_same_instances_from_many_threads(store: StoreUnderTest) -> None:
    """Every instance is NEW for exactly one of the recorders, in whatever order they come."""
    uids = [f"1.2.826.0.1.{n}" for n in range(3)]
    everything = [instance(uid, n, store.data_dir) for uid in uids for n in range(1, 6)]

    def record(worker: int) -> list[RecordStatus]:
        turned = everything[worker:] + everything[:worker]
        own = StudyStore(store.engine, store.data_dir)
        statuses = []
        for start in range(0, len(turned), 4):
            batch = turned[start : start + 4]
            statuses += [r.status for r in own.record([(i, {}, f"a{worker}") for i in batch])]
        return statuses

    with ThreadPoolExecutor(4) as pool:
        statuses = [s for result in pool.map(record, range(4)) for s in result]
    assert statuses.count(RecordStatus.NEW) == len(everything)
    assert statuses.count(RecordStatus.DUPLICATE) == 3 * len(everything)
    for uid in uids:
        assert store.studies.get(uid).instances == 5
        assert len(store.studies.instances(uid)) == 5


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    data=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.booleans()), min_size=1, max_size=12
    )
)
def test_counts_agree_with_rows(store: StoreUnderTest, data: list[tuple[int, int, bool]]) -> None:
    """Whatever is sent, in whatever repetition: the study's counts are those of its rows."""
    for study, number, changed in data:
        uid = f"1.2.826.0.7.{study}"
        extra = {"sha256": sha("changed")} if changed else {}
        store.record(instance(uid, number, store.data_dir, **extra))
    for study in {study for study, _, _ in data}:
        uid = f"1.2.826.0.7.{study}"
        rows = store.studies.instances(uid)
        assert store.studies.get(uid).instances == len(rows)
        assert store.studies.get(uid).last_image_at == max(row.received_at for row in rows)
