"""Play interleavings of arrivals on the node's own store, queue and assembler, in a chunked run.

    python -m tests.benchmarks.interleavings --count 100000 --state FILE [--hours H]

`FILE` holds the next seed and what was seen so far; the same command goes on from there. Put the
database's folder (``--folder``) on a tmpfs: it is thrown away.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import structlog

from tests.support.assembling import fast_engine
from tests.support.interleaving import many

CHUNK = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1e9)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    seen: Counter[str] = Counter()
    if options.state.exists():
        seen.update(json.loads(options.state.read_text()))
    end = time.monotonic() + 3600 * options.hours
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        fast_engine(Path(folder) / "node.sqlite3") as engine,
    ):
        while seen["interleavings"] < options.count and time.monotonic() < end:
            # Other seeds than those of the suite.
            first = 1_000_000 + seen["interleavings"]
            seen += many(engine, first, min(CHUNK, options.count - seen["interleavings"]))
            options.state.write_text(json.dumps(dict(sorted(seen.items())), indent=1) + "\n")
    print(json.dumps(dict(sorted(seen.items()))))


if __name__ == "__main__":
    main()
