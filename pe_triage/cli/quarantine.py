"""``pe-triage quarantine``: review what was set aside, and why."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from


@click.group()
def quarantine() -> None:
    """Review what was set aside, and why."""


@quarantine.command("list")
@node_options
@click.option("--all", "decided", is_flag=True, help="Also what was released or discarded.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_entries(
    data_dir: Path | None, database: str | None, config: Path | None, decided: bool, as_json: bool
) -> None:
    """List what waits for a decision, oldest first."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.app import open_existing_database
    from pe_triage.store.quarantine import Quarantine

    entries = Quarantine(open_existing_database(settings)).list(decided=decided)
    documents = [
        {
            "id": entry.quarantine_id,
            "study_uid": entry.study_uid,
            "sop_instance_uid": entry.sop_instance_uid,
            "reason": entry.reason,
            "state": str(entry.state),
            "created_at": entry.created_at.isoformat(),
            "path": str((settings.data_dir / entry.path).resolve()),
        }
        for entry in entries
    ]
    if as_json:
        click.echo(json.dumps(documents, indent=2))
        return
    if not documents:
        click.echo("quarantine is empty")
    for doc in documents:
        click.echo(
            f"{doc['id']}  {doc['created_at']}  {doc['state']}  {doc['reason']}\n"
            f"    study {doc['study_uid'] or '?'}\n    {doc['path']}"
        )


@quarantine.command()
@click.argument("entry_id", type=int)
@node_options
def release(
    entry_id: int, data_dir: Path | None, database: str | None, config: Path | None
) -> None:
    """Take the object ENTRY_ID into the study that its header names."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.app import open_existing_database
    from pe_triage.receive.spool import Spool
    from pe_triage.store.quarantine import Quarantine

    entry = Quarantine(open_existing_database(settings)).release(entry_id)
    Spool(settings.spool_dir).put_back(settings.data_dir / entry.path)
    click.echo(f"released {entry_id}; the running node takes it up")


@quarantine.command()
@click.argument("entry_id", type=int)
@node_options
def discard(
    entry_id: int, data_dir: Path | None, database: str | None, config: Path | None
) -> None:
    """Delete the object ENTRY_ID; the record that it was here remains."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.app import open_existing_database
    from pe_triage.store.quarantine import Quarantine

    entry = Quarantine(open_existing_database(settings)).discard(entry_id)
    (settings.data_dir / entry.path).unlink(missing_ok=True)
    click.echo(f"discarded {entry_id}")
