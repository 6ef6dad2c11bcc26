"""A PACS that refuses, fails, goes away, and keeps what it never answers for."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pe_triage.store.engine import open_engine
from pe_triage.store.outbox import Outbox
from tests.campaign.journal import Journal
from tests.campaign.pacs import CUT
from tests.campaign.session import Session
from tests.campaign.waiting import wait_for
from tests.support.node import clean_environment

AGAIN = (0xA700, 0xA701, 0xA7FF, 0x0110)
"""Tried again."""
WARNED = (0xB000, 0xB006, 0xB007)
"""Kept, with a warning."""
PARKED = (0x0122, 0xA900, 0xA9FF, 0xC000, 0xC0FF, 0xCFFF, 0x0117, 0x0124)
"""A person decides."""


def session_of_statuses(folder: Path, number: int, journal: Journal) -> list[str]:
    """Answer every status once or twice, then take everything."""
    rng = random.Random(number)
    home = folder / f"statuses-{number}"
    shutil.rmtree(home, ignore_errors=True)
    said = [*AGAIN, *WARNED, *PARKED]
    rng.shuffle(said)
    with Session(home, number) as session:
        session.pacs.script = lambda n: said[n - 1] if n <= len(said) else 0x0000
        session.node.start()
        with session.streaming():
            wait_for(lambda: session.pacs.asked >= len(said) + 4, 180, "every status was answered")
        wait_for(lambda: _states(session) <= {"SENT", "WARNING", "PARKED"}, 120, "nothing waits")
        parked = [e for e in session.node.events("delivery.ended") if e["state"] == "PARKED"]
        late = []
        if len(parked) != len(PARKED):
            late.append(f"{len(parked)} results were parked for {len(PARKED)} final refusals")
        if not all(e["error"] for e in parked):
            late.append("a result was parked without a reason")
        engine = open_engine(session.node.database_url)
        Outbox(engine, session.node.data_dir).requeue_parked(session.pacs.address)
        engine.dispose()
        found = [*late, *session.check()]
        figures = session.figures()
        session.node.close()
    trials = [{"process": "pacs", "how": f"status:{status:04X}"} for status in said]
    return journal.add_session("status", number, trials, found, figures, home)


def _states(session: Session) -> set[str]:
    return {d.state for d in session.held().deliveries}


def session_of_lost_replies(
    folder: Path, number: int, journal: Journal, *, times: int = 12
) -> list[str]:
    """Break the connection after the object was kept and before it was answered."""
    rng = random.Random(number)
    home = folder / f"replies-{number}"
    shutil.rmtree(home, ignore_errors=True)
    cut: list[int] = []

    def script(n: int) -> int:
        if len(cut) < times and rng.random() < 0.5:
            cut.append(n)
            return CUT
        return 0x0000

    with Session(home, number) as session:
        session.pacs.script = script
        session.node.start()
        with session.streaming():
            wait_for(lambda: len(cut) >= times, 240, "replies were lost")
        found = session.check()
        figures = session.figures()
        came = len(session.pacs.arrivals) - len({a.sop_instance_uid for a in session.pacs.arrivals})
        session.node.close()
    trials: list[dict[str, Any]] = [{"process": "pacs", "how": "reply lost"} for _ in cut]
    trials[-1]["came_again"] = came
    return journal.add_session("reply", number, trials, found, figures, home)


def session_of_absences(folder: Path, number: int, journal: Journal) -> list[str]:
    """The PACS goes away in the middle of deliveries and comes back, three times."""
    rng = random.Random(number)
    home = folder / f"away-{number}"
    shutil.rmtree(home, ignore_errors=True)
    trials: list[dict[str, Any]] = []
    with Session(home, number) as session:
        session.node.start()
        with session.streaming():
            for _ in range(3):
                wait_for(lambda: session.pacs.arrivals, 120, "something is delivered")
                session.pacs.stop()
                time.sleep(rng.uniform(1.0, 10.0))
                session.pacs.start()
                back_s = time.monotonic()
                wait_for(
                    lambda s=back_s: any(a.at_s > s for a in session.pacs.arrivals), 120, "a result"
                )
                trials.append(
                    {
                        "process": "pacs",
                        "how": "away",
                        "recovered_s": round(session.pacs.arrivals[-1].at_s - back_s, 2),
                    }
                )
        found = session.check()
        figures = session.figures()
        session.node.close()
    return journal.add_session("away", number, trials, found, figures, home)


def session_of_days(folder: Path, number: int, journal: Journal) -> list[str]:
    """72 hours and seven days without the PACS on a simulated clock, over both databases."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"),
        *("-m", "long or not long", "tests/contract/test_outage.py"),
    ]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False, timeout=3000
    )
    found = [] if done.returncode == 0 else [f"test_outage.py failed: {done.stdout[-500:]}"]
    trials = [{"process": "pacs", "how": "72 simulated hours: tests/contract/test_outage.py"}]
    return journal.add_session("days", number, trials, found, {}, folder / "days")
