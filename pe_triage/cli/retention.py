"""``pe-triage retention``: what holds files here, what keeps them, what would go next."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from


@click.command()
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def retention(
    data_dir: Path | None, database: str | None, config: Path | None, as_json: bool
) -> None:
    """Say how much is held, how much space is free, and what keeps files from being removed."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.cli.database import open_existing_database
    from pe_triage.clock import utc_now
    from pe_triage.keeping import retention_store
    from pe_triage.node.retention import lowest_free
    from pe_triage.retention import DAY_S, HOUR_S, is_on

    table, marks = settings.retention, settings.space_marks
    store = retention_store(settings, open_existing_database(settings), utc_now)
    kept = store.kept()
    settled = utc_now() - timedelta(hours=table.settle_h)
    aged = utc_now() - timedelta(seconds=max(table.images_days * DAY_S, table.settle_h * HOUR_S))
    doc = {
        "enabled": is_on(table, has_destination=bool(settings.routes)),
        "free_mb": lowest_free(settings.store_dir, settings.spool_dir) >> 20,
        "refused_below_mb": settings.min_free_mb,
        "taken_again_at_mb": settings.resume_free_bytes >> 20,
        "low_free_mb": marks.low >> 20,
        "target_free_mb": marks.target >> 20,
        "images_mb": store.held_bytes() >> 20,
        "studies": kept.studies,
        "kept": {
            "active": kept.active,
            "in_doubt": kept.in_doubt,
            "undelivered": kept.undelivered,
            "unsent": kept.unsent,
            "failed": kept.failed,
        },
        "removable_for_space": store.count(settled),
        "removable_by_age": store.count(aged) if table.images_days else 0,
        "interrupted": len(store.interrupted()),
    }
    if as_json:
        click.echo(json.dumps(doc, indent=2))
        return
    click.echo(
        f"{doc['studies']} studies hold {doc['images_mb']} MiB of images; {doc['free_mb']} MiB are "
        f"free (removal below {doc['low_free_mb']}, refusal below {doc['refused_below_mb']} "
        f"until {doc['taken_again_at_mb']})"
    )
    if not doc["enabled"]:
        click.echo(
            "by these settings nothing is removed: it is off, or results are sent nowhere and "
            "retention.unsent_days is not set"
        )
    click.echo(
        f"kept: {kept.active} under way, {kept.in_doubt} in doubt, {kept.undelivered} not "
        f"delivered, {kept.unsent} sent nowhere on purpose, {kept.failed} failed"
    )
    click.echo(
        f"may go: {doc['removable_by_age']} by age now, {doc['removable_for_space']} should space "
        "run out"
    )
