"""The wall clock jumps under a running node, forwards and backwards (a preloaded library)."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.campaign.journal import Journal
from tests.campaign.session import Session
from tests.campaign.waiting import wait_for
from tests.support.peers import find_program

HOUR_S = 3600
JUMPS_S = (HOUR_S, -2 * HOUR_S, 26 * HOUR_S, -30 * HOUR_S, 40, -45)
"""Seconds by which each jump moves the clock."""


def compiler() -> str | None:
    """The C compiler that makes `stepped_clock.c`, if there is one."""
    return find_program("cc")


def library(folder: Path) -> Path:
    """Compile the library that is preloaded."""
    made = folder / "stepped_clock.so"
    program = compiler()
    assert program is not None
    source = Path(__file__).with_name("stepped_clock.c")
    command = [program, "-shared", "-fPIC", "-O2", "-o", str(made), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return made


def session_of_jumps(folder: Path, number: int, journal: Journal, *, times: int = 6) -> list[str]:
    """Let the node's clock jump between studies and amid them; check."""
    rng = random.Random(number)
    home = folder / f"clock-{number}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    step = home / "step"
    step.write_text("0\n")
    environment = {"LD_PRELOAD": str(library(home)), "STEPPED_CLOCK_FILE": str(step)}
    trials: list[dict[str, Any]] = []
    offset_s = 0
    with Session(home, number, forked=False, environment=environment) as session:
        session.node.start()
        with session.streaming():
            for jump_s in rng.sample(JUMPS_S, min(times, len(JUMPS_S))):
                wait_for(lambda: session.node.events("job.finished"), 120, "work")
                time.sleep(rng.uniform(0.0, 3.0))
                offset_s += jump_s
                step.write_text(f"{offset_s}\n")
                at_s = time.monotonic()
                # A study that begins after the jump must get through all of it.
                known = set(session.scanner.sent)
                wait_for(
                    lambda k=known: any(a.study_uid not in k for a in list(session.pacs.arrivals)),
                    120,
                    f"a new study is answered after a jump of {jump_s} s",
                )
                trials.append(
                    {"how": f"jump:{jump_s}", "recovered_s": round(time.monotonic() - at_s, 2)}
                )
        found = session.check(300)
        figures = session.figures()
        session.node.close()
    return journal.add_session("clock", number, trials, found, figures, home)
