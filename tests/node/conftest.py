"""What the tests of a running node share: a small bundle, small studies, both databases."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from pe_triage.phantom import generate_study, write_study
from tests.support.dcmtk import QrScp, StoreScp
from tests.support.node import RunningNode, send
from tests.support.orthanc import Orthanc
from tests.support.peers import dcmtk_environment, require_program
from tests.support.postgres import postgres_url


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained bundle that is quick on 64 x 64 pixels."""
    from pe_triage.model.builtin import materialize_untrained
    from pe_triage.model.spec import ATTENTION_BILSTM

    spec = dataclasses.replace(ATTENTION_BILSTM, size=64)
    return materialize_untrained(tmp_path_factory.mktemp("bundle"), spec)


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one phantom study's files: 60 slices of 256 x 256."""
    study = generate_study(5, "pe-acute", n_slices=60, coverage_mm=(-110.0, 70.0))
    return write_study(study, tmp_path_factory.mktemp("phantom"), mask=False).dicom_dir


NewStudy = Callable[..., tuple[str, list[Path]]]


@pytest.fixture
def new_study(phantom_dir: Path, tmp_path: Path) -> NewStudy:
    """Make a copy of the phantom as a study of its own: (Study Instance UID, files).

    Keyword arguments other than `slices` set attributes on every instance.
    """
    numbers = itertools.count()

    def make(*, slices: int | None = None, **attributes: Any) -> tuple[str, list[Path]]:
        number = next(numbers)
        seed = abs(hash((str(tmp_path), number))) % 10**12
        folder = tmp_path / f"study-{number}"
        folder.mkdir()
        study_uid = f"2.25.{seed}1"
        files = []
        for z, path in enumerate(sorted(phantom_dir.iterdir())[:slices]):
            ds = dcmread(path)
            ds.StudyInstanceUID = study_uid
            ds.SeriesInstanceUID = f"2.25.{seed}2"
            ds.SOPInstanceUID = f"2.25.{seed}3{z:04d}"
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            for name, value in attributes.items():
                setattr(ds, name, value)
            target = folder / f"{z:04d}.dcm"
            ds.save_as(target, enforce_file_format=True)
            files.append(target)
        return study_uid, files

    return make


QUICK = {"grace_s": 0.5, "min_free_mb": 1, "lease_s": 5, "threads": 2}
"""Settings of a node whose tests should not wait for grace times made for scanners."""


@pytest.fixture(scope="module")
def store_scp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreScp]:
    """DCMTK's storescp, which keeps whatever comes, repetitions included."""
    with StoreScp(tmp_path_factory.mktemp("storescp")) as peer:
        yield peer


@pytest.fixture(scope="module")
def qr_scp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QrScp]:
    """DCMTK's dcmqrscp, which answers C-FIND."""
    with QrScp(tmp_path_factory.mktemp("dcmqrscp")) as peer:
        yield peer


@pytest.fixture(scope="module")
def quick_node(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, store_scp: StoreScp
) -> Iterator[RunningNode]:
    """A node that the tests of one module share; it delivers to `store_scp`."""
    data_dir = tmp_path_factory.mktemp("node") / "data"
    flags = ("--model", tiny_bundle, "--send-to", store_scp.address, "--quiet-s", 3)
    with RunningNode(data_dir, *flags, "--log-level", "DEBUG", settings=QUICK) as node:
        yield node
        assert node.stop() == 0


def storescu(node: RunningNode, files: list[Path], *options: str) -> None:
    """Send with DCMTK's storescu; every instance must be acknowledged."""
    program = require_program("storescu", "dcmtk")
    sent = send(program, node, files, *options, environment=dcmtk_environment())
    assert sent.returncode == 0, sent.stdout + sent.stderr


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[str]:
    with postgres_url() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str | None:
    """A database URL for `RunningNode`: None for the embedded SQLite, or an empty PostgreSQL."""
    if request.param == "sqlite":
        return None
    import psycopg
    from psycopg import sql

    url = request.getfixturevalue("shared_postgres")
    name = f"node_{abs(hash(request.node.nodeid)) % 10**10}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    base, _, query = url.partition("?")
    return base.rpartition("/")[0] + f"/{name}" + (f"?{query}" if query else "")


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """A running, empty Orthanc."""
    with Orthanc(tmp_path / "orthanc") as archive:
        archive.start()
        yield archive
