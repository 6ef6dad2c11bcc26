"""What a start costs: of the commands that only look, and of a node until it can receive and work.

    python tests/benchmarks/startup.py [--quick] [--rounds 5] [--program FOLDER]

Of each command the least processor time and wall time of some rounds. Of ``pe-triage serve``, with
the bundle that serves by default, a new data directory, and SQLite: the seconds until
``node.ready`` (the node takes images) and until the worker is ready, with `ahead` and without, and
what all its processes had of the processor by then; then each process is killed (SIGKILL), and the
seconds are counted until another in its place is ready. ``--program`` is a folder that holds
another version's package, measured in turns with this one. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.health import Phase, Signs
from pe_triage.store.migrate import upgrade
from tests.support.node import RunningNode, clean_environment, wait_for

ROOT = Path(__file__).resolve().parents[2]


def once(program: Path, arguments: list[str]) -> dict[str, float]:
    """Processor seconds and wall seconds of one command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "pe_triage", *arguments],
        cwd=program, env=clean_environment(), check=False, capture_output=True,
    )  # fmt: skip
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor_s": used, "wall_s": ended - started}


def commands(scratch: Path) -> dict[str, list[str]]:
    """Those that only look, on a node that holds nothing."""
    upgrade(f"sqlite:///{scratch / 'pe-triage.sqlite3'}")
    signs = Signs(scratch / "health")
    signs.expect("worker", awaited=True)
    signs.ready("worker")
    signs.enter(Phase.RUNNING)
    place = ["--data-dir", str(scratch)]
    return {
        "--help": ["--help"],
        "health FILE": ["health", str(scratch / "health")],
        "studies": ["studies", *place],
        "show UID": ["show", "1.2.3", *place],
        "deliveries list": ["deliveries", "list", *place],
        "watch": ["watch", *place],
    }


def processor_s(node: RunningNode) -> float:
    """Processor time of a node's processes."""
    assert node.process is not None
    tree = psutil.Process(node.process.pid)
    times = [p.cpu_times() for p in (tree, *tree.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def node_start(program: Path, data_dir: Path, *, ahead: bool) -> dict[str, float]:
    """Seconds of one start."""
    started = time.monotonic()
    # A new directory holds no database yet: making it belongs to the start.
    with RunningNode(
        data_dir, settings={"ahead": ahead, "log_level": "DEBUG"}, program=program
    ) as node:
        found = {"ready_s": time.monotonic() - started, "ready_processor_s": processor_s(node)}
        wait_for(
            lambda: [e for e in node.events("process.ready") if "worker" in e["process"]],
            600, "a worker",
        )  # fmt: skip
        found["worker_s"] = time.monotonic() - started
        found["worker_processor_s"] = processor_s(node)
        for role in ("receiver-1", "coordinator", "worker-1"):
            found[f"{role}_again_s"] = again(node, role)
    return found


def again(node: RunningNode, role: str) -> float:
    """Seconds from a process's death until another in its place is ready."""
    seen, killed = len(node.lines), time.monotonic()
    node.kill_one(role)
    wait_for(
        lambda: [e for e in node.events("process.ready", since=seen) if e["process"] == role],
        600, f"another {role}",
    )  # fmt: skip
    return time.monotonic() - killed


def least(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The least of each figure."""
    return {name: round(min(r[name] for r in rounds), 2) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, one start of a node")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--program", type=Path, help="another version, in turns with this one")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    programs = {"this": ROOT} | ({"other": options.program} if options.program else {})
    taken: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in programs}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(rounds):
            for command, arguments in commands(Path(scratch)).items():
                for name, program in programs.items():
                    taken[name].setdefault(command, []).append(once(program, arguments))
        for number in range(1 if options.quick else rounds):
            for ahead in (False, True):
                for name, program in programs.items():
                    place = Path(scratch) / f"node-{name}-{ahead}-{number}"
                    words = f"serve, {'ahead' if ahead else 'not ahead'}"
                    start = node_start(program, place, ahead=ahead)
                    taken[name].setdefault(words, []).append(start)
    found: dict[str, Any] = {
        name: {what: least(of_one) for what, of_one in of.items()} for name, of in taken.items()
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
