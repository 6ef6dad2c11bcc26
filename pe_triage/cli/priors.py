"""``pe-triage priors``: a patient's earlier studies, from the PACS into the queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.domain import TERMINAL_STATES, StudyState
from pe_triage.errors import PeerError, PermanentError, PeTriageError, StudyNotFoundError
from pe_triage.urgency import Place

if TYPE_CHECKING:
    from pe_triage.store.studies import StudyStore


@click.command()
@click.argument("study_uid", metavar="STUDY_UID")
@node_options
@click.option(
    "--years",
    type=click.FloatRange(min=0, min_open=True, max=150),
    default=10.0,
    help="No study that is so much older [default: 10].",
)
@click.option("--limit", type=click.IntRange(min=1), help="The newest so many [default: all].")
@click.option("--dry-run", is_flag=True, help="Only print which.")
def priors(
    study_uid: str,
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    years: float,
    limit: int | None,
    dry_run: bool,
) -> None:
    """Fetch and queue earlier studies of STUDY_UID's patient, at the lowest place.

    The PACS is asked (`retrieve` in the configuration) for studies under exactly the same Patient
    ID and issuer; which of them, the words of `reconcile` say. Where the patient is not certain,
    nothing is fetched.
    """
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.cli.database import open_existing_database
    from pe_triage.cli.reprocess import queue_one
    from pe_triage.retrieving import priors_of
    from pe_triage.store.studies import StudyStore as Studies

    engine = open_existing_database(settings)
    studies = Studies(engine)
    found = priors_of(settings, engine, study_uid, years=years)[:limit]
    if not found:
        click.echo(f"{study_uid}: no earlier study at the PACS", err=True)
    trouble: PeTriageError | None = None
    for uid in found:
        state = _state(studies, uid)
        if state in TERMINAL_STATES and state is not StudyState.FAILED:
            click.echo(f"{uid}: {state} already")
        elif dry_run or (state is not None and state is not StudyState.FAILED):
            click.echo(f"{uid}: {state or 'not held here'}")
        else:
            try:
                run = queue_one(settings, engine, uid, Place.BACKFILL)
            except (PermanentError, PeerError) as error:
                # One that will not come must not keep the others away.
                click.echo(f"pe-triage: {error}", err=True)
                trouble = error
                continue
            click.echo(f"{uid}: queued as run {run}")
    if trouble is not None:
        raise trouble


def _state(studies: StudyStore, uid: str) -> StudyState | None:
    try:
        return studies.get(uid).state
    except StudyNotFoundError:
        return None
