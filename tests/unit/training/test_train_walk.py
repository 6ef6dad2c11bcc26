"""The commands that stand in docs/training.md, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs" / "training.md"


def documented() -> list[str]:
    block = re.search(r"<!-- walk -->\n```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert block is not None, "docs/training.md has no marked commands"
    return [line for line in block[1].splitlines() if line.strip()]


def test_three_commands_lead_from_raw_files_to_a_report() -> None:
    lines = documented()
    assert lines[0].startswith("pe-triage phantom"), "what makes raw files where there are none"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["python", "-m"], ["pe-triage", "train"], ["pe-triage", "evaluate"],
    ]  # fmt: skip
    count = re.search(r"--count (\d+)", lines[0])
    assert count is not None
    assert int(count[1]) >= 50


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_documented_commands_do_what_is_said(tmp_path: Path) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, words in (("python", ""), ("pe-triage", "-m pe_triage ")):
        script = bin_dir / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parents[1]),
    }
    for line in documented():
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    split = json.loads((tmp_path / "runs" / "a" / "split.json").read_text())
    assert sum(map(len, split.values())) == 50
    assert len(split["test"]) >= 10
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    rows = (tmp_path / "report" / "submission.csv").read_text().splitlines()
    assert len(rows) == 1 + len(split["test"]) * (9 + 12)
    assert report["violations"]["exams"] == 0
