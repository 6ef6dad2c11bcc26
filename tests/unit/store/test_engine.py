from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, select, text

from pe_triage.errors import ConfigurationError
from pe_triage.store import engine as engine_module
from pe_triage.store.engine import (
    StoreRefusedError,
    StoreUnavailableError,
    db_now,
    open_engine,
    parse_url,
    read,
    write,
)
from pe_triage.store.schema import metadata, quarantine, studies


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "not a URL"),
        ("node.sqlite3", "not a URL"),
        ("postgresql://h:port/x", "not a URL"),
        ("mysql://u:geheim@h/x", "unknown scheme 'mysql'"),
        ("postgresql+asyncpg://h/x", "unknown scheme"),
        ("postgresql://u:geheim@h", "names no database"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:////nowhere/at/all/x.sqlite3", "directory /nowhere/at/all does not exist"),
        ("sqlite:////tmp", "is a directory"),
    ],
)
def test_a_wrong_url_is_one_clear_line(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_engine(url)
    message = str(caught.value)
    assert message.startswith("database: ")
    assert "\n" not in message
    assert "geheim" not in message
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgres_urls_get_the_one_driver(scheme: str) -> None:
    assert parse_url(f"{scheme}://u:p@h:1/x").drivername == "postgresql+psycopg"


def test_sqlite_survives_a_power_cut_by_its_settings(engine: Engine) -> None:
    """PRAGMA synchronous 3 is EXTRA; the settings hold for each new connection."""
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            for pragma, value in (
                ("journal_mode", "delete"),
                ("synchronous", 3),
                ("foreign_keys", 1),
                ("busy_timeout", 60_000),
            ):
                found = connection.execute(text(f"PRAGMA {pragma}")).scalar_one()
                assert found == value, pragma
            connection.rollback()


def test_a_database_left_in_wal_is_taken_back(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "x.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    engine = open_engine(f"sqlite:///{path}")
    with read(engine) as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "delete"
    engine.dispose()


def test_writers_queue_from_their_beginning(engine: Engine) -> None:
    """Read, then write, in two transactions at once: the second begins after the first's end.

    With Python's own transaction control both would read first, and one would fail at once with
    "database is locked", whatever the time-out.
    """
    held, seen = threading.Event(), []

    def second() -> None:
        held.wait()
        write(engine, lambda c: seen.append(c.execute(select(quarantine.c.reason)).scalar()))

    thread = threading.Thread(target=second)
    thread.start()
    with engine.begin() as connection:
        connection.execute(select(quarantine)).all()
        held.set()
        time.sleep(0.1)
        connection.execute(insert(quarantine).values(**row()))
    thread.join()
    assert seen == ["why"]


def test_readers_do_not_wait_for_a_writer(engine: Engine) -> None:
    with engine.begin() as writer:
        writer.execute(insert(quarantine).values(**row()))
        started = time.monotonic()
        with read(engine) as reader:
            assert reader.execute(select(quarantine)).all() == []
        assert time.monotonic() - started < 5


def test_the_clock_has_milliseconds_and_is_utc(engine: Engine) -> None:
    with read(engine) as connection:
        before = time.time()
        found = connection.execute(select(db_now())).scalar_one()
        assert abs(found - before) < 2
        time.sleep(0.02)
        assert connection.execute(select(db_now())).scalar_one() > found


def test_a_rolled_back_race_is_run_again(engine: Engine) -> None:
    attempts = []

    def work(connection: object) -> int:
        attempts.append(1)
        values = study("1.2.3")
        connection.execute(insert(studies).values(**values))  # type: ignore[attr-defined]
        if len(attempts) == 1:
            connection.execute(insert(studies).values(**values))  # type: ignore[attr-defined]
        return len(attempts)

    assert write(engine, work) == 2


def test_an_error_names_no_patient(engine: Engine) -> None:
    values = study("1.2.3") | {"state": None, "patient_id": "PID-SECRET"}
    with pytest.raises(StoreRefusedError) as caught:
        write(engine, lambda c: c.execute(insert(studies).values(**values)))
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(caught.value.__context__)
    assert "\n" not in str(caught.value)


def test_a_naive_time_is_refused(engine: Engine) -> None:
    from datetime import datetime

    values = row() | {"created_at": datetime(2026, 1, 1)}  # noqa: DTZ001 - the point of the test
    with pytest.raises(StoreRefusedError, match="without a time zone"):
        write(engine, lambda c: c.execute(insert(quarantine).values(**values)))


def test_a_lock_held_too_long_is_retryable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.05)
    hasty = open_engine(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    with engine.begin() as holder:
        holder.execute(insert(quarantine).values(**row()))
        with pytest.raises(StoreUnavailableError, match="locked"):
            write(hasty, lambda c: c.execute(select(quarantine)).all())
    hasty.dispose()


def test_foreign_keys_are_enforced(engine: Engine) -> None:
    with pytest.raises(StoreRefusedError, match="FOREIGN KEY"):
        write(
            engine,
            lambda c: c.execute(
                text("INSERT INTO results (job_id, ordinal, kind) VALUES (7, 0, 'SR')")
            ),
        )


def row() -> dict[str, object]:
    from datetime import UTC, datetime

    return {
        "path": "x",
        "kind": "OTHER",
        "reason": "why",
        "state": "HELD",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }


def study(uid: str) -> dict[str, object]:
    at = row()["created_at"]
    return {
        "study_uid": uid,
        "patient_id": "p",
        "issuer": "",
        "state": "RECEIVING",
        "run": 0,
        "instances": 0,
        "images": 0,
        "urgency": 3,
        "received_at": at,
        "last_image_at": at,
        "last_activity_at": at,
    }
