"""The wheel holds what an installed program needs, and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.peers import missing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout and unpacked as pip would."""
    out = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(out)!r}))"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PE_TRIAGE_")}
    return subprocess.run(
        [sys.executable, "-m", "pe_triage", *arguments],
        env={**environment, "PYTHONPATH": str(installed)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_migrations_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert (installed / "pe_triage" / "_migrations" / "env.py").is_file()
    done = run(installed, tmp_path, "db", "upgrade", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    listed = run(installed, tmp_path, "studies", "--json", "--data-dir", str(tmp_path / "data"))
    assert (listed.returncode, listed.stdout.strip()) == (0, "[]"), listed.stderr


def test_the_wheel_carries_samples_licence_and_types(installed: Path) -> None:
    samples = installed / "pe_triage" / "_sample_dicom"
    folders = [folder for folder in samples.iterdir() if any(folder.glob("*.dcm"))]
    assert len(folders) == 3
    assert (installed / "pe_triage" / "py.typed").is_file()
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text()
    size_mb = sum(f.stat().st_size for f in samples.rglob("*") if f.is_file()) / 1e6
    assert size_mb <= 15


def test_nothing_committed_names_a_machine_or_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        missing("git, or the checkout that this test lists,", "git")
    bad = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".dcm", ".gz", ".safetensors", ".png") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        # Assembled here, so that this file does not name them itself.
        for word in ("/wo" + "rk/", "/ro" + "ot/", "pypi" + ".org", "registry.npm" + "js"):
            if word in text:
                bad.append(f"{name}: {word}")
    assert not bad
