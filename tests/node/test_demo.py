"""``pe-triage demo``, as someone meets it who has just installed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.support.node import clean_environment


@pytest.mark.timeout(300)
def test_demo(tmp_path: Path) -> None:
    """Ends well, says what the interface promises, and writes into its directory alone."""
    keep, empty = tmp_path / "keep", tmp_path / "empty"
    homes = {
        name: str(empty / name.lower())
        for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")
    }
    for folder in (*homes.values(), str(empty / "work")):
        Path(folder).mkdir(parents=True)
    hostile = {
        "PE_TRIAGE_PORT": "1",
        "PE_TRIAGE_DATA_DIR": "/proc/nowhere",
        "PE_TRIAGE_DATABASE": "postgresql://nobody@127.0.0.1:1/none",
        "PE_TRIAGE_SEND_TO": "nonsense",
        "PE_TRIAGE_CONFIG": str(tmp_path / "no-such.toml"),
        "PE_TRIAGE_MODEL": "/no/such/bundle",
        "PE_TRIAGE_COLOUR": "red",
    }
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, "-m", "pe_triage", "demo", "--json", "--keep", str(keep)],
        env={
            **clean_environment(),
            **homes,
            **hostile,
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=280,
        cwd=empty / "work",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document.keys() == {"studies", "pacs_dir"}
    assert len(document["studies"]) == 3
    pacs_dir = Path(document["pacs_dir"])
    assert pacs_dir.is_relative_to(keep)
    arrived = {
        str(ds.SOPInstanceUID): ds
        for p in pacs_dir.rglob("*")
        if p.is_file() and (ds := dcmread(p, stop_before_pixels=True))
    }
    promised = [r for doc in document["studies"] for r in doc["results"]]
    assert len(promised) >= 6
    assert arrived.keys() == {r["sop_instance_uid"] for r in promised}
    for doc in document["studies"]:
        assert doc["state"] in ("DONE", "NOT_EVALUATED")
        assert doc["latency_s"] > 0
        kinds = [r["kind"] for r in doc["results"]]
        assert kinds.count("SR") == kinds.count("SUMMARY") == 1
        for result in doc["results"]:
            assert Path(result["path"]).is_relative_to(keep)
            assert arrived[result["sop_instance_uid"]].StudyInstanceUID == doc["study_uid"]
    assert [str(p) for p in empty.rglob("*") if p.is_file()] == []
    # The kept directory is a node's data directory.
    shown = subprocess.run(
        [sys.executable, "-m", "pe_triage", "studies", "--json", "--data-dir", str(keep)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [d["study_uid"] for d in json.loads(shown.stdout)] == [
        d["study_uid"] for d in document["studies"]
    ]
