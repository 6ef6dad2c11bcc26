"""Kill -9 of each process: at a moment by chance, at a named event, at a system call."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.journal import Journal
from tests.campaign.nodes import CampaignNode, Event, alive
from tests.campaign.session import Session
from tests.campaign.waiting import patience, wait_for
from tests.support.peers import find_program

CHILDREN = ("receiver-1", "worker-1", "coordinator")
STEPS = {
    "receiver-1": ("association.opened", "instance.stored", "instance.stored"),
    "worker-1": ("job.claimed", "study.evaluated", "job.finished"),
    "coordinator": ("instances.indexed", "study.complete", "delivery.ended"),
    "supervisor": ("job.claimed", "delivery.ended", "association.opened"),
}
CALLS: dict[str, dict[str, int]] = {
    "receiver-1": {
        "openat": 6, "writev": 10, "fsync": 12, "rename": 10, "close": 8, "sendto": 10,
        "recvfrom": 12, "accept4": 1,
    },
    "worker-1": {
        "openat": 12, "write": 4, "fsync": 5, "rename": 2, "pwrite64": 8, "fdatasync": 4,
        "unlink": 2, "mkdir": 2,
    },
    "coordinator": {
        "openat": 8, "link": 10, "unlink": 10, "fsync": 10, "fdatasync": 3, "pwrite64": 10,
        "sendto": 5, "connect": 1, "mkdir": 1, "getdents64": 4,
    },
    "supervisor": {"poll": 12, "wait4": 3},
}  # fmt: skip
"""System calls on entering which a process is killed, and the last that is counted to;
``strace`` counts each thread's own."""
START_CALLS: dict[bool, dict[str, int]] = {
    True: {
        "pwrite64": 50, "fdatasync": 5, "openat": 280, "fsync": 1, "unlink": 1, "mkdir": 9,
        "rename": 5, "write": 15, "pread64": 15,
    },
    False: {
        "openat": 60, "flock": 1, "bind": 1, "listen": 1, "sendmsg": 3, "pipe2": 5, "poll": 6,
        "write": 3, "socket": 2, "pread64": 6,
    },
}  # fmt: skip
"""The same for the start of a supervisor, with a database that is still empty or not."""
FIRE_S = 15.0
WORK_EVENT = {
    "receiver-1": ("association.opened",),
    "worker-1": ("job.claimed",),
    "coordinator": ("instances.indexed", "delivery.ended"),
}
RESUME_S = 90.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where to kill."""

    process: str
    how: str
    """``moment``, ``event:NAME`` or ``call:NAME:N``."""


def choose(rng: random.Random, process: str, *, strace: bool = True) -> Point:
    """One point by chance."""
    kinds = ["moment", "event", "call", "call"] if strace else ["moment", "event"]
    how = rng.choice(kinds)
    if how == "event":
        how = f"event:{rng.choice(STEPS[process])}"
    elif how == "call":
        name = rng.choice(list(CALLS[process]))
        how = f"call:{name}:{rng.randint(1, CALLS[process][name])}"
    return Point(process=process, how=how)


def kill_at(node: CampaignNode, point: Point, pid: int, rng: random.Random) -> float | None:
    """Kill `pid` there; when it died, or None where the point was not reached in time."""
    how, _, what = point.how.partition(":")
    if how == "moment":
        time.sleep(rng.uniform(0.0, 1.5))
        return _kill(pid)
    if how == "event":
        return _kill_at_event(node, point.process, what, pid, rng)
    name, _, when = what.partition(":")
    return _kill_at_call(pid, name, int(when))


def _kill(pid: int) -> float | None:
    if not alive(pid):
        return None
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def _kill_at_event(
    node: CampaignNode, process: str, name: str, pid: int, rng: random.Random
) -> float | None:
    reached = threading.Event()
    delay_s = rng.choice([0.0, 0.0, rng.uniform(0.0, 0.03)])

    def listen(event: Event) -> None:
        if event.get("event") == name and not reached.is_set():
            if delay_s:
                time.sleep(delay_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            reached.set()

    with node.listening(listen):
        if not reached.wait(FIRE_S):
            # Such as the event of a start, which comes only when another process has died.
            return _kill(pid) if process == "supervisor" else None
    return time.monotonic()


def strace_of(name: str, when: int) -> list[str]:
    """Command that kills on entering the `when`-th call `name` of a thread."""
    program = find_program("strace")
    assert program is not None
    return [program, "-qq", "-o", "/dev/null", "-e", f"trace={name}",
            "-e", f"inject={name}:signal=KILL:when={when}"]  # fmt: skip


def _kill_at_call(pid: int, name: str, when: int) -> float | None:
    command = [*strace_of(name, when), "-f", "-p", str(pid)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tracer:
        until = time.monotonic() + FIRE_S
        while time.monotonic() < until and alive(pid) and tracer.poll() is None:
            time.sleep(0.05)
        died = time.monotonic() if not alive(pid) else None
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
            try:
                tracer.wait(5)
            except subprocess.TimeoutExpired:
                tracer.kill()
    return died


def resumed(session: Session, process: str, died_s: float) -> float | None:
    """Seconds from the death until a new process of that name did its work; None: it never did.

    Work that waits for nothing but the process: for a receiver an instance answered 0000, for a
    worker a job claimed, for a coordinator an instance indexed or a result delivered.
    """
    until = time.monotonic() + RESUME_S * patience()
    ready_s: float | None = None
    while time.monotonic() < until:
        if ready_s is None:
            ready = [
                when
                for when, event in session.node.events_since(died_s, "process.ready")
                if event.get("process") == process
            ]
            ready_s = ready[0] if ready else None
        elif process == "receiver-1":
            first_s = session.scanner.first_ack_after(ready_s)
            if first_s is not None:
                return first_s - died_s
        else:
            work = session.node.events_since(ready_s, *WORK_EVENT[process])
            if work:
                return work[0][0] - died_s
        time.sleep(0.05)
    return None


def restart(session: Session, died_s: float, pids: list[int]) -> tuple[float, list[str]]:
    """Start a node whose supervisor is dead; (recovery, orphans as violations)."""
    node = session.node
    gone = node.wait_gone(pids)
    node.kill()
    # What a dying receiver still answered is no sign of the next life.
    gone_s = time.monotonic()
    node.start()
    wait_for(lambda: session.scanner.first_ack_after(gone_s), 120, "an answer after a restart")
    orphans = [] if gone else ["a process outlived its supervisor"]
    return (session.scanner.first_ack_after(gone_s) or gone_s) - died_s, orphans


def start_and_be_killed(session: Session, rng: random.Random, *, empty: bool) -> dict[str, Any]:
    """Start the supervisor so that it is killed at a system call of its start.

    Parameters
    ----------
    empty
        Whether the database is still to be made.
    """
    calls = START_CALLS[empty]
    name = rng.choice(list(calls))
    when = rng.randint(1, calls[name])
    tracers: list[subprocess.Popen[bytes]] = []

    def attach(pid: int) -> None:
        command = [*strace_of(name, when), "-p", str(pid)]
        tracers.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        wait_for(lambda: _traced(pid), 30, "strace is attached")

    started = session.node.start(attach=attach)
    how = f"call:{name}:{when}"
    if started:
        # It got by without that call: killed a moment later, then.
        tracers[0].send_signal(signal.SIGINT)
        how = "moment"
    wait_for_tracer(tracers[0])
    pids = session.node.pids()
    if started:
        os.kill(session.node.supervisor, signal.SIGKILL)
    gone = session.node.wait_gone(pids)
    session.node.kill()
    return {"process": "supervisor", "how": how, "at_start": True, "orphan": not gone}


def _traced(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    return "TracerPid:\t0" not in status


def wait_for_tracer(tracer: subprocess.Popen[bytes]) -> None:
    try:
        tracer.wait(10)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait(10)


def session_of_kills(
    folder: Path,
    number: int,
    journal: Journal,
    *,
    forked: bool = True,
    starts: int = 2,
    halves: int = 2,
    children: int = 6,
    only: Sequence[str] = CHILDREN,
    plant: str = "",
) -> list[str]:
    """Kill at the start, then each process in turn and the supervisor; check; write all down.

    Parameters
    ----------
    starts
        Kills of the supervisor while it starts.
    halves, children
        Lives of the node, and kills of its other processes in each; a supervisor's death lies
        between two lives.
    only
        Which of the other processes.
    plant
        See `planted`.
    """
    rng = random.Random(number)
    home = folder / f"kills-{number}"
    shutil.rmtree(home, ignore_errors=True)
    late: list[str] = []
    trials: list[dict[str, Any]] = []
    with Session(home, number, forked=forked, plant=plant) as session:
        if forked and find_program("strace"):
            for turn in range(starts):
                trials.append(start_and_be_killed(session, rng, empty=turn == 0))
            late += ["a process outlived its supervisor" for t in trials if t["orphan"]]
        session.node.start()
        with session.streaming():
            for half in range(halves):
                for turn in range(children):
                    trials.append(_one(session, only[turn % len(only)], rng, late))
                if half < halves - 1:
                    trials.append(_one(session, "supervisor", rng, late))
        found = [*late, *session.check()]
        figures = session.figures()
    start = "fork" if forked else "spawn"
    return journal.add_session(
        "kill", number, [{"start": start, **t} for t in trials], found, figures, home
    )


def _one(session: Session, process: str, rng: random.Random, late: list[str]) -> dict[str, Any]:
    node = session.node
    point = choose(rng, process, strace=find_program("strace") is not None)
    pid, pids = node.pid_of(process), node.pids()
    died_s = kill_at(node, point, pid, rng)
    trial: dict[str, Any] = {
        "process": process.removesuffix("-1"),
        "how": point.how,
        "fired": died_s is not None,
    }
    if died_s is None:
        return trial
    recovered_s: float | None
    if process == "supervisor":
        recovered_s, orphans = restart(session, died_s, pids)
        late += orphans
    else:
        recovered_s = resumed(session, process, died_s)
        waits = [e.get("restart_in_s", 0.0) for _, e in node.events_since(died_s, "process.died")]
        if waits:
            trial["waited_s"] = waits[0]
    if recovered_s is None:
        late.append(f"{process} did not work again within {RESUME_S:g} s after {point.how}")
    else:
        trial["recovered_s"] = round(recovered_s, 2)
    return trial
