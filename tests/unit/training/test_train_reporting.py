"""What a person sees while a run goes on: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from pe_triage.training.reporting import Reporter


def reported(*, terminal: bool, speaks: bool = True) -> str:
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=100)
    with Reporter(speaks=speaks, console=console) as reporter:
        reporter.begin("stage1 1/2", 8)
        reporter.step(3, "loss 0.5000")
        if terminal:
            reporter._bar.refresh()
        reporter.say("stage1 epoch 1/2: training loss 0.5000")
    return said.getvalue()


def test_a_terminal_shows_how_far_a_stage_is_and_its_loss() -> None:
    said = reported(terminal=True)
    assert "stage1 1/2" in said
    assert "3/8" in said
    assert "loss 0.5000" in said


def test_elsewhere_there_are_lines_only() -> None:
    assert reported(terminal=False) == "stage1 epoch 1/2: training loss 0.5000\n"


def test_processes_that_do_not_lead_are_silent() -> None:
    assert reported(terminal=False, speaks=False) == ""
    assert reported(terminal=True, speaks=False).strip("\x1b[?25hl\n") == ""
