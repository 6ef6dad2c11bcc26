"""A disk that fails or is full: errors in system calls, and a file system without space."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaign.journal import Journal
from tests.campaign.kills import FIRE_S, wait_for_tracer
from tests.campaign.power import LoopDisk
from tests.campaign.session import Session
from tests.campaign.waiting import wait_for
from tests.support.peers import find_program

ERRORS = (
    ("receiver-1", "fsync", "EIO"),
    ("receiver-1", "writev", "ENOSPC"),
    ("receiver-1", "rename", "EIO"),
    ("receiver-1", "openat", "ENOSPC"),
    ("worker-1", "fsync", "EIO"),
    ("worker-1", "write", "ENOSPC"),
    ("coordinator", "fsync", "EIO"),
    ("coordinator", "link", "ENOSPC"),
    ("coordinator", "pwrite64", "ENOSPC"),
    ("coordinator", "fdatasync", "EIO"),
)
"""Process, system call and the error that it gets."""
PATHS = {"openat": "/spool/incoming", "write": "/results/"}
OUT_OF_RESOURCES = 0xA700


@contextmanager
def failing(pid: int, call: str, error: str, out: Path, *, when: str) -> Iterator[None]:
    """Let calls of one process fail meanwhile; `out` names those that did."""
    program = find_program("strace")
    assert program is not None
    command = [
        *(program, "-f", "-qq", "-o", str(out), "-e", f"trace={call}"),
        *("-e", f"inject={call}:error={error}:when={when}", "-p", str(pid)),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tracer:
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            wait_for_tracer(tracer)


def injected(out: Path) -> int:
    """How many calls failed."""
    try:
        return out.read_text(errors="replace").count("(INJECTED)")
    except FileNotFoundError:
        return 0


def _until_it_fails(out: Path) -> None:
    """Wait for the first call that failed; not for ever, since none may come."""
    with suppress(AssertionError):
        wait_for(lambda: injected(out), FIRE_S, "a call that fails")


def session_of_errors(folder: Path, number: int, journal: Journal) -> list[str]:
    """Each kind of error once, for some seconds, in the process that meets it."""
    rng = random.Random(number)
    home = folder / f"errors-{number}"
    shutil.rmtree(home, ignore_errors=True)
    trials: list[dict[str, Any]] = []
    with Session(home, number) as session:
        session.node.start()
        with session.streaming():
            for process, call, error in rng.sample(ERRORS, 5):
                before = session.scanner.statuses[OUT_OF_RESOURCES]
                out = home / "strace.out"
                out.unlink(missing_ok=True)
                # Now and then, as a bad block does, or every time, as a dead disk.
                when = rng.choice(["1+3", "2+2", "1+"])
                if call in PATHS:
                    # Also code is opened and logs are written: every one would fail.
                    when = rng.choice(["3+7", "5+5"])
                with failing(session.node.pid_of(process), call, error, out, when=when):
                    _until_it_fails(out)
                    time.sleep(rng.uniform(1.0, 3.0))
                trials.append(
                    {
                        "process": process.removesuffix("-1"),
                        "how": f"{call}:{error}:{when}",
                        "calls": injected(out),
                        "fired": injected(out) > 0,
                        "refused": session.scanner.statuses[OUT_OF_RESOURCES] - before,
                    }
                )
        # A worker waits 10 s after the first fault of its machine, and twice as long after each.
        found = session.check(300)
        figures = session.figures()
        session.node.close()
    return journal.add_session("disk-error", number, trials, found, figures, home)


def fill(folder: Path, leave_bytes: int) -> Path:
    """Take all space but `leave_bytes`."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    take = free.f_bavail * free.f_frsize - leave_bytes
    with ballast.open("wb") as file:
        try:
            for _ in range(max(0, take) >> 16):
                file.write(b"\0" * (1 << 16))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            pass
    return ballast


def session_of_fillings(folder: Path, number: int, journal: Journal) -> list[str]:
    """Fill the node's own small disk, below its floor and to the last byte; free it again."""
    rng = random.Random(number)
    home = folder / f"full-{number}"
    shutil.rmtree(home, ignore_errors=True)
    disk = LoopDisk(home / "disk", size_mb=32)
    disk.attach()
    trials: list[dict[str, Any]] = []
    try:
        # Without a floor of free space the disk is really met full; with one it is refused before.
        with Session(
            home, number, data_dir=disk.mount / "data", min_free_mb=number % 2 * 4
        ) as session:
            session.node.start()
            with session.streaming():
                for leave in (0, 300_000, 0):
                    wait_for(lambda: session.scanner.acked, 60, "something is received")
                    before = session.scanner.statuses[OUT_OF_RESOURCES]
                    ballast = fill(disk.mount, leave)
                    refused = _refuses(session, before)
                    time.sleep(rng.uniform(0.0, 4.0))
                    ballast.unlink()
                    freed_s = time.monotonic()
                    recovered_s = (
                        wait_for(partial(session.scanner.first_ack_after, freed_s), 120, "0000")
                        - freed_s
                    )
                    trials.append(
                        {
                            "how": f"full:{leave}",
                            "refused": session.scanner.statuses[OUT_OF_RESOURCES] - before,
                            "recovered_s": round(recovered_s, 2),
                            "fired": refused,
                        }
                    )
            found = session.check(300)
            figures = session.figures()
            session.node.close()
    finally:
        disk.detach()
    return journal.add_session("disk-full", number, trials, found, figures, home)


def _refuses(session: Session, before: int) -> bool:
    """Whether the node answers A700 within the time."""
    try:
        wait_for(lambda: session.scanner.statuses[OUT_OF_RESOURCES] > before, 60, "A700")
    except AssertionError:
        return False
    return True
