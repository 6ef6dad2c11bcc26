"""UPS-RS: a workitem with Scheduled Procedure Step Priority (0074,1200), as steps to carry out.

The message is the list of HTTP requests of one transaction sequence (PS3.18 Section 11) with their
bodies in DICOM JSON (PS3.18 Annex F), every UID derived, so that whoever carries the steps out,
and however often, works on the same workitem.

Two kinds, by configuration: a *reading* task that is left SCHEDULED for a radiologist, with the
images and our results as its input, unless the RIS has one, whose priority is raised; or our own
*analysis*, created, taken, given its output references and completed (PS3.4 Section CC.2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.coding import Code

from pe_triage.destinations import UpsDestination
from pe_triage.domain import Priority
from pe_triage.report.concepts import SCHEME
from pe_triage.report.headers import CHARACTER_SET, apply_headers
from pe_triage.report.messages.context import MessageContext
from pe_triage.report.wording import headline

UPS_PUSH_SOP_CLASS_UID = "1.2.840.10008.5.1.4.34.6.1"

UPS_PRIORITY: Mapping[Priority | None, str] = MappingProxyType(
    {Priority.HIGH: "HIGH", Priority.MEDIUM: "MEDIUM", Priority.LOW: "LOW", None: "LOW"}
)
"""(0074,1200); LOW is a routine item (PS3.3 Section C.30.1)."""

READ = Code("110005", "DCM", "Interpretation")
ANALYSE = Code("110004", "DCM", "Computer Aided Detection")

_REQUEST = "ReferencedRequestSequence"

_PATIENT_KEYWORDS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
)


def build_ups(context: MessageContext, table: UpsDestination) -> bytes | None:
    """Return the steps as JSON; None where a reading task would say nothing of urgency.

    A reading task is made only for an answer with a priority: a triage aid has no reason to put
    other studies on anybody's list.
    """
    reading = table.workitem == "reading"
    if reading and context.result.priority is None:
        return None
    uid = context.uid(f"ups {table.workitem} {table.name}")
    steps = [_create(context, table, uid, reading=reading)]
    if not reading:
        transaction_uid = context.uid(f"ups transaction {table.name}")
        steps += _perform(context, uid, transaction_uid)
    document: dict[str, Any] = {"workitem_uid": uid, "steps": steps}
    if reading and table.raise_existing:
        document["existing"] = _existing(context)
    return json.dumps(document, ensure_ascii=False, sort_keys=True).encode()


def _existing(context: MessageContext) -> dict[str, Any]:
    """What the study's reading task at the RIS is known by (PS3.18 Sections 11.9 and 8.3.4.1).

    Several searches, since servers differ in the keys that they match: the study of the results,
    that of the request, the order. None names the patient, who is checked in what is found.
    """
    subject = context.subject
    study_uid = context.study.study_uid
    keys = [("StudyInstanceUID", study_uid), (f"{_REQUEST}.StudyInstanceUID", study_uid)]
    if subject.accession_number:
        keys.append((f"{_REQUEST}.AccessionNumber", subject.accession_number))
    return {
        "queries": [f"{key}={quote(value, safe='')}" for key, value in keys],
        "patient_id": subject.patient_id,
        "issuer": subject.issuer,
        "study_uid": study_uid,
        "accession_number": subject.accession_number,
        "code": [READ.value, READ.scheme_designator],
        "priority": UPS_PRIORITY[context.result.priority],
    }


def _create(
    context: MessageContext, table: UpsDestination, uid: str, *, reading: bool
) -> dict[str, Any]:
    """Step of Create Workitem (PS3.18 Section 11.4; PS3.4 Table CC.2.5-3)."""
    ds = Dataset()
    copied = Dataset()
    apply_headers(context.source, copied)
    for keyword in _PATIENT_KEYWORDS:
        if keyword in copied:
            ds[keyword] = copied[keyword]
    ds.SpecificCharacterSet = CHARACTER_SET
    ds.StudyInstanceUID = context.study.study_uid
    ds.TransactionUID = None
    ds.ScheduledProcedureStepPriority = UPS_PRIORITY[context.result.priority]
    ds.ProcedureStepLabel = headline(context.result)
    ds.WorklistLabel = table.worklist_label
    ds.CommentsOnTheScheduledProcedureStep = "; ".join(context.words)[:1024]
    ds.ProcedureStepState = "SCHEDULED"
    ds.InputReadinessState = "READY"
    ds.ScheduledProcedureStepStartDateTime = _time(context)
    ds.ScheduledProcedureStepModificationDateTime = _time(context)
    ds.ScheduledWorkitemCodeSequence = Sequence([_code_item(READ if reading else ANALYSE)])
    ds.ScheduledProcessingParametersSequence = Sequence()
    for keyword in (
        "ScheduledStationNameCodeSequence",
        "ScheduledStationClassCodeSequence",
        "ScheduledStationGeographicLocationCodeSequence",
        "ScheduledHumanPerformersSequence",
        "ReplacedProcedureStepSequence",
        "ProcedureStepProgressInformationSequence",
        "UnifiedProcedureStepPerformedProcedureSequence",
        "AdmittingDiagnosesCodeSequence",
        "IssuerOfAdmissionIDSequence",
    ):
        setattr(ds, keyword, Sequence())
    ds.AdmissionID = None
    ds.AdmittingDiagnosesDescription = None
    ds.InputInformationSequence = Sequence(_inputs(context, with_results=reading))
    ds.ReferencedRequestSequence = Sequence([_request(context, copied)])
    return {
        "name": "create",
        "method": "POST",
        "path": "/workitems",
        "query": uid,
        "content": [ds.to_json_dict()],
    }


def _perform(context: MessageContext, uid: str, transaction_uid: str) -> list[dict[str, Any]]:
    """Steps that take the workitem, give it its output and complete it (PS3.18 11.6, 11.7)."""
    performed = Dataset()
    performed.PerformedProcedureStepStartDateTime = _time(context)
    performed.PerformedProcedureStepEndDateTime = _time(context)
    performed.PerformedWorkitemCodeSequence = Sequence([_code_item(ANALYSE)])
    performed.PerformedProcedureStepDescription = headline(context.result)
    performed.PerformedStationNameCodeSequence = Sequence(
        [_code_item(Code("PE_TRIAGE", SCHEME, "pe-triage"))]
    )
    performed.PerformedProcessingParametersSequence = Sequence()
    performed.OutputInformationSequence = Sequence(_outputs(context))
    update = Dataset()
    update.SpecificCharacterSet = CHARACTER_SET
    update.TransactionUID = transaction_uid
    update.UnifiedProcedureStepPerformedProcedureSequence = Sequence([performed])
    return [
        _state(uid, transaction_uid, "IN PROGRESS"),
        {
            "name": "update",
            "method": "POST",
            "path": f"/workitems/{uid}",
            "query": transaction_uid,
            "content": [update.to_json_dict()],
        },
        _state(uid, transaction_uid, "COMPLETED"),
    ]


def _state(uid: str, transaction_uid: str, state: str) -> dict[str, Any]:
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ProcedureStepState = state
    return {
        "name": state,
        "method": "PUT",
        "path": f"/workitems/{uid}/state",
        "query": None,
        "content": [ds.to_json_dict()],
    }


def _inputs(context: MessageContext, *, with_results: bool) -> Iterable[Dataset]:
    """Input Information Sequence: the analysed series (its images), then what we made of it."""
    result = context.result
    if result.series_uid is not None and result.sop_instance_uids:
        sop_class = str(context.source.get("SOPClassUID", ""))
        yield _reference(
            context.study.study_uid,
            result.series_uid,
            [(sop_class, uid) for uid in dict.fromkeys(result.sop_instance_uids)],
        )
    if with_results:
        yield from _outputs(context)


def _outputs(context: MessageContext) -> Iterable[Dataset]:
    """One item for each series of our objects."""
    by_series: dict[str, list[tuple[str, str]]] = {}
    for item in context.objects:
        by_series.setdefault(item.series_uid, []).append(
            (item.sop_class_uid, item.sop_instance_uid)
        )
    for series_uid, instances in by_series.items():
        yield _reference(context.study.study_uid, series_uid, instances)


def _reference(study_uid: str, series_uid: str, instances: list[tuple[str, str]]) -> Dataset:
    item = Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID = study_uid
    item.SeriesInstanceUID = series_uid
    referenced = []
    for sop_class, uid in instances:
        reference = Dataset()
        reference.ReferencedSOPClassUID = sop_class
        reference.ReferencedSOPInstanceUID = uid
        referenced.append(reference)
    item.ReferencedSOPSequence = Sequence(referenced)
    return item


def _request(context: MessageContext, copied: Dataset) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = context.study.study_uid
    item.AccessionNumber = copied.get("AccessionNumber")
    item.IssuerOfAccessionNumberSequence = copied.get("IssuerOfAccessionNumberSequence", Sequence())
    item.RequestedProcedureID = None
    item.RequestedProcedureDescription = copied.get("StudyDescription")
    item.RequestedProcedureCodeSequence = Sequence()
    for keyword in (
        "OrderPlacerIdentifierSequence",
        "OrderFillerIdentifierSequence",
    ):
        setattr(item, keyword, Sequence())
    return item


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _time(context: MessageContext) -> str:
    return context.now.strftime("%Y%m%d%H%M%S%z")
