"""The fault campaign: ``python -m tests.campaign --state DIR [--hours H] [--kinds …] [--count N]``.

Goes on where an earlier run of the same DIR was stopped or killed; docs/reliability.md says what
is tried and what was found. ``--jobs N`` runs N nodes beside one another. ``--planted NAME`` puts a
fault into the node and passes only if the campaign finds it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from tests.campaign import (
    clock,
    database,
    disk,
    frozen,
    kills,
    network,
    peers,
    planted,
    power,
)
from tests.campaign.journal import Journal, Trial, summary
from tests.campaign.waiting import PATIENCE
from tests.support.peers import find_program

Run = Callable[[Path, int, Journal], list[str]]
PART_SESSIONS = 100_000
"""Session numbers of one job of ``--jobs``: no two make the same studies."""


def _kill(folder: Path, number: int, journal: Journal) -> list[str]:
    # Every eighth node starts its processes as the product does.
    return kills.session_of_kills(folder, number, journal, forked=number % 8 != 7)


def _database(folder: Path, number: int, journal: Journal) -> list[str]:
    run = (database.session_of_sqlite_locks, database.session_of_postgres_outages)[number % 2]
    return run(folder, number, journal)


KINDS: dict[str, Run] = {
    "kill": _kill,
    "power": power.session_of_cuts,
    "frozen": frozen.session_of_freezes,
    "disk-error": disk.session_of_errors,
    "disk-full": disk.session_of_fillings,
    "database": _database,
    "clock": clock.session_of_jumps,
    "status": peers.session_of_statuses,
    "reply": peers.session_of_lost_replies,
    "away": peers.session_of_absences,
    "days": peers.session_of_days,
    "network": network.session_of_partitions,
}
COUNTS = {
    "kill": 1000, "power": 200, "frozen": 50, "disk-error": 50, "disk-full": 20, "database": 20,
    "clock": 24, "status": 60, "reply": 48, "away": 12, "days": 1, "network": 40,
}  # fmt: skip
"""How many faults of each kind are wanted in all."""


def lacking(kind: str) -> str | None:
    """Why a kind cannot be tried on this machine; None where it can."""
    if kind in ("power", "disk-full"):
        return power.usable()
    if kind == "network":
        return network.usable()
    if kind == "disk-error" and find_program("strace") is None:
        return "strace is not installed"
    if kind == "clock" and clock.compiler() is None:
        return "no C compiler (cc) is installed; the Debian package gcc brings it"
    return None


def journals(state: Path) -> list[Trial]:
    """Every trial of every job of a campaign."""
    return [t for path in sorted(state.glob("journal-*.jsonl")) for t in Journal(path).trials]


def one_job(options: argparse.Namespace, folder: Path) -> None:
    """Run sessions until everything wanted was tried, or the time is over."""
    journal = Journal(options.state / f"journal-{options.part}.jsonl")
    journal.first = 1 + options.part * PART_SESSIONS
    end = time.monotonic() + 3600 * options.hours
    kinds = [kind for kind in options.kinds if lacking(kind) is None]
    while time.monotonic() < end:
        done = journals(options.state)
        todo = [
            kind
            for kind in kinds
            if sum(t["kind"] == kind and t.get("fired", True) for t in done)
            < (options.count or COUNTS[kind])
        ]
        if not todo:
            return
        # What is furthest from its goal, so that a short run has something of each.
        share = {
            kind: sum(t["kind"] == kind for t in done) / (options.count or COUNTS[kind])
            for kind in todo
        }
        # Jobs side by side begin with different ones.
        kind = min(todo[options.part % len(todo) :] + todo, key=lambda k: share[k])
        number = journal.sessions
        try:
            found = KINDS[kind](folder, number, journal)
        except Exception as error:
            traceback.print_exc()
            # What it had tried is not counted: nothing was checked.
            journal.add(kind=kind, session=number, fired=False, broken=str(error)[:300])
            continue
        for line in found:
            print(f"VIOLATION {kind} {number}: {line}", flush=True)


def many_jobs(arguments: Sequence[str], jobs: int) -> None:
    """Run this command several times side by side."""
    command = [sys.executable, "-m", "tests.campaign", *arguments]
    running = [subprocess.Popen([*command, "--part", str(part)]) for part in range(1, jobs + 1)]
    try:
        for process in running:
            process.wait()
    finally:
        for process in running:
            process.terminate()


PLANTED_SESSIONS = 4
"""Within so many sessions a planted fault must be found."""


def find_planted(name: str, folder: Path) -> list[str]:
    """What the campaign finds of a planted fault."""
    journal = Journal(folder / "journal-planted.jsonl")
    for number in range(1, PLANTED_SESSIONS + 1):
        if name == "no-fsync":
            found = power.session_of_cuts(folder, number, journal, cuts=3, plant=name)
        elif name == "no-fence":
            found = frozen.session_of_freezes(folder, number, journal, times=3, plant=name)
        else:
            found = kills.session_of_kills(
                *(folder, number, journal),
                starts=0, halves=1, children=4, only=("receiver-1",), plant=name,
            )  # fmt: skip
        if found:
            return found
    return []


def main() -> int:
    """Run, print the figures, and return 1 where the invariant was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder of the journals")
    parser.add_argument("--hours", type=float, default=1e9)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--count", type=int, help="faults of each kind; default: by kind")
    parser.add_argument("--jobs", type=int, default=1, help="nodes beside one another")
    parser.add_argument("--part", type=int, default=0, help="which of --jobs; set by itself")
    parser.add_argument("--folder", type=Path, help="for the nodes' data; default: a temporary one")
    parser.add_argument("--patience", type=float, help="factor of the time limits; default: 1")
    parser.add_argument("--planted", choices=sorted(planted.PLANTS))
    parser.add_argument("--figures", action="store_true", help="only print the figures")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if options.patience:
        os.environ[PATIENCE] = str(options.patience)
    # So that nodes, file systems and network namespaces are taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.planted:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            found = find_planted(options.planted, Path(temporary))
        print(json.dumps({"planted": options.planted, "found": found}, indent=1))
        return 0 if found else 1
    for kind in options.kinds:
        if reason := lacking(kind):
            print(f"{kind} is left out: {reason}", flush=True)
    if options.jobs > 1 and not options.part:
        many_jobs(sys.argv[1:], options.jobs)
    elif not options.figures:
        with tempfile.TemporaryDirectory(
            dir=options.folder, ignore_cleanup_errors=True
        ) as temporary:
            one_job(options, Path(temporary))
    if options.part:
        return 0
    figures = summary(journals(options.state))
    print(json.dumps(figures, indent=1))
    return 1 if figures["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
