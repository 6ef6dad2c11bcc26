"""Studies that are no longer held are fetched from real archives, whole or not at all."""

from __future__ import annotations

import io
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from sqlalchemy import select

from pe_triage.cli import main
from pe_triage.deliver.find_scu import STUDY_ROOT_FIND
from pe_triage.deliver.retrieve_scu import (
    RETRIEVE_RULES,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    SYNTAXES,
    Course,
    Part,
    RetrieveScu,
)
from pe_triage.domain import Destination, StudyState
from pe_triage.store import schema
from pe_triage.store.engine import open_engine
from pe_triage.store.schema import Rank
from tests.support.dcmtk import QrScp
from tests.support.finding import tiny_ct
from tests.support.node import RunningNode, wait_for
from tests.support.orthanc import Orthanc
from tests.support.peers import dcmtk_environment, require_program

STUDY = "2.25.31337002"
PATIENT = {"PatientID": "FETCH", "PatientName": "FETCH"}
PART = Part(study_uid=STUDY, series_uid=f"{STUDY}.1")


def store_to(aet: str, port: int, files: list[Path]) -> None:
    done = subprocess.run(
        [require_program("storescu", "dcmtk"), "-aec", aet, "127.0.0.1", str(port)]
        + [str(path) for path in files],
        env=dcmtk_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc") / "home", may_retrieve=True) as running:
        running.start()
        yield running


def configured(home: Path, address: str, by: str) -> Path:
    config = home / f"{by}-{address.partition('@')[0]}.toml"
    config.write_text(
        "workers = 0\nmin_free_mb = 1\nquiet_s = 3600\ngrace_s = 3600\n"
        f'[retrieve]\npacs = "{address}"\nby = "{by}"\nindex_wait_s = 15\nattempts = 2\n'
        '[reconcile]\nwords = ["angio"]\n'
    )
    return config


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc
) -> Iterator[tuple[RunningNode, Path]]:
    """A node without a worker, and the folder of its configurations."""
    home = tmp_path_factory.mktemp("node")
    config = configured(home, pacs.address, "move")
    with RunningNode(home / "data", "--config", config) as running:
        pacs.know("PETRIAGE", running.port)
        yield running, home


