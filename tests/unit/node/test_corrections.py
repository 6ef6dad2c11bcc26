"""The proof that a study at the PACS is the one that is held here, and whom its results name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from pe_triage.deliver.find_scu import PacsStudy
from pe_triage.domain import InstanceRole, PatientIdentity
from pe_triage.errors import InputError, QueryRefusedError, QueryUnavailableError
from pe_triage.node.corrections import Corrections, Remade, restated
from pe_triage.report.headers import apply_headers
from pe_triage.store.studies import CorrectedPatient
from tests.support.finding import tiny_ct

UID = "2.25.77"
OURS = {
    "PatientID": "TEMP-1",
    "IssuerOfPatientID": "HOSP",
    "PatientName": "Unknown^Casualty",
    "PatientBirthDate": "19000101",
    "AccessionNumber": "A-1",
    "StudyDate": "20260301",
}
IMAGES = {f"{UID}.1": {f"{UID}.1.{n}" for n in (1, 2, 3)}}


def entry(**change: Any) -> PacsStudy:
    values: dict[str, Any] = {
        "study_uid": UID,
        "identity": PatientIdentity(patient_id="4711", issuer="HOSP"),
        "name": "Doe^Jane",
        "birth_date": "19500102",
        "study_date": "20260301",
        "study_time": "",
        "description": "",
        "modalities": (),
        "series": None,
        "instances": None,
        "sex": "F",
        "accession_number": "A-1",
    }
    return PacsStudy(**(values | change))


class Pacs:
    def __init__(self, entries: Sequence[PacsStudy], images: Mapping[str, set[str]]) -> None:
        self.entries, self.images = entries, images
        self.fails: Exception | None = None

    def study(self, _uid: str) -> Sequence[PacsStudy]:
        if self.fails is not None:
            raise self.fails
        return self.entries

    def instances(self, _uid: str, series_uid: str) -> Mapping[str, str]:
        return dict.fromkeys(self.images.get(series_uid, ()), "")


def follow(
    folder: Path, pacs: Pacs, *, refuses: str | None = None, **how: Any
) -> tuple[Remade, str, list[CorrectedPatient]]:
    taken: list[CorrectedPatient] = []

    def correct(_uid: str, patient: CorrectedPatient, **_more: Any) -> int:
        if refuses is not None:
            raise InputError(refuses)
        taken.append(patient)
        return 2

    rows = [
        SimpleNamespace(
            role=InstanceRole.IMAGE,
            path=path.relative_to(folder),
            series_uid=f"{UID}.1",
            sop_instance_uid=path.stem,
        )
        for path in tiny_ct(folder / "in", UID, 3, **OURS)
    ]
    corrections = Corrections(
        archive=pacs,
        studies=SimpleNamespace(instances=lambda _uid: rows),  # type: ignore[arg-type]
        data_dir=folder,
        correct=correct,
    )
    done, words = corrections.follow(UID, **how)
    return done, words, taken


def test_an_unknown_casualty_gets_a_name(tmp_path: Path) -> None:
    """Nothing of the person agrees; the images do, one by one."""
    done, words, taken = follow(tmp_path, Pacs([entry()], IMAGES))
    assert (done, words) == (Remade.DONE, "made again as run 2")
    assert taken == [
        CorrectedPatient(
            patient_id="4711", issuer="HOSP", name="Doe^Jane", birth_date="19500102", sex="F"
        )
    ]


@pytest.mark.parametrize(
    ("entries", "images", "words"),
    [
        ([], IMAGES, "does not have the study"),
        ([entry(), entry()], IMAGES, "under several patients"),
        ([entry(identity=PatientIdentity(patient_id=""))], IMAGES, "does not say which patient"),
        ([entry(accession_number="A-2")], IMAGES, "Accession Number"),
        ([entry(study_date="20260302")], IMAGES, "Study Date"),
        ([entry()], {f"{UID}.1": {f"{UID}.1.1", f"{UID}.1.2"}}, "1 of 3 images"),
        ([entry()], {f"{UID}.1": {"9.9"}}, "3 of 3 images"),
        ([entry()], {}, "3 of 3 images"),
    ],
)
def test_without_proof_nothing_is_changed(
    tmp_path: Path, entries: list[PacsStudy], images: Mapping[str, set[str]], words: str
) -> None:
    done, said, taken = follow(tmp_path, Pacs(entries, images))
    assert done is Remade.REFUSED
    assert words in said
    assert taken == []
    assert not any(value in said for value in ("4711", "TEMP-1", "Doe", "A-1", "A-2"))


def test_more_at_the_pacs_than_here_is_the_same_study(tmp_path: Path) -> None:
    more = {**IMAGES, f"{UID}.2": {"9.9"}}
    more[f"{UID}.1"] = more[f"{UID}.1"] | {"9.8"}
    assert follow(tmp_path, Pacs([entry()], more))[0] is Remade.DONE


def test_what_the_pacs_leaves_out_hinders_nothing(tmp_path: Path) -> None:
    bare = entry(accession_number="", study_date="", name="", birth_date="", sex="")
    done, _, (patient,) = follow(tmp_path, Pacs([bare], IMAGES))
    assert done is Remade.DONE
    assert patient.name == "", "the name as before belongs to the identifier as before"
    same = entry(identity=PatientIdentity(patient_id="TEMP-1"), birth_date="")
    _, _, (patient,) = follow(tmp_path / "same", Pacs([same], IMAGES))
    assert (patient.issuer, patient.birth_date, patient.name) == ("HOSP", "19000101", "Doe^Jane")


def test_a_person_may_answer_for_it(tmp_path: Path) -> None:
    assert follow(tmp_path, Pacs([entry()], {}), proven=False)[0] is Remade.DONE
    assert follow(tmp_path / "b", Pacs([entry(), entry()], {}), proven=False)[0] is Remade.REFUSED


@pytest.mark.parametrize(
    ("error", "done"),
    [
        (QueryUnavailableError("PACS@h:1: no answer"), Remade.UNAVAILABLE),
        (QueryRefusedError("PACS@h:1: refused"), Remade.REFUSED),
    ],
)
def test_a_pacs_that_does_not_answer(tmp_path: Path, error: Exception, done: Remade) -> None:
    pacs = Pacs([entry()], IMAGES)
    pacs.fails = error
    found, words, taken = follow(tmp_path, pacs)
    assert (found, words, taken) == (done, str(error), [])
    assert follow(tmp_path / "b", Pacs([entry()], IMAGES), refuses="too often")[:2] == (
        Remade.REFUSED,
        "too often",
    )


def test_an_image_that_is_gone_parks_one_study_and_stops_no_destination(tmp_path: Path) -> None:
    pacs = Pacs([entry()], IMAGES)
    pacs.fails = AttributeError("planted")
    assert follow(tmp_path, pacs)[:2] == (
        Remade.REFUSED,
        "the proof cannot be made: AttributeError",
    )
    rows = [
        SimpleNamespace(
            role=InstanceRole.IMAGE, path=Path("gone"), series_uid="1", sop_instance_uid="1.1"
        )
    ]
    corrections = Corrections(
        archive=Pacs([entry()], IMAGES),
        studies=SimpleNamespace(instances=lambda _uid: rows),  # type: ignore[arg-type]
        data_dir=tmp_path,
        correct=lambda *_a, **_k: 1,
    )
    assert corrections.follow(UID) == (
        Remade.REFUSED,
        "the proof cannot be made: FileNotFoundError",
    )


def test_results_name_the_corrected_patient_and_nothing_of_the_former(tmp_path: Path) -> None:
    (path,) = tiny_ct(
        tmp_path,
        UID,
        1,
        **OURS,
        SpecificCharacterSet="ISO_IR 100",
        StudyDescription="Thorax präoperativ",
        PatientAge="099Y",
        PatientSex="M",
        OtherPatientNames="Former^Name",
        TypeOfPatientID="TEXT",
    )
    patient = CorrectedPatient(patient_id="4711", name="Łukasz^Anna", birth_date="19500102")
    header = dcmread(path, stop_before_pixels=True)
    target = Dataset()
    apply_headers(restated(header, patient), target)
    assert (target.PatientID, str(target.PatientName)) == ("4711", "Łukasz^Anna")
    assert (target.PatientBirthDate, target.PatientSex) == ("19500102", "")
    for keyword in ("IssuerOfPatientID", "OtherPatientNames", "TypeOfPatientID", "PatientAge"):
        assert keyword not in target
    assert target.StudyDescription == "Thorax präoperativ"
    assert target.AccessionNumber == "A-1"
    assert header.PatientID == "TEMP-1", "the image itself is as it came"
    assert restated(header, None) is header
