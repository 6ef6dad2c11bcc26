"""Which studies of an archive are earlier ones of the same patient: certain, or not at all.

A Patient ID is no name of a person beyond the house that gave it: two hospitals behind one archive
use the same numbers. What is asked for here is found by machine and answered without anybody
looking, so a patient who is not certain has no priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from pe_triage.domain import PatientIdentity


class UncertainPatientError(ValueError):
    """The archive does not say beyond doubt whose study it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A study as an archive describes it; nothing of the patient reaches a repr."""

    study_uid: str
    identity: PatientIdentity = field(repr=False)
    """As `identity.identity_of` makes it."""
    birth_date: str = field(repr=False)
    sex: str = field(repr=False)
    study_date: str
    """YYYYMMDD, or empty."""
    study_time: str


def person_of(entries: Sequence[Entry]) -> Entry:
    """Whose study it is, by all entries that the archive has of it.

    Raises
    ------
    UncertainPatientError
        It has none, has it under several patients, or says no Patient ID or no date.
    """
    if not entries:
        raise UncertainPatientError("the PACS does not have the study")
    first = entries[0]
    if any(entry.identity != first.identity or _differ(entry, first) for entry in entries[1:]):
        raise UncertainPatientError("the PACS has it under several patients")
    if not first.identity.patient_id:
        raise UncertainPatientError("the PACS has it without a Patient ID")
    if not _is_date(first.study_date):
        raise UncertainPatientError("the PACS has it without a date")
    return first


def earlier_of(person: Entry, found: Sequence[Entry], *, since: str = "") -> tuple[Entry, ...]:
    """Earlier studies of the same patient, the newest first.

    Patient ID and issuer must be equal, each to the letter; an issuer that only one of the two
    has is another patient's. One entry that is equal in both and has another birth date or sex
    says that the identifier was given twice: then none of them is certain.

    Parameters
    ----------
    since
        YYYYMMDD: none before this day; empty: any.

    Raises
    ------
    UncertainPatientError
        As said.
    """
    same = [entry for entry in found if entry.identity == person.identity]
    if any(_differ(entry, person) for entry in same):
        raise UncertainPatientError(
            "the PACS has this Patient ID with several birth dates or sexes"
        )
    moment = (person.study_date, person.study_time)
    earlier = {
        entry.study_uid: entry
        for entry in same
        if entry.study_uid != person.study_uid
        and _is_date(entry.study_date)
        and (entry.study_date, entry.study_time) < moment
        and entry.study_date >= since
    }
    doubtful = {entry.study_uid for entry in found if entry.identity != person.identity}
    # Found under another patient as well, it is nobody's.
    return tuple(
        sorted(
            (entry for uid, entry in earlier.items() if uid not in doubtful),
            key=lambda entry: (entry.study_date, entry.study_time, entry.study_uid),
            reverse=True,
        )
    )


def _differ(one: Entry, other: Entry) -> bool:
    return any(
        a and b and a != b for a, b in ((one.birth_date, other.birth_date), (one.sex, other.sex))
    )


def _is_date(text: str) -> bool:
    if len(text) != 8 or not (text.isascii() and text.isdigit()):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
