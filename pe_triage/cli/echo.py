"""``pe-triage echo``: whether a peer is there and knows us."""

from __future__ import annotations

from pathlib import Path

import click

from pe_triage.addresses import parse_destination
from pe_triage.config import load_settings


@click.command()
@click.argument("peer", metavar="AET@HOST:PORT")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--aet", help="Our calling AE title [default: PETRIAGE, or as configured].")
@click.option(
    "--timeout", "timeout_s", type=float, default=10.0, show_default=True, help="Seconds."
)
def echo(peer: str, config: Path | None, aet: str | None, timeout_s: float) -> None:
    """Send a C-ECHO to AET@HOST:PORT (PS3.4 Annex A), for commissioning."""
    destination = parse_destination(peer)
    settings = load_settings({"aet": aet}, config_file=config)
    from pe_triage.deliver.echo import echo as send_echo

    send_echo(destination, calling_aet=settings.aet, timeout_s=timeout_s)
    click.echo(f"{destination} answers")
