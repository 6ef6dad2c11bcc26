"""What every message is written from: the answer, the study, one image header, our objects."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from pydicom.dataset import Dataset

from pe_triage.domain import (
    INTENDED_USE_WORDS,
    NOTICE,
    Priority,
    ResultKind,
    ResultObject,
    TriageResult,
)
from pe_triage.errors import PermanentError
from pe_triage.report.headers import text_of
from pe_triage.report.settings import ReportSettings
from pe_triage.report.study import StudyContext, check_belongs
from pe_triage.report.uids import derive_uid
from pe_triage.report.wording import headline, model_words

CONTROL_ID_LENGTH = 20
"""MSH-10 holds 20 characters in HL7 v2.5.1."""

HTTP_PRIORITY_WORDS: Mapping[Priority | None, str] = MappingProxyType(
    {Priority.HIGH: "stat", Priority.MEDIUM: "urgent", Priority.LOW: "routine", None: "routine"}
)
"""FHIR's request-priority. A negative exam is as routine as any other: never pushed down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonNameParts:
    """One component group of a PN (PS3.5 Section 6.2.1)."""

    family: str = ""
    given: str = ""
    middle: str = ""
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Patient and order as the image's header states them, decoded.

    Attributes
    ----------
    names
        Alphabetic, ideographic and phonetic representation, as far as given.
    birth_date, study_date
        YYYYMMDD or empty, whatever else the header holds.
    study_time
        HHMMSS or empty.
    """

    patient_id: str
    issuer: str
    issuer_uid: str = ""
    issuer_uid_type: str = ""
    names: Mapping[str, PersonNameParts] = field(default_factory=dict, repr=False)
    birth_date: str = ""
    sex: str = ""
    accession_number: str = ""
    accession_issuer: str = ""
    placer_order: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageContext:
    """Everything that a message is written from.

    Parameters
    ----------
    source
        Header of an image of the study; checked against the identity that was frozen when the
        study was queued.
    objects
        The run's DICOM objects, which messages refer to.
    now
        Aware; when the message was written. The run's objects carry the run's own time.

    Raises
    ------
    PermanentError
        If `source` is of another study or patient, or its identifier cannot be decoded.
    """

    result: TriageResult
    study: StudyContext
    source: Dataset = field(repr=False)
    objects: Sequence[ResultObject]
    now: datetime
    settings: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        check_belongs(self.source, self.study, "image")

    def message_id(self, kind: ResultKind, destination: str) -> str:
        """Return the identifier of one message: the same however often a run is worked."""
        model = self.result.model.sha256 if self.result.model else None
        uid = derive_uid(
            self.study.manifest_digest, model, self.study.run, f"message {kind} {destination}"
        )
        return hashlib.sha256(uid.encode()).hexdigest()[:CONTROL_ID_LENGTH]

    def uid(self, role: str) -> str:
        """Return a UID of this run for `role`."""
        model = self.result.model.sha256 if self.result.model else None
        return derive_uid(self.study.manifest_digest, model, self.study.run, role)

    @property
    def subject(self) -> Subject:
        """Patient and order."""
        return subject_of(self.source)

    @property
    def words(self) -> tuple[str, ...]:
        """What a person must read: answer, reason, notice, what the weights are for."""
        model = self.result.model
        lines = (
            headline(self.result),
            self.result.reason or "",
            NOTICE,
            INTENDED_USE_WORDS[model.intended_use] if model else "",
            model_words(model),
        )
        return tuple(line for line in lines if line)


def subject_of(source: Dataset) -> Subject:
    """Read `Subject` from an image header.

    Raises
    ------
    PermanentError
        The identifier cannot be decoded by the image's character set: a message under a mangled
        identifier could be taken for somebody else's.
    """
    patient_id, issuer = text_of(source, "PatientID"), text_of(source, "IssuerOfPatientID")
    if "\N{REPLACEMENT CHARACTER}" in patient_id + issuer:
        raise PermanentError("PatientID cannot be decoded by the image's character set")
    qualifiers = _first_item(source, "IssuerOfPatientIDQualifiersSequence")
    accession_issuer = _first_item(source, "IssuerOfAccessionNumberSequence")
    return Subject(
        patient_id=patient_id,
        issuer=issuer,
        issuer_uid=text_of(qualifiers, "UniversalEntityID"),
        issuer_uid_type=text_of(qualifiers, "UniversalEntityIDType"),
        names=names_of(text_of(source, "PatientName")),
        birth_date=_matching(r"\d{8}", text_of(source, "PatientBirthDate")),
        sex=_matching(r"[MFO]", text_of(source, "PatientSex")),
        accession_number=text_of(source, "AccessionNumber"),
        accession_issuer=text_of(accession_issuer, "LocalNamespaceEntityID"),
        placer_order=text_of(source, "PlacerOrderNumberImagingServiceRequest"),
        study_date=_matching(r"\d{8}", text_of(source, "StudyDate")),
        study_time=_matching(r"\d{6}", text_of(source, "StudyTime")[:6]),
        study_description=text_of(source, "StudyDescription"),
    )


def names_of(person_name: str) -> dict[str, PersonNameParts]:
    """Split a decoded PN into its representations: A alphabetic, I ideographic, P phonetic."""
    found = {}
    for code, group in zip("AIP", person_name.split("="), strict=False):
        parts = [part.strip() for part in group.split("^")] + [""] * 5
        if any(parts):
            found[code] = PersonNameParts(
                family=parts[0], given=parts[1], middle=parts[2], prefix=parts[3], suffix=parts[4]
            )
    return found


def _first_item(source: Dataset, keyword: str) -> Dataset:
    for item in source.get(keyword) or ():
        if isinstance(item, Dataset):
            return item
    return Dataset()


def _matching(pattern: str, text: str) -> str:
    return text if re.fullmatch(pattern, text) else ""
