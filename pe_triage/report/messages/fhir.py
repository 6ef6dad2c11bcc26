"""FHIR R4: one transaction Bundle with DiagnosticReport, Observation and, if urgent, a Task.

Each entry is a conditional create (``ifNoneExist`` on an identifier derived from the run), so that
a Bundle sent twice makes one set of resources (FHIR R4 section 3.1.0.8.1). The server's own
Patient and ImagingStudy are referred to by identifier: this node does not know their addresses.
The model library checks the whole Bundle before it is persisted; of the resources used here R4B
is R4 (4.0.1) unchanged, and a test also reads them with an R4 library.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydicom.sr.coding import Code

from pe_triage.destinations import FhirDestination
from pe_triage.domain import NOTICE, Outcome
from pe_triage.report import concepts
from pe_triage.report.messages.context import (
    HTTP_PRIORITY_WORDS,
    MessageContext,
    PersonNameParts,
    Subject,
)
from pe_triage.report.uids import CODING_SCHEME_UID
from pe_triage.report.wording import headline, model_words

SYSTEMS: Mapping[str, str] = MappingProxyType(
    {
        "SCT": "http://snomed.info/sct",
        "LN": "http://loinc.org",
        "DCM": "http://dicom.nema.org/resources/ontology/DCM",
        "UCUM": "http://unitsofmeasure.org",
        "RADLEX": "http://www.radlex.org",
        concepts.SCHEME: f"urn:oid:{CODING_SCHEME_UID}",
    }
)
"""Coding Scheme Designator to FHIR's code system."""

UID_SYSTEM = "urn:dicom:uid"

INTERPRETATION: Mapping[Outcome, tuple[str, str] | None] = MappingProxyType(
    {
        Outcome.POSITIVE: ("AA", "Critical abnormal"),
        Outcome.NEGATIVE: ("N", "Normal"),
        Outcome.INDETERMINATE: ("IND", "Indeterminate"),
        Outcome.NOT_EVALUATED: None,
    }
)

_GENDERS: Mapping[str, str] = MappingProxyType({"M": "male", "F": "female", "O": "other"})
_REPRESENTATIONS: Mapping[str, str] = MappingProxyType({"A": "ABC", "I": "IDE", "P": "SYL"})


def build_fhir(context: MessageContext, table: FhirDestination) -> bytes:
    """Return the Bundle as UTF-8 JSON.

    Raises
    ------
    pydantic.ValidationError
        The Bundle is not valid; its text repeats values and must not be shown.
    """
    from fhir.resources.R4B.bundle import Bundle

    report_url, observation_url = (
        _url(context, "report", table),
        _url(context, "observation", table),
    )
    entries = [
        _entry(context, table, "observation", _observation(context)),
        _entry(context, table, "report", _report(context, observation_url)),
    ]
    if context.result.priority is not None:
        entries.append(_entry(context, table, "task", _task(context, report_url)))
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    Bundle.model_validate(bundle)
    return json.dumps(bundle, ensure_ascii=False, sort_keys=True).encode()


def _uid(context: MessageContext, what: str, table: FhirDestination) -> str:
    return context.uid(f"fhir {what} {table.name}")


def _url(context: MessageContext, what: str, table: FhirDestination) -> str:
    number = int(_uid(context, what, table).removeprefix("2.25."))
    return f"urn:uuid:{uuid.UUID(int=number)}"


def _entry(
    context: MessageContext, table: FhirDestination, what: str, resource: dict[str, Any]
) -> dict[str, Any]:
    value = f"urn:oid:{_uid(context, what, table)}"
    return {
        "fullUrl": _url(context, what, table),
        "resource": resource | {"identifier": [{"system": UID_SYSTEM, "value": value}]},
        "request": {
            "method": "POST",
            "url": resource["resourceType"],
            "ifNoneExist": f"identifier={UID_SYSTEM}|{value}",
        },
    }


def _report(context: MessageContext, observation_url: str) -> dict[str, Any]:
    subject = context.subject
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "contained": [_patient(subject)],
        "status": "preliminary",
        "category": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/v2-0074",
                        "code": "RAD",
                        "display": "Radiology",
                    }
                ]
            }
        ],
        "code": _concept(context.settings.procedure_reported),
        "subject": {"reference": "#patient"},
        "issued": context.now.isoformat(timespec="milliseconds"),
        "imagingStudy": [_study(context)],
        "result": [{"reference": observation_url}],
        "conclusion": ". ".join(line.rstrip(".") for line in context.words) + ".",
    }
    if subject.study_date:
        report["effectiveDateTime"] = _date(subject.study_date)
    if subject.accession_number:
        report["basedOn"] = [{"type": "ServiceRequest", "identifier": _accession(subject)}]
    if context.result.outcome is Outcome.POSITIVE:
        report["conclusionCode"] = [_concept(concepts.PULMONARY_EMBOLISM)]
    return report


