"""The header of a phantom series: CT Image IOD (PS3.3 A.3), as one table.

Another vendor's dialect is another `Dialect`; nothing else knows of headers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from pe_triage.phantom.identity import Identity
from pe_triage.phantom.presets import GENERATOR_VERSION
from pe_triage.phantom.study import PhantomStudy


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What differs between scanners' ways of writing the same series."""

    name: str
    manufacturer: str
    model_name: str
    kernel: str
    image_type: tuple[str, ...]
    kvp: str
    rescale_intercept: int
    """Stored values are unsigned 12 bit; HU = stored + intercept."""
    scan_options: str


PLAIN = Dialect(
    name="plain",
    manufacturer="pe-triage phantom",
    model_name="Synthetic CTPA generator",
    kernel="B30f",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    kvp="100",
    rescale_intercept=-1024,
    scan_options="HELICAL MODE",
)


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
        "StudyDescription": "CT pulmonary angiography (synthetic phantom)",
        "PatientAge": f"{study.anatomy.age_years:03d}Y",
        # General series (C.7.3.1)
        "Modality": "CT",
        "SeriesInstanceUID": identity.series_uid,
        "SeriesNumber": "2",
        "SeriesDate": day,
        "SeriesTime": "120100",
        "SeriesDescription": f"CTPA {float(thickness):.1f} {dialect.kernel}",
        "ProtocolName": "CTPA (synthetic)",
        "BodyPartExamined": "CHEST",
        "PatientPosition": "HFS",
        # Frame of reference and equipment (C.7.4.1, C.7.5.1)
        "FrameOfReferenceUID": identity.frame_of_reference_uid,
        "PositionReferenceIndicator": "",
        "Manufacturer": dialect.manufacturer,
        "InstitutionName": "pe-triage phantom laboratory (invented)",
        "StationName": "PHANTOM",
        "ManufacturerModelName": dialect.model_name,
        "DeviceSerialNumber": "0",
        "SoftwareVersions": f"phantom generator {GENERATOR_VERSION}",
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
        "ContrastBolusAgent": "IODINATED CONTRAST (SIMULATED)",
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
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
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
        "ConvolutionKernel": dialect.kernel,
        "WindowCenter": "100",
        "WindowWidth": "700",
        "WindowCenterWidthExplanation": "PULMONARY EMBOLISM",
        # SOP common (C.12.1)
        "SOPClassUID": CTImageStorage,
        "InstanceCreationDate": day,
        "InstanceCreationTime": "120200",
    }
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def add_slice(ds: Dataset, study: PhantomStudy, identity: Identity, index: int) -> None:
    """Add what is a slice's own; ``index`` counts from the feet, as InstanceNumber then does.

    Foot to head is how many CT pulmonary angiograms are acquired, so that breath held to the end
    of the scan costs least at the bases.
    """
    x, y, z = study.origin_lps_mm
    height = z + index * study.spacing_mm[0]
    ds.SOPInstanceUID = identity.instance_uid(index + 1)
    ds.InstanceNumber = str(index + 1)
    ds.ImagePositionPatient = [decimal(x), decimal(y), decimal(height)]
    ds.SliceLocation = decimal(height)
