"""A copy of the database while the node runs, and back.

SQLite by its online backup interface (https://www.sqlite.org/backup.html): copying the file of a
database that is being written gives a damaged one. PostgreSQL by its own ``pg_dump`` and
``pg_restore``, which must be on the PATH.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import inspect
from sqlalchemy.engine import URL

from pe_triage.errors import InputError, PermanentError
from pe_triage.store.engine import BUSY_TIMEOUT_S, open_engine, parse_url, translated_errors

SQLITE_COPY = "pe-triage.sqlite3"
POSTGRESQL_COPY = "pe-triage.pgdump"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseCopy:
    """A copy that is whole, and not yet the backup's own."""

    temporary: Path
    final: Path

    def publish(self) -> None:
        """Let it take the place of an older one, durably."""
        _replace(self.temporary, self.final)


def copy_database(url: str, directory: Path) -> DatabaseCopy:
    """Write a consistent copy of the database into `directory`, beside an older one.

    Returns
    -------
    DatabaseCopy
        To be published once the files that it names are there too.

    Raises
    ------
    InputError
        ``pg_dump`` is not installed.
    PermanentError
        The copy could not be made, or is damaged.
    """
    parsed = parse_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    final = directory / (SQLITE_COPY if sqlite else POSTGRESQL_COPY)
    temporary = _private(final.with_name(f"{final.name}.tmp"))
    if sqlite:
        _copy_sqlite(Path(str(parsed.database)), temporary)
    else:
        _postgresql("pg_dump", parsed, ["--format=custom", f"--file={temporary}"])
    return DatabaseCopy(temporary=temporary, final=final)


def check_restorable(url: str, directory: Path) -> Path:
    """See that the copy in `directory` can be brought back; returns it.

    Raises
    ------
    InputError
        There is no copy of this kind of database, or the database is not empty.
    """
    parsed = parse_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    copy = directory / (SQLITE_COPY if sqlite else POSTGRESQL_COPY)
    if not copy.is_file():
        raise InputError(f"no copy of such a database in the backup: {copy.name} is missing")
    if sqlite:
        target = Path(str(parsed.database))
        if target.exists():
            raise InputError(f"a database is there already: {target}; move it away first")
        return copy
    engine = open_engine(url)
    try:
        with translated_errors(), engine.connect() as connection:
            if inspect(connection).get_table_names():
                raise InputError("the PostgreSQL database is not empty; restore into a new one")
    finally:
        engine.dispose()
    return copy


def restore_database(url: str, directory: Path) -> None:
    """Bring the copy in `directory` back into an empty database.

    Raises
    ------
    InputError
        As `check_restorable`.
    PermanentError
        It could not be read.
    """
    copy = check_restorable(url, directory)
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        target = Path(str(parsed.database))
        # Whole or not at all: half of one would pass for a new and empty node.
        temporary = _private(target.with_name(f"{target.name}.restoring"))
        _copy_sqlite(copy, temporary)
        _replace(temporary, target)
        return
    _postgresql("pg_restore", parsed, ["--exit-on-error", "--single-transaction", str(copy)])


def _private(path: Path) -> Path:
    """Make an empty file that only its owner may read: it will name patients."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    return path


def _replace(temporary: Path, final: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    descriptor = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_sqlite(source: Path, target: Path) -> None:
    if not source.is_file():
        raise InputError(f"no database at {source}")
    try:
        with (
            closing(sqlite3.connect(source, timeout=BUSY_TIMEOUT_S)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            # All pages in one step: in several, each commit of the node would begin it anew.
            live.backup(copy, pages=-1)
            (found,) = copy.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        raise PermanentError(f"cannot copy the database: {error}") from None
    if found != "ok":
        raise PermanentError("the copy of the database is damaged; is the disk?")


def _postgresql(program: str, url: URL, options: Sequence[str]) -> None:
    found = shutil.which(program)
    if found is None:
        raise InputError(f"{program} is not on the PATH; install PostgreSQL's client programs")
    environment = dict(os.environ)
    if url.password is not None:
        # Not as an argument: everybody on the machine can read those.
        environment["PGPASSWORD"] = str(url.password)
    plain = url.set(drivername="postgresql", password=None).render_as_string()
    done = subprocess.run(
        [found, "--no-owner", "--no-password", f"--dbname={plain}", *options],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no reason was given"])[0]
        raise PermanentError(f"{program} failed: {words}")
