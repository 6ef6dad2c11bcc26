"""``pe-triage worker``: a worker for another process or another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.cli.serve import json_lines
from pe_triage.errors import InputError
from pe_triage.logs import setup_logging


@click.command()
@node_options
@click.option("--model", type=click.Path(path_type=Path), help="Bundle [default: built in].")
@click.option("--device", help="auto, cpu, cuda or cuda:N [default: auto].")
@click.option(
    "--send-to", multiple=True, metavar="AET@HOST:PORT", help="Destination; as given to serve."
)
@click.option("--no-send", is_flag=True, help="Results of this worker are sent nowhere.")
@click.option("--log-level", help="DEBUG, INFO, WARNING or ERROR [default: INFO].")
def worker(
    data_dir: Path | None, database: str | None, config: Path | None, no_send: bool, **flags: Any
) -> None:
    """Claim and analyse studies from the same database and storage as a node's.

    The deliveries that a worker plans are those of its own --send-to or --config; give it the
    node's. Without any it does not start, unless --no-send says that this is meant: then nothing is
    planned, whatever the configuration says, and the files of what it answers stay until
    retention.unsent_days are over.
    """
    settings = settings_from(data_dir=data_dir, database=database, config=config, **flags)
    if not settings.routes and not no_send:
        raise InputError(
            "worker: no destination; give the node's --send-to or --config, or --no-send"
        )
    if no_send:
        settings = settings.model_copy(update={"send_to": (), "destinations": ()})
    setup_logging(level=settings.log_level, json_lines=json_lines(settings.log_format))
    from pe_triage.app import run_worker

    run_worker(settings)
