from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from typing import Any

import pytest

from pe_triage.domain import (
    EXAM_LABELS,
    DeliveryState,
    InstanceRole,
    Outcome,
    PatientIdentity,
    Priority,
    StudyState,
)
from pe_triage.errors import StudyNotFoundError
from pe_triage.store.documents import show, worklist
from tests.support.store import PACS, START, STUDY, StoreUnderTest, instance

KEYS = {
    "study_uid",
    "state",
    "outcome",
    "reason",
    "priority",
    "series_uid",
    "instances",
    "run",
    "exam",
    "pe_probability",
    "findings",
    "slices",
    "model",
    "results",
    "received_at",
    "last_image_at",
    "completed_at",
    "delivered_at",
    "latency_s",
}
"""Every key that people may rely on."""

ANSWER: dict[str, Any] = {
    "series_uid": f"{STUDY}.0",
    "exam": dict.fromkeys(EXAM_LABELS, 0.25),
    "pe_probability": 0.75,
    "findings": dict.fromkeys(EXAM_LABELS, "ABSENT"),
    "slices": [{"sop_instance_uid": f"{STUDY}.1", "probability": 0.1, "attention": 0.5}],
    "model": {
        "name": "m",
        "version": "1",
        "sha256": "ab" * 32,
        "intended_use": "demonstration",
    },
    "rule": "an extra key",
}


def shown(store: StoreUnderTest, study_uid: str = STUDY) -> dict[str, Any]:
    document = show(store.engine, study_uid, store.data_dir)
    assert document.keys() >= KEYS
    json.dumps(document, allow_nan=False)
    return document


def test_unknown_study(store: StoreUnderTest) -> None:
    with pytest.raises(StudyNotFoundError, match=r"unknown study: 9\.9"):
        show(store.engine, "9.9", store.data_dir)
    assert worklist(store.engine, store.data_dir) == []


def test_a_study_on_its_way(store: StoreUnderTest) -> None:
    store.receive()
    document = shown(store)
    assert document["state"] == "RECEIVING"
    assert (document["run"], document["instances"]) == (0, 2)
    for key in ("outcome", "reason", "priority", "exam", "model", "completed_at", "latency_s"):
        assert document[key] is None
    assert (document["slices"], document["results"]) == ([], [])
    store.enqueue()
    assert (shown(store)["state"], shown(store)["run"]) == ("QUEUED", 1)
    store.claimed()
    assert shown(store)["state"] == "RUNNING"


def test_an_answer_in_full(store: StoreUnderTest) -> None:
    store.queued()
    store.clock.forward(20)
    store.finish(store.claimed(), document=ANSWER, reason=None)
    document = shown(store)
    assert (document["state"], document["outcome"], document["priority"]) == (
        "DONE",
        "POSITIVE",
        "HIGH",
    )
    for key, value in ANSWER.items():
        assert document[key] == value
    report, summary = document["results"]
    assert (report["kind"], summary["kind"]) == ("SR", "SUMMARY")
    assert report["path"] == str(store.data_dir / "results/1/run-1/0.dcm")
    assert report["deliveries"] == [
        {"destination": PACS, "state": "PENDING", "attempts": 0, "last_error": None}
    ]
    assert document["delivered_at"] is None
    assert document["latency_s"] is None
    for delivery in store.outbox.due(PACS, 10):
        store.outbox.mark(delivery.delivery_id, DeliveryState.SENT)
    document = shown(store)
    # Last image two seconds after the start, delivered at twenty.
    assert document["latency_s"] == pytest.approx(18.0)
    times = [
        datetime.fromisoformat(document[key])
        for key in ("received_at", "last_image_at", "completed_at", "delivered_at")
    ]
    assert all(t.utcoffset() is not None for t in times)
    assert times == sorted(times)


