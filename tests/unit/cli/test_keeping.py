"""Commands on a node's data that decide, save and bring back; and what an older program says."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pe_triage.cli import main
from pe_triage.node.backup import sole_backup
from pe_triage.receive.spool import Spool
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import upgrade
from pe_triage.store.quarantine import Quarantine
from pe_triage.store.studies import StudyStore
from tests.support.store import STUDY, instance


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Data directory of a node that holds nothing."""
    data_dir = tmp_path / "node"
    data_dir.mkdir(mode=0o700)
    upgrade(f"sqlite:///{data_dir}/pe-triage.sqlite3")
    return data_dir


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([str(a) for a in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def set_aside(node: Path, name: str) -> int:
    path = Spool(node / "spool").quarantine / "unreadable" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"odd")
    store = Quarantine(open_engine(f"sqlite:///{node}/pe-triage.sqlite3"))
    return store.add(path=path.relative_to(node), reason="no preamble")


def test_quarantine_is_reviewed_by_script(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = set_aside(node, "a.dcm"), set_aside(node, "b.dcm")
    where = ("--data-dir", node, "--json")
    shown = said(capsys, "quarantine", "show", first, *where)
    assert (shown["kind"], shown["state"], shown["size_bytes"]) == ("OTHER", "HELD", 3)
    assert set(shown["decisions"]) == {"release", "discard"}
    released = said(
        capsys, "quarantine", "release", first, "--why", "fixed reader", "--by", "me", *where
    )
    assert (released["state"], released["decided_by"]) == ("RELEASED", "me")
    assert len(list((node / "spool" / "incoming").glob("*.dcm"))) == 1
    (discarded,) = said(capsys, "quarantine", "discard", second, *where)
    assert discarded["state"] == "DISCARDED"
    assert discarded["decided_by"]
    assert discarded["decided_why"] is None
    assert said(capsys, "quarantine", "list", *where) == []
    everything = said(capsys, "quarantine", "list", "--all", *where)
    assert [e["decided_why"] for e in everything] == ["fixed reader", None]
    again = said(capsys, "quarantine", "show", second, *where)
    assert (again["size_bytes"], again["decisions"]) == (None, {})
    assert main(["quarantine", "show", "99", "--data-dir", str(node)]) == 2
    assert capsys.readouterr().err == "pe-triage: no quarantine entry 99\n"


def test_what_holds_files_is_said(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doc = said(capsys, "retention", "--json", "--data-dir", node)
    assert (doc["enabled"], doc["studies"], doc["images_mb"]) == (False, 0, 0)
    assert doc["refused_below_mb"] < doc["low_free_mb"] < doc["target_free_mb"]
    assert main(["retention", "--data-dir", str(node)]) == 0
    assert "sent nowhere" in capsys.readouterr().out


def test_abandoning_names_what(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", str(node)]
    assert main(["deliveries", "abandon", *where]) == 2
    assert "name a destination or a study" in capsys.readouterr().err
    assert main(["deliveries", "abandon", "--destination", "X", "--why", "gone", *where]) == 0
    assert "0 deliveries are abandoned" in capsys.readouterr().out


def test_saved_and_brought_back(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_aside(node, "a.dcm")
    backup, other = tmp_path / "backup", tmp_path / "other"
    assert main(["backup", str(backup), "--data-dir", str(node)]) == 0
    assert "1 files copied" in capsys.readouterr().out
    assert main(["restore", str(backup), "--data-dir", str(other)]) == 0
    (entry,) = said(capsys_cleared(capsys), "quarantine", "list", "--json", "--data-dir", other)
    assert Path(entry["path"]).read_bytes() == b"odd"
    assert main(["restore", str(backup), "--data-dir", str(other)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["restore", "--in-place", "--data-dir", str(other)]) == 0
    assert main(["backup", str(node / "inside"), "--data-dir", str(node)]) == 2


def test_a_restore_that_was_cut_short_is_ended_before_anything_starts(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody settled, nobody would index: acknowledged images would lie there unseen."""
    backup, other = tmp_path / "backup", tmp_path / "other"
    stranger = Spool(node / "spool").final_path("1.2.3", "1.2.3.4")
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"came after the copy of the database")
    assert main(["backup", str(backup), "--data-dir", str(node)]) == 0

    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    serve = ["serve", "--port", "0", "--data-dir", str(other)]
    in_place = ["restore", "--in-place", "--data-dir", str(other)]
    monkeypatch.setattr("pe_triage.node.backup.settle", die)
    assert main(["restore", str(backup), "--data-dir", str(other)]) != 0
    monkeypatch.undo()
    capsys.readouterr()
    assert main(serve) == 2
    assert "run: pe-triage restore --in-place" in capsys.readouterr().err
    assert main(in_place) == 0
    assert "1 files will be indexed again" in capsys.readouterr().out
    assert [entry.path.read_bytes() for entry in Spool(other / "spool").incoming_entries()] == [
        stranger.read_bytes()
    ]

    shutil.rmtree(other)
    monkeypatch.setattr("pe_triage.keeping.restore_database", die)
    assert main(["restore", str(backup), "--data-dir", str(other)]) != 0
    monkeypatch.undo()
    capsys.readouterr()
    for command in (serve, in_place):
        assert main(command) == 2
        assert "cut short" in capsys.readouterr().err
    assert not (other / "pe-triage.sqlite3").exists(), "an empty one would pass for the node's own"


def test_nothing_is_settled_without_a_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["restore", "--in-place", "--data-dir", str(tmp_path / "new")]) == 2
    assert "no database at" in capsys.readouterr().err


def test_the_copies_are_for_the_owner_only(node: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    backup.mkdir(mode=0o755)
    assert main(["backup", str(backup), "--data-dir", str(node)]) == 0
    assert stat.S_IMODE((backup / "pe-triage.sqlite3").stat().st_mode) == 0o600


def test_two_backups_at_once_do_not_publish_each_other_s_half(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = tmp_path / "backup"
    command = ["backup", str(backup), "--data-dir", str(node)]
    assert main(command) == 0
    before = (backup / "pe-triage.sqlite3").stat()
    with sole_backup(backup):
        assert main(command) == 2
    assert "another backup is being made" in capsys.readouterr().err
    assert (backup / "pe-triage.sqlite3").stat() == before
    assert main(command) == 0


def test_an_entry_that_still_has_its_name_among_the_images_is_not_deleted(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crash between the row and the move: its path is that of the image held."""
    studies = StudyStore(open_engine(f"sqlite:///{node}/pe-triage.sqlite3"), node)
    held = Spool(node / "spool").final_path(STUDY, f"{STUDY}.1")
    held.parent.mkdir(parents=True)
    held.write_bytes(b"the image held")
    for digest in ("0" * 64, "1" * 64):
        (recorded,) = studies.record([(instance(STUDY, 1, path=held, sha256=digest), {}, "a")])
    assert (
        main(["quarantine", "discard", str(recorded.quarantine_id), "--data-dir", str(node)]) == 2
    )
    assert "not set aside to its end" in capsys.readouterr().err
    assert main(["quarantine", "discard", "--study", STUDY, "--data-dir", str(node)]) == 2
    assert held.read_bytes() == b"the image held"


def capsys_cleared(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    capsys.readouterr()
    return capsys


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "--port", "0"),
        ("worker", "--no-send"),
        ("db", "upgrade"),
        ("studies",),
        ("show", "1.2.3"),
        ("reprocess", "1.2.3"),
        ("quarantine", "list"),
        ("deliveries", "list"),
        ("retention",),
        ("backup", "elsewhere"),
    ],
    ids=lambda c: c[0],
)
def test_an_older_program_refuses_a_newer_schema(
    node: Path, command: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(node / "pe-triage.sqlite3")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert main([*command, "--data-dir", str(node)]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line]
    assert line.startswith("pe-triage: the database schema is newer than this program")
