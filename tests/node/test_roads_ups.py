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


def delivery(
    tmp_path: Path,
    phantom_dir: Path,
    workitem: str,
    *,
    priority: Priority = Priority.HIGH,
    accession: str = "",
    issuer: str = "",
    raise_existing: bool = True,
) -> Delivery:
    """A real message of an invented answer about a phantom."""
    source = dcmread(next(iter(sorted(phantom_dir.iterdir()))), stop_before_pixels=True)
    source.AccessionNumber = accession
    source.IssuerOfPatientID = issuer
    context = MessageContext(
        result=TriageResult(
            outcome=Outcome.POSITIVE,
            reason="central PE",
            priority=priority,
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
    table = UpsDestination(
        type="ups",
        name="ups",
        url="http://u",
        workitem=workitem,  # type: ignore[arg-type]
        raise_existing=raise_existing,
    )
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


# ------------------------------------------------- a reading task that the RIS has already

RIS_TASK = "1.2.3.4"


def ris_task(item: Delivery, **changes: Any) -> dict[str, Any]:
    """A reading task as a RIS might have scheduled it: its own identifiers, no study of results."""
    (ours, *_) = json.loads(item.path.read_bytes())["steps"]
    task = Dataset()
    task.PatientID = ours["content"][0]["00100020"]["Value"][0]
    task.ProcedureStepState = "SCHEDULED"
    task.ScheduledProcedureStepPriority = "LOW"
    task.CommentsOnTheScheduledProcedureStep = "the RIS's own"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
        "110005",
        "DCM",
        "Interpretation",
    )
    task.ScheduledWorkitemCodeSequence = [code]
    request = Dataset()
    request.StudyInstanceUID = item.study_uid
    task.ReferencedRequestSequence = [request]
    for keyword, value in changes.items():
        setattr(task, keyword, value)
    return dict(task.to_json_dict())


def with_task(item: Delivery, **changes: Any) -> UpsServer:
    server = UpsServer()
    server.workitems[RIS_TASK] = ris_task(item, **changes)
    return server


def requests_of(**values: Any) -> list[Dataset]:
    request = Dataset()
    for keyword, value in values.items():
        setattr(request, keyword, value)
    return [request]


def writes(peer: HttpPeer) -> list[str]:
    return [f"{r.method} {r.path}" for r in peer.requests if r.method != "GET"]


@pytest.mark.parametrize("times", [1, 2])
def test_the_riss_own_reading_task_is_raised_and_ours_is_not_made(
    times: int, tmp_path: Path, phantom_dir: Path
) -> None:
    item = delivery(tmp_path, phantom_dir, "reading")
    server = with_task(item)
    before = dict(server.workitems[RIS_TASK])
    with HttpPeer(server) as peer:
        for _ in range(times):
            assert send(peer.url, item) == Sent(verdict=Verdict.SENT)
    assert list(server.workitems) == [RIS_TASK]
    assert server.workitems[RIS_TASK] == before | {"00741200": {"vr": "CS", "Value": ["HIGH"]}}
    assert writes(peer) == [f"POST /workitems/{RIS_TASK}"]  # the second time it is high already
    assert item.study_uid in peer.requests[0].path
    patient_id = before["00100020"]["Value"][0]
    assert not any(patient_id in r.path for r in peer.requests)


@pytest.mark.parametrize(
    "changes",
    [
        {"StudyInstanceUID": "THIS", "ReferencedRequestSequence": []},
        {"ReferencedRequestSequence": requests_of(AccessionNumber="ACC")},
    ],
)
def test_it_is_found_by_the_study_of_its_results_or_by_the_order(
    changes: dict[str, Any], tmp_path: Path, phantom_dir: Path
) -> None:
    item = delivery(tmp_path, phantom_dir, "reading", accession="ACC")
    changes = {k: item.study_uid if v == "THIS" else v for k, v in changes.items()}
    server = with_task(item, **changes)
    with HttpPeer(server) as peer:
        assert send(peer.url, item).verdict is Verdict.SENT
    assert list(server.workitems) == [RIS_TASK]
    assert server.workitems[RIS_TASK]["00741200"]["Value"] == ["HIGH"]


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientID": "somebody else"},
        {"IssuerOfPatientID": "elsewhere"},
        {"ReferencedRequestSequence": requests_of(StudyInstanceUID="1.9", AccessionNumber="ACC")},
        {"ScheduledWorkitemCodeSequence": []},
        {"ProcedureStepState": "COMPLETED"},
        {"ProcedureStepState": "CANCELED"},
    ],
)
def test_what_is_not_this_studys_open_reading_is_left_alone(
    changes: dict[str, Any], tmp_path: Path, phantom_dir: Path
) -> None:
    item = delivery(tmp_path, phantom_dir, "reading", accession="ACC", issuer="HOSP")
    server = with_task(item, **changes)
    before = dict(server.workitems[RIS_TASK])
    with HttpPeer(server) as peer:
        assert send(peer.url, item).verdict is Verdict.SENT
    assert server.workitems[RIS_TASK] == before
    assert len(server.order) == 1  # ours


