"""Single-frame CT images written as Enhanced CT (PS3.3 A.38): the same pixels and the same facts.

What all frames say alike goes into the shared functional groups, the rest stands with each frame;
what can only be said once for an instance (patient, matrix, bits) makes several instances where it
differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import IS

from tests.unit.imaging.conftest import ENCODERS

EXPLICIT_LE = "1.2.840.10008.1.2.1"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CONVERTED = "1.2.840.10008.5.1.4.1.1.2.2"
DATE = "20260102"

Header = Mapping[str, Any]

_GROUPS: dict[str, dict[str, str]] = {
    "PixelMeasuresSequence": {"PixelSpacing": "", "SliceThickness": ""},
    "PlanePositionSequence": {"ImagePositionPatient": ""},
    "PlaneOrientationSequence": {"ImageOrientationPatient": ""},
    "PixelValueTransformationSequence": {
        "RescaleIntercept": "", "RescaleSlope": "", "RescaleType": "HU",
    },
    "CTAcquisitionTypeSequence": {
        "AcquisitionType": "SPIRAL", "ConstantVolumeFlag": "NO", "FluoroscopyFlag": "NO",
    },
    "CTAcquisitionDetailsSequence": {
        "GantryDetectorTilt": "", "RotationDirection": "CW", "TableHeight": "150",
        "DataCollectionDiameter": "500", "RevolutionTime": "0.5",
        "SingleCollimationWidth": "0.6", "TotalCollimationWidth": "38.4",
    },
    "CTReconstructionSequence": {
        "ConvolutionKernel": "", "ReconstructionAlgorithm": "FILTER_BACK_PROJ",
        "ConvolutionKernelGroup": "SOFT_TISSUE", "ReconstructionDiameter": "360",
        "ReconstructionAngle": "360", "ImageFilter": "NONE",
    },
    "CTXRayDetailsSequence": {
        "KVP": "", "FocalSpots": "0.7", "FilterType": "WEDGE", "FilterMaterial": "MIXED",
    },
}  # fmt: skip
"""Functional group: attributes taken from the single-frame header, else with a value of ours."""
_OF_FRAMES = {
    "AcquisitionNumber", "AcquisitionTime", "InstanceNumber", "SOPInstanceUID", "SOPClassUID",
    "ImageType", "ContrastBolusAgent", "TemporalPositionIdentifier", "TemporalPositionIndex",
    "StackID", "VolumeBasedCalculationTechnique", "NumberOfFrames",
} | {keyword for group in _GROUPS.values() for keyword in group}  # fmt: skip


@dataclass(kw_only=True)
class Options:
    """What is to be odd about the instances."""

    sop_class: str = ENHANCED_CT
    without: tuple[str, ...] = ()
    """Keywords of functional groups, or of the sequences that hold them, to leave out."""
    stated: int | None = None
    """Number of Frames instead of the true one."""
    parts: int = 1
    """Instances of one concatenation."""
    objects: int = 1
    """Independent instances that share the frames."""
    fragments: int = 1
    """Into which each compressed frame is cut."""
    offsets: bool = True
    """Whether a Basic Offset Table is written."""
    cut: int = 0
    """Bytes of pixel data left away at the end."""
    edits: list[Callable[[Dataset], None]] = field(default_factory=list)
    encoders: Mapping[str, Callable[[NDArray[Any]], bytes]] = field(
        default_factory=lambda: ENCODERS
    )
    """Of a frame, by transfer syntax; others are written uncompressed."""


def enhanced_files(
    headers: Sequence[Header],
    pixels: Sequence[NDArray[Any]],
    syntax: str,
    options: Options,
) -> list[bytes]:
    """Part 10 files of one series, frames in the order given."""
    files = []
    for indices in _instances(headers):
        share = [list(map(int, chunk)) for chunk in np.array_split(indices, options.objects)]
        for chunk in share:
            parts = [list(map(int, part)) for part in np.array_split(chunk, options.parts)]
            for number, part in enumerate(parts, start=1):
                ds = _dataset([headers[i] for i in part], options)
                if options.parts > 1:
                    ds.ConcatenationUID = f"{headers[chunk[0]]['SOPInstanceUID']}.99"
                    ds.InConcatenationNumber = number
                    ds.InConcatenationTotalNumber = options.parts
                    ds.ConcatenationFrameOffsetNumber = part[0] - chunk[0]
                _add_pixels(ds, [pixels[i] for i in part], syntax, options)
                for edit in options.edits:
                    edit(ds)
                files.append(_part10(ds, syntax))
    return files


def _instances(headers: Sequence[Header]) -> Iterable[list[int]]:
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, header in enumerate(headers):
        key = tuple(sorted((k, str(v)) for k, v in header.items() if k not in _OF_FRAMES))
        groups.setdefault(key, []).append(index)
    return groups.values()


def _dataset(headers: Sequence[Header], options: Options) -> Dataset:
    first = headers[0]
    ds = Dataset()
    for keyword, value in sorted(first.items(), reverse=True):  # signs before padding values
        if keyword not in _OF_FRAMES:
            _put(ds, keyword, value)
    ds.SOPClassUID = options.sop_class
    ds.SOPInstanceUID = first["SOPInstanceUID"]
    ds.NumberOfFrames = options.stated or len(headers)
    for keyword, value in (
        ("ImageType", "\\".join(_frame_type(first) or ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])),
        ("InstanceNumber", "1"), ("SeriesNumber", first.get("SeriesNumber", "4")),
        ("ContentDate", DATE), ("ContentTime", "101600"), ("StudyDate", DATE),
        ("StudyTime", "101000"), ("SeriesDate", DATE), ("SeriesTime", "101500"),
        ("AcquisitionNumber", "1"),
        ("AcquisitionDuration", 5000.0), ("ContentQualification", "PRODUCT"),
        ("PixelPresentation", "MONOCHROME"), ("VolumetricProperties", "VOLUME"),
        ("VolumeBasedCalculationTechnique", "NONE"), ("BurnedInAnnotation", "NO"),
        ("LossyImageCompression", "00"), ("PresentationLUTShape", "IDENTITY"),
        ("Manufacturer", "Scanner works"), ("ManufacturerModelName", "Multi"),
        ("DeviceSerialNumber", "1"), ("SoftwareVersions", "1"), ("PositionReferenceIndicator", ""),
        ("PatientName", ""), ("PatientBirthDate", ""), ("PatientSex", ""), ("StudyID", ""),
        ("AccessionNumber", ""), ("ReferringPhysicianName", ""),
    ):  # fmt: skip
        if keyword not in ds:
            _put(ds, keyword, value)
    if first.get("AcquisitionTime"):
        ds.AcquisitionDateTime = DATE + first["AcquisitionTime"]
    ds.AcquisitionContextSequence = []
    organization = Dataset()
    organization.DimensionOrganizationUID = f"{first['SOPInstanceUID']}.77"
    ds.DimensionOrganizationSequence = [organization]
    ds.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organization.DimensionOrganizationUID,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=0x00209111,
        )
        for pointer in (0x00209056, 0x00209057)
    ]
    if first.get("ContrastBolusAgent"):
        code = _item(CodeValue="44588005", CodingSchemeDesignator="SCT", CodeMeaning="Iodine")
        agent = Dataset()
        for keyword, value in vars_of(code).items():
            setattr(agent, keyword, value)
        agent.ContrastBolusAgentNumber = 1
        ds.ContrastBolusAgentSequence = [agent]
    _add_groups(ds, headers, options)
    return ds


def vars_of(ds: Dataset) -> dict[str, Any]:
    return {element.keyword: element.value for element in ds}


def _add_groups(ds: Dataset, headers: Sequence[Header], options: Options) -> None:
    rows = [_groups_of(header, number) for number, header in enumerate(headers, start=1)]
    shared, per_frame = Dataset(), [Dataset() for _ in rows]
    for keyword in dict.fromkeys(k for row in rows for k in row):
        items = [row.get(keyword) for row in rows]
        if keyword in options.without:
            continue
        if all(item == items[0] for item in items) and keyword != "FrameContentSequence":
            setattr(shared, keyword, [items[0]])
            continue
        for target, item in zip(per_frame, items, strict=True):
            if item is not None:
                setattr(target, keyword, [item])
    for keyword, value in (
        ("SharedFunctionalGroupsSequence", [shared]),
        ("PerFrameFunctionalGroupsSequence", per_frame),
    ):
        if keyword not in options.without:
            setattr(ds, keyword, value)


def _groups_of(header: Header, number: int) -> dict[str, Dataset]:
    groups = {}
    for keyword, attributes in _GROUPS.items():
        values = {k: header.get(k, ours) for k, ours in attributes.items()}
        item = Dataset()
        for name, value in values.items():
            if value != "":
                _put(item, name, value)
        groups[keyword] = item
    types = _frame_type(header)
    kind = Dataset()
    if types:
        kind.FrameType = types
    kind.PixelPresentation, kind.VolumetricProperties = "MONOCHROME", "VOLUME"
    kind.VolumeBasedCalculationTechnique = header.get("VolumeBasedCalculationTechnique", "NONE")
    groups["CTImageFrameTypeSequence"] = kind
    content = _item(
        StackID=str(header.get("StackID", "1")),
        InStackPositionNumber=number,
        DimensionIndexValues=[1, number],
    )
    if header.get("AcquisitionNumber"):
        content.FrameAcquisitionNumber = int(header["AcquisitionNumber"])
    if header.get("AcquisitionTime"):
        content.FrameAcquisitionDateTime = DATE + header["AcquisitionTime"]
        content.FrameReferenceDateTime = DATE + header["AcquisitionTime"]
        content.FrameAcquisitionDuration = 500.0
    index = header.get("TemporalPositionIndex", header.get("TemporalPositionIdentifier"))
    if index:
        content.TemporalPositionIndex = int(index)
    groups["FrameContentSequence"] = content
    region = _item(CodeValue="51185008", CodingSchemeDesignator="SCT", CodeMeaning="Chest")
    groups["FrameAnatomySequence"] = _item(FrameLaterality="U", AnatomicRegionSequence=[region])
    if header.get("ContrastBolusAgent"):
        groups["ContrastBolusUsageSequence"] = _item(
            ContrastBolusAgentNumber=1,
            ContrastBolusAgentAdministered="YES",
            ContrastBolusAgentDetected="YES",
        )
    return groups


def _frame_type(header: Header) -> list[str]:
    """Frame Type: VOLUME takes the place of AXIAL, and what is missing at the end is NONE."""
    if not header.get("ImageType"):
        return []
    types = [*str(header["ImageType"]).split("\\"), "", ""][:4]
    types[2] = {"AXIAL": "VOLUME", "": "VOLUME"}.get(types[2], types[2])
    types[3] = types[3] or "NONE"
    return types


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _put(ds: Dataset, keyword: str, value: Any) -> None:
    if isinstance(value, str) and dictionary_VR(keyword) == "FD":
        value = float(value)
    if keyword == "PixelPaddingValue" and value > 0x7FFF and ds.get("PixelRepresentation"):
        value -= 0x10000
    setattr(ds, keyword, value.split("\\") if isinstance(value, str) and "\\" in value else value)


def _add_pixels(
    ds: Dataset,
    pixels: Sequence[NDArray[Any]],
    syntax: str,
    options: Options,
) -> None:
    if syntax in options.encoders:
        streams = [options.encoders[syntax](np.ascontiguousarray(p)) for p in pixels]
        streams = streams[: len(streams) - bool(options.cut)]
        ds.PixelData = encapsulate(
            streams, fragments_per_frame=options.fragments, has_bot=options.offsets
        )
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        return
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = b"".join(p.astype(p.dtype.newbyteorder(order)).tobytes() for p in pixels)
    ds.PixelData = data[: len(data) - options.cut]
    ds["PixelData"].VR = "OW"


def _part10(ds: Dataset, syntax: str) -> bytes:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    out = BytesIO()
    ds.save_as(
        out,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return out.getvalue()


def enhanced_from(paths: Sequence[Path], target: Path, syntax: str = EXPLICIT_LE) -> list[Path]:
    """Write a single-frame series of uncompressed files as one Enhanced CT instance.

    What differs from image to image and has no place among the functional groups written here is
    left away.
    """
    images = [dcmread(path) for path in paths]
    headers = [{e.keyword: _text(e.value) for e in ds if e.keyword and e.VR not in ("SQ", "OW")}
               for ds in images]  # fmt: skip
    same = {k for k in headers[0] if all(h.get(k) == headers[0][k] for h in headers)}
    kept = [{k: v for k, v in h.items() if k in same | _OF_FRAMES} for h in headers]
    pixels = [ds.pixel_array for ds in images]
    written = []
    for number, data in enumerate(enhanced_files(kept, pixels, syntax, Options())):
        path = target / f"enhanced-{number}.dcm"
        path.write_bytes(data)
        written.append(path)
    return written


def _text(value: Any) -> Any:
    if isinstance(value, MultiValue):
        return "\\".join(map(str, value))
    return value if isinstance(value, int | float) and not isinstance(value, IS) else str(value)
