"""Image Library of the key slices (PS3.16 TID 1600, 1602, 1604).

highdicom writes one too, but it needs every geometric attribute to be there; a report must not
fail because an image lacks, say, Slice Thickness. Here an entry says what the header says.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pe_triage.report.concepts import DIRECTION, MILLIMETRE, PIXELS
from pe_triage.report.source_images import frame_numbers

_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
_ACQUISITION = hd.sr.RelationshipTypeValues.HAS_ACQ_CONTEXT

_DESCRIPTORS: tuple[tuple[Code, str, int | None, Code], ...] = (
    (codes.DCM.PixelDataRows, "Rows", None, PIXELS),
    (codes.DCM.PixelDataColumns, "Columns", None, PIXELS),
    (codes.DCM.HorizontalPixelSpacing, "PixelSpacing", 1, MILLIMETRE),
    (codes.DCM.VerticalPixelSpacing, "PixelSpacing", 0, MILLIMETRE),
    (codes.DCM.SliceThickness, "SliceThickness", None, MILLIMETRE),
    (codes.DCM.ImagePositionPatientX, "ImagePositionPatient", 0, MILLIMETRE),
    (codes.DCM.ImagePositionPatientY, "ImagePositionPatient", 1, MILLIMETRE),
    (codes.DCM.ImagePositionPatientZ, "ImagePositionPatient", 2, MILLIMETRE),
    (codes.DCM.ImageOrientationPatientRowX, "ImageOrientationPatient", 0, DIRECTION),
    (codes.DCM.ImageOrientationPatientRowY, "ImageOrientationPatient", 1, DIRECTION),
    (codes.DCM.ImageOrientationPatientRowZ, "ImageOrientationPatient", 2, DIRECTION),
    (codes.DCM.ImageOrientationPatientColumnX, "ImageOrientationPatient", 3, DIRECTION),
    (codes.DCM.ImageOrientationPatientColumnY, "ImageOrientationPatient", 4, DIRECTION),
    (codes.DCM.ImageOrientationPatientColumnZ, "ImageOrientationPatient", 5, DIRECTION),
)
"""Concept, attribute, index into it, unit; in the order of TID 1602 and TID 1604."""


def image_library(images: Sequence[Dataset]) -> hd.sr.ContainerContentItem:
    """Return the library container for `images` (headers), in their order."""
    group = hd.sr.ContainerContentItem(
        name=codes.DCM.ImageLibraryGroup, relationship_type=_CONTAINS
    )
    group.ContentSequence = hd.sr.ContentSequence([_entry(ds) for ds in images])
    library = hd.sr.ContainerContentItem(name=codes.DCM.ImageLibrary, relationship_type=_CONTAINS)
    library.ContentSequence = hd.sr.ContentSequence([group])
    return library


def _entry(ds: Dataset) -> hd.sr.ImageContentItem:
    entry = hd.sr.ImageContentItem(
        name=codes.SCT.Source,
        referenced_sop_class_uid=str(ds.SOPClassUID),
        referenced_sop_instance_uid=str(ds.SOPInstanceUID),
        referenced_frame_numbers=frame_numbers(ds),
        relationship_type=_CONTAINS,
    )
    items: list[hd.sr.ContentItem] = [
        hd.sr.CodeContentItem(
            name=codes.DCM.Modality,
            value=codes.cid29.ComputedTomography,
            relationship_type=_ACQUISITION,
        )
    ]
    if ds.get("FrameOfReferenceUID"):
        items.append(
            hd.sr.UIDRefContentItem(
                name=codes.DCM.FrameOfReferenceUID,
                value=str(ds.FrameOfReferenceUID),
                relationship_type=_ACQUISITION,
            )
        )
    for name, keyword, index, unit in _DESCRIPTORS:
        value = _number(ds, keyword, index)
        if value is not None:
            items.append(
                hd.sr.NumContentItem(
                    name=name, value=value, unit=unit, relationship_type=_ACQUISITION
                )
            )
    entry.ContentSequence = hd.sr.ContentSequence(items)
    return entry


def _number(ds: Dataset, keyword: str, index: int | None) -> int | float | None:
    value = ds.get(keyword)
    try:
        if index is not None:
            value = value[index]
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError, IndexError):
        return None
