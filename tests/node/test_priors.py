"""A patient's earlier studies come from a real archive, behind everything else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from sqlalchemy import select

from pe_triage.cli import main
from pe_triage.deliver.find_scu import QueryRefusedError, QueryScu
from pe_triage.domain import Destination, PatientIdentity
from pe_triage.store import schema
from pe_triage.store.engine import open_engine
from pe_triage.store.schema import Rank
from tests.node.test_retrieval import configured, store_to
from tests.support.finding import Archive, finding_scp, tiny_ct
from tests.support.node import RunningNode
from tests.support.orthanc import Orthanc

BASE = "2.25.31337900"
WORDS = "CT ANGIO chest"


@pytest.fixture(scope="module")
def setting(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningNode, Path, Orthanc]]:
    home = tmp_path_factory.mktemp("priors")
    with Orthanc(home / "orthanc", may_retrieve=True) as pacs:
        pacs.start()
        config = configured(home, pacs.address, "get")
        with RunningNode(home / "data", "--config", config) as node:
            pacs.know("PETRIAGE", node.port)
            yield node, config, pacs


def priors(node: RunningNode, config: Path, *arguments: object) -> tuple[int, str, str]:
    words = ["priors", *arguments, "--data-dir", node.data_dir, "--config", config]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def fill(pacs: Orthanc, folder: Path, studies: dict[str, dict[str, str]]) -> None:
    files = []
    for uid, values in studies.items():
        attributes = {"StudyDescription": WORDS, "PatientBirthDate": "19500101", **values}
        files += tiny_ct(folder / uid, f"{BASE}.{uid}", 2, **attributes)
    store_to("ORTHANC", pacs.dicom_port, files)


def test_earlier_ones_of_this_patient_only(
    setting: tuple[RunningNode, Path, Orthanc], tmp_path: Path
) -> None:
    node, config, pacs = setting
    mine = {"PatientID": "PRIOR-1", "PatientName": "PRIOR"}
    fill(
        pacs,
        tmp_path,
        {
            "1": {**mine, "StudyDate": "20260301"},
            "2": {**mine, "StudyDate": "20250301"},
            "3": {**mine, "StudyDate": "20240301"},
            "4": {**mine, "StudyDate": "20230301", "StudyDescription": "CT knee"},
            "5": {**mine, "StudyDate": "20270301"},
            "6": {**mine, "StudyDate": "20010301"},
            "7": {"PatientID": "PRIOR-10", "PatientName": "X", "StudyDate": "20250301"},
        },
    )
    code, out, err = priors(node, config, f"{BASE}.1", "--dry-run")
    assert (code, out.split()) == (
        0,
        f"{BASE}.2: not held here {BASE}.3: not held here".split(),
    ), err
    assert "PRIOR" not in out + err
    assert node.show(f"{BASE}.2") is None
    code, out, err = priors(node, config, f"{BASE}.1", "--limit", 1)
    assert code == 0, err
    assert out == f"{BASE}.2: queued as run 1\n"
    engine = open_engine(node.database_url)
    with engine.connect() as connection:
        rows = connection.execute(select(schema.jobs.c.study_uid, schema.jobs.c.rank)).all()
    engine.dispose()
    assert [tuple(row) for row in rows] == [(f"{BASE}.2", Rank.BACKFILL)]
    # Asked again, what waits is not queued twice.
    code, out, err = priors(node, config, f"{BASE}.1", "--limit", 1)
    assert (code, out) == (0, f"{BASE}.2: QUEUED\n"), err


@pytest.mark.parametrize("born", ["19500101", "19991231"], ids=["one-person", "two"])
def test_a_number_that_two_people_have(
    setting: tuple[RunningNode, Path, Orthanc], tmp_path: Path, born: str
) -> None:
    """An archive that tells them apart; Orthanc files both as one, under either birth date."""
    node, _config, _pacs = setting
    archive = Archive()
    shared = {"PatientID": "PRIOR-2", "StudyDescription": WORDS, "ModalitiesInStudy": "CT"}
    archive.add(f"{BASE}.21", StudyDate="20260301", PatientBirthDate="19500101", **shared)
    archive.add(f"{BASE}.22", StudyDate="20250301", PatientBirthDate=born, **shared)
    with finding_scp(archive) as peer:
        config = configured(tmp_path, str(peer), "get")
        code, out, err = priors(node, config, f"{BASE}.21", "--dry-run")
    assert [ds.PatientID for ds in archive.asked if not ds.StudyInstanceUID] == ["PRIOR-2"]
    if born == "19500101":
        assert (code, out) == (0, f"{BASE}.22: not held here\n"), err
    else:
        assert (code, out) == (2, "")
        assert "several birth dates" in err


def test_a_study_that_the_archive_does_not_have(
    setting: tuple[RunningNode, Path, Orthanc],
) -> None:
    node, config, _pacs = setting
    code, out, err = priors(node, config, "1.2.3.404")
    assert (code, out) == (2, "")
    assert "does not have the study" in err


@pytest.mark.parametrize("patient_id", ["", "*", "A?B", "A\\B"])
def test_no_question_matches_everybody(patient_id: str) -> None:
    nobody = Destination(aet="X", host="127.0.0.1", port=1)
    with pytest.raises(QueryRefusedError, match="Patient ID"):
        QueryScu(nobody, "PETRIAGE").studies_of(PatientIdentity(patient_id=patient_id))
