"""The study a result belongs to, and the guard that keeps results under the right patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset

from pe_triage.domain import PatientIdentity, TriageResult
from pe_triage.errors import PermanentError
from pe_triage.identity import identity_of, same_patient
from pe_triage.report.headers import text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyContext:
    """Which study and run the results are for, as frozen when the study was queued."""

    study_uid: str
    run: int
    manifest_digest: str
    identity: PatientIdentity
    edition: str = ""
    """What its objects are made of; `results.build_results` sets it."""


def check_belongs(header: Dataset, study: StudyContext, what: str) -> None:
    """Refuse an object of another study or patient.

    Raises
    ------
    PermanentError
        Naming the object by its UID; never naming the patient.
    """
    uid = header.get("SOPInstanceUID", "(no SOP Instance UID)")
    if str(header.get("StudyInstanceUID", "")) != study.study_uid:
        raise PermanentError(f"{what} {uid} is of another study than {study.study_uid}")
    found = identity_of(text_of(header, "PatientID"), text_of(header, "IssuerOfPatientID"))
    expected = identity_of(study.identity.patient_id, study.identity.issuer)
    if not same_patient(found, expected):
        raise PermanentError(
            f"{what} {uid} names another patient than study {study.study_uid} was queued with"
        )


def choose_source(headers: Mapping[str, Dataset], result: TriageResult) -> Dataset:
    """Return the header that patient and study attributes are copied from.

    The lowest analysed slice at hand, else the lowest UID: the same inputs choose the same one.

    Raises
    ------
    PermanentError
        If there is no header at all.
    """
    for uid in result.sop_instance_uids:
        if uid in headers:
            return headers[uid]
    if not headers:
        raise PermanentError("no image header to copy patient and study from")
    in_series = [
        uid
        for uid, ds in sorted(headers.items())
        if result.series_uid in (None, str(ds.get("SeriesInstanceUID", "")))
    ]
    return headers[in_series[0] if in_series else min(headers)]
