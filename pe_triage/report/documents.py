"""What all documents of this room share: evidence, the device that observes, requests, the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage

from pe_triage.domain import ResultKind, ResultObject, TriageResult
from pe_triage.report.headers import apply_headers, copied, text_of
from pe_triage.report.part10 import encode, local_time, set_equipment, set_times
from pe_triage.report.settings import ReportSettings
from pe_triage.report.study import StudyContext
from pe_triage.report.uids import derive_uid, device_uid

Document = TypeVar("Document", hd.sr.Comprehensive3DSR, hd.sr.EnhancedSR)


def result_uid(result: TriageResult, study: StudyContext, role: str) -> str:
    """Return the UID of one object or series of this run."""
    sha256 = result.model.sha256 if result.model else None
    return derive_uid(study.manifest_digest, sha256, study.run, role, study.edition)


def device_observer(result: TriageResult, settings: ReportSettings) -> hd.sr.ObserverContext:
    """Return the algorithm as the observer (PS3.16 TID 1004)."""
    model = result.model
    return hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=device_uid(model.sha256 if model else None, settings.software_version),
            name=model.name if model else settings.model_name,
            manufacturer_name=settings.manufacturer,
            model_name=settings.model_name,
            serial_number=settings.device_serial_number,
        ),
    )


def finish_document(
    ds: Dataset,
    *,
    result: TriageResult,
    source: Dataset,
    now: datetime,
    settings: ReportSettings,
    kind: ResultKind,
    label: str,
) -> ResultObject:
    """Give a document its patient, study, requests, equipment and times, and encode it."""
    apply_headers(source, ds)
    requests = referenced_requests(source)
    if requests:
        ds.ReferencedRequestSequence = requests
    set_equipment(ds, result.model, settings)
    set_times(ds, local_time(now, source))
    return encode(ds, kind, label)


def referenced_requests(source: Dataset) -> list[Dataset]:
    """Return the requests that the scanner's images name (PS3.3 C.17.2, C.17.6.2).

    One item for each item of the source's Request Attributes Sequence (0040,0275); without any,
    none: an accession number alone does not say which procedure was requested.
    """
    items = []
    for request in source.get("RequestAttributesSequence") or ():
        item = Dataset()
        item.StudyInstanceUID = text_of(request, "StudyInstanceUID") or str(source.StudyInstanceUID)
        item.ReferencedStudySequence = []
        item.AccessionNumber = text_of(request, "AccessionNumber") or text_of(
            source, "AccessionNumber"
        )
        item.PlacerOrderNumberImagingServiceRequest = text_of(
            request, "PlacerOrderNumberImagingServiceRequest"
        )
        item.FillerOrderNumberImagingServiceRequest = text_of(
            request, "FillerOrderNumberImagingServiceRequest"
        )
        item.RequestedProcedureID = text_of(request, "RequestedProcedureID")
        item.RequestedProcedureDescription = text_of(request, "RequestedProcedureDescription")
        item.RequestedProcedureCodeSequence = []
        for holder in (source, request):  # the request's own word last
            for keyword in ("IssuerOfAccessionNumberSequence", "RequestedProcedureCodeSequence"):
                element = copied(holder, keyword)
                if element is not None:
                    item[element.tag] = element
        items.append(item)
    return items


def evidence_items(
    result: TriageResult, study: StudyContext, headers: Mapping[str, Dataset], source: Dataset
) -> list[Dataset]:
    """Return the Current Requested Procedure Evidence Sequence (PS3.3 C.17.6.2).

    It names every image that the answer is about, or the one at hand. Images of the analysed series
    whose header was not passed are listed too; eligible series hold nothing but CT images.
    """
    listed = {
        # The frames of one instance name it once each.
        uid: headers.get(uid)
        for uid in result.sop_instance_uids
        if uid in headers or result.series_uid
    }
    for key in result.key_slices:
        listed.setdefault(key.sop_instance_uid, headers[key.image_id])
    by_series: dict[str, list[Dataset]] = {}
    for uid, ds in listed.items() or [(str(source.SOPInstanceUID), source)]:
        item = Dataset()
        item.ReferencedSOPClassUID = str(CTImageStorage if ds is None else ds.SOPClassUID)
        item.ReferencedSOPInstanceUID = uid
        series_uid = str(result.series_uid if ds is None else ds.SeriesInstanceUID)
        by_series.setdefault(series_uid, []).append(item)
    evidence = Dataset()
    evidence.StudyInstanceUID = study.study_uid
    evidence.ReferencedSeriesSequence = []
    for series_uid, items in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = series_uid
        series.ReferencedSOPSequence = items
        evidence.ReferencedSeriesSequence.append(series)
    return [evidence]


def make_document(
    kind: type[Document],
    content: Dataset,
    *,
    result: TriageResult,
    study: StudyContext,
    headers: Mapping[str, Dataset],
    source: Dataset,
    **more: Any,
) -> Document:
    """Make highdicom's document of `kind` around a tree of content items.

    highdicom gets the root alone and one stand-in for evidence: it would copy the whole tree,
    convert the copy and search it through twice, which takes three times as long as all else.

    Parameters
    ----------
    content
        The root; its nested items are moved into the document.
    more
        Arguments of `kind`.
    """
    nested = content.ContentSequence
    content.ContentSequence = []
    ds = kind(evidence=stand_ins([source], study), content=content, **more)
    ds.ContentSequence = nested
    ds.CurrentRequestedProcedureEvidenceSequence = evidence_items(result, study, headers, source)
    return ds


def stand_in(study_uid: str, series_uid: str, class_uid: str, instance_uid: str) -> Dataset:
    """Return a data set of these UIDs, with patient and study empty."""
    ds = Dataset()
    ds.SOPClassUID = class_uid
    ds.SOPInstanceUID = instance_uid
    ds.StudyInstanceUID = study_uid
    ds.SeriesInstanceUID = series_uid
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex",
                    "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
                    "ReferringPhysicianName"):  # fmt: skip
        setattr(ds, keyword, "")
    return ds


def stand_ins(images: Sequence[Dataset], study: StudyContext) -> list[Dataset]:
    """Return one stand-in for each image whose header is at hand."""
    return [
        stand_in(
            study.study_uid, str(ds.SeriesInstanceUID), str(ds.SOPClassUID), str(ds.SOPInstanceUID)
        )
        for ds in images
    ]
