"""``pe-triage quarantine``: review what was set aside, why, and what a decision leads to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pe_triage.cli.options import deciding, decision_options, node_options, settings_from
from pe_triage.errors import InputError, RetryableError

if TYPE_CHECKING:
    from pe_triage.config import Settings
    from pe_triage.store.quarantine import Quarantine, QuarantineEntry


@click.group()
def quarantine() -> None:
    """Review what was set aside, and why."""


def _store(settings: Settings) -> Quarantine:
    from pe_triage.cli.database import open_existing_database
    from pe_triage.store.quarantine import Quarantine

    return Quarantine(open_existing_database(settings))


def _check_set_aside(entry: QuarantineEntry, settings: Settings) -> None:
    """Refuse to delete what still has its name among the images: that may be the one held.

    A crash between the row and the move leaves it so; the next start of the node ends it.
    """
    path = (settings.data_dir / entry.path).resolve()
    if not path.is_relative_to((settings.spool_dir / "quarantine").resolve()):
        raise InputError(
            f"quarantine entry {entry.quarantine_id} is not set aside to its end; start the node, "
            "which ends it, then decide"
        )


def _document(entry: QuarantineEntry, settings: Settings) -> dict[str, Any]:
    decided_at = entry.decided_at
    return {
        "id": entry.quarantine_id,
        "study_uid": entry.study_uid,
        "sop_instance_uid": entry.sop_instance_uid,
        "kind": str(entry.kind),
        "reason": entry.reason,
        "state": str(entry.state),
        "created_at": entry.created_at.isoformat(),
        "path": str((settings.store_dir / entry.path).resolve()),
        "decided_at": None if decided_at is None else decided_at.isoformat(),
        "decided_by": entry.decided_by,
        "decided_why": entry.decided_why,
    }


def _line(doc: dict[str, Any]) -> str:
    words = f"{doc['id']}  {doc['created_at']}  {doc['state']}  {doc['reason']}"
    if doc["decided_by"]:
        why = f": {doc['decided_why']}" if doc["decided_why"] else ""
        words += f"\n    by {doc['decided_by']} at {doc['decided_at']}{why}"
    return f"{words}\n    study {doc['study_uid'] or '?'}\n    {doc['path']}"


@quarantine.command("list")
@node_options
@click.option("--all", "decided", is_flag=True, help="Also what was released or discarded.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_entries(
    data_dir: Path | None, database: str | None, config: Path | None, decided: bool, as_json: bool
) -> None:
    """List what waits for a decision, oldest first."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    entries = _store(settings).list(decided=decided)
    documents = [_document(entry, settings) for entry in entries]
    if as_json:
        click.echo(json.dumps(documents, indent=2))
        return
    if not documents:
        click.echo("quarantine is empty")
    for doc in documents:
        click.echo(_line(doc))


@quarantine.command("show")
@click.argument("entry_id", type=int)
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def show_entry(
    entry_id: int,
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Print everything known of ENTRY_ID, and what each decision would lead to."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    entry = _store(settings).get(entry_id)
    path = settings.store_dir / entry.path
    doc = _document(entry, settings) | {
        "sha256": entry.sha256,
        "size_bytes": path.stat().st_size if path.is_file() else None,
        "decisions": dict(entry.consequence),
    }
    if as_json:
        click.echo(json.dumps(doc, indent=2))
        return
    click.echo(_line(doc))
    size = doc["size_bytes"]
    click.echo(f"    {'the file is gone' if size is None else f'{size} bytes'}")
    for decision, words in doc["decisions"].items():
        click.echo(f"    {decision}: {words}")


@quarantine.command()
@click.argument("entry_id", type=int)
@node_options
@decision_options
@click.option("--json", "as_json", is_flag=True, help="Print the entry as it is now.")
def release(
    entry_id: int,
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    by: str | None,
    why: str | None,
    as_json: bool,
) -> None:
    """Let the node look at the unreadable object ENTRY_ID again."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.receive.spool import Spool
    from pe_triage.store.quarantine import QuarantineState

    entries = _store(settings)
    path = settings.store_dir / entries.check(entry_id, QuarantineState.RELEASED).path
    if not path.exists():
        raise InputError(f"the file of quarantine entry {entry_id} is gone: {path}; discard it")
    # The file first: where it cannot be moved, the entry stays and can be released again.
    Spool(settings.spool_dir).put_back(path)
    entry = entries.release(entry_id, by=deciding(by), why=why)
    if as_json:
        click.echo(json.dumps(_document(entry, settings), indent=2))
        return
    click.echo(f"released {entry_id}; the running node takes it up")


@quarantine.command()
@click.argument("entry_id", metavar="[ENTRY_ID]", type=int, required=False)
@click.option("--study", "study_uid", metavar="UID", help="Every object set aside of this study.")
@node_options
@decision_options
@click.option("--json", "as_json", is_flag=True, help="Print the entries as they are now.")
def discard(
    entry_id: int | None,
    study_uid: str | None,
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    by: str | None,
    why: str | None,
    as_json: bool,
) -> None:
    """Delete the object ENTRY_ID; the record that it was here remains."""
    if (entry_id is None) == (study_uid is None):
        raise click.UsageError("give either ENTRY_ID or --study UID")
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.store.quarantine import QuarantineState

    entries = _store(settings)
    if entry_id is not None:
        wanted = [entries.check(entry_id, QuarantineState.DISCARDED)]
    else:
        wanted = [entry for entry in entries.list() if entry.study_uid == study_uid]
        if not wanted:
            raise InputError(f"nothing of study {study_uid} is in quarantine")
    for entry in wanted:
        _check_set_aside(entry, settings)
    decided = []
    for entry in wanted:
        path = settings.store_dir / entry.path
        try:
            # The file first: a deletion that fails leaves an entry that can be discarded again.
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RetryableError(f"cannot delete {path}: {error.strerror or error}") from None
        decided.append(entries.discard(entry.quarantine_id, by=deciding(by), why=why))
        if not as_json:
            click.echo(f"discarded {entry.quarantine_id}")
    if as_json:
        click.echo(json.dumps([_document(entry, settings) for entry in decided], indent=2))
