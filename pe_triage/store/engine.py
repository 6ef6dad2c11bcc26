"""Engines whose commits are durable, and transactions that say which kind they are.

SQLite: rollback journal with ``synchronous=EXTRA``. WAL with NORMAL loses commits at a power cut,
and SQLite before 3.51.3 has a reported WAL corruption with concurrent writers; a rollback journal
has neither (https://www.sqlite.org/pragma.html#pragma_synchronous). Python's `sqlite3` begins
transactions by itself, late and DEFERRED, so that two writers can dead-lock on the upgrade of
their read locks without the busy time-out being honoured; its transaction control is switched off
here and every transaction that may write begins IMMEDIATE.

PostgreSQL: psycopg 3, READ COMMITTED, connections tested before use.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Double

from pe_triage.errors import ConfigurationError, PermanentError, RetryableError

T = TypeVar("T")

BUSY_TIMEOUT_S = 60.0
"""How long a SQLite connection waits for another process's lock."""

CONNECTION_LIMITS: Mapping[str, int] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq's parameters (PostgreSQL 15, section 34.1.2), the last in milliseconds: a server whose host
vanished without a word is given up after 25 s at most, and not after TCP's quarter of an hour. A
URL's own values come first."""

SESSION_LIMITS_S: Mapping[str, int] = {
    "statement_timeout": 60,
    "idle_in_transaction_session_timeout": 60,
}
"""The server's limits for one of our transactions, which take milliseconds. The second frees the
rows that a vanished machine of ours had locked."""

PLAN_CACHE_MODE = "force_custom_plan"
"""PostgreSQL plans each statement for its values (PostgreSQL 15, section 20.7.4). psycopg prepares
what it sends often; a plan for any value cannot use an index of the rows in one state, and where it
only asks whether there is such a row, PostgreSQL takes it for cheap and reads the whole table."""

RETRIED_SQLSTATES = frozenset({"40001", "40P01"})
"""PostgreSQL: serialization failure, deadlock detected. The transaction was surely rolled back."""

MAX_TRANSACTION_ATTEMPTS = 6

_READ_ONLY = "pe_triage_read_only"


class StoreUnavailableError(RetryableError):
    """The database did not answer, or stayed locked; the same call may succeed later."""


class StoreRefusedError(PermanentError):
    """The database refused a statement or a row; a mistake of ours or a foreign schema."""


class db_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """Seconds since the Unix epoch on the database's own clock, as a double.

    Leases of many machines are compared on one clock only. PostgreSQL's ``now()`` stands still
    within a transaction and SQLite's ``CURRENT_TIMESTAMP`` has whole seconds, so neither is used.
    """

    type = Double()
    inherit_cache = True
    name = "db_now"


@compiles(db_now, "sqlite")
def _db_now_sqlite(_element: db_now, _compiler: Any, **_kw: Any) -> str:
    # Julian day 2440587.5 is the epoch; SQLite keeps 'now' in whole milliseconds.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _db_now_postgresql(_element: db_now, _compiler: Any, **_kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


