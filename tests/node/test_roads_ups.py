"""Workitems against this suite's own small UPS-RS server (no free one is at hand)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from pe_triage.deliver.http import HttpOptions
from pe_triage.deliver.outcomes import Sent
from pe_triage.deliver.statuses import Verdict
from pe_triage.deliver.ups import UpsSender
from pe_triage.destinations import UpsDestination
from pe_triage.domain import (
    Delivery,
    DeliveryState,
    Outcome,
    PatientIdentity,
    Priority,
    ResultKind,
    ResultObject,
    TriageResult,
)
from pe_triage.report.messages import MessageContext
from pe_triage.report.messages.ups import build_ups
from pe_triage.report.study import StudyContext
from tests.support.roads import HttpPeer, Request, UpsServer

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
RETRY, PARK = Verdict.RETRY, Verdict.PARK

SR = ResultObject(
    kind=ResultKind.SR,
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
    sop_instance_uid="2.25.7",
    series_uid="2.25.8",
    encoded=b"",
)


def delivery(tmp_path: Path, phantom_dir: Path, workitem: str) -> Delivery:
    """A real message of an invented answer about a phantom."""
    source = dcmread(next(iter(sorted(phantom_dir.iterdir()))), stop_before_pixels=True)
    context = MessageContext(
        result=TriageResult(
            outcome=Outcome.POSITIVE,
            reason="central PE",
            priority=Priority.HIGH,
            series_uid=str(source.SeriesInstanceUID),
            sop_instance_uids=(str(source.SOPInstanceUID),),
        ),
        study=StudyContext(
            study_uid=str(source.StudyInstanceUID),
            run=1,
            manifest_digest="ab" * 32,
            identity=PatientIdentity(
                patient_id=str(source.PatientID),
                issuer=str(source.get("IssuerOfPatientID", "") or ""),
            ),
        ),
        source=source,
        objects=[SR],
        now=NOW,
    )
    table = UpsDestination(type="ups", name="ups", url="http://u", workitem=workitem)  # type: ignore[arg-type]
    body = build_ups(context, table)
    assert body is not None
    path = tmp_path / f"{workitem}.json"
    path.write_bytes(body)
    return Delivery(
        delivery_id=1,
        study_uid=context.study.study_uid,
        destination="ups",
        kind=ResultKind.UPS,
        sop_class_uid=None,
        sop_instance_uid=None,
        path=path,
        state=DeliveryState.PENDING,
        attempts=0,
    )


def send(url: str, item: Delivery) -> Sent:
    sender = UpsSender(HttpOptions(name="ups", url=url, timeout_s=5.0), clock=lambda: NOW)
    ((delivery_id, sent),) = sender.send([item])
    assert delivery_id == item.delivery_id
    return sent


def test_a_reading_task_is_left_scheduled_with_its_priority(
    tmp_path: Path, phantom_dir: Path
) -> None:
    server = UpsServer()
    with HttpPeer(server) as peer:
        sent = send(peer.url, delivery(tmp_path, phantom_dir, "reading"))
    assert sent == Sent(verdict=Verdict.SENT)
    (item,) = (Dataset.from_json(w) for w in server.workitems.values())
    assert item.ScheduledProcedureStepPriority == "HIGH"
    assert (item.ProcedureStepState, item.InputReadinessState) == ("SCHEDULED", "READY")
    references = [
        (information.SeriesInstanceUID, reference.ReferencedSOPInstanceUID)
        for information in item.InputInformationSequence
        for reference in information.ReferencedSOPSequence
    ]
    assert ("2.25.8", "2.25.7") in references
    assert len(references) == 2


def test_our_analysis_is_completed_with_its_output(tmp_path: Path, phantom_dir: Path) -> None:
    server = UpsServer()
    with HttpPeer(server) as peer:
        assert send(peer.url, delivery(tmp_path, phantom_dir, "analysis")).error is None
    (item,) = (Dataset.from_json(w) for w in server.workitems.values())
    assert item.ProcedureStepState == "COMPLETED"
    assert item.ScheduledProcedureStepPriority == "HIGH"
    (performed,) = item.UnifiedProcedureStepPerformedProcedureSequence
    (output,) = performed.OutputInformationSequence
    assert output.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "2.25.7"
    assert {r.headers["content-type"] for r in peer.requests} == {"application/dicom+json"}


STEPS = ["POST /workitems?", "/state", "POST /workitems/"]


@pytest.mark.parametrize("workitem", ["reading", "analysis"])
@pytest.mark.parametrize("lost", STEPS)
def test_an_answer_lost_at_any_step_makes_one_workitem(
    lost: str, workitem: str, tmp_path: Path, phantom_dir: Path
) -> None:
    server = UpsServer()
    server.lose_after.add(lost)
    item = delivery(tmp_path, phantom_dir, workitem)
    with HttpPeer(server) as peer:
        first = send(peer.url, item)
        if server.lose_after:
            assert workitem == "reading"  # it has no such step
        else:
            assert first.verdict is RETRY
        for _ in range(2):  # and sent again although it was complete
            assert send(peer.url, item).verdict is Verdict.SENT
    (kept,) = server.workitems.values()
    expected = "SCHEDULED" if workitem == "reading" else "COMPLETED"
    assert kept["00741000"]["Value"] == [expected]
    assert server.order == list(server.workitems)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda _r: (401, {}, b""), RETRY),
        (lambda _r: (503, {"Retry-After": "5"}, b""), RETRY),
        (lambda _r: (403, {}, b""), PARK),
        (lambda _r: (404, {}, b""), PARK),
        # A conflict with what is not there, or cannot be read, is a refusal.
        (lambda _r: (409, {}, b"DOE^JANE"), PARK),
        (lambda r: (409, {}, b"") if r.method == "POST" else (200, {}, b"[]"), PARK),
    ],
)
def test_refusals(
    answer: Callable[[Request], Any], verdict: Verdict, tmp_path: Path, phantom_dir: Path
) -> None:
    with HttpPeer(answer) as peer:
        sent = send(peer.url, delivery(tmp_path, phantom_dir, "analysis"))
    assert sent.verdict is verdict
    assert str(sent.error).startswith("ups: create: HTTP ")
    assert "DOE" not in str(sent.error)


def test_a_workitem_taken_by_somebody_else_is_not_overwritten(
    tmp_path: Path, phantom_dir: Path
) -> None:
    server = UpsServer()
    item = delivery(tmp_path, phantom_dir, "analysis")
    uid = json.loads(item.path.read_bytes())["workitem_uid"]
    with HttpPeer(server) as peer:
        server.lose_after.add("/state")
        assert send(peer.url, item).verdict is RETRY
        server.workitems[uid]["00081195"] = {"vr": "UI", "Value": ["1.2.3"]}
        sent = send(peer.url, item)
    assert sent.verdict is PARK
    assert sent.error == "ups: update: HTTP 409: refused"


def test_what_is_no_list_of_steps_is_parked(tmp_path: Path, phantom_dir: Path) -> None:
    item = delivery(tmp_path, phantom_dir, "reading")
    item.path.write_bytes(b"[]")
    with HttpPeer(UpsServer()) as peer:
        assert send(peer.url, item).verdict is PARK
    assert peer.requests == []
