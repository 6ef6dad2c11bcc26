"""``pe-triage restore``: a backup back into an empty data directory."""

from __future__ import annotations

from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from


@click.command()
@click.argument(
    "directory", metavar="[DIR]", type=click.Path(path_type=Path, exists=True), required=False
)
@node_options
@click.option(
    "--in-place",
    is_flag=True,
    help="Database and files were brought back by other means; only settle their difference.",
)
def restore(
    directory: Path | None,
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    in_place: bool,
) -> None:
    """Bring the backup in DIR back, and settle what differs between its database and its files.

    The node must not run. Start it afterwards: it goes on where the backup was made.
    """
    if (directory is None) == (not in_place):
        raise click.UsageError("give either DIR or --in-place")
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.keeping import restore_node

    settled = restore_node(settings, None if directory is None else directory.resolve())
    click.echo(
        f"{settled.incoming} files will be indexed again; {settled.lost} images of "
        f"{settled.studies} studies and {settled.results} result files are not in the backup"
    )