def parse_url(url: str) -> URL:
    """Check a database URL and name its driver.

    Raises
    ------
    ConfigurationError
        Malformed, an unknown scheme, no file name, or a directory that is not there. The message
        never shows a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "database: not a URL such as sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    scheme = parsed.drivername
    if scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        if not parsed.database:
            raise ConfigurationError("database: the PostgreSQL URL names no database")
        return parsed.set(drivername="postgresql+psycopg")
    if scheme in ("sqlite", "sqlite+pysqlite"):
        _check_sqlite_path(parsed.database)
        return parsed.set(drivername="sqlite")
    raise ConfigurationError(
        f"database: unknown scheme {scheme!r}; use sqlite:///FILE or postgresql://USER@HOST/NAME"
    )


def _check_sqlite_path(database: str | None) -> None:
    if not database or database == ":memory:" or database.startswith("file:"):
        # Several processes share the database; one in memory would be empty for each of them.
        raise ConfigurationError("database: SQLite needs a file, as in sqlite:////var/lib/node.db")
    path = Path(database)
    if path.is_dir():
        raise ConfigurationError(f"database: {path} is a directory")
    if not path.parent.is_dir():
        raise ConfigurationError(f"database: directory {path.parent} does not exist")


def open_engine(url: str) -> Engine:
    """Make an engine for `url`; connects at first use. Give each process its own.

    Parameters
    ----------
    url
        ``sqlite:///path`` or ``postgresql://…`` (psycopg 3 is used whatever the URL's driver).

    Raises
    ------
    ConfigurationError
        See `parse_url`.
    """
    parsed = parse_url(url)
    common: dict[str, Any] = {
        # An error's text reaches logs; a statement's parameters may hold patient identifiers.
        "hide_parameters": True,
        "json_serializer": partial(json.dumps, separators=(",", ":")),
    }
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S}, **common)
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
        return engine
    connect_args = {
        key: value for key, value in CONNECTION_LIMITS.items() if key not in parsed.query
    }
    engine = create_engine(parsed, pool_pre_ping=True, connect_args=connect_args, **common)
    event.listen(engine, "connect", _on_postgresql_connect)
    return engine


def _on_postgresql_connect(dbapi_connection: Any, _record: Any) -> None:
    # By statements, and not by the start-up parameter `options`, which PgBouncer refuses.
    with dbapi_connection.cursor() as cursor:
        for name, limit_s in SESSION_LIMITS_S.items():
            cursor.execute(f"SET {name} = '{limit_s}s'")
        cursor.execute(f"SET plan_cache_mode = {PLAN_CACHE_MODE}")
    dbapi_connection.commit()


def _on_sqlite_connect(dbapi_connection: Any, _record: Any) -> None:
    # None hands BEGIN over to us, see _on_sqlite_begin; PRAGMAs below then run outside any.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA synchronous = EXTRA")
        mode = cursor.execute("PRAGMA journal_mode").fetchone()
        if mode is None or mode[0] != "delete":
            cursor.execute("PRAGMA journal_mode = DELETE")
    finally:
        cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _sqlstate(error: DBAPIError) -> str | None:
    state = getattr(error.orig, "sqlstate", None)
    return state if isinstance(state, str) else None


def _summary(error: BaseException) -> str:
    """First line of a driver's message, without what may hold values of a row or a password."""
    text = str(getattr(error, "orig", None) or error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    return re.sub(r"(password=)\S+", r"\1***", line)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn a driver's failure into one line of ours, without the values of any row.

    Raises
    ------
    StoreUnavailableError
        No connection, connection lost, or a lock held for longer than the time-out.
    ConfigurationError
        The file is not a SQLite database, or cannot be opened or written.
    StoreRefusedError
        Anything else that the database says. A driver's own message may quote a whole row.
    """
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        summary = _summary(error)
        if "unable to open database" in summary or "readonly database" in summary:
            raise ConfigurationError(f"database: {summary}") from None
        raise StoreUnavailableError(f"database not available: {summary}") from None
    except DatabaseError as error:
        if "not a database" in _summary(error):
            raise ConfigurationError(f"database: {_summary(error)}") from None
        raise StoreRefusedError(f"database refused: {_summary(error)}") from None
    except StatementError as error:
        # Not the driver: a value that one of our types refuses, such as NaN or a naive datetime.
        raise StoreRefusedError(f"a value cannot be stored: {_summary(error)}") from None


def _lost_a_race(error: PermanentError | RetryableError) -> bool:
    # The context of the translated error is the driver's own.
    cause = error.__context__
    if isinstance(cause, IntegrityError):
        return True
    return isinstance(cause, DBAPIError) and _sqlstate(cause) in RETRIED_SQLSTATES


def write(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` in one transaction that may write, again if a race rolled it back.

    `work` is repeated after a broken uniqueness rule (two processes recorded the same thing: the
    second look sees it), a deadlock or a serialization failure. A lost connection is not repeated
    here, because whether it committed is unknown: callers repeat what is idempotent.

    Raises
    ------
    StoreUnavailableError, StoreRefusedError, ConfigurationError
        See `translated_errors`.
    """
    for attempt in range(1, MAX_TRANSACTION_ATTEMPTS + 1):
        try:
            with translated_errors(), engine.begin() as connection:
                return work(connection)
        except (StoreUnavailableError, StoreRefusedError) as error:
            if attempt == MAX_TRANSACTION_ATTEMPTS or not _lost_a_race(error):
                raise
        time.sleep(0.01 * attempt)
    raise AssertionError("unreachable")


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """Open a transaction for a consistent read, which takes no write lock.

    Raises
    ------
    StoreUnavailableError
        See `translated_errors`.
    """
    options: dict[str, Any] = {_READ_ONLY: True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    with (
        translated_errors(),
        engine.connect().execution_options(**options) as connection,
        connection.begin(),
    ):
        yield connection
