"""A study goes over to the patient that the PACS has corrected it to, and is answered anew.

One transaction: from its commit on nothing leaves that names the patient as before, and whatever is
analysed afterwards names the corrected one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection, Engine, select, update

from pe_triage.clock import utc_now
from pe_triage.domain import DeliveryState, StudyState
from pe_triage.errors import InputError
from pe_triage.store import schema
from pe_triage.store.engine import write
from pe_triage.store.runs import ACTIVE, QUEUED, RUNNING, lock_study, queue_run
from pe_triage.store.schema import CORRECTED, Rank
from pe_triage.store.studies import CorrectedPatient, corrected_patient, manifest

MOST = 3
"""Corrections of one study that are followed by themselves: a PACS that cannot make up its mind
must not have the study analysed for ever."""

_jobs, _studies, _deliveries = schema.jobs, schema.studies, schema.deliveries


def correct_patient(
    engine: Engine,
    study_uid: str,
    patient: CorrectedPatient,
    *,
    by_person: bool = False,
    clock: Callable[[], datetime] = utc_now,
) -> int | None:
    """File a study under `patient`; returns the run that answers it anew.

    What waits to be sent is parked for good, a run that is being worked is taken from its worker
    and made again, and a study whose runs have all ended gets a further one. What comes later under
    the patient as before still belongs to the study: the scanner does not know of the correction.

    Parameters
    ----------
    by_person
        A person asks: `MOST` does not count.

    Returns
    -------
    int or None
        None where images are still arriving, and the run is queued when they are complete.

    Raises
    ------
    InputError
        The study is in quarantine, stands under this patient already, or was corrected too often.
    ImagesNotHeldError
        Its images were removed: nothing was changed.
    StudyNotFoundError
        Unknown.
    """

    def work(connection: Connection) -> int | None:
        at = clock()
        study = lock_study(connection, study_uid)
        if study.quarantine_reason is not None or study.state == StudyState.QUARANTINED:
            raise InputError("the study is in quarantine: settle that first")
        if corrected_patient(study) == patient:
            raise InputError("the study stands under the PACS' patient already")
        if study.corrections >= MOST and not by_person:
            raise InputError(f"its patient was corrected {study.corrections} times already")
        first = study.corrected_at is None
        connection.execute(
            update(_studies)
            .where(_studies.c.study_uid == study_uid)
            .values(
                patient_id=patient.patient_id,
                issuer=patient.issuer,
                # As its images came, whatever it was corrected to in between.
                former_patient_id=study.patient_id if first else study.former_patient_id,
                former_issuer=study.issuer if first else study.former_issuer,
                corrected_name=patient.name,
                corrected_birth_date=patient.birth_date,
                corrected_sex=patient.sex,
                corrected_at=at,
                corrections=study.corrections + 1,
            )
        )
        _withdraw(connection, study_uid)
        _take_back(connection, study_uid)
        if study.state == StudyState.RECEIVING:
            return None
        waiting = connection.execute(
            select(_jobs.c.run)
            .where(_jobs.c.study_uid == study_uid, _jobs.c.state.in_(ACTIVE))
            .order_by(_jobs.c.run.desc())
        ).first()
        if waiting is not None:
            return int(waiting.run)
        job = queue_run(
            connection,
            study_uid,
            manifest(connection, study_uid).digest,
            rank=Rank.ROUTINE,
            forced=True,
            at=at,
        )
        return None if job is None else job.run

    return write(engine, work)


def _withdraw(connection: Connection, study_uid: str) -> None:
    """Park what no destination has taken, for good; also what was parked for another reason."""
    connection.execute(
        update(_deliveries)
        .where(
            _deliveries.c.job_id.in_(select(_jobs.c.job_id).where(_jobs.c.study_uid == study_uid)),
            _deliveries.c.state.in_([DeliveryState.PENDING.value, DeliveryState.PARKED.value]),
        )
        .values(state=DeliveryState.PARKED.value, last_error=CORRECTED)
    )


def _take_back(connection: Connection, study_uid: str) -> None:
    """Fence off a worker that writes the patient as before; its claim does not count."""
    connection.execute(
        update(_jobs)
        .where(_jobs.c.study_uid == study_uid, _jobs.c.state == RUNNING)
        .values(
            state=QUEUED,
            fencing_token=_jobs.c.fencing_token + 1,
            attempts=_jobs.c.attempts - 1,
            lease_owner=None,
            lease_until=None,
        )
    )
