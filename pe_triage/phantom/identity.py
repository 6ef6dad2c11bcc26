"""UIDs and invented identities, all derived from a study's key.

UIDs are name-based UUIDs under 2.25 (PS3.5 B.2): the same study always has the same UIDs, and
another size, preset or header has others, so one UID never names two contents.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import date, timedelta

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:pe-triage:phantom")


def derive_uid(*role: str | int) -> str:
    """Return the UID of a role, such as ``("series", key)``."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(str(part) for part in role)).int}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who the phantom claims to be: unmistakably nobody."""

    patient_id: str
    patient_name: str
    birth_date: date
    study_date: date
    accession_number: str
    study_id: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str

    def instance_uid(self, number: int) -> str:
        """Return the SOP Instance UID of the slice with that instance number."""
        return derive_uid("instance", self.series_uid, number)


def invent_identity(*, key: str, seed: int, age_years: int, variant: str = "") -> Identity:
    """Invent an identity.

    Parameters
    ----------
    key
        The study's key (`PhantomStudy.key`).
    seed
        Shown in name and identifiers, so that people can tell phantoms apart.
    age_years
        At the invented study date.
    variant
        Anything else that the headers depend on: another variant gets other UIDs.
    """
    token = f"{key}|{variant}"
    study_date = date(2020, 1, 1) + timedelta(days=int(key[:6], 16) % 1461)
    birth_date = date(study_date.year - age_years - 1, 7, 1)
    if (study_date.month, study_date.day) >= (7, 1):
        birth_date = birth_date.replace(year=birth_date.year + 1)
    return Identity(
        patient_id=f"PHANTOM-{seed % 10**6:06d}-{key[:6].upper()}",
        patient_name=f"PHANTOM^CTPA^{seed % 10**6:04d}",
        birth_date=birth_date,
        study_date=study_date,
        accession_number=f"PH{key[:10].upper()}",
        study_id=f"P{seed % 10**6:06d}",
        study_uid=derive_uid("study", token),
        series_uid=derive_uid("series", token),
        frame_of_reference_uid=derive_uid("frame of reference", token),
    )