@dataclass(frozen=True, kw_only=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def reprocess(node: RunningNode, config: Path, *arguments: object) -> Done:
    """Run the command in this process: a new one would cost seconds each time."""
    words = ["reprocess", *arguments, "--data-dir", node.data_dir, "--config", config]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return Done(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def jobs_of(node: RunningNode, study_uid: str) -> list[Any]:
    engine = open_engine(node.database_url)
    with engine.connect() as connection:
        rows = connection.execute(
            select(schema.jobs)
            .where(schema.jobs.c.study_uid == study_uid)
            .order_by(schema.jobs.c.run)
        ).all()
    engine.dispose()
    return list(rows)


def held(node: RunningNode, study_uid: str) -> int:
    doc = node.show(study_uid)
    return 0 if doc is None else int(doc["instances"])


@pytest.mark.parametrize("by", ["move", "get"])
def test_from_orthanc(
    node: tuple[RunningNode, Path], pacs: Orthanc, by: str, tmp_path: Path
) -> None:
    running, home = node
    study = f"{STUDY}.{len(by)}"
    files = tiny_ct(tmp_path / "a", study, 4, **PATIENT)
    other = tiny_ct(tmp_path / "b", study, 2, series=2, **{**PATIENT, "Modality": "SR"})
    store_to("ORTHANC", pacs.dicom_port, files + other)
    config = configured(home, pacs.address, by)
    done = reprocess(running, config, study)
    assert done.returncode == 0, done.stderr
    assert "queued as run 1" in done.stdout
    # The CT series only, and all of it.
    assert held(running, study) == 4
    (job,) = jobs_of(running, study)
    assert (job.closed_by, job.rank) == ("retrieved", Rank.ROUTINE)
    # Held now: nothing is asked for again.
    again = reprocess(running, config, study)
    assert "asking" not in again.stderr
    assert "queued as run 2" in again.stdout


def test_a_study_nobody_has(node: tuple[RunningNode, Path], pacs: Orthanc) -> None:
    running, home = node
    done = reprocess(running, configured(home, pacs.address, "move"), "1.2.3.404")
    assert done.returncode == 2
    assert "unknown study" in done.stderr


def test_a_range_of_days_goes_last(
    node: tuple[RunningNode, Path], pacs: Orthanc, tmp_path: Path
) -> None:
    running, home = node
    wanted, other = f"{STUDY}.71", f"{STUDY}.72"
    for uid, words in ((wanted, "CT ANGIO chest"), (other, "CT knee")):
        files = tiny_ct(
            tmp_path / uid, uid, 2, StudyDate="20210307", StudyDescription=words, **PATIENT
        )
        store_to("ORTHANC", pacs.dicom_port, files)
    config = configured(home, pacs.address, "get")
    done = reprocess(running, config, "--from-date", "2021-03-06", "--to-date", "2021-03-08")
    assert done.returncode == 0, done.stderr
    (job,) = jobs_of(running, wanted)
    assert job.rank == Rank.BACKFILL
    assert held(running, other) == 0


@pytest.mark.parametrize("by", ["move", "get"])
def test_from_dcmqrscp(node: tuple[RunningNode, Path], by: str, tmp_path: Path) -> None:
    running, home = node
    with QrScp(tmp_path / "qr", destinations={"PETRIAGE": running.port}) as archive:
        study = f"{STUDY}.9{len(by)}"
        store_to(archive.aet, archive.port, tiny_ct(tmp_path / "a", study, 3, **PATIENT))
        done = reprocess(running, configured(home, archive.address, by), study)
        assert done.returncode == 0, done.stderr
        assert held(running, study) == 3


def test_another_patient_there_is_not_fetched(
    node: tuple[RunningNode, Path], pacs: Orthanc, tmp_path: Path
) -> None:
    running, home = node
    study = f"{STUDY}.8"
    here = tiny_ct(tmp_path / "here", study, 1, PatientID="ONE", PatientName="ONE")
    store_to("PETRIAGE", running.port, here)
    wait_for(lambda: held(running, study) == 1, 30, "indexed")
    store_to("ORTHANC", pacs.dicom_port, tiny_ct(tmp_path / "there", study, 2, PatientID="TWO"))
    # As if retention had removed it.
    engine = open_engine(running.database_url)
    with engine.begin() as connection:
        connection.execute(schema.instances.delete().where(schema.instances.c.study_uid == study))
        connection.execute(
            schema.studies.update()
            .where(schema.studies.c.study_uid == study)
            .values(state=StudyState.NOT_EVALUATED.value)
        )
    engine.dispose()
    done = reprocess(running, configured(home, pacs.address, "get"), study)
    assert done.returncode == 1
    assert "another patient" in done.stderr
    assert "ONE" not in done.stderr + done.stdout
    assert jobs_of(running, study) == []


# ------------------------------------------------------------------ archives that misbehave


class BadArchive:
    """Answers C-FIND truly, and sends by C-GET only some of what it has."""

    def __init__(self, sends: int, status: int = 0x0000) -> None:
        self.sends = sends
        self.status = status
        self.files: list[Path] = []

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        level = wanted.QueryRetrieveLevel
        for path in self.files if level == "IMAGE" else self.files[:1]:
            ds = Dataset()
            ds.QueryRetrieveLevel = level
            ds.StudyInstanceUID = STUDY
            if level == "STUDY":
                ds.PatientID = PATIENT["PatientID"]
            else:
                ds.SeriesInstanceUID = f"{STUDY}.1"
                ds.Modality = "CT"
            if level == "IMAGE":
                ds.SOPInstanceUID = path.stem
                ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
            yield 0xFF00, ds

    def get(self, event: Any) -> Iterator[Any]:
        from pydicom import dcmread

        chosen = self.files[: self.sends]
        yield len(chosen)
        for path in chosen:
            yield 0xFF00, dcmread(path)
        if self.status:
            yield self.status, None


@contextmanager
def serving(bad: BadArchive) -> Iterator[str]:
    ae = AE(ae_title="BAD")
    ae.add_supported_context(STUDY_ROOT_FIND, list(SYNTAXES))
    ae.add_supported_context(STUDY_ROOT_GET, list(SYNTAXES))
    ae.add_supported_context(
        "1.2.840.10008.5.1.4.1.1.2", list(SYNTAXES), scu_role=True, scp_role=True
    )
    server = ae.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[(evt.EVT_C_FIND, bad.find), (evt.EVT_C_GET, bad.get)],
    )
    assert server is not None
    try:
        yield f"BAD@127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def test_a_part_is_never_taken_for_the_whole(
    node: tuple[RunningNode, Path], tmp_path: Path
) -> None:
    running, home = node
    bad = BadArchive(sends=2)
    bad.files = tiny_ct(tmp_path, STUDY, 5, **PATIENT)
    with serving(bad) as address:
        config = configured(home, address, "get")
        done = reprocess(running, config, STUDY)
        assert done.returncode == 1
        assert "3 of the 5 instances" in done.stderr
        # It says success, and nothing of it has entered the node.
        assert held(running, STUDY) == 0
        bad.sends = 5
        done = reprocess(running, config, STUDY)
        assert done.returncode == 0, done.stderr
        assert held(running, STUDY) == 5


@pytest.mark.parametrize(
    "status", sorted({r.first for r in RETRIEVE_RULES} - {0x0000, 0xFE00} | {0xC123})
)
def test_each_status(status: int) -> None:
    """Of a C-MOVE; those that tell of a part or of success are seen with real archives."""

    def move(_event: Any) -> Iterator[Any]:
        yield "127.0.0.1", 1
        yield status, None

    def answered(event: Any) -> Iterator[Any]:
        return move(event)

    ae = AE(ae_title="PACS")
    ae.add_supported_context(STUDY_ROOT_MOVE, list(SYNTAXES))
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_MOVE, answered)]
    )
    assert server is not None
    try:
        peer = Destination(aet="PACS", host="127.0.0.1", port=server.server_address[1])
        ended = RetrieveScu(peer, "PETRIAGE", timeout_s=5.0).move(PART)
    finally:
        server.shutdown()
    assert ended.course is not Course.DONE
    assert ended.error


def test_an_archive_that_is_away() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    peer = Destination(aet="PACS", host="127.0.0.1", port=port)
    ended = RetrieveScu(peer, "PETRIAGE", timeout_s=5.0).move(PART)
    assert (ended.course, "refused" in (ended.error or "")) == (Course.AGAIN, True)
