"""What was acknowledged and cannot be read is found by its study."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pe_triage.errors import InvalidInstanceError
from pe_triage.node import indexer as module
from pe_triage.node.indexer import Indexer


def test_an_unreadable_instance_is_entered_under_its_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = InvalidInstanceError("Series Instance UID (0020,000E) is missing or malformed")
    error.study_uid, error.sop_instance_uid = "1.2.3", "1.2.3.4"

    def refuse(_path: Path) -> None:
        raise error

    monkeypatch.setattr(module, "read_instance", refuse)
    entered: list[dict[str, Any]] = []
    aside = tmp_path / "quarantine" / "a.dcm"
    anything: Any = SimpleNamespace
    indexer = Indexer(
        spool=anything(set_aside=lambda _path, _why: aside),
        studies=anything(),
        quarantine=anything(add=lambda **row: entered.append(row)),
        assembler=anything(),
        data_dir=tmp_path,
    )
    assert indexer._read(anything(path=tmp_path / "a"), []) is None
    (row,) = entered
    assert (row["study_uid"], row["sop_instance_uid"]) == ("1.2.3", "1.2.3.4")
    assert row["path"] == Path("quarantine/a.dcm")
