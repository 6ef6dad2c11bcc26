"""``pe-triage worker``: a worker for another process or another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.cli.serve import json_lines
from pe_triage.logs import setup_logging


@click.command()
@node_options
@click.option("--model", type=click.Path(path_type=Path), help="Bundle [default: built in].")
@click.option("--device", help="auto, cpu, cuda or cuda:N [default: auto].")
@click.option(
    "--send-to", multiple=True, metavar="AET@HOST:PORT", help="Destination; as given to serve."
)
@click.option("--log-level", help="DEBUG, INFO, WARNING or ERROR [default: INFO].")
def worker(data_dir: Path | None, database: str | None, config: Path | None, **flags: Any) -> None:
    """Claim and analyse studies from the same database and storage as a node's.

    The deliveries that a worker plans are those of its own --send-to; give it the node's.
    """
    settings = settings_from(data_dir=data_dir, database=database, config=config, **flags)
    setup_logging(level=settings.log_level, json_lines=json_lines(settings.log_format))
    from pe_triage.app import run_worker

    run_worker(settings)
