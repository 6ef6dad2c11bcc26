"""Options that several commands share, and how they become settings."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pe_triage.config import Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])


def node_options(function: F) -> F:
    """Add ``--data-dir``, ``--database`` and ``--config``: every command on a node's data."""
    options = (
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path),
            help="Directory of spool, results and database "
            "[default: the user data directory for pe-triage].",
        ),
        click.option(
            "--database",
            metavar="URL",
            help="sqlite:///FILE or postgresql://… [default: SQLite inside the data directory].",
        ),
        click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def decision_options(function: F) -> F:
    """Add ``--by`` and ``--why``: commands that record what a person decided."""
    options = (
        click.option("--by", metavar="NAME", help="Who decides [default: the user logged in]."),
        click.option("--why", metavar="TEXT", help="Why; kept with the decision."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def deciding(by: str | None) -> str:
    """Name under which a decision is recorded."""
    if by and by.strip():
        return by.strip()[:200]
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a number that has no name.
        return f"uid {os.getuid()}"


def settings_from(
    *, data_dir: Path | None, database: str | None, config: Path | None, **flags: Any
) -> Settings:
    """Merge the shared options and further flags with file and environment."""
    resolved = None if data_dir is None else data_dir.expanduser().resolve()
    return load_settings({"data_dir": resolved, "database": database, **flags}, config_file=config)
