"""What a probe is told, from what a node or worker last wrote."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pe_triage.cli import main
from pe_triage.health import (
    DRAIN_S,
    SILENT_S,
    STALE_S,
    WRITE_EVERY_S,
    Beats,
    Phase,
    Signs,
    judge,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "health.json"


@pytest.fixture
def ask(path: Path, clock: Clock) -> Callable[[], tuple[bool, bool]]:
    """Whether it lives, and whether it is ready."""
    return lambda: (
        judge(path, ready=False, now=clock.now).well,
        judge(path, ready=True, now=clock.now).well,
    )


@pytest.fixture
def signs(path: Path, clock: Clock) -> Signs:
    signs = Signs(path, clock=clock)
    signs.expect("receiver-1", awaited=True)
    signs.expect("worker-1", awaited=False)
    signs.write()
    return signs


Ask = Callable[[], tuple[bool, bool]]


def test_a_life(signs: Signs, clock: Clock, ask: Ask) -> None:
    assert ask() == (True, False)
    signs.ready("receiver-1")
    signs.enter(Phase.RUNNING)
    # A node takes images in while its worker is still being started.
    assert ask() == (True, True)
    signs.expect("receiver-1", awaited=True)
    signs.write()
    assert ask() == (True, False), "it died and is being started again"
    signs.ready("receiver-1")
    signs.enter(Phase.STOPPING)
    clock.now += DRAIN_S - 1
    assert ask() == (True, False), "it drains: nobody new may be sent here"
    clock.now += 2
    assert ask() == (False, False)


def test_a_program_that_hangs_or_is_gone(signs: Signs, clock: Clock, ask: Ask) -> None:
    signs.ready("receiver-1")
    signs.enter(Phase.RUNNING)
    clock.now += STALE_S
    assert ask() == (True, True)
    clock.now += 0.1
    assert ask() == (False, False)


def test_one_process_that_hangs(signs: Signs, clock: Clock, path: Path, ask: Ask) -> None:
    signs.ready("receiver-1")
    signs.ready("worker-1")
    signs.turned("worker-1")
    signs.enter(Phase.RUNNING)
    for _ in range(int(SILENT_S / 10)):
        clock.now += 10
        signs.turned("receiver-1")
        signs.tick()
    assert ask() == (True, True)
    clock.now += 1
    signs.turned("receiver-1")
    assert ask() == (False, False)
    assert judge(path, ready=False, now=clock.now).words == "worker-1 hangs: silent for 601 s"
    # One that has not begun cannot hang: a start may take as long as it takes, and a process that
    # is ready may wait for its turn.
    signs.expect("worker-1", awaited=False)
    signs.ready("worker-1")
    signs.write()
    assert ask() == (True, True)


def test_written_now_and_then_only(signs: Signs, clock: Clock, path: Path) -> None:
    path.unlink()
    clock.now += WRITE_EVERY_S / 2
    signs.tick()
    assert not path.exists()
    clock.now += WRITE_EVERY_S / 2
    signs.tick()
    assert path.exists()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_beats_are_few(clock: Clock) -> None:
    told: list[float] = []
    beats = Beats(lambda: told.append(clock.now), clock=clock)
    for _ in range(100):
        beats()
        clock.now += 0.1
    assert told == pytest.approx([1000.0, 1002.0, 1004.0, 1006.0, 1008.0], abs=0.11)


def test_a_file_of_before_the_machine_was_started_again(
    signs: Signs, clock: Clock, ask: Ask
) -> None:
    signs.enter(Phase.RUNNING)
    clock.now = 5.0
    assert ask() == (False, False)


def test_a_thread_writes_for_a_busy_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pe_triage.health.WRITE_EVERY_S", 0.01)
    signs, stop = Signs(path), threading.Event()
    signs.expect("worker", awaited=True)
    with signs.written_down(stop):
        signs.ready("worker")
        signs.enter(Phase.RUNNING)
        assert judge(path, ready=True).well
        stop.set()
        for _ in range(500):
            if not judge(path, ready=True).well:
                break
            threading.Event().wait(0.01)
    assert judge(path, ready=True).words == "it is stopping"
    assert judge(path, ready=False).well


def test_no_file_and_no_place_to_write(tmp_path: Path) -> None:
    Signs(None).enter(Phase.RUNNING)
    Signs(tmp_path / "nowhere" / "x.json").enter(Phase.RUNNING)
    assert "has not started" in judge(tmp_path / "x.json", ready=False).words


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"phase": "asleep"}', "\xff"])
def test_something_else(path: Path, text: str) -> None:
    path.write_text(text, encoding="latin-1")
    assert judge(path, ready=False).words == f"{path} is no health file"


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", str(path)]) == 1
    signs = Signs(path)
    signs.expect("worker", awaited=True)
    signs.ready("worker")
    signs.enter(Phase.RUNNING)
    assert main(["health", str(path)]) == 0
    assert main(["health", "--ready", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "running, 1 of 1 processes ready"


def test_a_probe_is_cheap(path: Path) -> None:
    """No torch, no database's client, no settings and no structlog is imported for it."""
    code = (
        "import sys; from pe_triage.cli import main; main(['health', sys.argv[1]]);"
        "heavy = {'torch', 'sqlalchemy', 'pydantic', 'pydicom', 'numpy', 'structlog'};"
        "heavy &= set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
