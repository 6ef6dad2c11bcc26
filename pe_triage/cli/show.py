"""``pe-triage show``: one study, or one SR file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.errors import StudyNotFoundError


@click.command()
@click.argument("what", metavar="STUDY_UID|SR_FILE")
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print the show document.")
def show(
    what: str, data_dir: Path | None, database: str | None, config: Path | None, as_json: bool
) -> None:
    """Print everything known of one study, or the result read back from an SR file."""
    doc = _document(what, data_dir, database, config)
    if as_json:
        click.echo(json.dumps(doc, indent=2, ensure_ascii=False))
        return
    from pe_triage.cli.tables import print_document, wide_console

    print_document(wide_console(), doc)


def _document(
    what: str, data_dir: Path | None, database: str | None, config: Path | None
) -> dict[str, Any]:
    if Path(what).is_file():
        from pe_triage.logs import setup_logging
        from pe_triage.report.readback import read_sr

        # pydicom's words about a file may quote its patient.
        setup_logging(level="WARNING")
        return dict(read_sr(Path(what)))
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    if not all(part.isdigit() for part in what.split(".")):
        raise StudyNotFoundError(what)
    from pe_triage.cli.database import open_existing_database
    from pe_triage.store.documents import show as show_document

    return show_document(open_existing_database(settings), what, settings.store_dir)
