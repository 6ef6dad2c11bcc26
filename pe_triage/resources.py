"""Files that travel with the program: migrations, sample studies, the demonstration bundle.

In a checkout the first two stand at the top level, where people look for them; the wheel carries
them inside the package.
"""

from __future__ import annotations

from pathlib import Path

from pe_triage.errors import InputError

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """Directory `name` of the checkout's top level, or its copy inside the installed package.

    Raises
    ------
    InputError
        Where the installation holds neither.
    """
    for candidate in (_PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise InputError(f"this installation of pe-triage lacks its {name} directory; reinstall it")


def demonstration_bundle() -> Path:
    """Directory of the bundle that serves where no other is configured; docs/demonstration.md."""
    return _PACKAGE / "bundles" / "demonstration"
