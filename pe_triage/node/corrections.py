"""Follows a correction of the patient at the PACS where it is provably the same study.

A Patient ID is merged (HL7 A40), moved (A43, A45) or replaced (an unknown casualty gets a name)
while a study is queued or its results wait. The images here name the patient as before; the PACS is
where the hospital says whose they are. Results go over to its patient only if it has this Study
Instance UID once, with every image that is held here: the same objects, filed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from pydicom import Dataset, config, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement

from pe_triage.deliver.find_scu import PacsStudy
from pe_triage.domain import InstanceRole
from pe_triage.errors import PeTriageError, QueryUnavailableError
from pe_triage.identity import comparable
from pe_triage.logs import get_logger
from pe_triage.node.pacs_identity import Person, person_in
from pe_triage.store.engine import StoreUnavailableError
from pe_triage.store.studies import CorrectedPatient, StudyStore

HEADER_TAGS = (
    "SpecificCharacterSet",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "AccessionNumber",
    "StudyDate",
)

OF_THE_FORMER_ID = (
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "PatientBirthTime",
    "PatientAge",
)
"""Of the patient as before; nobody has said that they hold for the corrected one."""


class Remade(StrEnum):
    """What became of the wish to follow a correction."""

    DONE = "DONE"
    REFUSED = "REFUSED"
    """A person must decide."""
    UNAVAILABLE = "UNAVAILABLE"
    """The PACS did not say enough; the same question may be answered later."""


class Archive(Protocol):
    """What is asked; `deliver.find_scu.QueryScu` is one."""

    def study(self, study_uid: str) -> Sequence[PacsStudy]:
        """Entries of a study."""

    def instances(self, study_uid: str, series_uid: str) -> Mapping[str, str]:
        """SOP Instance UIDs of a series."""


Correct = Callable[..., int | None]
"""`store.corrections.correct_patient` on the node's database."""


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """Asks for the proof, and has the results made again.

    Attributes
    ----------
    archive
        The PACS.
    correct
        See `Correct`.
    """

    archive: Archive
    studies: StudyStore
    data_dir: Path
    correct: Correct

    def follow(
        self, study_uid: str, *, proven: bool = True, by_person: bool = False
    ) -> tuple[Remade, str]:
        """File the study under the PACS' patient and answer it anew, or say in words why not.

        Parameters
        ----------
        proven
            Ask for the proof that it is the same study; a person may answer for it instead.

        Raises
        ------
        StoreUnavailableError
            Nothing was changed, or the same call may be made again.
        """
        log = get_logger(study_uid=study_uid)
        try:
            patient, why_not = self._wanted(study_uid, proven=proven)
            if patient is None:
                return Remade.REFUSED, why_not
            run = self.correct(study_uid, patient, by_person=by_person)
        except StoreUnavailableError:
            raise
        except QueryUnavailableError as error:
            return Remade.UNAVAILABLE, error.message
        except PeTriageError as error:
            return Remade.REFUSED, " ".join(str(error).split())
        except Exception as error:  # noqa: BLE001 - one study must not stop a whole destination
            return Remade.REFUSED, f"the proof cannot be made: {type(error).__name__}"
        log.warning("study.patient_corrected", run=run, by_person=by_person)
        return Remade.DONE, "made again" if run is None else f"made again as run {run}"

    def _wanted(self, study_uid: str, *, proven: bool) -> tuple[CorrectedPatient | None, str]:
        entries = self.archive.study(study_uid)
        if len(entries) != 1:
            word = "does not have the study" if not entries else "has it under several patients"
            return None, f"the PACS {word}"
        (entry,) = entries
        if not entry.identity.patient_id:
            return None, "the PACS does not say which patient"
        rows = [r for r in self.studies.instances(study_uid) if r.role is InstanceRole.IMAGE]
        if not rows:
            return None, "no image of it is held here"
        header = dcmread(
            self.data_dir / rows[0].path, specific_tags=list(HEADER_TAGS), stop_before_pixels=True
        )
        patient = _patient(entry, person_in(header))
        if not proven:
            return patient, ""
        for words, ours, theirs in (
            ("Accession Number (0008,0050)", header.get("AccessionNumber"), entry.accession_number),
            ("Study Date (0008,0020)", header.get("StudyDate"), entry.study_date),
        ):
            if comparable(ours) and theirs and comparable(ours) != theirs:
                return None, f"not provably the same study: {words} differs too"
        held: dict[str, set[str]] = {}
        for row in rows:
            held.setdefault(row.series_uid, set()).add(row.sop_instance_uid)
        missing = sum(
            len(uids - set(self.archive.instances(study_uid, series)))
            for series, uids in sorted(held.items())
        )
        if missing:
            return None, (
                f"not provably the same study: {missing} of {len(rows)} images held here are not "
                "at the PACS under it"
            )
        return patient, ""


def _patient(entry: PacsStudy, ours: Person) -> CorrectedPatient:
    """The PACS' words; ours only fill what it leaves out of a patient with the same ID."""
    same_id = entry.identity.patient_id == ours.identity.patient_id
    return CorrectedPatient(
        patient_id=entry.identity.patient_id,
        issuer=entry.identity.issuer or (ours.identity.issuer if same_id else ""),
        name=entry.name or (ours.name if same_id else ""),
        birth_date=entry.birth_date or (ours.birth_date if same_id else ""),
        sex=entry.sex,
    )


def restated(header: Dataset, patient: CorrectedPatient | None) -> Dataset:
    """Return a copy of an image's header that names the corrected patient; for results only."""
    if patient is None:
        return header
    out = header[:]
    for keyword, value in (
        ("PatientID", patient.patient_id),
        ("IssuerOfPatientID", patient.issuer),
        ("PatientName", patient.name),
        ("PatientBirthDate", patient.birth_date),
        ("PatientSex", patient.sex),
    ):
        _put(out, keyword, value)
    if not patient.issuer:
        del out["IssuerOfPatientID"]
    for keyword in OF_THE_FORMER_ID:
        if keyword in out:
            del out[keyword]
    return out


def _put(ds: Dataset, keyword: str, value: Any) -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    # As the PACS wrote it, not as the standard would have it.
    ds[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)