def _observation(context: MessageContext) -> dict[str, Any]:
    result = context.result
    presence = concepts.PRESENCE_CODES[concepts.OUTCOME_PRESENCE[result.outcome]]
    observation: dict[str, Any] = {
        "resourceType": "Observation",
        "status": "preliminary",
        "category": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/observation-category",
                        "code": "imaging",
                    }
                ]
            }
        ],
        "code": _concept(concepts.PULMONARY_EMBOLISM),
        "subject": {"type": "Patient", "identifier": _identifier(context.subject)},
        "issued": context.now.isoformat(timespec="milliseconds"),
        "valueCodeableConcept": {
            "coding": [_coding(presence), _coding(concepts.OUTCOME_CODES[result.outcome])],
            "text": headline(result),
        },
        "device": {"display": f"pe-triage: {model_words(result.model)}"},
        "note": [{"text": line} for line in (result.reason or "", NOTICE) if line],
    }
    interpretation = INTERPRETATION[result.outcome]
    if interpretation is not None:
        code, display = interpretation
        system = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
        observation["interpretation"] = [
            {"coding": [{"system": system, "code": code, "display": display}]}
        ]
    components = _components(context)
    if components:
        observation["component"] = components
    return observation


def _components(context: MessageContext) -> list[dict[str, Any]]:
    prediction = context.result.prediction
    if prediction is None:
        return []
    score = float(prediction.pe_probability)
    numbers = [(concepts.EXAM_SCORE, "1", round(score, 3))]
    if prediction.model.calibrated:
        numbers.append((concepts.CERTAINTY, "%", round(100 * score, 1)))
    components: list[dict[str, Any]] = [
        {
            "code": _concept(what),
            "valueQuantity": {"value": value, "system": SYSTEMS["UCUM"], "code": unit},
        }
        for what, unit, value in numbers
    ]
    for label, decision in prediction.findings.items():
        concept = concepts.LABEL_CONCEPTS.get(label)
        if concept is not None:
            components.append(
                {
                    "code": _concept(concept.code),
                    "valueCodeableConcept": _concept(concepts.PRESENCE_CODES[decision]),
                }
            )
    return components


def _task(context: MessageContext, report_url: str) -> dict[str, Any]:
    return {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "priority": HTTP_PRIORITY_WORDS[context.result.priority],
        "code": {"text": "Read the CT pulmonary angiography"},
        "description": headline(context.result),
        "focus": {"reference": report_url},
        "for": {"type": "Patient", "identifier": _identifier(context.subject)},
        "authoredOn": context.now.isoformat(timespec="seconds"),
        "reasonReference": _study(context),
        "note": [{"text": NOTICE}],
    }


def _patient(subject: Subject) -> dict[str, Any]:
    patient: dict[str, Any] = {
        "resourceType": "Patient",
        "id": "patient",
        "identifier": [_identifier(subject)],
    }
    names = [_name(name, code) for code, name in subject.names.items()]
    if names:
        patient["name"] = names
    if subject.sex:
        patient["gender"] = _GENDERS[subject.sex]
    if subject.birth_date:
        patient["birthDate"] = _date(subject.birth_date)
    return patient


def _identifier(subject: Subject) -> dict[str, Any]:
    identifier: dict[str, Any] = {"value": subject.patient_id or "unknown"}
    if subject.issuer_uid and subject.issuer_uid_type == "ISO":
        identifier["system"] = f"urn:oid:{subject.issuer_uid}"
    if subject.issuer:
        identifier["assigner"] = {"display": subject.issuer}
    return identifier


def _name(name: PersonNameParts, representation: str) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "family": name.family,
        "given": [part for part in (name.given, name.middle) if part],
        "prefix": [name.prefix] if name.prefix else [],
        "suffix": [name.suffix] if name.suffix else [],
    }
    return {
        "extension": [
            {
                "url": "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation",
                "valueCode": _REPRESENTATIONS[representation],
            }
        ],
    } | {key: value for key, value in parts.items() if value}


def _accession(subject: Subject) -> dict[str, Any]:
    system = "http://terminology.hl7.org/CodeSystem/v2-0203"
    identifier: dict[str, Any] = {
        "type": {"coding": [{"system": system, "code": "ACSN", "display": "Accession ID"}]},
        "value": subject.accession_number,
    }
    if subject.accession_issuer:
        identifier["assigner"] = {"display": subject.accession_issuer}
    return identifier


def _study(context: MessageContext) -> dict[str, Any]:
    value = f"urn:oid:{context.study.study_uid}"
    return {"type": "ImagingStudy", "identifier": {"system": UID_SYSTEM, "value": value}}


def _date(yyyymmdd: str) -> str:
    return f"{yyyymmdd[:4]}-{yyyymmdd[4:6]}-{yyyymmdd[6:]}"


def _coding(code: Code) -> dict[str, str]:
    coding = {"code": code.value, "display": code.meaning}
    system = SYSTEMS.get(code.scheme_designator)
    return coding | ({"system": system} if system else {})


def _concept(code: Code) -> dict[str, Any]:
    return {"coding": [_coding(code)], "text": code.meaning}
