"""What every object of this room has in common: equipment, times, and its encoding as a file."""

from __future__ import annotations

from datetime import datetime
from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from pe_triage.domain import ModelIdentity, ResultKind, ResultObject
from pe_triage.report.concepts import PROCESSING_EQUIPMENT
from pe_triage.report.headers import zone_of
from pe_triage.report.settings import ReportSettings
from pe_triage.report.uids import IMPLEMENTATION_CLASS_UID, device_uid

IMPLEMENTATION_VERSION_NAME = "PE_TRIAGE_1"


def code_item(code: Code) -> Dataset:
    """Return an item of a code sequence (PS3.3 Table 8.8-1)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def local_time(now: datetime, source: Dataset) -> datetime:
    """Return `now` in the time zone that the object's DA and TM values are read in.

    Timezone Offset From UTC (0008,0201) holds for every date and time of an object, the copied
    study date among them: where the source gives it, ours are converted to it. Where not, the
    wall clock of `now` as passed is written with its offset, which then holds for the study date
    too: pass `now` in the zone of the site, which is its scanners' zone.

    Raises
    ------
    ValueError
        If `now` has no time zone.
    """
    if now.tzinfo is None:
        raise ValueError("now must be an aware datetime")
    zone = zone_of(source)
    return now if zone is None else now.astimezone(zone)


def set_times(ds: Dataset, when: datetime) -> None:
    """Write creation, series and content times to microseconds, and the zone they are read in.

    One and the same for all objects of a run. Instance Creation Date and Time are those of the
    assignment of the UID (PS3.3 Table C.12-1), which follows from the run.
    """
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S.%f")
    for keyword in ("InstanceCreation", "Series", "Content"):
        setattr(ds, f"{keyword}Date", date)
        setattr(ds, f"{keyword}Time", time)
    ds.TimezoneOffsetFromUTC = when.strftime("%z")[:5]


def set_equipment(ds: Dataset, model: ModelIdentity | None, settings: ReportSettings) -> None:
    """Write General Equipment and the algorithm as Contributing Equipment (PS3.3 C.12.1).

    The Device UID there changes with the weights and with the program's version.
    """
    ds.Manufacturer = settings.manufacturer
    ds.ManufacturerModelName = settings.model_name
    ds.DeviceSerialNumber = settings.device_serial_number
    ds.SoftwareVersions = settings.software_version
    if settings.institution_name:
        ds.InstitutionName = settings.institution_name
    if settings.station_name:
        ds.StationName = settings.station_name
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    item.Manufacturer = settings.manufacturer
    item.ManufacturerModelName = (model.name if model else settings.model_name)[:64]
    item.DeviceSerialNumber = settings.device_serial_number
    item.SoftwareVersions = [
        settings.software_version,
        *((f"{model.version}"[:64], model.sha256[:64]) if model else ()),
    ]
    item.DeviceUID = device_uid(model.sha256 if model else None, settings.software_version)
    item.ContributionDescription = "Triage of CT pulmonary angiography"
    if model:
        item.ContributionDescription += f"; weights: {model.intended_use.value}"
    ds.ContributingEquipmentSequence = [item]


def encode(ds: Dataset, kind: ResultKind, label: str) -> ResultObject:
    """Encode as a whole Part 10 file, Explicit VR Little Endian; same data set, same bytes."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    ds.file_meta = meta
    ds.preamble = bytes(128)
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return ResultObject(
        kind=kind,
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_uid=str(ds.SeriesInstanceUID),
        encoded=buffer.getvalue(),
        label=label,
    )