def test_refusal_and_failure(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(
        store.claimed(),
        state=StudyState.NOT_EVALUATED,
        outcome=Outcome.NOT_EVALUATED,
        reason="no contrast",
        priority=None,
    )
    document = shown(store)
    assert (document["state"], document["outcome"], document["reason"]) == (
        "NOT_EVALUATED",
        "NOT_EVALUATED",
        "no contrast",
    )
    assert document["exam"] is None
    assert len(document["results"]) == 2
    store.enqueue(forced=True)
    store.queue.fail(store.claimed(), "truncated", retry=False)
    document = shown(store)
    assert (document["state"], document["run"], document["outcome"]) == ("FAILED", 2, None)
    assert (document["reason"], document["priority"], document["results"]) == (
        "truncated",
        None,
        [],
    )


def test_the_earlier_answer_stands_until_the_new_run_ends(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed(), document=ANSWER)
    store.record(instance(STUDY, 3, store.data_dir, received_at=START + timedelta(hours=1)))
    document = shown(store)
    assert (document["state"], document["run"], document["priority"]) == ("RECEIVING", 1, "HIGH")
    assert document["last_image_at"] == (START + timedelta(seconds=2)).isoformat()
    assert document["pending_run"] is None
    store.enqueue()
    document = shown(store)
    assert (document["state"], document["run"], document["pending_run"]) == ("QUEUED", 1, 2)
    store.finish(store.claimed(), outcome=Outcome.NEGATIVE, priority=Priority.LOW)
    document = shown(store)
    assert (document["state"], document["run"], document["priority"]) == ("DONE", 2, "LOW")
    assert document["last_image_at"] == (START + timedelta(hours=1)).isoformat()
    assert (document["pending_run"], document["instances"]) == (None, 3)


def test_quarantine_says_why(store: StoreUnderTest) -> None:
    store.receive()
    store.record(
        instance(STUDY, 3, store.data_dir, identity=PatientIdentity(patient_id="PID-OTHER"))
    )
    document = shown(store)
    assert document["state"] == "QUARANTINED"
    assert document["reason"] == "Study Instance UID is held under another patient"
    assert "PID" not in json.dumps(document)


def test_own_results_without_their_study(store: StoreUnderTest) -> None:
    store.record(instance(STUDY, 1, store.data_dir, role=InstanceRole.OWN_RESULT))
    document = shown(store)
    assert (document["state"], document["outcome"]) == ("NOT_EVALUATED", "NOT_EVALUATED")
    assert "itself" in document["reason"]


def test_no_identity_in_any_document(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed(), document=ANSWER)
    assert "SECRET" not in json.dumps(shown(store))


def test_the_worklist_in_reading_order(store: StoreUnderTest) -> None:
    priorities = (None, Priority.LOW, Priority.HIGH, Priority.MEDIUM, Priority.HIGH)
    for number, priority in enumerate(priorities):
        uid = f"1.2.826.0.1.{number}"
        # The later a study is queued, the longer ago it came: age, not order of work, decides.
        store.receive(uid, received_at=START - timedelta(minutes=number))
        store.enqueue(uid)
        store.finish(store.claimed(), priority=priority, document=ANSWER)
        time.sleep(0.002)
    store.receive("1.2.826.0.1.8", received_at=START - timedelta(hours=1))
    documents = worklist(store.engine, store.data_dir)
    assert [d["study_uid"][-1] for d in documents] == ["4", "2", "3", "1", "8", "0"]
    assert all(d.keys() >= KEYS - {"slices"} for d in documents)
    assert all("slices" not in d for d in documents)
    one = show(store.engine, documents[0]["study_uid"], store.data_dir)
    assert {k: v for k, v in one.items() if k != "slices"} == documents[0]
    first_two = worklist(store.engine, store.data_dir, limit=2)
    assert [d["study_uid"][-1] for d in first_two] == ["4", "2"]
    since = worklist(store.engine, store.data_dir, since=START - timedelta(minutes=2))
    assert [d["study_uid"][-1] for d in since] == ["2", "1", "0"]


def test_a_result_without_destination_is_not_called_delivered(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed(), destinations=())
    document = shown(store)
    assert document["state"] == "DONE"
    assert document["delivered_at"] is None
    assert document["results"][0]["deliveries"] == []
