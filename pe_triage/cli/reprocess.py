"""``pe-triage reprocess``: queue studies again as new runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.domain import TERMINAL_STATES, StudyState
from pe_triage.errors import InputError, PermanentError

LOW_RANK = 200
"""A backfill waits behind every study that arrives (0 is the most urgent, 100 the usual)."""


@click.command()
@click.argument("study_uid", metavar="[STUDY_UID]", required=False)
@node_options
@click.option(
    "--from-file",
    "from_file",
    type=click.Path(path_type=Path),
    help="File with one Study Instance UID a line; queued at low priority.",
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
    wait: bool,
    timeout_s: float | None,
) -> None:
    """Queue STUDY_UID again as a new run whose results name the earlier ones as predecessors."""
    if (study_uid is None) == (from_file is None):
        raise click.UsageError("give either STUDY_UID or --from-file LIST")
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    uids = [study_uid] if study_uid is not None else _read_list(from_file)
    from pe_triage.app import open_existing_database, requeue

    engine = open_existing_database(settings)
    runs: dict[str, int] = {}
    unknown: InputError | None = None
    for uid in uids:
        try:
            runs[uid] = requeue(engine, uid, rank=LOW_RANK if from_file else None)
        except InputError as error:
            # One bad line of a long list must not keep the others waiting.
            if from_file is None:
                raise
            click.echo(f"pe-triage: {error}", err=True)
            unknown = error
            continue
        click.echo(f"{uid}: queued as run {runs[uid]}")
    failed = _wait(engine, settings.data_dir, runs, timeout_s) if wait else False
    if unknown is not None:
        raise unknown
    if failed:
        raise PermanentError("a study did not end well; see pe-triage show")


def _read_list(path: Path | None) -> list[str]:
    assert path is not None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read list {path}: {error}") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


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
