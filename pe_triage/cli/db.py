"""``pe-triage db``: the database schema."""

from __future__ import annotations

from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from


@click.group()
def db() -> None:
    """Manage the database schema."""


@db.command()
@node_options
def upgrade(data_dir: Path | None, database: str | None, config: Path | None) -> None:
    """Bring the schema to the version that this program needs (Alembic head)."""
    from pe_triage.store.migrate import upgrade as migrate

    settings = settings_from(data_dir=data_dir, database=database, config=config)
    if settings.embedded_database:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    migrate(settings.database_url)
    click.echo("database schema is up to date")
