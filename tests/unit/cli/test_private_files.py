"""Files that may hold patients' data are their user's alone."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from pe_triage import cli
from pe_triage.config import Settings
from pe_triage.startup import hold_data_dir


def test_every_command_writes_for_its_user_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def writes() -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("x")

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: writes)
    before = os.umask(0o022)
    try:
        assert cli.main(["writes"]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_data_directory_that_others_could_read_is_closed(tmp_path: Path) -> None:
    found = tmp_path / "data"
    found.mkdir()
    found.chmod(0o755)
    with hold_data_dir(Settings(data_dir=found)):
        assert found.stat().st_mode & 0o777 == 0o700
