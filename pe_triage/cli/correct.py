"""``pe-triage correct``: answer a study anew under the patient that the PACS has it under."""

from __future__ import annotations

from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.errors import InputError, PermanentError


@click.command()
@click.argument("study_uid", metavar="STUDY_UID")
@node_options
@click.option(
    "--unproven",
    is_flag=True,
    help="Do not ask whether the PACS has the very images held here: you have made sure.",
)
def correct(
    study_uid: str,
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    unproven: bool,
) -> None:
    """File STUDY_UID under the patient that the PACS has it under, and make its results again.

    What waits to be sent under the patient as before is parked for good.
    """
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage import watchers
    from pe_triage.cli.database import open_existing_database
    from pe_triage.node.corrections import Remade
    from pe_triage.store.studies import StudyStore

    engine = open_existing_database(settings)
    corrections = watchers.corrections(settings, engine)
    if corrections is None:
        raise InputError("query.pacs: nobody is configured to be asked (docs/watching.md)")
    StudyStore(engine).get(study_uid)
    done, words = corrections.follow(study_uid, proven=not unproven, by_person=True)
    if done is not Remade.DONE:
        raise PermanentError(f"{study_uid} is not corrected: {words}")
    click.echo(f"{study_uid}: {words}")
