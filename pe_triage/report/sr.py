"""The structured report: Comprehensive 3D SR, Imaging Measurement Report (PS3.16 TID 1500).

Four outcomes, one document: it always says the outcome, the priority or that none was assigned,
the reason, the notice and what the weights are for. COMPLETE as a document, PRELIMINARY as a
means of communication and UNVERIFIED, since no person has signed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage

from pe_triage.domain import CtVolume, ResultKind, ResultObject, TriageResult
from pe_triage.report import concepts as c
from pe_triage.report.headers import CHARACTER_SET, apply_headers
from pe_triage.report.image_library import image_library
from pe_triage.report.part10 import encode, local_time, set_equipment, set_times
from pe_triage.report.settings import ReportSettings
from pe_triage.report.sr_groups import GroupWriter, MeasurementGroup
from pe_triage.report.study import StudyContext
from pe_triage.report.uids import CODING_SCHEME_UID, derive_uid, device_uid


def build_sr(
    *,
    result: TriageResult,
    study: StudyContext,
    volume: CtVolume | None,
    headers: Mapping[str, Dataset],
    source: Dataset,
    predecessors: Sequence[Dataset],
    now: datetime,
    settings: ReportSettings,
    series_description: str,
) -> ResultObject:
    """Build and encode the report.

    Parameters
    ----------
    volume
        Needed where the result has key slices: places their points in the source's pixel grid.
    headers
        Header-only data sets by SOP Instance UID; must hold the key slices.
    source
        The header whose patient and study are copied.
    predecessors
        Reports of earlier runs, which this one supersedes (PS3.3 C.17.2.2).
    """
    model_sha256 = result.model.sha256 if result.model else None
    key_headers = [headers[key.sop_instance_uid] for key in result.key_slices]
    ds = hd.sr.Comprehensive3DSR(
        evidence=_evidence(result, study, headers, source),
        content=_content(result, study, volume, key_headers, settings)[0],
        series_instance_uid=derive_uid(study.manifest_digest, model_sha256, study.run, "series/sr"),
        series_number=settings.series_number,
        sop_instance_uid=derive_uid(study.manifest_digest, model_sha256, study.run, "sr"),
        instance_number=study.run,
        manufacturer=settings.manufacturer,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=list(predecessors) or None,
        performed_procedure_codes=[settings.procedure_reported],
        series_description=series_description,
        specific_character_set=CHARACTER_SET,
    )
    scheme = Dataset()
    scheme.CodingSchemeDesignator = c.SCHEME
    scheme.CodingSchemeUID = CODING_SCHEME_UID
    scheme.CodingSchemeName = c.SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = c.SCHEME_ORGANIZATION
    ds.CodingSchemeIdentificationSequence = [scheme]
    apply_headers(source, ds)
    set_equipment(ds, result.model, settings)
    set_times(ds, local_time(now, source))
    return encode(ds, ResultKind.SR, "sr")


def _content(
    result: TriageResult,
    study: StudyContext,
    volume: CtVolume | None,
    key_headers: Sequence[Dataset],
    settings: ReportSettings,
) -> hd.sr.MeasurementReport:
    writer = GroupWriter(result=result, study=study, settings=settings)
    # The exam first, for readers of text; the key slices next, for what OHIF writes beside them.
    groups: list[MeasurementGroup] = [writer.exam(key_headers)]
    for number, (key, header) in enumerate(
        zip(result.key_slices, key_headers, strict=True), start=1
    ):
        assert volume is not None  # build_results has checked
        groups += writer.key_slice(key, number, header, volume)
    if result.prediction is not None:
        groups += writer.labels(result.prediction)
    model = result.model
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=hd.sr.ObserverContext(
                observer_type=codes.DCM.Device,
                observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                    uid=device_uid(model.sha256 if model else None, settings.software_version),
                    name=model.name if model else settings.model_name,
                    manufacturer_name=settings.manufacturer,
                    model_name=settings.model_name,
                    serial_number=settings.device_serial_number,
                ),
            )
        ),
        procedure_reported=settings.procedure_reported,
        imaging_measurements=groups,
    )
    if key_headers:
        # TID 1500 wants the library before the measurements, which highdicom puts last.
        root = report[0].ContentSequence
        root.insert(len(root) - 1, image_library(key_headers))
    return report


def _evidence(
    result: TriageResult, study: StudyContext, headers: Mapping[str, Dataset], source: Dataset
) -> list[Dataset]:
    """Return stand-ins for every image that the answer is about, or the one at hand.

    They carry UIDs only: highdicom would stop at a missing or odd patient attribute, and the real
    ones are applied afterwards. Images of the analysed series whose header was not passed are
    listed too; eligible series hold nothing but CT images.
    """
    listed = [
        (uid, headers.get(uid))
        for uid in result.sop_instance_uids
        if uid in headers or result.series_uid
    ]
    known = {uid for uid, _ in listed}
    listed += [
        (key.sop_instance_uid, headers[key.sop_instance_uid])
        for key in result.key_slices
        if key.sop_instance_uid not in known
    ]
    if not listed:
        listed = [(str(source.SOPInstanceUID), source)]
    return [
        _stand_in(
            study.study_uid,
            str(ds.SeriesInstanceUID) if ds is not None else str(result.series_uid),
            str(ds.SOPClassUID) if ds is not None else str(CTImageStorage),
            uid,
        )
        for uid, ds in listed
    ]


def _stand_in(study_uid: str, series_uid: str, class_uid: str, instance_uid: str) -> Dataset:
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
