"""Whether the PACS still has a study under the patient that our results name.

Between the arrival of the images and the delivery of a result, somebody may have merged two
patients, moved the study, or corrected a name. What is frozen here cannot know that; the PACS does.
"""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydicom import Dataset, dcmread

from pe_triage.deliver.find_scu import PacsStudy
from pe_triage.domain import InstanceRole, PatientIdentity
from pe_triage.errors import QueryError
from pe_triage.identity import comparable, identity_of
from pe_triage.store.studies import StudyStore

PERSON_TAGS = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")

Ask = Callable[[str], Sequence[PacsStudy]]
"""Entries that the PACS has of a study: `deliver.find_scu.QueryScu.study`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whom an object names; never in a repr."""

    identity: PatientIdentity = field(repr=False)
    name: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)


class Agreement(StrEnum):
    """What the PACS says of our patient."""

    SAME = "SAME"
    OTHER = "OTHER"
    UNKNOWN = "UNKNOWN"
    """It does not answer, or does not have the study."""


ATTRIBUTE_WORDS = {
    "patient_id": "Patient ID (0010,0020)",
    "issuer": "Issuer of Patient ID (0010,0021)",
    "name": "Patient's Name (0010,0010)",
    "birth_date": "Patient's Birth Date (0010,0030)",
}


def person_in(ds: Dataset) -> Person:
    """Whom a header names."""
    return Person(
        identity=identity_of(ds.get("PatientID"), ds.get("IssuerOfPatientID")),
        name=comparable(str(ds.get("PatientName") or "")),
        birth_date=comparable(ds.get("PatientBirthDate")),
    )


def person_of_study(studies: StudyStore, data_dir: Path, study_uid: str) -> Person:
    """Whom a study's results name: its first image's patient, or the corrected one.

    Raises
    ------
    OSError, pydicom.errors.InvalidDicomError
        It cannot be read.
    """
    study = studies.get(study_uid)
    if study.corrected is not None:
        return Person(
            identity=study.identity,
            name=study.corrected.name,
            birth_date=study.corrected.birth_date,
        )
    for row in studies.instances(study_uid):
        if row.role is InstanceRole.IMAGE:
            return person_in(
                dcmread(
                    data_dir / row.path,
                    specific_tags=["SpecificCharacterSet", *PERSON_TAGS],
                    stop_before_pixels=True,
                )
            )
    return Person(identity=study.identity)


def differing(ours: Person, theirs: Person, attributes: Sequence[str]) -> list[str]:
    """Names of attributes that both sides state and that differ."""
    pairs = {
        "patient_id": (ours.identity.patient_id, theirs.identity.patient_id),
        "issuer": (ours.identity.issuer, theirs.identity.issuer),
        "name": (name_key(ours.name), name_key(theirs.name)),
        "birth_date": (_digits(ours.birth_date), _digits(theirs.birth_date)),
    }
    return [a for a in attributes if all(pairs[a]) and pairs[a][0] != pairs[a][1]]


def name_key(name: str) -> str:
    """A person's name as it is compared: family and given name, without case, accents, padding.

    Archives change the case, drop empty components and fold accents; none of that makes another
    person (PS3.5 Section 6.2, VR PN). Only the alphabetic group is looked at.
    """
    parts = [" ".join(part.split()) for part in name.split("=")[0].split("^")[:2]]
    folded = unicodedata.normalize("NFKD", "^".join(parts).rstrip("^").casefold())
    return "".join(c for c in folded if not unicodedata.combining(c))


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


class PacsIdentity:
    """Asks the PACS about a study's patient, and remembers the answer for a short while.

    Parameters
    ----------
    ask
        See `Ask`.
    attributes
        What must agree; see `ATTRIBUTE_WORDS`.
    fresh_s
        For how long an answer is used again: the objects of one run go out together.
    pause_s
        For how long a PACS that failed is not asked.
    waits
        Whether a delivery waits where the PACS cannot tell.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        attributes: Sequence[str],
        fresh_s: float,
        pause_s: float,
        waits: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._attributes = tuple(attributes)
        self._fresh_s = fresh_s
        self._pause_s = pause_s
        self._monotonic = monotonic
        self._paused_until_s = 0.0
        self._why_paused = ""
        self._answers: dict[str, tuple[float, tuple[PacsStudy, ...]]] = {}
        # Each destination has a thread of its own.
        self._lock = threading.Lock()
        self.waits = waits

    def judge(self, study_uid: str, ours: Person) -> tuple[Agreement, str]:
        """Compare; with one line of words, without any identity, unless both agree."""
        now_s = self._monotonic()
        entries = self._entries(study_uid, now_s)
        if entries is None:
            return Agreement.UNKNOWN, f"the PACS cannot be asked: {self._why_paused}"
        if not entries:
            return Agreement.UNKNOWN, "the PACS does not have the study"
        if not all(entry.identity.patient_id for entry in entries):
            return Agreement.UNKNOWN, "the PACS does not say which patient"
        wrong: set[str] = set()
        for entry in entries:
            theirs = Person(identity=entry.identity, name=entry.name, birth_date=entry.birth_date)
            wrong.update(differing(ours, theirs, self._attributes))
        if not wrong:
            return Agreement.SAME, ""
        words = ", ".join(ATTRIBUTE_WORDS[a] for a in self._attributes if a in wrong)
        return (
            Agreement.OTHER,
            f"not sent: the PACS has the study under another patient: {words} differs; "
            "see docs/watching.md",
        )

    def _entries(self, study_uid: str, now_s: float) -> tuple[PacsStudy, ...] | None:
        with self._lock:
            known = self._answers.get(study_uid)
            if known is not None and now_s < known[0]:
                return known[1]
            if now_s < self._paused_until_s:
                return None
        try:
            entries = tuple(self._ask(study_uid))
        except Exception as error:  # noqa: BLE001 - one odd answer must not stop a destination
            with self._lock:
                self._paused_until_s = self._monotonic() + self._pause_s
                self._why_paused = (
                    error.message if isinstance(error, QueryError) else type(error).__name__
                )
            return None
        with self._lock:
            for uid in [uid for uid, (until_s, _) in self._answers.items() if until_s <= now_s]:
                del self._answers[uid]
            self._answers[study_uid] = (now_s + self._fresh_s, entries)
        return entries
