"""``pe-triage backup``: database and files of a node, also while it runs."""

from __future__ import annotations

from pathlib import Path

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.errors import InputError


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@node_options
def backup(
    directory: Path, data_dir: Path | None, database: str | None, config: Path | None
) -> None:
    """Copy database and files of a node to DIR; again to the same DIR copies what is new.

    DIR then holds patients' images: keep it as safe as the node itself.
    """
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    target = directory.expanduser().resolve()
    for directory in (settings.data_dir, settings.store_dir):
        if target.is_relative_to(directory) or directory.is_relative_to(target):
            raise InputError(f"{target} and {directory} lie inside each other")
    from pe_triage.cli.database import open_existing_database
    from pe_triage.node.backup import check_target, copy_files, sole_backup
    from pe_triage.store.backup import copy_database

    open_existing_database(settings).dispose()
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {target}: {error.strerror}") from None
    check_target(settings.store_dir, target)
    with sole_backup(target):
        # In this order: see `node.backup`.
        copy = copy_database(settings.database_url, target)
        files = copy_files(settings.store_dir, target, publish=copy.publish)
    click.echo(
        f"{copy.final.name}; {files.copied} files copied, {files.unchanged} were there, "
        f"{files.pruned} are gone from the node"
    )
