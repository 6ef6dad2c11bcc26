"""``pe-triage health``: whether a node or worker lives, for probes."""

from __future__ import annotations

from pathlib import Path

import click

from pe_triage.health import judge


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--ready", is_flag=True, help="Ask whether it can do its work now.")
def health(file: Path, ready: bool) -> int:
    """Judge the FILE that `health_file` of a node or worker on this machine names.

    Exit code 0: it lives (with --ready: it can do its work). Exit code 1: it does not; the line
    printed says why. Settings are not read and no database is asked, so it costs little.
    """
    verdict = judge(file, ready=ready)
    click.echo(verdict.words)
    return 0 if verdict.well else 1
