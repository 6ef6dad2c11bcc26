"""From the settings to the parts that keep the disk from filling up, and the queue in order."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from pe_triage.config import Settings
from pe_triage.errors import InputError
from pe_triage.logs import get_logger
from pe_triage.receive.spool import Spool
from pe_triage.retention import DAY_S
from pe_triage.sharing import Part, restore_store
from pe_triage.startup import hold_data_dir, prepare_database
from pe_triage.store.backup import restore_database
from pe_triage.store.engine import open_engine
from pe_triage.store.retention import RetentionStore
from pe_triage.watchers import alarm_store

if TYPE_CHECKING:
    from pe_triage.node.backup import Settled
    from pe_triage.node.coordinator import Timer
    from pe_triage.node.retention import Retention


def clean_at_start(settings: Settings) -> None:
    """Remove what transfers left that a crash cut short; no receiver may run on the spool yet.

    On a store that other hosts share theirs may: there the coordinator does it, by age.
    """
    if settings.shared_dir is not None:
        return
    removed = Spool(settings.spool_dir).clean_temporary()
    if removed:
        get_logger().info("spool.cleaned", files=removed)


def restore_node(settings: Settings, backup: Path | None) -> Settled:
    """Bring a backup back into an empty data directory, and settle rows and files.

    Parameters
    ----------
    backup
        None where database and files were brought back by other means.

    Raises
    ------
    InputError
        The node runs, or something is there already.
    """
    from pe_triage.node.backup import FOLDERS, copy_files, settle

    with hold_data_dir(settings):
        if backup is not None:
            for folder in FOLDERS:
                if any(path.is_file() for path in (settings.store_dir / folder).rglob("*")):
                    raise InputError(f"{settings.store_dir / folder} is not empty; move it away")
            # The database last: without it nobody takes half of the files for a node.
            copy_files(backup, settings.store_dir)
            restore_database(settings.database_url, backup)
        prepare_database(settings)
        engine = open_engine(settings.database_url)
        try:
            restore_store(settings, engine)
            return settle(RetentionStore(engine), Spool(settings.spool_dir), settings.store_dir)
        finally:
            engine.dispose()


def retention_store(
    settings: Settings, engine: Engine, clock: Callable[[], datetime]
) -> RetentionStore:
    """What may be removed, by the rules of the database."""
    limit_s = settings.retention.uncommitted_days * DAY_S
    return RetentionStore(engine, clock=clock, commit_limit_s=limit_s or None)


def retention(
    settings: Settings,
    engine: Engine,
    spool: Spool,
    part: Part,
    clock: Callable[[], datetime],
) -> Retention:
    """What removes files; where results are sent nowhere it only finishes what it had begun."""
    from pe_triage.node.retention import Retention

    table = settings.retention
    if not settings.routes:
        table = table.model_copy(update={"enabled": False})
    return Retention(
        store=retention_store(settings, engine, clock),
        spool=spool,
        data_dir=settings.store_dir,
        table=table,
        marks=settings.space_marks,
        guard=part.guard,
        leading=part.leading,
        clock=clock,
        alarms=alarm_store(settings, engine),
        remind_s=settings.watch.remind_s,
    )


def timers(
    settings: Settings,
    engine: Engine,
    spool: Spool,
    part: Part,
    clock: Callable[[], datetime],
) -> list[Timer]:
    """Everything of this side that happens by the clock."""
    from pe_triage.node.retention import EVERY_S

    return [("retention", retention(settings, engine, spool, part, clock).tick, EVERY_S)]
