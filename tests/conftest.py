"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """Folder of the real, de-identified CT that stands beside the project, or skip aloud."""
    root = Path(__file__).resolve().parents[1]
    for candidate in (root.parent / "shared" / "data", root / "shared" / "data"):
        if (candidate / "README.md").is_file():
            return candidate
    pytest.skip("no real CT: the folder ../shared/data does not stand beside the project")
