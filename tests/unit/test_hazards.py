"""docs/hazards.md names tests as the evidence of its controls: they must be there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from pe_triage.monitoring import WatchTable
from pe_triage.watch.alarms import NAMES

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (H\d+) \|", re.MULTILINE)


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "hazards.md").read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if ROW.match(line)
    ]


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_row_is_whole_and_numbered_once() -> None:
    found = rows()
    assert len(found) >= 30
    assert [row[0] for row in found] == [f"H{n:02d}" for n in range(1, len(found) + 1)]
    for row in found:
        assert len(row) == 6, row[0]
        assert all(row), f"{row[0]} has an empty cell"
        assert row[2] in ("S1", "S2", "S3", "S4"), row[0]


def test_every_control_is_shown_by_a_test_that_exists() -> None:
    missing = []
    for row in rows():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[4])
        assert named, f"{row[0]} names no test"
        for name, test in named:
            path = ROOT / name
            if not path.is_file() or test not in functions_of(path):
                missing.append(f"{row[0]}: {name}::{test}")
    assert not missing, missing


def test_every_alarm_is_documented_and_no_other_is_named() -> None:
    words = r"`((?:watch|queue)\.[a-z_]+)`"
    watching = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
    hazards = (ROOT / "docs" / "hazards.md").read_text(encoding="utf-8")
    table = watching.split("## Alarms")[1].split("\n## ")[0]
    assert set(re.findall(rf"^\| {words}", table, re.MULTILINE)) == set(NAMES)
    known = set(NAMES) | {f"watch.{key}" for key in WatchTable.model_fields}
    assert set(re.findall(words, hazards)) <= known
