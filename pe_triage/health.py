"""Signs of life of a running node or worker, in a small file that a probe reads.

A connection to the DICOM port says little: the listening socket belongs to the supervisor, and
takes connections while no receiver serves them. So each process says when its main loop last went
round, the parent writes that down every few seconds, and `pe-triage health` judges the file. No
port, no secret, and nothing of a patient.

The database plays no part in it. Restarting a node does not bring a database back, and images are
taken in without one.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pe_triage.repeating import repeating

WRITE_EVERY_S = 2.0
BEAT_EVERY_S = 2.0
"""How often a process says that its loop went round, at most."""

STALE_S = 30.0
"""Age at which the file shows that the program that wrote it hangs, or is gone."""
SILENT_S = 600.0
"""Silence of one process's loop that shows that it hangs: longer than any wait for a database."""
DRAIN_S = 600.0
"""An ending that lasts longer hangs. Whoever stops a node kills it long before."""

Clock = Callable[[], float]


class Phase(StrEnum):
    """What the program is doing."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(slots=True)
class _Loop:
    awaited: bool
    ready: bool = False
    turned_at: float | None = None


class Signs:
    """Collects signs of life and writes them down.

    Parameters
    ----------
    path
        File to write; None: nothing is written.
    clock
        Monotonic seconds, the same for every process of the machine.
    """

    def __init__(self, path: Path | None, *, clock: Clock = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._loops: dict[str, _Loop] = {}
        self._phase = Phase.STARTING
        self._written_at = float("-inf")
        self._lock = threading.Lock()

    def expect(self, name: str, *, awaited: bool) -> None:
        """Say that there is, or should be, a process of this name, which is not ready yet.

        Parameters
        ----------
        awaited
            Whether the program is ready only once this process is.
        """
        self._loops[name] = _Loop(awaited=awaited)

    def ready(self, name: str) -> None:
        """Say that a process can do its work now; it may be waiting for its turn to."""
        self._loops[name].ready = True

    def turned(self, name: str) -> None:
        """Say that a process's loop went round."""
        self._loops[name].turned_at = self._clock()

    def enter(self, phase: Phase) -> None:
        """Say what the program is doing from now on."""
        self._phase = phase
        self.write()

    def tick(self) -> None:
        """Write, if it is time to."""
        if self._clock() - self._written_at >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Replace the file at once. A file that cannot be written is a bad sign by itself."""
        self._written_at = self._clock()
        if self._path is None:
            return
        document = {
            "phase": self._phase,
            "written_at": self._written_at,
            "pid": os.getpid(),
            "loops": {
                name: {"awaited": it.awaited, "ready": it.ready, "turned_at": it.turned_at}
                for name, it in self._loops.items()
            },
        }
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with self._lock, contextlib.suppress(OSError):
            temporary.write_text(json.dumps(document), encoding="ascii")
            temporary.replace(self._path)

    @contextlib.contextmanager
    def written_down(self, stop: threading.Event) -> Iterator[None]:
        """Write from a thread of its own, for a program whose loop is busy for minutes.

        Parameters
        ----------
        stop
            Set where the program has been told to end.
        """

        def turn() -> float:
            if stop.is_set():
                self._phase = Phase.STOPPING
            self.write()
            return WRITE_EVERY_S

        try:
            with repeating(turn, WRITE_EVERY_S, name="health"):
                yield
        finally:
            if stop.is_set():
                # However soon it ends after it was told to.
                self.enter(Phase.STOPPING)


class Beats:
    """Limits how often a loop tells that it went round."""

    def __init__(self, tell: Callable[[], None], *, clock: Clock = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._told_at = float("-inf")

    def __call__(self) -> None:
        """Tell, unless it was told a moment ago."""
        now = self._clock()
        if now - self._told_at >= BEAT_EVERY_S:
            self._told_at = now
            self._tell()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a probe is told."""

    well: bool
    words: str


def judge(path: Path, *, ready: bool, now: float | None = None) -> Verdict:
    """Judge what a node or worker last wrote.

    Parameters
    ----------
    path
        The file that its setting ``health_file`` names.
    ready
        Ask whether it can do its work, and not only whether it lives.
    now
        Monotonic seconds; default: now.
    """
    try:
        document = json.loads(path.read_text(encoding="ascii"))
        return _judged(document, time.monotonic() if now is None else now, ready=ready)
    except FileNotFoundError:
        return Verdict(well=False, words=f"no health file {path}: it has not started")
    except OSError as error:
        return Verdict(well=False, words=f"cannot read {path}: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Verdict(well=False, words=f"{path} is no health file")


def _judged(document: dict[str, Any], now: float, *, ready: bool) -> Verdict:
    phase, loops = Phase(document["phase"]), document["loops"]
    age_s = now - float(document["written_at"])
    limit_s = DRAIN_S if phase is Phase.STOPPING else STALE_S
    # A machine's clock of this kind begins anew with each start: an older file lies in the future.
    if not 0.0 <= age_s <= limit_s:
        return Verdict(
            well=False, words=f"nothing was written for {age_s:.0f} s: it hangs or ended"
        )
    if phase is Phase.STOPPING:
        return Verdict(well=not ready, words="it is stopping")
    for name, loop in loops.items():
        if ready and loop["awaited"] and not loop["ready"]:
            return Verdict(well=False, words=f"{name} is not ready yet")
        if loop["turned_at"] is not None and now - loop["turned_at"] > SILENT_S:
            silent_s = now - loop["turned_at"]
            return Verdict(well=False, words=f"{name} hangs: silent for {silent_s:.0f} s")
    count = sum(bool(loop["ready"]) for loop in loops.values())
    return Verdict(well=True, words=f"{phase}, {count} of {len(loops)} processes ready")
