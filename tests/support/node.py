"""A real ``pe-triage serve`` in a process of its own, and the way to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pe_triage.errors import StudyNotFoundError
from pe_triage.store.documents import show, worklist
from pe_triage.store.engine import open_engine

TERMINAL = {"DONE", "NOT_EVALUATED", "FAILED", "QUARANTINED"}


def clean_environment() -> dict[str, str]:
    """The environment without settings that would leak into the node."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PE_TRIAGE_")}


def pe_triage(
    *arguments: object, timeout_s: float = 120, program: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line once; `program` as of `RunningNode`."""
    return subprocess.run(
        [sys.executable, "-m", "pe_triage", *map(str, arguments)],
        env=clean_environment(),
        cwd=program,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def wait_for(what: Callable[[], Any], timeout_s: float = 60, message: str = "") -> Any:
    """Poll until `what` is truthy; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {message}")
        time.sleep(0.1)


class RunningNode:
    """``pe-triage serve`` on a free port, killed at the end if need be.

    Parameters
    ----------
    data_dir
        Kept over restarts of the same node.
    arguments
        Further flags.
    settings
        Keys without a flag, for a configuration file; values are written as TOML by `json.dumps`.
    program
        Folder that holds another version's package; default: the one under test.
    """

    def __init__(
        self,
        data_dir: Path,
        *arguments: object,
        database: str | None = None,
        port: int = 0,
        start: bool = True,
        settings: Mapping[str, Any] | None = None,
        program: Path | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.program = program
        self.arguments = tuple(map(str, arguments))
        if settings:
            config = data_dir.with_name(f"{data_dir.name}.toml")
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
            self.arguments += ("--config", str(config))
        self.database = database
        self.port = port
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        if start:
            self.start()

    # -- life

    def start(self, timeout_s: float = 60) -> None:
        command = [
            *(sys.executable, "-m", "pe_triage", "serve", "--aet", "PETRIAGE"),
            *("--port", str(self.port), "--data-dir", str(self.data_dir)),
            *(() if self.database is None else ("--database", self.database)),
            *self.arguments,
        ]
        self.process = subprocess.Popen(
            command,
            env=clean_environment(),
            # Where a module is looked for first.
            cwd=self.program,
            stderr=subprocess.PIPE,
            text=True,
            # A process group of its own, so that a test can kill all of it at once.
            start_new_session=True,
        )
        seen = len(self.lines)
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        try:
            wait_for(
                lambda: self.events("node.ready", since=seen) or self.process.poll() is not None,
                timeout_s,
                "node.ready",
            )
            ready = self.events("node.ready", since=seen)
            assert ready, "it ended"
        except AssertionError as error:
            self.kill()
            tail = "\n".join(self.lines[-20:])
            raise AssertionError(f"the node did not start: {error}\n{tail}") from None
        self.port = ready[-1]["port"]

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self.lines.append(line.rstrip("\n"))

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL to every process of the node at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def pid_of(self, name: str) -> int:
        """Process id of the newest process of that name; needs ``--log-level DEBUG``."""
        started = [e for e in self.events("process.started") if e["process"] == name]
        assert started, f"no process.started of {name}"
        return int(started[-1]["pid"])

    def kill_one(self, name: str) -> None:
        """SIGKILL to one process of the node."""
        os.kill(self.pid_of(name), signal.SIGKILL)

    def __enter__(self) -> RunningNode:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            finally:
                self.kill()

    # -- what it says

    def events(self, name: str, since: int = 0) -> list[dict[str, Any]]:
        found = []
        for line in self.lines[since:]:
            if f'"{name}"' in line:
                doc = json.loads(line)
                if doc.get("event") == name:
                    found.append(doc)
        return found

    def incoming(self) -> list[Path]:
        """Instances that are acknowledged and not indexed yet."""
        return sorted((self.data_dir / "spool" / "incoming").glob("*.dcm"))

    # -- what it knows

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data_dir / 'pe-triage.sqlite3'}"

    def show(self, study_uid: str) -> dict[str, Any] | None:
        engine = open_engine(self.database_url)
        try:
            return show(engine, study_uid, self.data_dir)
        except StudyNotFoundError:
            return None
        finally:
            engine.dispose()

    def worklist(self) -> list[dict[str, Any]]:
        engine = open_engine(self.database_url)
        try:
            return worklist(engine, self.data_dir)
        finally:
            engine.dispose()

    def wait_ended(
        self, study_uid: str, *, run: int = 1, delivered: bool = True, timeout_s: float = 90
    ) -> dict[str, Any]:
        """Wait until run `run` has ended and, if asked, nothing of it is still to be sent."""

        def ended() -> dict[str, Any] | None:
            doc = self.show(study_uid)
            if doc is None or doc["run"] < run or doc["state"] not in TERMINAL:
                return None
            sent = [d["state"] for r in doc["results"] for d in r["deliveries"]]
            if delivered and (not sent or "PENDING" in sent):
                return None
            return doc

        try:
            return wait_for(ended, timeout_s, f"end of run {run} of {study_uid}")
        except AssertionError as error:
            tail = "\n".join(self.lines[-25:])
            raise AssertionError(f"{error}\n{self.show(study_uid)}\n{tail}") from None

    def wait_ended_in(
        self, study_uid: str, states: set[str], timeout_s: float = 60
    ) -> dict[str, Any]:
        """Wait until a study stands in one of `states` and its results are delivered."""

        def there() -> dict[str, Any] | None:
            doc = self.show(study_uid)
            if doc is None or doc["state"] not in states:
                return None
            sent = [d["state"] for r in doc["results"] for d in r["deliveries"]]
            return None if "PENDING" in sent else doc

        return wait_for(there, timeout_s, f"{study_uid} in {states}: {self.show(study_uid)}")


class RunningWorker:
    """``pe-triage worker`` in a process of its own, ready or being started.

    Parameters
    ----------
    arguments
        Its flags.
    environment
        Variables beside the clean environment's.
    program
        As of `RunningNode`.
    """

    def __init__(
        self,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        self.lines: list[str] = []
        self.ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pe_triage", "worker", *map(str, arguments)],
            env={**clean_environment(), **(environment or {})},
            cwd=program,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                self.lines.append(line.rstrip("\n"))
                if '"worker.ready"' in line:
                    self.ready.set()

    def wait_ready(self, timeout_s: float = 60) -> RunningWorker:
        """Wait until it claims jobs."""
        wait_for(
            lambda: self.ready.is_set() or self.process.poll() is not None,
            timeout_s,
            "worker.ready",
        )
        assert self.ready.is_set(), "\n".join(self.lines[-20:])
        return self

    def finished(self) -> set[str]:
        """Study Instance UIDs of the runs that it has ended."""
        events = (json.loads(line) for line in self.lines if '"job.finished"' in line)
        return {event["study_uid"] for event in events}

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> RunningWorker:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


def send(
    program: str,
    node: RunningNode,
    files: Sequence[Path],
    *options: str,
    environment: dict[str, str],
) -> subprocess.CompletedProcess[str]:
    """Send files with DCMTK's storescu (or dcmsend)."""
    return subprocess.run(
        [program, *options, "-aec", "PETRIAGE", "127.0.0.1", str(node.port), *map(str, files)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
