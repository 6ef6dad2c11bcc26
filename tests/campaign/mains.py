"""What the processes of a node under test run: the node's own mains, with a stand-in model."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import Any

from pe_triage import processes
from tests.campaign import planted, standin
from tests.campaign.setup import Setup


def mains(setup: Setup) -> processes.Mains:
    """The mains of a node under `setup`."""
    return processes.Mains(
        receiver=partial(receiver, setup),
        worker=partial(worker, setup),
        coordinator=partial(coordinator, setup),
    )


def enter(setup: Setup) -> None:
    """Make the process what `setup` says; done first."""
    if setup.group:
        with contextlib.suppress(OSError):
            os.setpgid(0, setup.group)
    if setup.log:
        descriptor = os.open(setup.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    planted.apply(setup.plant)


def receiver(setup: Setup, *arguments: Any) -> None:
    """Receive as the node does."""
    enter(setup)
    processes.receiver_process(*arguments)


def coordinator(setup: Setup, *arguments: Any) -> None:
    """Index, assemble and deliver as the node does."""
    enter(setup)
    processes.coordinator_process(*arguments)


def worker(setup: Setup, *arguments: Any) -> None:
    """Work as the node does, with a model that needs no time and no network to load."""
    enter(setup)
    without_pictures()
    processes.worker_process(*arguments, load=lambda _settings: standin.StandIn(setup.work_s))


def without_pictures() -> None:
    """Draw no summary: pictures of 4 MB are no part of what is tried, and most of a study's time.

    The campaign's configuration asks for the narrative instead, so that a run still has two
    results which must arrive together.
    """
    from pe_triage.node.work import StudyWork
    from pe_triage.report import results

    results.build_captures = lambda **_: ()  # type: ignore[assignment]
    # Also an indeterminate answer, which a doubt about the images makes, shows none.
    StudyWork.key_slices = lambda *_: ()  # type: ignore[assignment]
