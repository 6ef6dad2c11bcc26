"""Run one worker with a stand-in model: ``python -m tests.campaign.work``, another host's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tests.campaign.mains import enter, without_pictures
from tests.campaign.setup import Setup
from tests.campaign.standin import StandIn


@click.command()
@click.option("--setup", default="{}")
@click.option("--data-dir", type=click.Path(path_type=Path), required=True)
@click.option("--config", type=click.Path(path_type=Path), required=True)
@click.option("--database", required=True)
def main(setup: str, **flags: Any) -> None:
    """Work until SIGTERM."""
    from pe_triage.app import run_worker
    from pe_triage.cli.options import settings_from
    from pe_triage.logs import setup_logging

    told = Setup.loads(setup)
    enter(told)
    without_pictures()
    settings = settings_from(**flags)
    setup_logging(level=settings.log_level, json_lines=True)
    run_worker(settings, load=lambda _settings: StandIn(told.work_s))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
