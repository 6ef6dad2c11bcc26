"""Messages about the six real CTPA images, under names of many alphabets, read by other libraries.

Real headers differ from invented ones in what they leave empty: no accession number, no birth date,
no issuer, no order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydicom
import pytest
from fhir.resources.R4B.bundle import Bundle as R4bBundle
from fhirclient.models.bundle import Bundle as R4Bundle
from pydicom import Dataset

from pe_triage.destinations import (
    FhirDestination,
    Hl7Destination,
    UpsDestination,
    WebhookDestination,
)
from pe_triage.domain import ResultKind, ResultObject
from pe_triage.report.messages import MessageContext
from pe_triage.report.messages.fhir import build_fhir
from pe_triage.report.messages.hl7 import ABNORMAL_FLAG, build_hl7
from pe_triage.report.messages.ups import build_ups
from pe_triage.report.messages.webhook import build_webhook
from tests.support.roads import parse
from tests.unit.report.conftest import NAMES, NOW, renamed, seated

RIS = Hl7Destination(type="hl7", name="ris", address="ris:2575")
LATIN_RIS = Hl7Destination(type="hl7", name="ris", address="ris:2575", character_set="8859/1")
EHR = FhirDestination(type="fhir", name="ehr", url="http://ehr/fhir")
PAGER = WebhookDestination(type="webhook", name="pager", url="http://p", secret_env="X")
ANALYSIS = UpsDestination(type="ups", name="ups", url="http://u", workitem="analysis")

KINDS = ("POSITIVE", "NEGATIVE", "INDETERMINATE", "NOT_EVALUATED")


SR = ResultObject(
    kind=ResultKind.SR,
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
    sop_instance_uid="2.25.7",
    series_uid="2.25.8",
    encoded=b"",
)


def header_of(real_ct: Path, number: int) -> Dataset:
    """One of the six headers, as it was received."""
    files = sorted((real_ct / "ctpa_single_images").glob("*.dcm"))
    assert len(files) == 6
    return pydicom.dcmread(files[number], stop_before_pixels=True)


def context_of(scene: Any, header: Dataset, kind: str) -> MessageContext:
    there, result = seated(scene, header, kind)
    return MessageContext(
        result=result,
        study=there.study,
        source=header,
        objects=[SR],
        now=NOW,
        settings=there.settings,
    )


def families(name: str) -> list[str]:
    return [group.split("^")[0] for group in name.split("=")]


@pytest.mark.parametrize("number", range(6))
def test_every_message_about_a_real_header_as_it_is(scene: Any, real_ct: Path, number: int) -> None:
    header = header_of(real_ct, number)
    check(context_of(scene, header, KINDS[number % len(KINDS)]), str(header.PatientName))


@pytest.mark.parametrize("alphabet", NAMES)
def test_every_message_under_names_of_many_alphabets(
    scene: Any, real_ct: Path, alphabet: str
) -> None:
    at = list(NAMES).index(alphabet)
    header = renamed(header_of(real_ct, at % 6), alphabet)
    check(context_of(scene, header, KINDS[at % len(KINDS)]), NAMES[alphabet][1])


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("alphabet", NAMES)
def test_every_message_about_every_real_header(scene: Any, real_ct: Path, alphabet: str) -> None:
    for number in range(6):
        header = renamed(header_of(real_ct, number), alphabet)
        for kind in KINDS:
            check(context_of(scene, header, kind), NAMES[alphabet][1])


def check(context: MessageContext, name: str) -> None:
    """Read each message with a library that did not write it."""
    patient_id, study_uid = str(context.source.PatientID), context.study.study_uid
    outcome = context.result.outcome

    for table in (RIS, LATIN_RIS):
        message = parse(build_hl7(context, table))
        if table is RIS:
            assert str(message.segment("MSH")[18]) == "UNICODE UTF-8"
        assert message.unescape(message["PID.F3.R1.C1"]) == patient_id
        repetitions = str(message.segment("PID")[5]).split("~")
        assert [r.split("^")[0] for r in repetitions] == families(name)
        observed = list(message.segments("OBX"))
        assert str(observed[0][8]) == ABNORMAL_FLAG[outcome]
        assert str(observed[-1][5]) == study_uid
        assert str(message.segment("OBR")[18]) == ""

    body = build_fhir(context, EHR)
    document = json.loads(body)
    R4bBundle.model_validate_json(body)
    assert R4Bundle(document).as_json() == document
    report = next(
        entry["resource"]
        for entry in document["entry"]
        if entry["resource"]["resourceType"] == "DiagnosticReport"
    )
    (patient,) = report["contained"]
    assert [n["family"] for n in patient["name"]] == families(name)
    assert patient["identifier"][0]["value"] == patient_id
    assert report["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{study_uid}"

    event = build_webhook(context, PAGER).decode()
    for word in (patient_id, *families(name)):
        assert word not in event
    asked = json.loads(build_webhook(context, PAGER.model_copy(update={"identity": True})))
    assert asked["data"]["patient"]["id"] == patient_id
    assert asked["data"]["patient"]["name"] == name

    workitem = build_ups(context, ANALYSIS)
    assert workitem is not None
    created = Dataset.from_json(json.loads(workitem)["steps"][0]["content"][0])
    assert created.PatientID == patient_id
    assert str(created.PatientName) == name
    assert created.StudyInstanceUID == study_uid
