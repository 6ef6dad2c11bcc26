"""``pe-triage deliveries`` on a node that holds nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pe_triage.cli import COMMANDS, main
from pe_triage.store.migrate import upgrade


def test_listed_and_retried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "deliveries" in COMMANDS
    upgrade(f"sqlite:///{tmp_path}/pe-triage.sqlite3")
    where = ["--data-dir", str(tmp_path)]
    assert main(["deliveries", "list", *where]) == 0
    assert "every result is delivered" in capsys.readouterr().out
    assert main(["deliveries", "list", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out) == []
    retry = ["deliveries", "retry", "--destination", "PACS@h:1", "--study", "1.2", *where]
    assert main(retry) == 0
    assert "0 parked deliveries" in capsys.readouterr().out
    assert main(["deliveries", "retry", *where]) == 0
    assert "commitment" not in capsys.readouterr().out
