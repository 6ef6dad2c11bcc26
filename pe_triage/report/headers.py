"""Which patient and study attributes a result object takes from its source images.

Copied exactly, so that the archive files the object beside them (PS3.3 C.7.1.1 Patient, C.7.2.1
General Study, C.7.2.2 Patient Study); everything else of the source stays behind, series and SOP
UIDs and all acquisition and pixel attributes first of all. Text is decoded by the source's own
Specific Character Set and written as UTF-8 (ISO_IR 192), so one object never mixes two.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable
from datetime import timedelta, timezone
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.valuerep import PersonName

from pe_triage.errors import PermanentError

CHARACTER_SET = "ISO_IR 192"

REQUIRED: tuple[str, ...] = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
"""Type 1 and 2: written empty where the source has none."""

OPTIONAL: tuple[str, ...] = (
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "PatientBirthTime",
    "QualityControlSubject",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianIdentificationSequence",
    "ProcedureCodeSequence",
    "TimezoneOffsetFromUTC",
)
"""Copied where the source has them and not added where it does not."""

COPIED: tuple[str, ...] = REQUIRED + OPTIONAL

_SPECIFIC_CHARACTER_SET = 0x00080005

_TEXT_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "SH", "ST", "TM",
                       "UC", "UI", "UR", "UT"})  # fmt: skip


def text_of(ds: Dataset, keyword: str) -> str:
    """Return the text of an attribute, decoded and without surrounding space; empty if absent."""
    element = _decoded(ds, keyword)
    if element is None or element.value is None:
        return ""
    if isinstance(element.value, MultiValue | list | tuple):
        # A backslash where one value belongs: the text as it stands in the file.
        return "\\".join("" if v is None else str(v) for v in element.value).strip()
    return str(element.value).strip()


def apply_headers(source: Dataset, target: Dataset) -> None:
    """Make `target` carry the patient and study of `source`, in UTF-8.

    Whatever `target` had in these attributes is replaced; those that the source lacks are removed
    (or emptied, where the standard wants them present).

    Raises
    ------
    PermanentError
        If the patient's identifier cannot be decoded by the source's character set: an object
        under a mangled identifier could be filed under somebody else.
    """
    for keyword in COPIED:
        if keyword in target:
            del target[keyword]
        element = copied(source, keyword)
        if element is not None:
            target.add(element)
        elif keyword in REQUIRED:
            target.add(_element(keyword, dictionary_VR(keyword), None))
    for keyword in ("PatientID", "IssuerOfPatientID"):
        if "\N{REPLACEMENT CHARACTER}" in str(target.get(keyword) or ""):
            raise PermanentError(f"{keyword} cannot be decoded by the image's character set")
    target.SpecificCharacterSet = CHARACTER_SET


def copied(ds: Dataset, keyword: str) -> DataElement | None:
    """Return an element that no longer remembers the source's encoding, or None."""
    element = _decoded(ds, keyword)
    if element is None:
        return None
    try:
        copy = _rewritten(element)
    except Exception:  # noqa: BLE001 - as in `_decoded`
        return None
    if keyword == "TimezoneOffsetFromUTC" and zone_of(ds) is None:
        return None
    return copy


def zone_of(ds: Dataset) -> timezone | None:
    """Return the zone of Timezone Offset From UTC (0008,0201); None if absent or out of range.

    -1200 to +1400 (PS3.3 Section C.12.1.1.8).
    """
    match = re.fullmatch(r"([+-])(\d{2})([0-5]\d)", text_of(ds, "TimezoneOffsetFromUTC"), re.ASCII)
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    if match[1] == "-":
        offset = -offset
    return timezone(offset) if timedelta(hours=-12) <= offset <= timedelta(hours=14) else None


def _decoded(ds: Dataset, keyword: str) -> DataElement | None:
    """Return an element with its text decoded, or None; a doubtful value is no reason to stop."""
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in ds:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            element: DataElement = ds[tag]
        except Exception:  # noqa: BLE001 - pydicom raises many kinds over a malformed value
            # A weight of "80 kg" must not cost the patient the result: it is left out. The
            # identifier cannot slip through here, for the guard compares it before.
            return None
    return element


def _element(keyword_or_tag: Any, vr: str, value: Any) -> DataElement:
    """Make an element without judging its value: the source's word is copied exactly."""
    return DataElement(keyword_or_tag, vr, value, validation_mode=config.IGNORE)


def _rewritten(element: DataElement) -> DataElement:
    """Return a copy whose text no longer remembers the source's encoding."""
    if element.VR == "SQ":
        return _element(element.tag, "SQ", Sequence(_rewrite_items(element.value or ())))
    return _element(element.tag, element.VR, _rewrite_value(element.value, element.VR))


def _rewrite_items(items: Iterable[Dataset]) -> Iterable[Dataset]:
    for item in items:
        copy = Dataset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for tag in sorted(item.keys()):
                if tag.is_private or tag == _SPECIFIC_CHARACTER_SET:
                    continue
                # A malformed value inside an item is left out as one outside would be.
                with contextlib.suppress(Exception):
                    copy.add(_rewritten(item[tag]))
        yield copy


def _rewrite_value(value: Any, vr: str) -> Any:
    if value is None:
        return None
    if isinstance(value, MultiValue | list | tuple):
        return [_rewrite_value(v, vr) for v in value]
    if isinstance(value, PersonName):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(value)
    if vr in _TEXT_VRS:
        # A DS or IS read from a file keeps its original string.
        return str(getattr(value, "original_string", value))
    return value
