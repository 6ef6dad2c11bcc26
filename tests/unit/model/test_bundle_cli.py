from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pe_triage.cli import main
from pe_triage.model.builtin import materialize_untrained
from pe_triage.model.card import WEIGHTS_NAME, read_card
from pe_triage.model.spec import ATTENTION_BILSTM


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = replace(ATTENTION_BILSTM, size=64, sequence_hidden=8, dense_dim=8)
    return materialize_untrained(tmp_path_factory.mktemp("bundles"), spec)


def test_a_sound_bundle_verifies(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "verify", str(path)]) == 0
    assert read_card(path).sha256 in capsys.readouterr().out


def test_inspect_prints_the_card(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "inspect", str(path)]) == 0
    assert "untrained network with random weights; no meaning" in capsys.readouterr().out
    assert main(["bundle", "inspect", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["intended_use"] == "untrained"
    assert document["sha256"] == read_card(path).sha256


def test_a_wrong_hash_is_one_line_and_exit_2(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harmed = tmp_path / "b"
    harmed.mkdir()
    for file in path.iterdir():
        (harmed / file.name).write_bytes(file.read_bytes())
    with (harmed / WEIGHTS_NAME).open("ab") as stream:
        stream.write(b"x")
    assert main(["bundle", "verify", str(harmed)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "SHA-256" in err
    assert main(["bundle", "inspect", str(tmp_path / "none")]) == 2
    assert "no such directory" in capsys.readouterr().err
