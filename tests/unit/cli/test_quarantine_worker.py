"""The commands that decide on what was set aside, and what a worker asks for before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pe_triage.cli.quarantine import quarantine
from pe_triage.cli.worker import worker
from pe_triage.config import Settings
from pe_triage.errors import InputError, SpoolError
from pe_triage.receive.spool import Spool
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import upgrade
from pe_triage.store.quarantine import Quarantine, QuarantineState
from tests.support.store import STUDY, StoreUnderTest, instance, sha


@pytest.fixture
def held(tmp_path: Path) -> tuple[Path, Quarantine, list[Path]]:
    """Two unreadable files of one study in quarantine."""
    url = f"sqlite:///{tmp_path / 'pe-triage.sqlite3'}"
    upgrade(url)
    entries = Quarantine(open_engine(url))
    files = []
    for n in range(2):
        file = tmp_path / "spool" / "quarantine" / "unreadable" / f"{n}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        entries.add(path=file.relative_to(tmp_path), reason="no preamble", study_uid="1.2.3")
        files.append(file)
    return tmp_path, entries, files


def run(command: str, *args: str, data_dir: Path) -> None:
    CliRunner().invoke(
        quarantine, [command, *args, "--data-dir", str(data_dir)], catch_exceptions=False
    )


def test_a_release_that_cannot_move_the_file_can_be_repeated(
    held: tuple[Path, Quarantine, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir, entries, files = held

    def refuse(_spool: Spool, path: Path) -> Path:
        raise SpoolError("cannot put back: read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr(Spool, "put_back", refuse)
        with pytest.raises(SpoolError):
            run("release", "1", data_dir=data_dir)
    assert [e.state for e in entries.list()] == [QuarantineState.HELD] * 2
    run("release", "1", data_dir=data_dir)
    assert [e.quarantine_id for e in entries.list()] == [2]
    assert not files[0].exists()
    assert len(list((data_dir / "spool" / "incoming").iterdir())) == 1
    files[1].unlink()
    with pytest.raises(InputError, match="gone"):
        run("release", "2", data_dir=data_dir)


def test_all_of_a_study_is_discarded_at_once(held: tuple[Path, Quarantine, list[Path]]) -> None:
    data_dir, entries, files = held
    with pytest.raises(InputError, match="nothing of study"):
        run("discard", "--study", "9.9", data_dir=data_dir)
    run("discard", "--study", "1.2.3", data_dir=data_dir)
    assert entries.list() == []
    assert not any(file.exists() for file in files)


def test_what_the_node_has_not_moved_to_quarantine_is_not_deleted(tmp_path: Path) -> None:
    """Between entering and moving an object its row names the file of the one that is held."""
    url = f"sqlite:///{tmp_path / 'pe-triage.sqlite3'}"
    upgrade(url)
    held = tmp_path / "spool" / "studies" / "a" / "b.dcm"
    held.parent.mkdir(parents=True)
    held.write_bytes(b"the first object")
    store = StoreUnderTest(open_engine(url), url, tmp_path)
    first = replace(instance(STUDY, 1, tmp_path), path=held)
    store.record(first)
    store.record(replace(first, sha256=sha("other bytes")))
    for args in (("1",), ("--study", STUDY)):
        with pytest.raises(InputError, match="not set aside to its end"):
            run("discard", *args, data_dir=tmp_path)
    assert held.exists()
    assert [e.state for e in store.quarantine.list()] == [QuarantineState.HELD]


def test_a_worker_without_destinations_is_asked_whether_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Settings] = []
    monkeypatch.setattr("pe_triage.app.run_worker", started.append)
    flags = ["--data-dir", str(tmp_path)]
    with pytest.raises(InputError, match="--no-send"):
        CliRunner().invoke(worker, flags, catch_exceptions=False)
    assert started == []
    for more in (["--no-send"], ["--send-to", "PACS@127.0.0.1:104"]):
        CliRunner().invoke(worker, [*flags, *more], catch_exceptions=False)
    assert len(started) == 2


def test_a_worker_that_sends_nowhere_does_so_whatever_the_nodes_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Settings] = []
    monkeypatch.setattr("pe_triage.app.run_worker", started.append)
    config = tmp_path / "site.toml"
    config.write_text(
        'send_to = ["PACS@127.0.0.1:104"]\n[commitment]\nof = ["PACS@127.0.0.1:104"]\n'
        '[[destinations]]\nname = "ris"\ntype = "webhook"\nurl = "https://ris.example/x"\n'
        'secret_env = "RIS_SECRET"\n'
    )
    flags = ["--data-dir", str(tmp_path), "--config", str(config)]
    for more in ([], ["--no-send"]):
        CliRunner().invoke(worker, [*flags, *more], catch_exceptions=False)
    assert [len(settings.routes) for settings in started] == [2, 0]
    assert started[1].destinations == ()
