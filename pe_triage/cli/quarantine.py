"""``pe-triage quarantine``: review what was set aside, and why."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.errors import InputError, RetryableError


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
    """Let the node look at the unreadable object ENTRY_ID again."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.app import open_existing_database
    from pe_triage.receive.spool import Spool
    from pe_triage.store.quarantine import Quarantine, QuarantineState

    entries = Quarantine(open_existing_database(settings))
    path = settings.data_dir / entries.check(entry_id, QuarantineState.RELEASED).path
    if not path.exists():
        raise InputError(f"the file of quarantine entry {entry_id} is gone: {path}; discard it")
    # The file first: where it cannot be moved, the entry stays and can be released again.
    Spool(settings.spool_dir).put_back(path)
    entries.release(entry_id)
    click.echo(f"released {entry_id}; the running node takes it up")


@quarantine.command()
@click.argument("entry_id", metavar="[ENTRY_ID]", type=int, required=False)
@click.option("--study", "study_uid", metavar="UID", help="Every object set aside of this study.")
@node_options
def discard(
    entry_id: int | None,
    study_uid: str | None,
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
) -> None:
    """Delete the object ENTRY_ID; the record that it was here remains."""
    if (entry_id is None) == (study_uid is None):
        raise click.UsageError("give either ENTRY_ID or --study UID")
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.app import open_existing_database
    from pe_triage.store.quarantine import Quarantine, QuarantineState

    entries = Quarantine(open_existing_database(settings))
    if entry_id is not None:
        wanted = [entries.check(entry_id, QuarantineState.DISCARDED)]
    else:
        wanted = [entry for entry in entries.list() if entry.study_uid == study_uid]
        if not wanted:
            raise InputError(f"nothing of study {study_uid} is in quarantine")
    for entry in wanted:
        path = settings.data_dir / entry.path
        try:
            # The file first: a deletion that fails leaves an entry that can be discarded again.
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RetryableError(f"cannot delete {path}: {error.strerror or error}") from None
        entries.discard(entry.quarantine_id)
        click.echo(f"discarded {entry.quarantine_id}")
