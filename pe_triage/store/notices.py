"""A word to whoever waits on the same database: something is to be done.

On PostgreSQL by NOTIFY inside the transaction that makes the work, so the word is heard when the
work can be seen and never before, and not at all where the transaction is rolled back (PostgreSQL
15, NOTIFY and LISTEN). A word is a hint: it may be lost with its connection, so whoever waits also
looks by itself, seldom while it listens and often while it cannot. SQLite has no such thing; there
everybody looks often.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

from sqlalchemy import Connection, Engine, func, select


class Topic(StrEnum):
    """What there is to be done; the channel's name."""

    JOBS = "pe_triage_jobs"
    DELIVERIES = "pe_triage_deliveries"
    ARRIVALS = "pe_triage_arrivals"
    """A study begins to arrive, or goes on to after its end."""


SELDOM_S = {Topic.ARRIVALS: 1.0}
"""Shortest time between two looks for what is not urgent."""


def notify(connection: Connection, topic: Topic) -> None:
    """Tell everybody, once the transaction commits, that there is something to do."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(topic.value, "")))


NextDue = Callable[[], float | None]
"""Seconds until something that waits for its time may be done; None where nothing does."""


class Bell(Protocol):
    """Wakes one that waits for work."""

    def heard(self) -> int:
        """How often it has rung; to be asked before looking for work."""
        ...

    def wait(self, stop: threading.Event, heard: int, next_due_s: NextDue) -> None:
        """Return at `stop`, when something is due, or once it has rung since `heard`."""
        ...


class Looking:
    """A `Bell` for who has nobody to hear from: looks every `poll_s` seconds."""

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s

    def heard(self) -> int:
        """Nothing, ever."""
        return 0

    def wait(self, stop: threading.Event, heard: int, next_due_s: NextDue) -> None:
        """Return at `stop`, or when it is time to look again."""
        stop.wait(self._poll_s)


def looking(topic: Topic, poll_s: float) -> Looking:
    """For who looks every `poll_s` seconds, or less often where that will do for `topic`."""
    return Looking(max(poll_s, SELDOM_S.get(topic, 0.0)))


@contextmanager
def listening(engine: Engine, *, poll_s: float = 0.1) -> Iterator[dict[Topic, Bell]]:
    """Bells for `engine`'s database while the block runs: by words on PostgreSQL, else by looks."""
    if engine.dialect.name != "postgresql":
        yield {topic: looking(topic, poll_s) for topic in Topic}
        return
    from pe_triage.store.listener import Listener

    with Listener(engine, poll_s=poll_s).running() as listener:
        yield {topic: listener.bell(topic) for topic in Topic}
