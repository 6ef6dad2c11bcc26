"""Find the programs that tests talk to; skip, or fail where every peer is required."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

SYSTEM_DIRS = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin")


def required() -> bool:
    """Whether a missing peer is a failure (PE_TRIAGE_REQUIRE_PEERS=1, as in .ci/run)."""
    return os.environ.get("PE_TRIAGE_REQUIRE_PEERS") == "1"


def missing(what: str, package: str) -> NoReturn:
    """Skip the test, or fail it where peers are required, naming the package that brings it."""
    message = f"{what} is not installed; the Debian package {package} brings it"
    if required():
        pytest.fail(f"{message} (PE_TRIAGE_REQUIRE_PEERS=1)")
    pytest.skip(message)


def find_program(name: str) -> str | None:
    """Absolute path of a system program.

    Only system directories are looked through: pynetdicom installs scripts of its own under the
    names of DCMTK's programs, in the environment's bin directory.
    """
    for directory in SYSTEM_DIRS:
        candidate = Path(directory) / name
        if os.access(candidate, os.X_OK):
            return str(candidate)
    return None


def require_program(name: str, package: str) -> str:
    """Absolute path of a system program, or `missing`."""
    return find_program(name) or missing(name, package)


def dcmtk_environment() -> dict[str, str]:
    """Environment for DCMTK's programs: without TCP_NODELAY Nagle's algorithm dominates."""
    return {**os.environ, "TCP_NODELAY": "1"}
