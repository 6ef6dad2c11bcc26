"""The schema's versions: Alembic run from code, so that an installed wheel needs no ini file.

Logging is left alone, and the directory that the program was started in plays no part.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

import pe_triage
from pe_triage.errors import SchemaError
from pe_triage.store.engine import SESSION_LIMITS_S, open_engine, read, translated_errors

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


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, made in memory."""
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
            _refuse_unknown(connection, ScriptDirectory.from_config(config))
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
    script = ScriptDirectory.from_config(alembic_config())
    with read(engine) as connection:
        heads = _refuse_unknown(connection, script)
    if not heads:
        raise SchemaError(f"the database is empty; {ADVICE}")
    if heads != set(script.get_heads()):
        raise SchemaError(f"the database schema is outdated; {ADVICE}")


def _refuse_unknown(connection: Connection, script: ScriptDirectory) -> set[str]:
    """Revisions of the database, all known to this program."""
    heads = set(MigrationContext.configure(connection).get_current_heads())
    known = {revision.revision for revision in script.walk_revisions()}
    if heads - known:
        raise SchemaError(
            "the database schema is newer than this program; install the version of pe-triage "
            "that wrote it (pe-triage db upgrade cannot go back)"
        )
    if not heads and inspect(connection).has_table("studies"):
        raise SchemaError(
            "the database holds tables that pe-triage db upgrade did not make; use another one"
        )
    return heads
