"""An instance's header as the facts that eligibility, completeness and ordering decide on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from pe_triage.domain import FrameFacts, InstanceFacts, PatientIdentity
from pe_triage.errors import InvalidInstanceError
from pe_triage.frames import MULTI_FRAME_CT
from pe_triage.identity import MAX_IDENTIFIER, identity_of
from pe_triage.imaging.elements import read_elements
from pe_triage.imaging.functional_groups import with_frames
from pe_triage.imaging.values import Values

_SOP_CLASS_UID = 0x00080016
_SOP_INSTANCE_UID = 0x00080018
_STUDY_UID = 0x0020000D
_SERIES_UID = 0x0020000E
_PATIENT_ID = 0x00100020
_ISSUER = 0x00100021
_STUDY_DATE = 0x00080020
_BIRTH_DATE = 0x00100030
_AGE = 0x00101010
_QUALITY_CONTROL = 0x00280300
_ACQUISITION_TIME = 0x00080032
_ACQUISITION_DATE_TIME = 0x0008002A

_LAST_TAG = 0x0028FFFF
"""Everything wanted lies in groups 0008 to 0028 of the outermost data set, but for the functional
groups of multi-frame images."""

_TEXT = {
    "modality": 0x00080060,
    "series_description": 0x0008103E,
    "study_description": 0x00081030,
    "protocol_name": 0x00181030,
    "body_part": 0x00180015,
    "manufacturer": 0x00080070,
    "model_name": 0x00081090,
    "contrast_agent": 0x00180010,
    "photometric_interpretation": 0x00280004,
    "patient_position": 0x00185100,
    "acquisition_type": 0x00189302,
    "calculation": 0x00089207,
    "lossy_compression": 0x00282110,
}
_TEXTS = {"image_type": 0x00080008, "kernel": 0x00181210}
_INTEGERS = {
    "series_number": 0x00200011,
    "instance_number": 0x00200013,
    "acquisition_number": 0x00200012,
    "number_of_frames": 0x00280008,
    "temporal_position": 0x00200100,
}
_UNSIGNED = {
    "rows": 0x00280010,
    "columns": 0x00280011,
    "bits_allocated": 0x00280100,
    "bits_stored": 0x00280101,
    "pixel_representation": 0x00280103,
    "samples_per_pixel": 0x00280002,
    "concatenation_number": 0x00209162,
    "concatenation_total": 0x00209163,
}
_DECIMALS = {
    "rescale_slope": 0x00281053,
    "rescale_intercept": 0x00281052,
    "slice_thickness_mm": 0x00180050,
    "gantry_tilt_deg": 0x00181120,
    "kvp": 0x00180060,
}
_VECTORS = {
    "pixel_spacing_mm": (0x00280030, 2),
    "image_position_mm": (0x00200032, 3),
    "image_orientation": (0x00200037, 6),
}
_FRAME_OF_REFERENCE, _CONCATENATION = 0x00200052, 0x00209161

_WANTED = frozenset(
    {
        0x00080005,
        _SOP_CLASS_UID,
        _SOP_INSTANCE_UID,
        _STUDY_UID,
        _SERIES_UID,
        _PATIENT_ID,
        _ISSUER,
        _STUDY_DATE,
        _BIRTH_DATE,
        _AGE,
        _QUALITY_CONTROL,
        _ACQUISITION_TIME,
        _ACQUISITION_DATE_TIME,
        _FRAME_OF_REFERENCE,
        _CONCATENATION,
        *_TEXT.values(),
        *_TEXTS.values(),
        *_INTEGERS.values(),
        *_UNSIGNED.values(),
        *_DECIMALS.values(),
        *(tag for tag, _count in _VECTORS.values()),
    }
)

_REQUIRED = {
    "SOP Class UID (0008,0016)": _SOP_CLASS_UID,
    "SOP Instance UID (0008,0018)": _SOP_INSTANCE_UID,
    "Study Instance UID (0020,000D)": _STUDY_UID,
    "Series Instance UID (0020,000E)": _SERIES_UID,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """What a Part 10 file says it is."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    identity: PatientIdentity
    facts: InstanceFacts


