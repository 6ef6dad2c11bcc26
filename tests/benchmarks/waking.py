"""How long a thread that was woken waits for a processor, beside busy threads of each nice value.

    python tests/benchmarks/waking.py [--quick] [--answers 600]

Why what works ahead has no nice value of its own (`pe_triage.infer.background`). A thread does what
a receiver does for one image, four times half a millisecond of work with a moment's sleep between,
twenty times a second, and says how long that took; two other processes compute all the while, of
nice value 0, 5, 10 or 19, in turns. Where nothing else wants the machine the nice values make no
difference worth the name; what they do beside work of higher weight, a control group with many
shares say, depends on the kernel. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

NICE_VALUES = (None, 0, 5, 10, 19)
"""None: nobody else of ours computes."""
PIECES, PIECE_S, MOMENT_S, PAUSE_S = 4, 0.0005, 0.0005, 0.05
TURN = 50
"""Answers before the next nice value has its turn."""


@contextmanager
def busy(nice: int | None, processes: int) -> Iterator[None]:
    """So many processes that compute while the block runs."""
    program = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(program) for _ in range(0 if nice is None else processes)]
    try:
        for process in running:
            os.setpriority(os.PRIO_PROCESS, process.pid, nice or 0)
        time.sleep(0.5)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def answer_ms() -> float:
    """Do what one image takes; milliseconds on the clock."""
    time.sleep(PAUSE_S)
    started = time.monotonic()
    for _ in range(PIECES):
        worked = time.thread_time()
        while time.thread_time() - worked < PIECE_S:
            pass
        time.sleep(MOMENT_S)
    return 1000 * (time.monotonic() - started)


def described(times_ms: list[float]) -> dict[str, float]:
    """Percentiles of what was measured."""
    ordered = sorted(times_ms)
    return {
        "median_ms": round(statistics.median(ordered), 1),
        "p90_ms": round(ordered[int(0.9 * len(ordered))], 1),
        "p99_ms": round(ordered[int(0.99 * len(ordered))], 1),
        "longest_ms": round(ordered[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 answers of each")
    parser.add_argument("--answers", type=int, default=600, help="of each nice value")
    parser.add_argument("--processes", type=int, default=2, help="that compute beside it")
    options = parser.parse_args()
    answers = 100 if options.quick else options.answers
    found: dict[int | None, list[float]] = {nice: [] for nice in NICE_VALUES}
    while any(len(times) < answers for times in found.values()):
        for nice, times in found.items():
            with busy(nice, options.processes):
                times.extend(answer_ms() for _ in range(min(TURN, answers - len(times))))
    print(
        json.dumps(
            {
                "kernel": platform.release(),
                "cores": os.cpu_count(),
                "answers_of_each": answers,
                "beside": {
                    "nobody" if nice is None else f"nice {nice}": described(times)
                    for nice, times in found.items()
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
