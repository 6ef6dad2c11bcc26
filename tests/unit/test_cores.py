"""As many threads as there are cores for them, in a container too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pe_triage.cores import usable_cores


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)


def cores(tmp_path: Path, membership: str, limits: dict[str, str]) -> int:
    said = tmp_path / "cgroup"
    said.write_text(membership)
    for group, limit in limits.items():
        directory = tmp_path / "hierarchy" / group
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpu.max").write_text(f"{limit}\n")
    return usable_cores(membership=said, hierarchy=tmp_path / "hierarchy")


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/\n", {"": "400000 100000"}, 4),
        ("0::/\n", {"": "max 100000"}, 16),
        ("0::/\n", {"": "50000 100000"}, 1),
        ("0::/\n", {"": "250000 100000"}, 2),
        ("0::/\n", {"": "not what the kernel writes"}, 16),
        ("0::/a/b\n", {"a": "300000 100000", "a/b": "max 100000"}, 3),
        ("0::/a/b\n", {"a": "300000 100000", "a/b": "200000 100000"}, 2),
        # A group of another branch says nothing.
        ("0::/a/b\n", {"a/c": "100000 100000"}, 16),
        # Version 1 beside version 2.
        ("2:cpuacct:/x\n1:cpu:/x\n0::/\n", {}, 16),
        ("", {}, 16),
    ],
)
def test_no_more_than_the_limit_of_the_container(
    tmp_path: Path, membership: str, limits: dict[str, str], expected: int
) -> None:
    assert cores(tmp_path, membership, limits) == expected


def test_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 7}, raising=False)
    assert cores(tmp_path, "0::/\n", {"": "400000 100000"}) == 2


def test_where_the_kernel_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 7}, raising=False)
    assert usable_cores(membership=tmp_path / "none", hierarchy=tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()