def read_instance(path: Path) -> InstanceRecord:
    """Read the header of a Part 10 file; pixel data are never touched.

    A malformed value (not a number, wrong multiplicity, empty, too long) becomes None.

    Raises
    ------
    InvalidInstanceError
        Not a DICOM file, a broken structure, a missing or malformed UID, or a Patient ID too long
        to be told apart from another.
    """
    elements = read_elements(path, _WANTED, last=_LAST_TAG)
    values = Values(elements.found)
    uids: dict[int, str] = {}
    for name, tag in _REQUIRED.items():
        uid = values.uid(tag)
        if uid is None:
            raise _named(InvalidInstanceError(f"{name} is missing or malformed"), values)
        uids[tag] = uid
    try:
        identity = identity_of(
            patient_id=_identifier(values, _PATIENT_ID, "Patient ID (0010,0020)"),
            issuer=_identifier(values, _ISSUER, "Issuer of Patient ID (0010,0021)"),
        )
    except InvalidInstanceError as error:
        raise _named(error, values) from None
    facts = _facts(values)
    if uids[_SOP_CLASS_UID] in MULTI_FRAME_CT:
        facts = with_frames(path, facts)
    return InstanceRecord(
        study_uid=uids[_STUDY_UID],
        series_uid=uids[_SERIES_UID],
        sop_instance_uid=uids[_SOP_INSTANCE_UID],
        sop_class_uid=uids[_SOP_CLASS_UID],
        transfer_syntax_uid=elements.transfer_syntax_uid,
        identity=identity,
        facts=facts,
    )


def _named(error: InvalidInstanceError, values: Values) -> InvalidInstanceError:
    """`error` with what is known of the object's identity."""
    error.study_uid = values.uid(_STUDY_UID)
    error.sop_instance_uid = values.uid(_SOP_INSTANCE_UID)
    return error


def _identifier(values: Values, tag: int, name: str) -> str:
    text = values.unbounded_text(tag)
    # Shortening could make two patients look like one.
    if len(text) > MAX_IDENTIFIER:
        raise InvalidInstanceError(f"{name} is longer than {MAX_IDENTIFIER} characters")
    return text


def _facts(values: Values) -> InstanceFacts:
    read: dict[str, Any] = {}
    read.update({name: values.text(tag) for name, tag in _TEXT.items()})
    read.update({name: values.texts(tag) for name, tag in _TEXTS.items()})
    read.update({name: values.integer(tag) for name, tag in _INTEGERS.items()})
    read.update({name: values.unsigned(tag) for name, tag in _UNSIGNED.items()})
    read.update({name: values.decimal(tag) for name, tag in _DECIMALS.items()})
    read.update({name: values.decimals(tag, n) for name, (tag, n) in _VECTORS.items()})
    return InstanceFacts(
        **read,
        frame_of_reference_uid=values.uid(_FRAME_OF_REFERENCE),
        concatenation_uid=values.uid(_CONCATENATION),
        patient_age_years=_age_years(values),
        acquisition_time_s=_acquisition_time_s(values),
        quality_control=values.text(_QUALITY_CONTROL) == "YES",
    )


def _acquisition_time_s(values: Values) -> float | None:
    stated = values.time_s(_ACQUISITION_TIME)
    if stated is not None:
        return stated
    # DT: the time follows eight digits of date (PS3.5 section 6.2).
    return values.time_s(_ACQUISITION_DATE_TIME, skip=8)


def _age_years(values: Values) -> float | None:
    stated = values.age_years(_AGE)
    if stated is not None:
        return stated
    born, studied = values.date_days(_BIRTH_DATE), values.date_days(_STUDY_DATE)
    if born is None or studied is None or studied < born:
        return None
    return (studied - born) / 365.25


def facts_to_json(facts: InstanceFacts | FrameFacts) -> dict[str, Any]:
    """Facts as a JSON-safe mapping; values that are absent are left out."""
    out: dict[str, Any] = {}
    for field in fields(facts):
        value = getattr(facts, field.name)
        if value is None or value == () or value is False:
            continue
        if field.name == "frames":
            value = [facts_to_json(frame) for frame in value]
        out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def facts_from_json(document: Mapping[str, Any]) -> InstanceFacts:
    """Facts back from `facts_to_json`; unknown keys are ignored, missing ones take the default."""
    known = _known(InstanceFacts, document)
    if "frames" in known:
        known["frames"] = tuple(FrameFacts(**_known(FrameFacts, f)) for f in known["frames"])
    return InstanceFacts(**known)


def _known(kind: type[InstanceFacts | FrameFacts], document: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for field in fields(kind):
        value = document.get(field.name, MISSING)
        if value is not MISSING:
            known[field.name] = tuple(value) if isinstance(value, list) else value
    return known
