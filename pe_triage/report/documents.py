"""What all documents of this room share: evidence, the device that observes, requests, the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

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


def result_uid(result: TriageResult, study: StudyContext, role: str) -> str:
    """Return the UID of one object or series of this run."""
    sha256 = result.model.sha256 if result.model else None
    return derive_uid(study.manifest_digest, sha256, study.run, role)


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


def evidence_of(
    result: TriageResult, study: StudyContext, headers: Mapping[str, Dataset], source: Dataset
) -> list[Dataset]:
    """Return stand-ins for every image that the answer is about, or the one at hand.

    They carry UIDs only: highdicom would stop at a missing or odd patient attribute, and the real
    ones are applied afterwards. Images of the analysed series whose header was not passed are
    listed too; eligible series hold nothing but CT images.
    """
    listed = [
        (uid, headers.get(uid))
        # The frames of one instance name it once each.
        for uid in dict.fromkeys(result.sop_instance_uids)
        if uid in headers or result.series_uid
    ]
    known = {uid for uid, _ in listed}
    by_uid = {
        key.sop_instance_uid: headers[key.image_id]
        for key in result.key_slices
        if key.sop_instance_uid not in known
    }
    listed += list(by_uid.items())
    if not listed:
        listed = [(str(source.SOPInstanceUID), source)]
    return [
        stand_in(
            study.study_uid,
            str(ds.SeriesInstanceUID) if ds is not None else str(result.series_uid),
            str(ds.SOPClassUID) if ds is not None else str(CTImageStorage),
            uid,
        )
        for uid, ds in listed
    ]


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
