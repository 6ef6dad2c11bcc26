"""What a real archive answers once a patient was merged: it is the proof, or it is none."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

from pe_triage.addresses import parse_destination
from pe_triage.deliver.find_scu import QueryScu
from pe_triage.domain import PatientIdentity
from pe_triage.monitoring import IDENTITY_ATTRIBUTES
from pe_triage.node.corrections import Corrections, Remade
from pe_triage.node.pacs_identity import Agreement, PacsIdentity, person_of_study
from pe_triage.store.corrections import correct_patient
from pe_triage.store.studies import StudyStore
from tests.support.assembling import T0, fast_engine
from tests.support.finding import tiny_ct
from tests.support.orthanc import Orthanc
from tests.support.peers import dcmtk_environment, require_program
from tests.support.store import received_file

UID = "2.25.9401"
PERSON = {
    "PatientID": "TEMP-7",
    "PatientName": "Unknown^Casualty",
    "PatientBirthDate": "19000101",
    "PatientSex": "O",
    "AccessionNumber": "A-9",
    "StudyDate": "20260301",
}
NOW = {
    "PatientID": "4711",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
}


def test_what_orthanc_answers_after_a_merge_is_proof_when_every_image_is_there(
    tmp_path: Path, orthanc: Orthanc
) -> None:
    files = tiny_ct(tmp_path / "in", UID, 4, **PERSON)

    def send(some: list[Path]) -> None:
        subprocess.run(
            [
                *(require_program("storescu", "dcmtk"), "-aec", "ORTHANC", "127.0.0.1"),
                *(str(orthanc.dicom_port), *map(str, some)),
            ],
            env=dcmtk_environment(),
            check=True,
            capture_output=True,
        )

    # One image has not reached the archive yet.
    send(files[:3])
    with fast_engine(tmp_path / "node.sqlite3") as engine:
        studies = StudyStore(engine, tmp_path)
        studies.record([(received_file(path, received_at=T0), {}, "a-1") for path in files])
        scu = QueryScu(parse_destination(orthanc.address), "PETRIAGE")
        corrections = Corrections(
            archive=scu,
            studies=studies,
            data_dir=tmp_path,
            correct=partial(correct_patient, engine),
        )

        def judged() -> Agreement:
            asking = PacsIdentity(
                scu.study, attributes=IDENTITY_ATTRIBUTES, fresh_s=60, pause_s=60, waits=False
            )
            return asking.judge(UID, person_of_study(studies, tmp_path, UID))[0]

        assert judged() is Agreement.SAME
        # What an archive holds after a merge: the same objects under the other patient.
        (study,) = orthanc.studies().values()
        orthanc.send_json("DELETE", f"/studies/{study}", {})
        corrected = tiny_ct(tmp_path / "merged", UID, 4, **PERSON | NOW)
        send(corrected[:3])
        assert judged() is Agreement.OTHER
        done, words = corrections.follow(UID)
        assert done is Remade.REFUSED
        assert "1 of 4 images held here are not at the PACS" in words
        assert studies.get(UID).identity == PatientIdentity(patient_id="TEMP-7")

        send(corrected[3:])
        assert corrections.follow(UID)[0] is Remade.DONE
        study_now = studies.get(UID)
        assert study_now.identity == PatientIdentity(patient_id="4711")
        assert study_now.corrected is not None
        assert (study_now.corrected.name, study_now.corrected.sex) == ("Doe^Jane", "F")
        assert judged() is Agreement.SAME
