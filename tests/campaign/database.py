"""A database that goes away and comes back, or is locked for longer than anyone waits."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pe_triage.store.engine import BUSY_TIMEOUT_S
from pe_triage.store.migrate import upgrade
from tests.campaign.journal import Journal
from tests.campaign.session import Session
from tests.campaign.waiting import wait_for
from tests.support.postgres import PostgresServer, postgres_server


def work_again(session: Session, back_s: float) -> float:
    """Seconds from `back_s` until a study is answered again."""
    names = ("job.finished", "delivery.ended")
    wait_for(lambda: session.node.events_since(back_s, *names), 180, "work after an outage")
    return session.node.events_since(back_s, *names)[0][0] - back_s


def hold_sqlite(path: Path, seconds: float) -> None:
    """Keep every other process out of the database."""
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def session_of_sqlite_locks(
    folder: Path, number: int, journal: Journal, *, longer_s: float = 6.0
) -> list[str]:
    """Hold SQLite's lock once for longer than the busy time-out, and once for a few seconds."""
    home = folder / f"locks-{number}"
    shutil.rmtree(home, ignore_errors=True)
    trials: list[dict[str, Any]] = []
    with Session(home, number) as session:
        session.node.start()
        with session.streaming():
            path = session.node.data_dir / "pe-triage.sqlite3"
            for seconds in (random.Random(number).uniform(2.0, 8.0), BUSY_TIMEOUT_S + longer_s):
                wait_for(lambda: session.node.events("job.finished"), 120, "work")
                acked = len(session.scanner.acked)
                hold_sqlite(path, seconds)
                free_s = time.monotonic()
                trials.append(
                    {
                        "how": f"sqlite-lock:{seconds:.0f}",
                        "received_meanwhile": len(session.scanner.acked) - acked,
                        "recovered_s": round(work_again(session, free_s), 2),
                    }
                )
        found = session.check(300)
        figures = session.figures()
        session.node.close()
    return journal.add_session("database", number, trials, found, figures, home)


def new_database(server: PostgresServer, name: str) -> str:
    """Make an empty, migrated database of that name; its URL."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        identifier = sql.Identifier(name)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    url = f"{server.url.rpartition('/')[0]}/{name}"
    upgrade(url)
    return url


def hold_postgres(url: str, seconds: float) -> None:
    """Lock the tables that everything goes through."""
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE studies, jobs, deliveries IN ACCESS EXCLUSIVE MODE")
        time.sleep(seconds)
        connection.rollback()


def session_of_postgres_outages(
    folder: Path, number: int, journal: Journal, *, locks_s: tuple[float, ...] = (4.0, 64.0)
) -> list[str]:
    """Restart the server in an orderly way and by a crash; lock its tables for long."""
    rng = random.Random(number)
    home = folder / f"postgres-{number}"
    shutil.rmtree(home, ignore_errors=True)
    trials: list[dict[str, Any]] = []
    with postgres_server() as server:
        url = new_database(server, f"campaign_{number}")
        with Session(home, number, database=url) as session:
            session.node.start()
            with session.streaming():
                for how in (signal.SIGINT, signal.SIGQUIT):
                    wait_for(lambda: session.node.events("job.finished"), 120, "work")
                    server.stop(how)
                    time.sleep(rng.uniform(0.5, 8.0))
                    server.start()
                    back_s = time.monotonic()
                    trials.append(
                        {
                            "how": f"postgres-restart:{how.name}",
                            "recovered_s": round(work_again(session, back_s), 2),
                        }
                    )
                for seconds in locks_s:
                    holding = threading.Thread(target=hold_postgres, args=(url, seconds))
                    holding.start()
                    holding.join()
                    free_s = time.monotonic()
                    trials.append(
                        {
                            "how": f"postgres-lock:{seconds:.0f}",
                            "recovered_s": round(work_again(session, free_s), 2),
                        }
                    )
            found = session.check(300)
            figures = session.figures()
            session.node.close()
    return journal.add_session("database", number, trials, found, figures, home)
