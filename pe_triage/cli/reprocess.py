"""``pe-triage reprocess``: queue studies again as new runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.domain import TERMINAL_STATES, StudyState
from pe_triage.errors import (
    ImagesNotHeldError,
    InputError,
    PeerError,
    PermanentError,
    PeTriageError,
    StudyNotFoundError,
)
from pe_triage.urgency import Place

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pe_triage.config import Settings
    from pe_triage.deliver.retrieve_scu import Progress

PROGRESS_EVERY_S = 2.0


@click.command()
@click.argument("study_uid", metavar="[STUDY_UID]", required=False)
@node_options
@click.option(
    "--from-file",
    "from_file",
    type=click.Path(path_type=Path),
    help="File with one Study Instance UID a line; queued at low priority.",
)
@click.option(
    "--from-date",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Every study of the PACS from this day on (as reconcile chooses them); low priority.",
)
@click.option(
    "--to-date",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Last day of them [default: the first].",
)
@click.option("--wait", is_flag=True, help="Wait until each new run has ended.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=None,
    help="With --wait: seconds at most.",
)
def reprocess(
    study_uid: str | None,
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    from_file: Path | None,
    from_date: datetime | None,
    to_date: datetime | None,
    wait: bool,
    timeout_s: float | None,
) -> None:
    """Queue STUDY_UID again as a new run whose results name the earlier ones as predecessors.

    Images that are no longer here are fetched from the PACS (`retrieve` in the configuration).
    """
    if [study_uid, from_file, from_date].count(None) != 2:
        raise click.UsageError("give STUDY_UID, --from-file LIST or --from-date DAY")
    if to_date is not None and from_date is None:
        raise click.UsageError("--to-date goes with --from-date")
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.cli.database import open_existing_database

    engine = open_existing_database(settings)
    uids: Iterable[str]
    if study_uid is not None:
        uids = [study_uid]
    elif from_date is not None:
        from pe_triage.retrieving import studies_of_days

        uids = studies_of_days(settings, from_date.date(), (to_date or from_date).date())
    else:
        uids = _read_list(from_file)
    many = study_uid is None
    runs: dict[str, int] = {}
    unknown: PeTriageError | None = None
    for uid in uids:
        try:
            # A backfill waits behind every study that arrives.
            runs[uid] = queue_one(settings, engine, uid, Place.BACKFILL if many else None)
        except (PermanentError, PeerError) as error:
            # One bad line of a long list must not keep the others waiting.
            if not many:
                raise
            click.echo(f"pe-triage: {error}", err=True)
            unknown = error
            continue
        click.echo(f"{uid}: queued as run {runs[uid]}")
    failed = _wait(engine, settings.store_dir, runs, timeout_s) if wait else False
    if unknown is not None:
        raise unknown
    if failed:
        raise PermanentError("a study did not end well; see pe-triage show")


def queue_one(settings: Settings, engine: Engine, uid: str, rank: int | None) -> int:
    """Queue one study, fetched from the PACS where that is needed and configured."""
    from pe_triage.app import requeue
    from pe_triage.store.retrievals import Retrievals

    try:
        # A part that is here of what was asked for is not to be taken for all of it.
        if settings.retrieve_from is None or uid not in Retrievals(engine).unfinished():
            return requeue(engine, uid, rank=rank)
    except (StudyNotFoundError, ImagesNotHeldError):
        if settings.retrieve_from is None:
            raise
    from pe_triage.retrieving import fetch_and_queue

    click.echo(f"{uid}: not held here; asking {settings.retrieve_from}", err=True)
    return fetch_and_queue(settings, engine, uid, rank=rank, on_progress=_progress(uid))


def _progress(uid: str) -> Callable[[Progress], None]:
    """Say now and then how far a retrieval is."""
    said_s = time.monotonic()

    def say(progress: Progress) -> None:
        nonlocal said_s
        if time.monotonic() - said_s < PROGRESS_EVERY_S:
            return
        said_s = time.monotonic()
        came, left = progress.completed or 0, progress.remaining
        of = "" if left is None else f", {left} to come"
        click.echo(f"{uid}: {came} retrieved{of}", err=True)

    return say


def _read_list(path: Path | None) -> list[str]:
    assert path is not None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read list {path}: {error}") from None
    uids = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # Named twice is wanted once.
    return list(dict.fromkeys(uids))


def _wait(engine: object, data_dir: Path, runs: dict[str, int], timeout_s: float | None) -> bool:
    """Wait for each run to end; True where one FAILED or was QUARANTINED."""
    from pe_triage.store.documents import show

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    failed = False
    for uid, run in runs.items():
        while True:
            doc = show(engine, uid, data_dir)  # type: ignore[arg-type]
            if doc["run"] >= run and doc["state"] in TERMINAL_STATES:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise PermanentError(f"{uid}: run {run} has not ended after {timeout_s:g} s")
            time.sleep(0.25)
        click.echo(f"{uid}: run {run} {doc['state']} {doc['outcome'] or ''}".rstrip())
        failed = failed or doc["state"] in (StudyState.FAILED, StudyState.QUARANTINED)
    return failed
