"""``pe-triage phantom``."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from click.testing import CliRunner

from pe_triage.cli.phantom import phantom
from pe_triage.errors import InputError


def test_command_writes_studies_of_consecutive_seeds(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--seed", "5", "--count", "2", "--preset", "negative",
                 "--size", "32", "--slices", "3"]  # fmt: skip
    done = CliRunner().invoke(phantom, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    truths = sorted((tmp_path / "truth").glob("*.json"))
    assert len(truths) == 2
    assert {json.loads(p.read_text())["seed"] for p in truths} == {5, 6}
    for truth in truths:
        assert truth.with_name(f"{truth.stem}.nii.gz").exists()
        folder = tmp_path / "dicom" / truth.stem
        assert {pydicom.dcmread(p).StudyInstanceUID for p in folder.iterdir()} == {truth.stem}
        assert truth.stem in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "nice"], "unknown preset 'nice'"),
        (["--count", "0"], "--count must be at least 1"),
        (["--size", "7"], "size must be"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(phantom, ["--out", str(tmp_path), *arguments])
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    arguments = ["--out", str(blocked), "--size", "32", "--slices", "3", "--preset", "negative"]
    done = CliRunner().invoke(phantom, arguments)
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith(f"cannot write to {blocked}")
