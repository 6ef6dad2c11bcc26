"""``pe-triage reconcile``: which studies of the PACS never came here, or got no result."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.errors import InputError


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a date, YYYY-MM-DD") from None


@click.command()
@node_options
@click.option("--date", "day", metavar="DATE", help="This day [default: yesterday].")
@click.option("--since", metavar="DATE", help="Every day from this one to today.")
@click.option("--all", "show_all", is_flag=True, help="List answered studies too.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def reconcile(
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    day: str | None,
    since: str | None,
    show_all: bool,
    as_json: bool,
) -> int:
    """Ask the PACS for the CT studies of a day and compare them with what came here.

    Exit code 1 where any is missing, unanswered, incomplete or undelivered, or where the PACS gave
    no answer.
    """
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    peer = settings.query.peer
    if peer is None:
        raise InputError("query.pacs: nobody is configured to be asked (docs/watching.md)")
    if day is not None and since is not None:
        raise click.UsageError("--date and --since: give one, not both")
    from pe_triage.cli.database import open_existing_database
    from pe_triage.clock import local_now
    from pe_triage.node.reconciler import compare, trouble
    from pe_triage.store.watching import WatchStore
    from pe_triage.watchers import query_scu

    now = local_now()
    first, last = _days(day, since, now)
    report = compare(
        query_scu(settings, peer),
        WatchStore(open_existing_database(settings)),
        settings.reconcile,
        first=first,
        last=last,
        now=now,
        pacs=str(peer),
    )
    click.echo(json.dumps(report, indent=2) if as_json else _table(report, show_all=show_all))
    return 1 if trouble(report) else 0


def _days(day: str | None, since: str | None, now: datetime) -> tuple[date, date]:
    if since is not None:
        first = _day(since)
        if first > now.date():
            raise click.BadParameter(f"{since} is in the future")
        return first, now.date()
    chosen = now.date() - timedelta(days=1) if day is None else _day(day)
    return chosen, chosen


def _table(report: dict[str, Any], *, show_all: bool) -> str:
    days = report["first_day"]
    if report["last_day"] != report["first_day"]:
        days = f"{report['first_day']} to {report['last_day']}"
    counts = ", ".join(f"{n} {verdict}" for verdict, n in report["counts"].items() if n)
    lines = [f"{days}: {report['studies_at_pacs']} studies at {report['pacs']}; {counts or 'none'}"]
    for study in report["studies"]:
        if study["verdict"] == "ANSWERED" and not show_all:
            continue
        lines.append(
            f"{study['verdict']:<14} {study['study_date']} {study['study_time'][:6]:<6} "
            f"{study['study_uid']}\n    {study['reason']}"
        )
    return "\n".join(lines)
