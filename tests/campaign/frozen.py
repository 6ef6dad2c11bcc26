"""A worker that hangs past its lease and comes back: only the fencing token keeps it from ending
what another has taken over."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from tests.campaign.journal import Journal
from tests.campaign.nodes import Event
from tests.campaign.session import Session
from tests.campaign.waiting import wait_for

LEASE_S = 2.0


def freeze_once(session: Session, rng: random.Random) -> bool:
    """Stop a worker in the middle of a job until the other has claimed it, then let it go on."""
    node = session.node
    since_s = time.monotonic()
    claimed = wait_for(lambda: node.events_since(since_s, "job.claimed"), 60, "a job is claimed")
    event: Event = claimed[-1][1]
    pid = int(str(event["owner"]).rstrip("/").rpartition("/")[2])
    time.sleep(rng.uniform(0.0, 0.3))
    os.kill(pid, signal.SIGSTOP)
    try:

        def taken_over() -> bool:
            return any(
                e["job_id"] == event["job_id"] and e["owner"] != event["owner"]
                for _, e in node.events_since(since_s, "job.claimed")
            )

        wait_for(taken_over, 60, "another worker has claimed the job")
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0.0, 1.0))
    except AssertionError:
        # It had ended the job before it was stopped.
        return False
    finally:
        os.kill(pid, signal.SIGCONT)
    return True


def session_of_freezes(
    folder: Path, number: int, journal: Journal, *, times: int = 5, plant: str = ""
) -> list[str]:
    """Freeze workers again and again, check, and write everything down."""
    rng = random.Random(number)
    home = folder / f"frozen-{number}"
    shutil.rmtree(home, ignore_errors=True)
    fired: list[bool] = []
    with Session(
        home, number, plant=plant, work_s=1.5, workers=2, lease_s=LEASE_S, max_attempts=50
    ) as session:
        session.node.start()
        with session.streaming():
            fired += [freeze_once(session, rng) for _ in range(times)]
        found = session.check()
        figures = session.figures()
    trials = [{"process": "worker", "how": "stop", "fired": one} for one in fired]
    return journal.add_session("frozen", number, trials, found, figures, home)
