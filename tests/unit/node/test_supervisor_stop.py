"""Who is told of a process that ended, and in whose time."""

from __future__ import annotations

import threading
import time
from multiprocessing.connection import Connection

from pe_triage.node.supervisor import ProcessSpec, Supervisor


def deaf(connection: Connection) -> None:
    connection.send("ready")
    time.sleep(60)


def test_a_killed_process_is_given_back_as_stopped() -> None:
    died: list[tuple[str, int]] = []
    stopped: list[tuple[str, int]] = []
    supervisor = Supervisor(
        [ProcessSpec(name="worker-1", target=deaf)],
        drain_s=0.05,
        on_death=lambda name, pid: died.append((name, pid)),
        on_stopped=lambda name, pid: stopped.append((name, pid)),
    )
    ready = threading.Event()
    supervisor.run(ready.is_set, ready.set)
    assert died == []
    assert [name for name, _ in stopped] == ["worker-1"]
    assert stopped[0][1] > 0


def short(connection: Connection) -> None:
    connection.send("ready")


def test_a_release_that_hangs_holds_up_no_restart() -> None:
    hanging = threading.Event()
    calls: list[int] = []

    def on_death(_name: str, pid: int) -> None:
        calls.append(pid)
        hanging.wait(30)

    deadline = time.monotonic() + 20
    supervisor = Supervisor(
        [ProcessSpec(name="worker-1", target=short)], drain_s=0.05, on_death=on_death
    )

    def done() -> bool:
        if len(calls) < 2 and time.monotonic() < deadline:
            return False
        hanging.set()
        return True

    supervisor.run(done, lambda: None)
    assert len(set(calls)) >= 2
