"""Messages: written by one library, read back by another."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hl7
import pytest
from fhir.resources.R4B.bundle import Bundle as R4bBundle
from fhirclient.models.bundle import Bundle as R4Bundle
from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR

from pe_triage.destinations import (
    FhirDestination,
    Hl7Destination,
    UpsDestination,
    WebhookDestination,
)
from pe_triage.domain import NOTICE, Outcome, Priority, ResultKind
from pe_triage.errors import PermanentError
from pe_triage.report.messages import MessageContext, build_messages
from pe_triage.report.messages.fhir import UID_SYSTEM, build_fhir
from pe_triage.report.messages.hl7 import ABNORMAL_FLAG, build_hl7
from pe_triage.report.messages.ups import build_ups
from pe_triage.report.messages.webhook import build_webhook
from pe_triage.report.study import choose_source
from tests.support.roads import parse

NOW_HL7 = "20240506070809+0000"
RIS = Hl7Destination(
    type="hl7",
    name="ris",
    address="ris:2575",
    receiving_application="RIS",
    receiving_facility="HOSP|1",
)
EHR = FhirDestination(type="fhir", name="ehr", url="http://ehr/fhir")
PAGER = WebhookDestination(type="webhook", name="pager", url="http://p", secret_env="X")
READING = UpsDestination(type="ups", name="ups", url="http://u")
ANALYSIS = UpsDestination(type="ups", name="ups", url="http://u", workitem="analysis")

IDENTITY = ("Test", "Patient", "ID-4711", "HOSP", "19500102", "1950", "Curie", "ACC7")
"""What the invented header says of the patient and the order."""

# NOW of the shared scene.
from datetime import UTC, datetime  # noqa: E402

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def context_of(case: Any, **header: Any) -> MessageContext:
    source = Dataset()
    source.update(choose_source(case.scene.headers, case.result))
    for keyword, value in header.items():
        # As a sloppy sender writes it: no length, no alphabet is checked.
        source.add(
            DataElement(keyword, dictionary_VR(keyword), value, validation_mode=config.IGNORE)
        )
    return MessageContext(
        result=case.result,
        study=case.scene.study,
        source=source,
        objects=case.results.objects,
        now=NOW,
        settings=case.scene.settings,
    )


def segments(message: hl7.Message, name: str) -> list[hl7.Segment]:
    try:
        return list(message.segments(name))
    except KeyError:
        return []


# ------------------------------------------------------------------ HL7


def test_hl7_is_read_back_by_another_library(case: Any) -> None:
    context = context_of(case)
    body = build_hl7(context, RIS)
    message = parse(body)
    assert [str(s[0][0]) for s in message][:5] == ["MSH", "PID", "ORC", "OBR", "TQ1"]
    msh = message.segment("MSH")
    assert (str(msh[9]), str(msh[12]), str(msh[11])) == ("ORU^R01^ORU_R01", "2.5.1", "P")
    assert (str(msh[3]), str(msh[5]), message.unescape(str(msh[6]))) == (
        "PE-TRIAGE",
        "RIS",
        "HOSP|1",
    )
    assert (str(msh[18]), str(msh[7])) == ("UNICODE UTF-8", NOW_HL7)
    assert len(str(msh[10])) == 20
    assert message["PID.F3.R1.C1"] == "ID-4711"
    assert message["PID.F3.R1.C4"] == "HOSP"
    assert (message["PID.F5.R1.C1"], message["PID.F5.R1.C2"]) == ("Test", "Patient")
    assert (message["PID.F7"], message["PID.F8"]) == ("19500102", "F")
    assert (message["OBR.F3"], message["OBR.F18"], message["OBR.F25"]) == ("ACC7", "ACC7", "P")
    priority = case.result.priority
    assert message["TQ1.F9.R1.C1"] == {Priority.HIGH: "S", None: "R"}[priority]

    observed = segments(message, "OBX")
    assert [str(o[1]) for o in observed] == [str(n) for n in range(1, len(observed) + 1)]
    assert {str(o[11]) for o in observed} == {"P"}
    first = observed[0]
    assert str(first[3]).startswith("59282003^")
    assert str(first[5]).split("^")[0] == case.result.outcome.value
    assert str(first[8]) == ABNORMAL_FLAG[case.result.outcome]
    assert (str(first[8]) == "AA") == (case.result.outcome is Outcome.POSITIVE)
    by_code = {str(o[3]).split("^")[0]: message.unescape(str(o[5])) for o in observed}
    assert by_code["113014"] == context.study.study_uid
    assert by_code["NOTICE"] == NOTICE
    plain = case.result.reason and case.result.reason.replace("\N{GREATER-THAN OR EQUAL TO}", ">=")
    assert by_code.get("REASON") == plain
    assert ("260870009" in by_code) == (priority is not None)
    prediction = case.result.prediction
    assert ("EXAM_SCORE" in by_code) == (prediction is not None)
    assert ("111012" in by_code) == (prediction is not None and prediction.model.calibrated)
    if prediction is not None:
        assert float(by_code["EXAM_SCORE"]) == pytest.approx(prediction.pe_probability, abs=6e-4)
    if case.result.model is not None:
        assert by_code["111001"] == case.result.model.name
        assert "INTENDED_USE" in by_code
    if case.result.outcome is not Outcome.NEGATIVE:
        assert by_code["REASON"]


@pytest.mark.parametrize(
    ("name", "character_set", "written"),
    [
        ("Müller^Jürgen", "8859/1", "8859/1"),
        ("Müller^Jürgen", "ASCII", "UNICODE UTF-8"),
        ("Люкceмбypг^Роза", "8859/5", "8859/5"),
        ("Люкceмбypг^Роза", "8859/1", "UNICODE UTF-8"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "UNICODE UTF-8", "UNICODE UTF-8"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "8859/1", "UNICODE UTF-8"),
    ],
)
def test_names_keep_their_characters(
    positive: Any, name: str, character_set: str, written: str
) -> None:
    header = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": name}
    body = build_hl7(
        context_of(positive, **header), RIS.model_copy(update={"character_set": character_set})
    )
    message = parse(body)
    assert str(message.segment("MSH")[18]) == written
    groups = name.split("=")
    repetitions = str(message.segment("PID")[5]).split("~")
    assert len(repetitions) == len(groups)
    for code, group, repetition in zip("AIP", groups, repetitions, strict=False):
        parts = repetition.split("^")
        assert "^".join(parts[:2]) == group
        assert (parts[6], parts[7]) == ("L", code)
    # The same names in FHIR and, where asked for, in the webhook.
    report = json.loads(build_fhir(context_of(positive, **header), EHR))["entry"][1]["resource"]
    families = [n["family"] for n in report["contained"][0]["name"]]
    assert families == [group.split("^")[0] for group in groups]
    asked = PAGER.model_copy(update={"identity": True})
    event = json.loads(build_webhook(context_of(positive, **header), asked))
    assert event["data"]["patient"]["name"] == name


def test_prefix_and_suffix_change_places(positive: Any) -> None:
    context = context_of(positive, PatientName="Adams^John^Quincy^Rev.^B.A.")
    fields = str(parse(build_hl7(context, RIS)).segment("PID")[5]).split("^")
    assert fields[:5] == ["Adams", "John", "Quincy", "B.A.", "Rev."]


HOSTILE = "A|B&C~D^E\rOBX|99|ST|X^^L||FAKE\n\x0b\x1c\rZ"


def test_nothing_in_a_header_ends_a_field_or_a_segment(positive: Any) -> None:
    positive_context = context_of(positive)
    header = {"AccessionNumber": HOSTILE, "PatientName": HOSTILE.replace("^", "")}
    context = context_of(positive, **header)
    names = [str(s[0][0]) for s in parse(build_hl7(positive_context, RIS))]
    body = build_hl7(context, RIS)
    message = parse(body)
    assert [str(s[0][0]) for s in message] == names
    assert b"\x0b" not in body
    assert b"\x1c" not in body
    assert "FAKE" in message.unescape(str(message.segment("OBR")[18]))
    # JSON and DICOM JSON escape by themselves; what comes back is what went in.
    event = build_webhook(context, PAGER.model_copy(update={"identity": True}))
    assert json.loads(event)["data"]["accession_number"] == HOSTILE


# ------------------------------------------------------------------ FHIR


def test_fhir_is_valid_in_two_libraries(case: Any) -> None:
    body = build_fhir(context_of(case), EHR)
    document = json.loads(body)
    R4bBundle.model_validate_json(body)
    read = R4Bundle(document)  # strict: fhirclient knows R4 (4.0.1) and raises on anything else
    assert read.as_json() == document
    kinds = [entry["resource"]["resourceType"] for entry in document["entry"]]
    urgent = case.result.priority is not None
    assert kinds == ["Observation", "DiagnosticReport", *(["Task"] if urgent else [])]
    observation, report = (entry["resource"] for entry in document["entry"][:2])
    assert report["status"] == observation["status"] == "preliminary"
    assert report["result"] == [{"reference": document["entry"][0]["fullUrl"]}]
    patient = report["contained"][0]
    assert patient["identifier"] == [{"value": "ID-4711", "assigner": {"display": "HOSP"}}]
    assert (patient["birthDate"], patient["gender"]) == ("1950-01-02", "female")
    assert report["basedOn"][0]["identifier"]["value"] == "ACC7"
    study = f"urn:oid:{case.scene.study.study_uid}"
    assert report["imagingStudy"][0]["identifier"] == {"system": UID_SYSTEM, "value": study}
    assert NOTICE.rstrip(".") in report["conclusion"]
    flags = [i["coding"][0]["code"] for i in observation.get("interpretation", [])]
    assert (flags == ["AA"]) == (case.result.outcome is Outcome.POSITIVE)
    if urgent:
        task = document["entry"][2]["resource"]
        assert task["priority"] == "stat"
        assert task["focus"] == {"reference": document["entry"][1]["fullUrl"]}
    for entry in document["entry"]:
        (identifier,) = entry["resource"]["identifier"]
        assert entry["request"]["ifNoneExist"] == (
            f"identifier={identifier['system']}|{identifier['value']}"
        )


# ------------------------------------------------------------------ webhook


def test_the_webhook_names_nobody_unless_asked(case: Any) -> None:
    event = build_webhook(context_of(case), PAGER)
    for word in IDENTITY:
        assert word not in event.decode()
    data = json.loads(event)["data"]
    assert (data["outcome"], data["reason"]) == (case.result.outcome.value, case.result.reason)
    assert data["notice"] == NOTICE
    assert {r["sop_instance_uid"] for r in data["results"]} == {
        item.sop_instance_uid for item in case.results.objects
    }
    asked = json.loads(build_webhook(context_of(case), PAGER.model_copy(update={"identity": True})))
    assert asked["data"]["patient"]["id"] == "ID-4711"
    assert asked["id"] == json.loads(event)["id"]


# ------------------------------------------------------------------ UPS


def test_the_workitem_reads_back_as_dicom(case: Any) -> None:
    context = context_of(case)
    reading = build_ups(context, READING)
    assert (reading is None) == (case.result.priority is None)
    body = build_ups(context, ANALYSIS)
    assert body is not None
    steps = json.loads(body)["steps"]
    assert [step["name"] for step in steps] == ["create", "IN PROGRESS", "update", "COMPLETED"]
    created = Dataset.from_json(steps[0]["content"][0])
    expected = case.result.priority.value if case.result.priority else "LOW"
    assert created.ScheduledProcedureStepPriority == expected
    assert created.ProcedureStepState == "SCHEDULED"
    assert (created.PatientID, str(created.PatientName)) == ("ID-4711", "Test^Patient")
    assert created.ReferencedRequestSequence[0].AccessionNumber == "ACC7"
    updated = Dataset.from_json(steps[2]["content"][0])
    (performed,) = updated.UnifiedProcedureStepPerformedProcedureSequence
    named = {
        reference.ReferencedSOPInstanceUID
        for item in performed.OutputInformationSequence
        for reference in item.ReferencedSOPSequence
    }
    assert named == {item.sop_instance_uid for item in case.results.objects}
    transactions = {
        content["00081195"]["Value"][0] for step in steps[1:] for content in step["content"]
    }
    assert len(transactions) == 1
    if reading is not None:
        (step,) = json.loads(reading)["steps"]
        task = Dataset.from_json(step["content"][0])
        assert task.ScheduledProcedureStepPriority == "HIGH"
        inputs = {
            reference.ReferencedSOPInstanceUID
            for item in task.InputInformationSequence
            for reference in item.ReferencedSOPSequence
        }
        assert inputs == named | set(case.result.sop_instance_uids)


# ------------------------------------------------------------------ all of them


BUILDERS: list[tuple[Callable[..., bytes | None], Any]] = [
    (build_hl7, RIS),
    (build_fhir, EHR),
    (build_webhook, PAGER),
    (build_ups, ANALYSIS),
]


@pytest.mark.parametrize(("build", "table"), BUILDERS)
def test_the_same_run_makes_the_same_bytes(
    positive: Any, build: Callable[..., bytes | None], table: Any
) -> None:
    context = context_of(positive)
    assert build(context, table) == build(context, table)
    other = table.model_copy(update={"name": "other"})
    assert build(context, other) != build(context, table)


def test_only_what_was_asked_for_is_written(positive: Any, negative: Any) -> None:
    only_positive = PAGER.model_copy(update={"outcomes": (Outcome.POSITIVE,)})
    tables = [RIS, EHR, only_positive, READING]
    kinds = [m.kind for m in build_messages(context_of(positive), tables)]
    assert kinds == [ResultKind.HL7, ResultKind.FHIR, ResultKind.WEBHOOK, ResultKind.UPS]
    messages = build_messages(context_of(negative), tables)
    assert [m.kind for m in messages] == [ResultKind.HL7, ResultKind.FHIR]
    assert len({m.message_id for m in messages}) == 2


def test_a_message_that_cannot_be_written_says_so_without_identity(
    positive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> bytes:
        raise ValueError("bad value 'Test^Patient' ID-4711")

    from pe_triage.report import messages

    monkeypatch.setattr(
        messages, "BUILDERS", {**messages.BUILDERS, "hl7": (ResultKind.HL7, broken)}
    )
    refused, written = build_messages(context_of(positive), [RIS, EHR])
    assert refused.body is None
    assert refused.refused == "the message could not be written (ValueError)"
    assert written.body is not None


def test_another_patients_header_is_refused(positive: Any) -> None:
    with pytest.raises(PermanentError, match="another patient"):
        context_of(positive, PatientID="ID-4712")
