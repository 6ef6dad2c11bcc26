"""``pe-triage serve`` and ``pe-triage worker``: the running node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.logs import setup_logging


@click.command()
@node_options
@click.option("--aet", help="AE title of this node [default: PETRIAGE].")
@click.option("--host", help="Address to listen on [default: 127.0.0.1].")
@click.option("--port", type=int, help="TCP port; 0 takes a free one [default: 11112].")
@click.option("--send-to", multiple=True, metavar="AET@HOST:PORT", help="Destination; repeatable.")
@click.option(
    "--accept-from", multiple=True, metavar="AET[@HOST]", help="Calling AE to accept; repeatable."
)
@click.option("--insecure", is_flag=True, default=None, help="Accept anyone from anywhere.")
@click.option("--model", type=click.Path(path_type=Path), help="Bundle [default: built in].")
@click.option("--quiet-s", type=float, help="Last-resort wait for the next image [default: 60].")
@click.option("--receivers", type=int, help="Receiver processes sharing the port [default: 1].")
@click.option("--workers", type=int, help="Worker processes [default: 1].")
@click.option("--device", help="auto, cpu, cuda or cuda:N [default: auto].")
@click.option("--log-level", help="DEBUG, INFO, WARNING or ERROR [default: INFO].")
def serve(data_dir: Path | None, database: str | None, config: Path | None, **flags: Any) -> None:
    """Receive CTPA studies, analyse them and deliver the results, until SIGTERM or SIGINT."""
    settings = settings_from(data_dir=data_dir, database=database, config=config, **flags)
    setup_logging(level=settings.log_level, json_lines=json_lines(settings.log_format))
    from pe_triage.app import run_node

    run_node(settings)


def json_lines(log_format: str) -> bool | None:
    """Turn the setting into what `setup_logging` takes."""
    return {"json": True, "text": False}.get(log_format)
