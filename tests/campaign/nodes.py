"""A node of the campaign: stand-in model, and events with the time at which they were seen."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from tests.campaign.serve import PRELOADED, forked
from tests.campaign.setup import Setup
from tests.campaign.waiting import wait_for
from tests.support.node import clean_environment

Event = dict[str, Any]
POLL_S = 0.02


def alive(pid: int) -> bool:
    """Whether the process runs."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@cache
def context() -> Any:
    """Multiprocessing by a server that has imported everything; one for the whole campaign."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(PRELOADED))
    return made


class CampaignNode:
    """A node with a stand-in model, whose processes can be killed one by one.

    Parameters
    ----------
    data_dir, config, database, host, port
        As for ``serve``.
    forked
        Whether its processes are forked from a warm server (`serve.forked`), or started by a
        command, as the product is.
    work_s, plant
        See `Setup`.
    prefix
        Command before Python's, where it is started by one: faketime, ip netns exec.
    """

    def __init__(
        self,
        data_dir: Path,
        config: Path,
        *,
        port: int,
        database: str | None = None,
        host: str = "127.0.0.1",
        forked: bool = True,
        plant: str = "",
        work_s: float = 0.2,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir, self.config = data_dir, config
        self.host, self.port, self.database = host, port, database
        self.forked, self.prefix = forked, tuple(prefix)
        self.environment = dict(environment or {})
        self.log = config.with_name(f"{data_dir.name}.log")
        self.setup = Setup(work_s=work_s, plant=plant, log=str(self.log))
        self.seen: list[tuple[float, Event]] = []
        self._listeners: list[Callable[[Event], None]] = []
        self._lock = threading.Lock()
        self._supervisor: int | None = None
        self._process: Any = None
        self._known: set[int] = set()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        self._closing = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    # -- life

    def start(self, timeout_s: float = 120, *, attach: Callable[[int], None] | None = None) -> bool:
        """Start and wait until it accepts associations; False where it ended before.

        Parameters
        ----------
        attach
            Called with the supervisor's process id before it does anything; forked nodes only.
        """
        since_s = time.monotonic()
        if self.forked:
            self._fork(attach)
        else:
            self._spawn()
        assert self._supervisor is not None
        self._known = {self._supervisor}
        wait_for(
            lambda: self.events_since(since_s, "node.ready") or not self.runs,
            timeout_s,
            f"node.ready; see {self.log}",
        )
        time.sleep(POLL_S * 2)
        return bool(self.events_since(since_s, "node.ready"))

    def _fork(self, attach: Callable[[int], None] | None) -> None:
        flags = {
            "data_dir": self.data_dir, "config": self.config, "port": self.port,
            "host": self.host, "database": self.database,
        }  # fmt: skip
        ours, theirs = context().Pipe()
        self._process = context().Process(target=forked, args=(self.setup, flags, theirs))
        self._process.start()
        theirs.close()
        self._supervisor = int(self._process.pid)
        with ours:
            if attach is not None:
                attach(self._supervisor)
            with contextlib.suppress(OSError):
                ours.send("go")

    def _spawn(self) -> None:
        setup = Setup(work_s=self.setup.work_s, plant=self.setup.plant)
        command = [
            *self.prefix,
            *(sys.executable, "-m", "tests.campaign.serve", "--setup", setup.dumps()),
            *("--host", self.host, "--port", str(self.port), "--data-dir", str(self.data_dir)),
            *("--config", str(self.config)),
            *(() if self.database is None else ("--database", self.database)),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**clean_environment(), **self.environment},
                stderr=log,
                start_new_session=True,
            )
        self._supervisor = int(self._process.pid)

    @property
    def runs(self) -> bool:
        """Whether the supervisor lives."""
        return self._supervisor is not None and alive(self._supervisor)

    @property
    def supervisor(self) -> int:
        """The supervisor's process id."""
        assert self._supervisor is not None
        if not self.prefix:
            return self._supervisor
        for child in psutil.Process(self._supervisor).children(recursive=True):
            if "tests.campaign.serve" in " ".join(child.cmdline()):
                return child.pid
        return self._supervisor

    def pid_of(self, name: str) -> int:
        """Process id of the newest process of that name."""
        if name == "supervisor":
            return self.supervisor
        started = [e for e in self.events("process.started") if e["process"] == name]
        return int(started[-1]["pid"])

    def pids(self) -> list[int]:
        """Every process of the node that lives."""
        self._known |= {int(e["pid"]) for e in self.events("process.started")[-60:]}
        return [pid for pid in self._known if alive(pid)]

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the node, the supervisor first."""
        assert self._supervisor is not None
        for pid in (self._supervisor, *self.pids()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._supervisor, number)

    def kill(self) -> None:
        """SIGKILL to every process."""
        if self._supervisor is None:
            return
        self.signal_all(signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        if isinstance(self._process, subprocess.Popen):
            self._process.wait(30)
        elif self._process.pid is not None:
            self._process.join(30)

    def stop(self, timeout_s: float = 60) -> bool:
        """SIGTERM; whether it ended in time."""
        os.kill(self.supervisor, signal.SIGTERM)
        try:
            wait_for(lambda: not self.runs, timeout_s, "the end")
        except AssertionError:
            return False
        self._reap()
        return True

    def close(self) -> None:
        """Kill, and stop reading the log."""
        self.kill()
        self._closing.set()

    def wait_gone(self, pids: Sequence[int], timeout_s: float = 20) -> bool:
        """Whether these processes end within the time: a killed supervisor leaves no orphan."""
        until = time.monotonic() + timeout_s
        while any(alive(pid) for pid in pids):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    # -- what it says

    def _follow(self) -> None:
        rest = b""
        with self.log.open("rb") as file:
            while not self._closing.is_set():
                data = file.read()
                if not data:
                    time.sleep(POLL_S)
                    continue
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        self.seen.append((time.monotonic(), event))
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener(event)

    @contextmanager
    def listening(self, listener: Callable[[Event], None]) -> Iterator[None]:
        """Call `listener` with each event, soon after its line was written."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def events_since(self, at_s: float, *names: str) -> list[tuple[float, Event]]:
        """Events of these names seen at or after `at_s`, oldest first."""
        found = []
        for when, event in reversed(self.seen):
            if when < at_s:
                break
            if event.get("event") in names:
                found.append((when, event))
        return found[::-1]

    def events(self, name: str) -> list[Event]:
        """All events of a name, oldest first."""
        return [event for _, event in list(self.seen) if event.get("event") == name]

    def incoming(self) -> list[Path]:
        """Instances that are acknowledged and not indexed yet."""
        return list((self.data_dir / "spool" / "incoming").glob("*.dcm"))

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL."""
        return self.database or f"sqlite:///{self.data_dir / 'pe-triage.sqlite3'}"
