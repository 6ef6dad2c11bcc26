"""The schema's versions: Alembic run from code, so that an installed wheel needs no ini file.

Logging is left alone, and the directory that the program was started in plays no part. Alembic is
loaded where something is upgraded; which version a database has is asked without it, because every
command asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

import pe_triage
from pe_triage.errors import SchemaError
from pe_triage.store.engine import SESSION_LIMITS_S, open_engine, read, translated_errors

if TYPE_CHECKING:
    from alembic.config import Config

ADVISORY_LOCK = 7_304_213_961
"""Any fixed number: PostgreSQL upgrades of this program exclude each other by it."""

ADVICE = "run: pe-triage db upgrade"


def migrations_dir() -> Path:
    """Folder of ``env.py`` and ``versions/``: inside an installed package, or beside a checkout's.

    Raises
    ------
    SchemaError
        Neither is there: the installation is broken.
    """
    package = Path(pe_triage.__file__).resolve().parent
    for candidate in (package / "_migrations", package.parent / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise SchemaError("this installation of pe-triage lacks its migrations; install it again")


def revisions() -> list[str]:
    """Versions of the schema that this program knows, the oldest first; it needs the last.

    Each migration's file is named by its revision, ``0007_….py``, in the order of the chain.

    Raises
    ------
    SchemaError
        See `migrations_dir`.
    """
    files = (migrations_dir() / "versions").glob("[0-9]*.py")
    return sorted(file.name.partition("_")[0] for file in files)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, made in memory."""
    from alembic.config import Config

    config = Config()
    # Config interpolates %; a directory's name may hold one.
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(url: str) -> None:
    """Bring the database's schema to the version that this program needs.

    Two processes may do this at once: one waits and then finds nothing to do. All of it is one
    transaction, on SQLite too.

    Raises
    ------
    ConfigurationError
        See `engine.open_engine`.
    StoreUnavailableError
        No connection.
    SchemaError
        The schema is newer than this program, or is not pe-triage's.
    """
    from alembic import command

    engine = open_engine(url)
    try:
        with translated_errors(), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # A migration may take its time, and so may the wait for another's.
                for limit in SESSION_LIMITS_S:
                    connection.execute(text(f"SET LOCAL {limit} = 0"))
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK}
                )
            config = alembic_config(connection)
            _refuse_unknown(connection, revisions())
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def check_schema(engine: Engine) -> None:
    """See that the database has exactly the schema that this program needs.

    Raises
    ------
    SchemaError
        It is empty, outdated or newer; the message names the command that helps.
    StoreUnavailableError
        No connection.
    """
    known = revisions()
    with read(engine) as connection:
        heads = _refuse_unknown(connection, known)
    if not heads:
        raise SchemaError(f"the database is empty; {ADVICE}")
    if heads != {known[-1]}:
        raise SchemaError(f"the database schema is outdated; {ADVICE}")


def _refuse_unknown(connection: Connection, known: Sequence[str]) -> set[str]:
    """Revisions of the database (one, or none where it is empty), all known to this program."""
    heads: set[str] = set()
    if inspect(connection).has_table("alembic_version"):
        heads = set(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
    if heads - set(known):
        raise SchemaError(
            "the database schema is newer than this program; install the version of pe-triage "
            "that wrote it (pe-triage db upgrade cannot go back)"
        )
    if not heads and inspect(connection).has_table("studies"):
        raise SchemaError(
            "the database holds tables that pe-triage db upgrade did not make; use another one"
        )
    return heads
