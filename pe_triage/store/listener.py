"""Hearing PostgreSQL's words (see `notices`): a connection and a thread of its own.

Apart from `notices` because only a node's processes listen, and only on PostgreSQL: nobody else
should load its driver.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine, func, select

from pe_triage.logs import get_logger
from pe_triage.store.notices import Bell, NextDue, Topic, looking

IDLE_LOOK_S = 10.0
"""How often a listener that hears nothing looks all the same."""
TICK_S = 0.25
"""How soon a waiting thread sees that it should stop."""
RECONNECT_S = 1.0
PROBE_WAIT_S = 5.0


class Listener:
    """Listens on a connection of its own, in a thread of its own.

    A connection that ends is made again; meanwhile those who wait look often. A connection that
    is there and brings nothing (a pooler between us and the server hands a LISTEN to whoever comes
    next) is found out by a word to ourselves, sent on another connection.

    Parameters
    ----------
    engine
        From `engine.open_engine`; the connection is made as all others are.
    poll_s
        How often to look while it cannot listen.
    """

    def __init__(self, engine: Engine, *, poll_s: float = 0.1) -> None:
        self._engine = engine
        self._looking = {topic: looking(topic, poll_s) for topic in Topic}
        self._changed = threading.Condition()
        self._rung = dict.fromkeys(Topic, 0)
        self._listening = False
        self._ended = threading.Event()
        self._log = get_logger()

    @property
    def listening(self) -> bool:
        """Whether words are heard at the moment."""
        return self._listening

    @contextmanager
    def running(self) -> Iterator[Listener]:
        """Listen while the block runs."""
        thread = threading.Thread(target=self._run, name="listener", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join(2 * TICK_S + 1.0)

    def bell(self, topic: Topic) -> Bell:
        """What rings for `topic`."""
        return _TopicBell(self, topic)

    def _run(self) -> None:
        told = False
        while not self._ended.is_set():
            try:
                with self._connection() as connection:
                    self._listen(connection)
            except Exception as error:  # noqa: BLE001 - whoever waits goes on looking meanwhile
                if not told:
                    # The driver's words may quote a connection string.
                    self._log.warning("store.not_listening", error=type(error).__name__)
                told = True
            else:
                told = False
            finally:
                self._hush()
            self._ended.wait(RECONNECT_S)

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Open a connection that belongs to no pool, set up as all others."""
        pooled = self._engine.raw_connection()
        driver: Any = pooled.driver_connection
        pooled.detach()
        try:
            driver.autocommit = True
            yield driver
        finally:
            with contextlib.suppress(psycopg.Error):
                driver.close()

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        """Hear until the end, or until the connection ends (psycopg.Error)."""
        ourselves = f"pe_triage_{uuid.uuid4().hex[:16]}"
        for channel in (*Topic, ourselves):
            connection.execute(f"LISTEN {channel}")
        with self._engine.begin() as other:
            other.execute(select(func.pg_notify(ourselves, "")))
        deadline_s = time.monotonic() + PROBE_WAIT_S
        while not self._ended.is_set():
            for notice in connection.notifies(timeout=TICK_S):
                if notice.channel == ourselves:
                    self._ring(*Topic, listening=True)
                    self._log.debug("store.listening")
                else:
                    self._ring(Topic(notice.channel))
            if not self._listening and time.monotonic() > deadline_s:
                raise psycopg.OperationalError("notifications do not arrive")

    def _ring(self, *topics: Topic, listening: bool | None = None) -> None:
        with self._changed:
            if listening is not None:
                self._listening = listening
            for topic in topics:
                self._rung[topic] += 1
            self._changed.notify_all()

    def _hush(self) -> None:
        # Whoever waits goes over to looking, and looks at once: a word may have been lost.
        self._ring(*Topic, listening=False)

    def _heard(self, topic: Topic) -> int:
        with self._changed:
            return self._rung[topic]

    def _wait(self, topic: Topic, stop: threading.Event, heard: int, next_due_s: NextDue) -> None:
        if not self._listening:
            self._looking[topic].wait(stop, heard, next_due_s)
            return
        due_s = next_due_s()
        until_s = time.monotonic() + (IDLE_LOOK_S if due_s is None else min(due_s, IDLE_LOOK_S))
        with self._changed:
            # An end of the listening rings too.
            while not stop.is_set() and self._rung[topic] == heard:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(min(left_s, TICK_S))


class _TopicBell:
    def __init__(self, listener: Listener, topic: Topic) -> None:
        self._listener = listener
        self._topic = topic

    def heard(self) -> int:
        return self._listener._heard(self._topic)

    def wait(self, stop: threading.Event, heard: int, next_due_s: NextDue) -> None:
        self._listener._wait(self._topic, stop, heard, next_due_s)
