"""Questions to archives: DCMTK's dcmqrscp, Orthanc, and scripted peers that answer badly."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pe_triage.deliver.find_scu import QueryOptions, QueryScu
from pe_triage.domain import Destination
from pe_triage.errors import QueryRefusedError, QueryUnavailableError
from tests.support.dcmtk import QrScp
from tests.support.finding import finding_scp, tiny_ct
from tests.support.node import wait_for
from tests.support.orthanc import Orthanc
from tests.support.peers import dcmtk_environment, require_program
from tests.support.postgres import free_port

QUICK = QueryOptions(timeout_s=2, total_s=5, max_matches=50)
PERSON = {
    "PatientName": "Müller^Änne",
    "PatientID": "PID-7",
    "IssuerOfPatientID": "HOSP",
    "PatientBirthDate": "19500102",
    "StudyDate": "20260301",
    "StudyTime": "081500",
    "StudyDescription": "CT pulmonary angiography",
    "SpecificCharacterSet": "ISO_IR 192",
}


def scu(peer: Destination, options: QueryOptions = QUICK) -> QueryScu:
    return QueryScu(peer, "PETRIAGE", options)


def store(address: Destination, files: list[Path]) -> None:
    done = subprocess.run(
        [
            *(require_program("storescu", "dcmtk"), "-aec", address.aet, address.host),
            *(str(address.port), *map(str, files)),
        ],
        env=dcmtk_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=["dcmqrscp", "orthanc"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Destination:
    if request.param == "dcmqrscp":
        peer: QrScp = request.getfixturevalue("qr_scp")
        return Destination(aet=peer.aet, host="127.0.0.1", port=peer.port)
    found: Orthanc = request.getfixturevalue("orthanc")
    return Destination(aet="ORTHANC", host="127.0.0.1", port=found.dicom_port)


def test_a_real_archive_says_how_many_and_whose(archive: Destination, tmp_path: Path) -> None:
    study_uid, other_uid = "2.25.7001", "2.25.7002"
    files = tiny_ct(tmp_path, study_uid, 5, **PERSON)
    files += tiny_ct(tmp_path, study_uid, 2, series=2, **PERSON)
    files += tiny_ct(tmp_path, other_uid, 1, **PERSON | {"StudyDate": "20260302"})
    store(archive, files)
    asking = scu(archive, QueryOptions(timeout_s=20))

    (study,) = asking.study(study_uid)
    assert study.study_uid == study_uid
    assert (study.identity.patient_id, study.name) == ("PID-7", "Müller^Änne")
    assert study.birth_date == "19500102"
    # dcmqrscp keeps no issuer and no counts at this level; what is left out is not guessed.
    assert study.identity.issuer in ("", "HOSP")
    assert study.instances in (None, 7)
    assert "Müller" not in repr(study)
    assert "PID-7" not in repr(study)

    def counted() -> list[int]:
        # An archive may answer a store before its index has it.
        return sorted(s.instances or 0 for s in asking.series(study_uid))

    wait_for(lambda: counted() == [2, 5], 20, f"all images counted: {counted()}")
    series = {s.series_uid: s for s in asking.series(study_uid)}
    assert {s.modality for s in series.values()} == {"CT"}

    day = date(2026, 3, 1)
    found = {s.study_uid for s in asking.studies(day, day, modality="CT")}
    assert study_uid in found
    assert other_uid not in found
    assert other_uid in {s.study_uid for s in asking.studies(day, date(2026, 3, 2))}
    assert asking.study("2.25.404") == ()
    assert asking.series("2.25.404") == ()


def test_an_archive_that_does_not_know_us_is_said_so(tmp_path: Path) -> None:
    with Orthanc(tmp_path / "orthanc", may_ask=False) as shy:
        shy.start()
        peer = Destination(aet="ORTHANC", host="127.0.0.1", port=shy.dicom_port)
        with pytest.raises(QueryUnavailableError, match="may AE title PETRIAGE ask"):
            scu(peer, QueryOptions(timeout_s=20)).study("2.25.1")


def one(**values: Any) -> Dataset:
    ds = Dataset()
    ds.StudyInstanceUID = "1.2.3"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def statuses(*codes: int) -> Any:
    def answer(_wanted: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        for code in codes:
            yield code, one(PatientID="A") if code in (0xFF00, 0xFF01) else None

    return answer


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (0xA700, QueryUnavailableError, "out of resources"),
        (0xA900, QueryRefusedError, "does not match"),
        (0xC001, QueryRefusedError, "unable to process"),
        (0x0122, QueryRefusedError, "not supported"),
        (0xFE00, QueryUnavailableError, "cancelled"),
    ],
)
def test_a_failure_status_is_said_and_sorted(code: int, error: type[Exception], words: str) -> None:
    with finding_scp(statuses(0xFF00, code)) as peer, pytest.raises(error, match=words) as raised:
        scu(peer).study("1.2.3")
    assert f"{code:04X}" in str(raised.value)


def test_a_warning_with_each_match_is_no_failure() -> None:
    with finding_scp(statuses(0xFF01, 0x0000)) as peer:
        (study,) = scu(peer).study("1.2.3")
    assert study.identity.patient_id == "A"
    assert (study.instances, study.series, study.modalities) == (None, None, ())


def test_nobody_there() -> None:
    peer = Destination(aet="PACS", host="127.0.0.1", port=free_port())
    with pytest.raises(QueryUnavailableError, match="refused"):
        scu(peer).study("1.2.3")


def test_a_peer_that_does_not_answer_such_questions() -> None:
    with (
        finding_scp(statuses(0), contexts=("1.2.840.10008.1.1",)) as peer,
        pytest.raises(QueryRefusedError, match="none of the proposed contexts"),
    ):
        scu(peer).study("1.2.3")


def test_a_peer_that_falls_silent() -> None:
    def answer(_wanted: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        time.sleep(3)
        yield 0x0000, None

    with finding_scp(answer) as peer:
        started = time.monotonic()
        with pytest.raises(QueryUnavailableError, match="no answer"):
            scu(peer, QueryOptions(timeout_s=0.5, total_s=1)).study("1.2.3")
        assert time.monotonic() - started < 3


def test_a_peer_that_never_ends() -> None:
    def answer(_wanted: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        while True:
            yield 0xFF00, one()

    with finding_scp(answer) as peer, pytest.raises(QueryRefusedError, match="more than 50"):
        scu(peer).study("1.2.3")


def test_other_studies_than_asked_for_are_not_believed() -> None:
    def answer(_wanted: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xFF00, one(StudyInstanceUID="1.2.4", PatientID="SECRET-OTHER")
        yield 0x0000, None

    with (
        finding_scp(answer) as peer,
        pytest.raises(QueryRefusedError, match="other studies") as raised,
    ):
        scu(peer).study("1.2.3")
    assert "SECRET" not in str(raised.value)


def test_one_study_under_two_patients_is_told_as_two() -> None:
    def answer(_wanted: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xFF00, one(PatientID="A")
        yield 0xFF00, one(PatientID="B")
        yield 0x0000, None

    with finding_scp(answer) as peer:
        found = scu(peer).study("1.2.3")
    assert [study.identity.patient_id for study in found] == ["A", "B"]


def test_a_count_that_is_none_is_counted_by_the_instances() -> None:
    def answer(wanted: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        if wanted.QueryRetrieveLevel == "SERIES":
            yield 0xFF00, one(SeriesInstanceUID="1.2.3.1", Modality="CT")
        else:
            for number in (1, 2, 2, 3):
                yield 0xFF00, one(SOPInstanceUID=f"1.2.3.1.{number}")
        yield 0x0000, None

    with finding_scp(answer) as peer:
        (series,) = scu(peer).series("1.2.3")
    assert series.instances == 3


def test_what_an_archive_lists_and_cannot_give_it_has_not() -> None:
    """A scanner would delete on it, and a fetched study would lack it."""

    def answer(wanted: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        assert "InstanceAvailability" in wanted
        for number, availability in enumerate(("ONLINE", "NEARLINE", "UNAVAILABLE", None)):
            ds = Dataset()
            ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", "1.2.3"
            ds.SOPInstanceUID = f"1.2.3.{number}"
            if availability is not None:
                ds.InstanceAvailability = availability
            yield 0xFF00, ds
        yield 0x0000, None

    with finding_scp(answer) as peer:
        assert set(scu(peer).instances("1.2", "1.2.3")) == {"1.2.3.0", "1.2.3.1", "1.2.3.3"}
