"""Commands on a node's data that decide, save and bring back; and what an older program says."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pe_triage.cli import main
from pe_triage.receive.spool import Spool
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import upgrade
from pe_triage.store.quarantine import Quarantine


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
