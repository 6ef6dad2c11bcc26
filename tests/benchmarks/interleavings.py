"""Play interleavings of arrivals on the node's own store, queue and assembler, in a chunked run.

    python -m tests.benchmarks.interleavings --count 100000 --state FILE [--hours H] [--first N]

`FILE` holds the next seed and what was seen so far; the same command goes on from there. One that
breaks a rule is written to FILE with its number and does not stop the others; the exit code is then
1. Put the database's folder (``--folder``) on a tmpfs: it is thrown away.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import structlog

from tests.support.assembling import fast_engine
from tests.support.interleaving import one

CHUNK = 50
FIRST = 1_000_000
"""Other seeds than those of the suite."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1e9)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    state: dict[str, Any] = {"next": options.first, "cpu_s": 0.0, "failed": {}, "seen": {}}
    if options.state.exists():
        state.update(json.loads(options.state.read_text()))
    seen = Counter[str](state["seen"])
    end = time.monotonic() + 3600 * options.hours
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        fast_engine(Path(folder) / "node.sqlite3") as engine,
    ):
        while (left := options.first + options.count - state["next"]) > 0:
            if time.monotonic() > end:
                break
            began_s = time.process_time()
            numbers = range(state["next"], state["next"] + min(CHUNK, left))
            for number in numbers:
                try:
                    seen += one(engine, number)
                except AssertionError as error:
                    state["failed"][str(number)] = str(error)
            state["next"] = numbers.stop
            state["cpu_s"] = round(state["cpu_s"] + time.process_time() - began_s, 1)
            state["seen"] = dict(sorted(seen.items()))
            options.state.write_text(json.dumps(state, indent=1) + "\n")
    print(json.dumps(state))
    return 1 if state["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
