"""Keeps the processes of one node alive, restarts each alone, and ends them in order.

A CUDA fault, a decoder crash or a slow query takes down one process and never an association: the
listening socket belongs to the supervisor, so connections wait in its backlog while a receiver is
started again.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from pe_triage.health import Phase, Signs
from pe_triage.logs import get_logger
from pe_triage.node.link import READY, STOP, TURNED

RESTART_FIRST_S = 0.5
RESTART_MAX_S = 30.0
RELEASE_WAIT_S = 10.0
"""How long an ending supervisor waits for what it gives back of killed processes."""
STABLE_S = 60.0
"""A process that lived this long starts its restart waits from the beginning."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process to keep alive.

    Attributes
    ----------
    name
        Unique, such as ``worker-1``.
    target
        Importable callable; called with ``args`` and then the child's end of the pipe.
    stop_order
        Lower numbers are stopped, and waited for, first.
    awaited
        Whether the node is ready only once this process is. A worker is not: images are taken in
        and kept from the first moment, also while torch is being imported.
    """

    name: str
    target: Callable[..., None]
    args: tuple[Any, ...] = ()
    stop_order: int = 0
    awaited: bool = True


@dataclass(kw_only=True)
class _Child:
    spec: ProcessSpec
    process: Any = None
    connection: Connection | None = None
    ready: bool = False
    started_at: float = 0.0
    restart_at: float = 0.0
    wait_s: float = RESTART_FIRST_S
    deaths: int = field(default=0)


def _nothing(_name: str, _pid: int) -> None:
    """Give nothing back."""


class Supervisor:
    """Runs `specs` until told to stop.

    Parameters
    ----------
    specs
        The processes.
    drain_s
        Seconds that each stop order is given before its processes are killed.
    on_death
        Called with name and process id of a process that ended by itself: the place to give back
        what it held. In a thread of its own, since a database that does not answer must not keep
        a receiver from being started again.
    on_stopped
        Called in the same way for each that ended, or had to be killed, because the node stops.
    signs
        Where it is written down that all this lives.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        drain_s: float,
        on_death: Callable[[str, int], None],
        on_stopped: Callable[[str, int], None] = _nothing,
        signs: Signs | None = None,
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._children = [_Child(spec=spec) for spec in specs]
        self._drain_s = drain_s
        self._on_death = on_death
        self._on_stopped = on_stopped
        self._signs = Signs(None) if signs is None else signs
        self._releases: list[threading.Thread] = []
        self._log = get_logger()

    def run(self, should_stop: Callable[[], bool], on_ready: Callable[[], None]) -> None:
        """Start everything and block until `should_stop`; then stop in order.

        Parameters
        ----------
        should_stop
            Polled a few times a second.
        on_ready
            Called once, when every awaited process has reported ready.
        """
        announced = False
        try:
            for child in self._children:
                self._start(child)
            while not should_stop():
                self._attend()
                self._signs.tick()
                if not announced and all(
                    child.ready for child in self._children if child.spec.awaited
                ):
                    announced = True
                    self._signs.enter(Phase.RUNNING)
                    on_ready()
        finally:
            self._signs.enter(Phase.STOPPING)
            self._stop_all()

    def _start(self, child: _Child) -> None:
        ours, theirs = self._context.Pipe()
        child.process = self._context.Process(
            target=child.spec.target,
            args=(*child.spec.args, theirs),
            name=f"pe-triage-{child.spec.name}",
        )
        child.process.start()
        theirs.close()
        child.connection = ours
        child.ready = False
        self._signs.expect(child.spec.name, awaited=child.spec.awaited)
        child.started_at = time.monotonic()
        self._log.debug("process.started", process=child.spec.name, pid=child.process.pid)

    def _attend(self) -> None:
        """Wait a moment for a message or a death; restart what is due."""
        now = time.monotonic()
        by_object: dict[Any, _Child] = {}
        for child in self._children:
            if child.process is None:
                if now >= child.restart_at:
                    self._start(child)
                continue
            by_object[child.process.sentinel] = child
            if child.connection is not None:
                by_object[child.connection] = child
        for ready_object in wait(list(by_object), timeout=0.2):
            child = by_object[ready_object]
            if child.process is None:
                continue
            if ready_object is child.connection:
                self._read(child)
            elif not child.process.is_alive():
                self._buried(child)

    def _read(self, child: _Child) -> None:
        assert child.connection is not None
        try:
            message = child.connection.recv()
            if message == READY:
                child.ready = True
                self._signs.ready(child.spec.name)
                self._log.info("process.ready", process=child.spec.name)
            elif message == TURNED:
                self._signs.turned(child.spec.name)
        except (EOFError, OSError):
            child.connection.close()
            child.connection = None

    def _buried(self, child: _Child) -> None:
        code, pid = child.process.exitcode, child.process.pid
        lived_s = time.monotonic() - child.started_at
        if lived_s > STABLE_S:
            child.wait_s = RESTART_FIRST_S
        child.deaths += 1
        self._log.error(
            "process.died",
            process=child.spec.name,
            exit_code=code,
            lived_s=round(lived_s, 1),
            restart_in_s=child.wait_s,
        )
        child.process.close()
        child.process = None
        child.ready = False
        self._signs.expect(child.spec.name, awaited=child.spec.awaited)
        self._signs.write()  # it may be back before the next regular look
        if child.connection is not None:
            child.connection.close()
            child.connection = None
        child.restart_at = time.monotonic() + child.wait_s
        child.wait_s = min(child.wait_s * 2, RESTART_MAX_S)
        self._release(self._on_death, child.spec.name, pid)

    def _release(self, give_back: Callable[[str, int], None], name: str, pid: int) -> None:
        def run() -> None:
            try:
                give_back(name, pid)
            except Exception as error:  # noqa: BLE001 - leases expire anyway
                self._log.error("process.release_failed", process=name, error=type(error).__name__)

        self._releases = [thread for thread in self._releases if thread.is_alive()]
        thread = threading.Thread(target=run, name=f"release-{name}", daemon=True)
        thread.start()
        self._releases.append(thread)

    def _stop_all(self) -> None:
        for order in sorted({child.spec.stop_order for child in self._children}):
            group = [
                child
                for child in self._children
                if child.spec.stop_order == order and child.process is not None
            ]
            for child in group:
                if child.connection is not None:
                    try:
                        child.connection.send(STOP)
                    except OSError:
                        continue
            deadline = time.monotonic() + self._drain_s
            for child in group:
                child.process.join(max(0.0, deadline - time.monotonic()))
                if child.process.is_alive():
                    self._log.warning("process.killed", process=child.spec.name)
                    child.process.kill()
                    child.process.join()
                self._release(self._on_stopped, child.spec.name, child.process.pid)
                child.process.close()
                child.process = None
                if child.connection is not None:
                    child.connection.close()
        deadline = time.monotonic() + RELEASE_WAIT_S
        for thread in self._releases:
            thread.join(max(0.0, deadline - time.monotonic()))
