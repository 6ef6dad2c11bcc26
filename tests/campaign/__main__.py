"""The fault campaign: ``python -m tests.campaign --state DIR [--hours H] [--kinds …] [--count N]``.

Goes on where an earlier run of the same DIR was stopped or killed; docs/reliability.md says what
is tried and what was found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from tests.campaign.journal import Journal, summary
from tests.campaign.kills import session_of_kills

Run = Callable[[Path, int, Journal], list[str]]


def kills(folder: Path, number: int, journal: Journal) -> list[str]:
    """Some twenty kills; every eighth node starts its processes as the product does."""
    return session_of_kills(folder, number, journal, forked=number % 8 != 7)


KINDS: dict[str, Run] = {"kill": kills}


def main() -> int:
    """Run, print the figures, and return 1 where the invariant was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder of the journal")
    parser.add_argument("--hours", type=float, default=1e9)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--count", type=int, default=1000, help="faults of each kind in all")
    parser.add_argument("--folder", type=Path, help="for the nodes' data; default: a temporary one")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    journal = Journal(options.state / "journal.jsonl")
    end = time.monotonic() + 3600 * options.hours
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        todo = True
        while todo and time.monotonic() < end:
            todo = False
            for kind in options.kinds:
                if journal.count(kind) < options.count and time.monotonic() < end:
                    todo = True
                    found = KINDS[kind](Path(temporary), journal.sessions, journal)
                    for line in found:
                        print(f"VIOLATION {kind}: {line}", flush=True)  # noqa: T201
    figures = summary(journal.trials)
    print(json.dumps(figures, indent=1))  # noqa: T201
    return 1 if figures["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
