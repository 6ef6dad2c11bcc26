"""Run a node with a stand-in model in the foreground: ``python -m tests.campaign.serve``.

Everything but the model is the node's own. The campaign mostly starts nodes by `forked` instead:
the supervisor and its processes are then forked from one process in which everything is imported
and was used once, which costs a tenth of the time. What runs in them is the same.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

from tests.campaign.setup import Setup

PRELOADED = (
    "tests.campaign.warm",
    "pe_triage.receive.server",
    "pe_triage.node.coordinator",
    "pe_triage.node.assembler",
    "pe_triage.node.deliverer",
    "pe_triage.node.indexer",
    "pe_triage.node.roads",
    "pe_triage.node.urgency",
    "pe_triage.node.worker",
    "pe_triage.node.ahead",
    "pe_triage.store.outbox",
    "pe_triage.store.quarantine",
)
"""What the process that others are forked from imports."""


def run(setup: Setup, flags: dict[str, Any]) -> int:
    """Run the node until SIGTERM; the exit code."""
    from pe_triage.app import run_node
    from pe_triage.cli.options import settings_from
    from pe_triage.errors import PeTriageError
    from pe_triage.logs import setup_logging
    from tests.campaign.mains import mains

    settings = settings_from(**flags)
    setup_logging(level=settings.log_level, json_lines=True)
    try:
        run_node(settings, mains(setup))
    except PeTriageError as error:
        print(str(error), file=sys.stderr, flush=True)
        return 2
    return 0


def forked(setup: Setup, flags: dict[str, Any], gate: Connection) -> None:
    """Be a supervisor that was forked from the server of processes, once `gate` has opened."""
    from pe_triage.node import supervisor
    from tests.campaign.mains import enter

    os.setpgid(0, 0)
    setup = replace(setup, group=os.getpid())
    enter(setup)
    try:
        gate.recv()
    except EOFError:
        os._exit(3)
    # Its processes come from the same server, which is known to run.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    context = multiprocessing.get_context("forkserver")

    class Chosen:
        @staticmethod
        def get_context(_method: str) -> Any:
            return context

    supervisor.multiprocessing = Chosen  # type: ignore[assignment]
    # Kills come closer together here than in life: their waits shall not add up to half a minute.
    supervisor.STABLE_S = 0.0
    sys.exit(run(setup, flags))


@click.command()
@click.option("--setup", default="{}")
@click.option("--data-dir", type=click.Path(path_type=Path), required=True)
@click.option("--config", type=click.Path(path_type=Path), required=True)
@click.option("--port", type=int, default=0)
@click.option("--host")
@click.option("--database")
def main(setup: str, **flags: Any) -> None:
    """Run the node until SIGTERM."""
    sys.exit(run(Setup.loads(setup), flags))


if __name__ == "__main__":
    main()
