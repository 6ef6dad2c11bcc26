"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import structlog

# A deadline is a timed assertion: on a shared machine it fails by chance.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """Folder of the real, de-identified CT that stands beside the project, or skip aloud."""
    root = Path(__file__).resolve().parents[1]
    for candidate in (root.parent / "shared" / "data", root / "shared" / "data"):
        if (candidate / "README.md").is_file():
            return candidate
    pytest.skip("no real CT: the folder ../shared/data does not stand beside the project")


@pytest.fixture
def fresh_logs() -> None:
    """Forget a configuration of logging that an earlier test left: its level would hide events."""
    structlog.reset_defaults()
