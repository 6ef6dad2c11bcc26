"""``pe-triage deliveries``: what no destination has taken, and another try for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from pe_triage.cli.options import deciding, decision_options, node_options, settings_from


@click.group()
def deliveries() -> None:
    """Review results on their way to destinations."""


@deliveries.command("list")
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_entries(
    data_dir: Path | None, database: str | None, config: Path | None, as_json: bool
) -> None:
    """List what waits for a destination, or is parked there, oldest first."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.cli.database import open_existing_database
    from pe_triage.store.outbox import Outbox

    items = Outbox(open_existing_database(settings), settings.store_dir).undelivered()
    if as_json:
        documents = [
            {name: getattr(item, name) for name in (f.name for f in dataclasses.fields(item))}
            for item in items
        ]
        click.echo(json.dumps(documents, indent=2, default=str))
        return
    if not items:
        click.echo("every result is delivered")
    for item in items:
        when = "" if item.retry_in_s is None else f"  next try in {item.retry_in_s:.0f} s"
        click.echo(
            f"{item.destination}  {item.state}  {item.kind}  {item.attempts} tries{when}\n"
            f"    study {item.study_uid}\n    {item.last_error or 'not tried yet'}"
        )


@deliveries.command()
@node_options
@click.option("--destination", help="Only those to this destination, as `list` names it.")
@click.option("--study", help="Only those of this study.")
def retry(
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    destination: str | None,
    study: str | None,
) -> None:
    """Send parked results again, and ask again about what is not committed to.

    With --study only what is parked.
    """
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.cli.database import open_existing_database
    from pe_triage.store.commitments import CommitmentStore
    from pe_triage.store.outbox import Outbox

    engine = open_existing_database(settings)
    count = Outbox(engine, settings.store_dir).requeue_parked(destination, study_uid=study)
    click.echo(f"{count} parked deliveries will be tried again")
    asked = 0 if study is not None else CommitmentStore(engine).ask_again(destination)
    if asked:
        click.echo(f"commitment to {asked} delivered objects will be asked for again")


@deliveries.command()
@node_options
@click.option("--destination", help="Everything that this destination, as `list` names it, lacks.")
@click.option("--study", help="Everything of this study; with --destination only there.")
@decision_options
def abandon(
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    destination: str | None,
    study: str | None,
    by: str | None,
    why: str | None,
) -> None:
    """Decide that results need not arrive, of a destination that is gone for good.

    They stay parked, with who decided it and why, and raise no alarm any more; files of their
    studies may then be removed like others. `retry` takes the decision back.
    """
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.cli.database import open_existing_database
    from pe_triage.clock import utc_now
    from pe_triage.store.abandoning import abandon as decide

    count = decide(
        open_existing_database(settings),
        destination=destination,
        study_uid=study,
        by=deciding(by),
        why=why,
        at=utc_now(),
    )
    click.echo(f"{count} deliveries are abandoned")
