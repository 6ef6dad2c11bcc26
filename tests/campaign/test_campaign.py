"""A handful of each kind of fault, and each planted fault: a small `python -m tests.campaign`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaign import clock, database, disk, frozen, kills, network, peers, power
from tests.campaign.__main__ import KINDS, find_planted, lacking
from tests.campaign.journal import Journal
from tests.campaign.planted import PLANTS
from tests.support.peers import require_program, required

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

Run = Callable[[Path, int, Journal], list[str]]

SMALL: dict[str, Run] = {
    "kill": lambda f, n, j: kills.session_of_kills(f, n, j, starts=1, halves=1, children=3),
    "power": lambda f, n, j: power.session_of_cuts(f, n, j, cuts=2),
    "frozen": lambda f, n, j: frozen.session_of_freezes(f, n, j, times=1),
    "disk-error": disk.session_of_errors,
    "disk-full": disk.session_of_fillings,
    "database": lambda f, n, j: database.session_of_postgres_outages(f, n, j, locks_s=(2.0,)),
    "clock": lambda f, n, j: clock.session_of_jumps(f, n, j, times=2),
    "status": peers.session_of_statuses,
    "reply": lambda f, n, j: peers.session_of_lost_replies(f, n, j, times=3),
    "away": peers.session_of_absences,
    "network": lambda f, n, j: network.session_of_partitions(f, n, j, times=1),
}


def need(kind: str) -> None:
    reason = lacking(kind)
    if kind == "kill":
        require_program("strace", "strace")
    if reason is not None and required():
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


def test_every_kind_is_tried_here_but_what_has_a_test_of_its_own() -> None:
    assert SMALL.keys() | {"days"} == KINDS.keys()


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_a_few_faults_of_a_kind(kind: str, tmp_path: Path) -> None:
    need(kind)
    journal = Journal(tmp_path / "journal-0.jsonl")
    assert SMALL[kind](tmp_path, 1, journal) == []
    assert sum(trial.get("fired", True) for trial in journal.trials) >= 1


@pytest.mark.parametrize("name", sorted(PLANTS))
def test_a_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    need("power" if name == "no-fsync" else "kill")
    assert find_planted(name, tmp_path)
