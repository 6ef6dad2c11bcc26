"""The header of a phantom series: CT Image IOD (PS3.3 A.3), as one table.

What differs between vendors stands in `dialects`.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from pe_triage.phantom.dialects import Dialect
from pe_triage.phantom.identity import Identity
from pe_triage.phantom.study import PhantomStudy


def decimal(value: float) -> str:
    """Return a decimal string of at most 16 characters (PS3.5 6.2, VR DS)."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def common_header(
    study: PhantomStudy, identity: Identity, dialect: Dialect, *, quality_control: bool
) -> Dataset:
    """Return what all slices of the series share, without pixels and per-slice attributes."""
    ds = Dataset()
    day = identity.study_date.strftime("%Y%m%d")
    thickness = decimal(study.slice_thickness_mm)
    kernel = dialect.kernel(study.kernel)
    description = dialect.series_description.format(
        thickness=study.slice_thickness_mm, kernel=kernel
    )
    values: dict[str, object] = {
        # Patient (PS3.3 C.7.1.1)
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": identity.patient_name,
        "PatientID": identity.patient_id,
        "IssuerOfPatientID": "PE-TRIAGE PHANTOM",
        "PatientBirthDate": identity.birth_date.strftime("%Y%m%d"),
        "PatientSex": study.anatomy.sex,
        "PatientComments": "Synthetic phantom; no patient",
        # General and patient study (C.7.2.1, C.7.2.2)
        "StudyInstanceUID": identity.study_uid,
        "StudyDate": day,
        "StudyTime": "120000",
        "ReferringPhysicianName": "",
        "StudyID": identity.study_id,
        "AccessionNumber": identity.accession_number,
        "StudyDescription": dialect.study_description,
        "PatientAge": f"{study.anatomy.age_years:03d}Y",
        # General series (C.7.3.1)
        "Modality": "CT",
        "SeriesInstanceUID": identity.series_uid,
        "SeriesNumber": "2",
        "SeriesDate": day,
        "SeriesTime": "120100",
        "SeriesDescription": description,
        "ProtocolName": dialect.protocol,
        "BodyPartExamined": "CHEST",
        "PatientPosition": dialect.patient_position,
        # Frame of reference and equipment (C.7.4.1, C.7.5.1)
        "FrameOfReferenceUID": identity.frame_of_reference_uid,
        "PositionReferenceIndicator": "",
        "Manufacturer": dialect.manufacturer,
        "InstitutionName": "pe-triage phantom laboratory (invented)",
        "StationName": "PHANTOM",
        "ManufacturerModelName": dialect.model_name,
        "DeviceSerialNumber": "0",
        "SoftwareVersions": f"phantom generator {study.generator_version}",
        # General image, contrast (C.7.6.1, C.7.6.4)
        "ImageType": list(dialect.image_type),
        "AcquisitionNumber": "1",
        "AcquisitionDate": day,
        "AcquisitionTime": "120100",
        "ContentDate": day,
        "ContentTime": "120100",
        "PatientOrientation": ["L", "P"],
        "ImageComments": "SYNTHETIC PHANTOM - NOT A PATIENT",
        "QualityControlImage": "YES" if quality_control else "NO",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "ContrastBolusAgent": dialect.contrast_agent,
        "ContrastBolusRoute": "INTRAVENOUS",
        # Image plane (C.7.6.2)
        "PixelSpacing": [decimal(study.spacing_mm[1]), decimal(study.spacing_mm[2])],
        "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "SliceThickness": thickness,
        "SpacingBetweenSlices": decimal(study.spacing_mm[0]),
        # Image pixel (C.7.6.3)
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": study.hu_zyx.shape[1],
        "Columns": study.hu_zyx.shape[2],
        "BitsAllocated": 16,
        "BitsStored": dialect.bits_stored,
        "HighBit": dialect.bits_stored - 1,
        "PixelRepresentation": int(dialect.signed),
        # CT image (C.8.2.1), VOI LUT (C.11.2)
        "RescaleIntercept": str(dialect.rescale_intercept),
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "KVP": dialect.kvp,
        "ScanOptions": dialect.scan_options,
        "DataCollectionDiameter": "500",
        "ReconstructionDiameter": decimal(study.spacing_mm[2] * study.hu_zyx.shape[2]),
        "GantryDetectorTilt": "0",
        "RotationDirection": "CW",
        "ConvolutionKernel": kernel,
        "WindowCenter": _several(w[0] for w in dialect.windows),
        "WindowWidth": _several(w[1] for w in dialect.windows),
        "WindowCenterWidthExplanation": _several(w[2] for w in dialect.windows),
        # SOP common (C.12.1)
        "SOPClassUID": CTImageStorage,
        "InstanceCreationDate": day,
        "InstanceCreationTime": "120200",
    }
    values.update(dialect.more)
    if dialect.padding_hu is not None:
        values["PixelPaddingValue"] = dialect.padding_hu - dialect.rescale_intercept
    for keyword, value in values.items():
        if (keyword not in dialect.omit and value not in ("", [""])) or keyword in _TYPE_2:
            setattr(ds, keyword, value)
    if dialect.padding_hu is not None:
        ds["PixelPaddingValue"].VR = "SS" if dialect.signed else "US"
    return ds


_TYPE_2 = ("ReferringPhysicianName", "PositionReferenceIndicator")
"""Written though empty."""


def _several(values: Iterable[str]) -> str | list[str]:
    """Return one value or a list of them, as pydicom wants them; "" where none is filled."""
    found = list(values)
    if not any(found):
        return ""
    return found[0] if len(found) == 1 else found


def add_slice(
    ds: Dataset, study: PhantomStudy, identity: Identity, index: int, dialect: Dialect
) -> None:
    """Add what is a slice's own; ``index`` counts from the feet.

    Most CT pulmonary angiograms are acquired foot to head, so that a breath held badly to the end
    of the scan costs least at the bases; some scanners number the images from the head.
    """
    x, y, z = study.origin_lps_mm
    height = z + index * study.spacing_mm[0]
    number = study.hu_zyx.shape[0] - index if dialect.head_first else index + 1
    ds.SOPInstanceUID = identity.instance_uid(index + 1)
    ds.InstanceNumber = str(number)
    ds.ImagePositionPatient = [decimal(x), decimal(y), decimal(height)]
    ds.SliceLocation = decimal(height)
