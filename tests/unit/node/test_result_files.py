"""Result files are durable with every directory that leads to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pe_triage.domain import ResultKind, ResultObject, ResultSet
from pe_triage.node.files import write_results
from pe_triage.receive.spool import Spool


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where fsync was called, in this order."""
    paths: list[Path] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH115
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return paths


def test_new_directories_up_to_one_that_was_there(tmp_path: Path, synced: list[Path]) -> None:
    item = ResultObject(
        kind=ResultKind.SR,
        label="sr",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid="2.25.1",
        series_uid="2.25.2",
        encoded=b"report",
    )
    directory = tmp_path / "results" / "ab" / "abcd" / "run-001-1"
    objects = ResultSet(study_uid="1.2.3", run=1, objects=(item,))
    ((_, path, _),) = write_results(directory, objects)
    assert path.read_bytes() == b"report"
    assert synced[0] == path.with_name("sr.dcm.tmp")
    assert set(synced[1:]) == {directory, *directory.parents[:4]}
    assert directory.parents[3] == tmp_path
    synced.clear()
    write_results(directory.with_name("run-001-2"), objects)
    assert set(synced[1:]) == {directory.with_name("run-001-2"), *directory.parents[:2]}


def test_a_spool_that_is_made_is_kept_by_its_parent(tmp_path: Path, synced: list[Path]) -> None:
    Spool(tmp_path / "spool")
    assert synced == [tmp_path / "spool", tmp_path]
    synced.clear()
    Spool(tmp_path / "spool")
    assert synced == [tmp_path / "spool"]