def test_a_higher_priority_is_never_lowered(tmp_path: Path, phantom_dir: Path) -> None:
    item = delivery(tmp_path, phantom_dir, "reading", priority=Priority.LOW)
    server = with_task(item, ScheduledProcedureStepPriority="MEDIUM")
    with HttpPeer(server) as peer:
        assert send(peer.url, item) == Sent(verdict=Verdict.SENT)
    assert server.workitems[RIS_TASK]["00741200"]["Value"] == ["MEDIUM"]
    assert writes(peer) == []


def test_a_reading_in_progress_is_not_touched_and_said(tmp_path: Path, phantom_dir: Path) -> None:
    item = delivery(tmp_path, phantom_dir, "reading")
    server = with_task(item, ProcedureStepState="IN PROGRESS")
    with HttpPeer(server) as peer:
        sent = send(peer.url, item)
    assert sent.verdict is Verdict.WARNING
    assert sent.error == "ups: the study's reading is in progress: its priority was left as it is"
    assert writes(peer) == []


def test_a_task_taken_between_the_look_and_the_change(tmp_path: Path, phantom_dir: Path) -> None:
    item = delivery(tmp_path, phantom_dir, "reading")
    server = with_task(item)

    def taken(request: Request) -> Any:
        if request.method == "POST":
            server.workitems[RIS_TASK]["00741000"]["Value"] = ["IN PROGRESS"]
            server.workitems[RIS_TASK]["00081195"] = {"vr": "UI", "Value": ["1.5"]}
        return server(request)

    with HttpPeer(taken) as peer:
        assert send(peer.url, item).verdict is Verdict.WARNING
    assert server.workitems[RIS_TASK]["00741200"]["Value"] == ["LOW"]
    assert list(server.workitems) == [RIS_TASK]


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_without_a_search_ours_is_made(status: int, tmp_path: Path, phantom_dir: Path) -> None:
    server = UpsServer()

    def answer(request: Request) -> Any:
        if request.method == "GET" and request.path.startswith("/workitems?"):
            return status, {}, b"DOE^JANE"
        return server(request)

    item = delivery(tmp_path, phantom_dir, "reading")
    with HttpPeer(answer) as peer:
        assert send(peer.url, item) == Sent(verdict=Verdict.SENT)
    assert len(server.order) == 1


def test_a_key_that_the_server_does_not_match_is_passed_over(
    tmp_path: Path, phantom_dir: Path
) -> None:
    item = delivery(tmp_path, phantom_dir, "reading")
    server = with_task(item)
    del server.keys["StudyInstanceUID"]
    with HttpPeer(server) as peer:
        assert send(peer.url, item).verdict is Verdict.SENT
    assert list(server.workitems) == [RIS_TASK]


@pytest.mark.parametrize("status", [401, 503])
def test_a_search_that_fails_for_now_is_tried_again(
    status: int, tmp_path: Path, phantom_dir: Path
) -> None:
    with HttpPeer(lambda _r: (status, {}, b"DOE^JANE")) as peer:
        sent = send(peer.url, delivery(tmp_path, phantom_dir, "reading"))
    assert sent.verdict is RETRY
    assert str(sent.error).startswith(f"ups: search: HTTP {status}")
    assert writes(peer) == []


@pytest.mark.parametrize("workitem", ["reading", "analysis"])
def test_a_workitem_that_cannot_be_retrieved_now_is_tried_again(
    workitem: str, tmp_path: Path, phantom_dir: Path
) -> None:
    item = delivery(tmp_path, phantom_dir, workitem)
    server = with_task(item) if workitem == "reading" else UpsServer()

    def answer(request: Request) -> Any:
        if request.method == "GET" and "?" not in request.path:
            return 503, {"Retry-After": "7"}, b""
        return server(request) if workitem == "reading" else (409, {}, b"")

    with HttpPeer(answer) as peer:
        sent = send(peer.url, item)
    assert (sent.verdict, sent.retry_after_s) == (RETRY, 7.0)
    assert sent.error == "ups: retrieve: HTTP 503: server error"
    assert server.order == []


EVIL = json.dumps([{"00080018": {"vr": "UI", "Value": ["../admin?x"]}}]).encode()


@pytest.mark.parametrize("body", [b"", b"{}", b"[7]", b'[{"00080018": {}}]', b"<html>", EVIL])
def test_what_a_search_brings_is_not_trusted(
    body: bytes, tmp_path: Path, phantom_dir: Path
) -> None:
    server = UpsServer()

    def answer(request: Request) -> Any:
        if request.method == "GET" and request.path.startswith("/workitems?"):
            return 200, {}, body
        return server(request)

    with HttpPeer(answer) as peer:
        item = delivery(tmp_path, phantom_dir, "reading")
        assert send(peer.url, item).verdict is Verdict.SENT
    assert len(server.order) == 1
    assert not any("admin" in r.path for r in peer.requests)


def test_a_site_can_have_ours_whatever_is_there(tmp_path: Path, phantom_dir: Path) -> None:
    item = delivery(tmp_path, phantom_dir, "reading", raise_existing=False)
    server = with_task(item)
    with HttpPeer(server) as peer:
        assert send(peer.url, item).verdict is Verdict.SENT
    assert server.workitems[RIS_TASK]["00741200"]["Value"] == ["LOW"]
    assert len(server.order) == 1
    assert [r.method for r in peer.requests] == ["POST"]
