"""What was tried, one JSON object a line: a run that is killed goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Trial = dict[str, Any]


class Journal:
    """Appends trials to a file; `FILE` may end in half a line, which is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first = 1
        path.parent.mkdir(parents=True, exist_ok=True)
        self.trials: list[Trial] = list(self._read())

    def _read(self) -> Iterator[Trial]:
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def add(self, **trial: Any) -> None:
        """Write one trial down, durably."""
        broken_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        trial = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **trial}
        self.trials.append(trial)
        with self.path.open("a") as file:
            # A run that was killed may have left half a line.
            file.write("\n" * broken_off + json.dumps(trial) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def add_session(
        self,
        kind: str,
        session: int,
        trials: Sequence[Trial],
        violations: Sequence[str],
        figures: Mapping[str, int],
        home: Path,
    ) -> list[str]:
        """Write down what one session tried, with what its check found at the last of it.

        The session's folder is kept where something was found, and thrown away otherwise.
        """
        for number, trial in enumerate(trials, 1):
            last = {"violations": list(violations), **figures} if number == len(trials) else {}
            self.add(kind=kind, session=session, **trial, **last)
        if not violations:
            shutil.rmtree(home, ignore_errors=True)
        return list(violations)

    @property
    def sessions(self) -> int:
        """Number that the next session takes: never one that was used."""
        return max([self.first, *(1 + int(t.get("session", 0)) for t in self.trials)])


def summary(trials: list[Trial]) -> dict[str, Any]:
    """Counts by kind and part, violations, and how long each part took to be back at work.

    Processes that start as the product's do (``spawn``) are told apart from those that are forked.
    """
    fired = [t for t in trials if t.get("fired", True)]
    counts = Counter(
        (t["kind"], t.get("process", ""), t.get("how", "").partition(":")[0]) for t in fired
    )
    recovered: dict[str, list[float]] = {}
    for trial in fired:
        if trial.get("recovered_s") is not None:
            started = "spawn" if trial.get("start") == "spawn" else ""
            key = " ".join(filter(None, (trial["kind"], trial.get("process"), started)))
            recovered.setdefault(key, []).append(trial["recovered_s"])
    return {
        "faults": len(fired),
        "by_kind": dict(sorted(Counter(t["kind"] for t in fired).items())),
        "counts": {" ".join(filter(None, key)): n for key, n in sorted(counts.items())},
        "violations": sum(len(t.get("violations", ())) for t in trials),
        "sessions_broken_off": sum("broken" in t for t in trials),
        "recovery_s": {
            key: {"median": round(statistics.median(of), 2), "worst": max(of)}
            for key, of in sorted(recovered.items())
        },
        "studies": sum(t.get("studies", 0) for t in trials),
        "instances": sum(t.get("instances", 0) for t in trials),
        "sessions": len({t.get("session") for t in trials}),
    }
