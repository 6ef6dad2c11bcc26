"""``pe-triage studies``: the triage worklist."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from


def parse_time(text: str) -> datetime:
    """ISO 8601 date or time to an aware datetime; without a zone it is local time.

    Raises
    ------
    click.BadParameter
        Where it is neither.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not an ISO 8601 time") from None


@click.command()
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print a list of show documents.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many studies.")
@click.option("--since", metavar="TIME", help="Only studies received since (ISO 8601).")
def studies(
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    as_json: bool,
    limit: int | None,
    since: str | None,
) -> None:
    """Print the triage worklist: HIGH, MEDIUM, LOW, then without priority."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.cli.database import open_existing_database
    from pe_triage.store.documents import worklist

    engine = open_existing_database(settings)
    documents = worklist(
        engine, settings.store_dir, limit=limit, since=parse_time(since) if since else None
    )
    if as_json:
        click.echo(json.dumps(documents, indent=2, ensure_ascii=False))
        return
    from pe_triage.cli.tables import wide_console, worklist_table

    wide_console().print(worklist_table(documents))
