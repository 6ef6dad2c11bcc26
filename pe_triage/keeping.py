"""From the settings to the parts that keep the disk from filling up, and the queue in order."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from pe_triage.config import Settings
from pe_triage.errors import InputError
from pe_triage.logs import get_logger
from pe_triage.receive.spool import Spool
from pe_triage.retention import DAY_S, is_on
from pe_triage.sharing import Part, restore_store
from pe_triage.startup import hold_data_dir, prepare_database
from pe_triage.store.backup import check_restorable, restore_database
from pe_triage.store.engine import open_engine, parse_url
from pe_triage.store.migrate import upgrade
from pe_triage.store.quarantine import Quarantine
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


RESTORING = "restoring"
"""File in the data directory while a restore is under way, and after one that was cut short."""
_COPYING, _SETTLING = "copying", "settling"


def check_restored(settings: Settings) -> None:
    """Refuse a node that was not restored to the end: what nobody settled, nobody would index.

    Raises
    ------
    InputError
        With the command that ends it.
    """
    stage = _restoring(settings)
    if stage == _COPYING:
        raise _cut_short(settings)
    if stage is not None:
        raise InputError(
            f"a restore into {settings.data_dir} did not come to its end; run: pe-triage restore "
            "--in-place"
        )


def _restoring(settings: Settings) -> str | None:
    try:
        return (settings.data_dir / RESTORING).read_text(encoding="ascii")
    except FileNotFoundError:
        return None


def _cut_short(settings: Settings) -> InputError:
    return InputError(
        f"a restore into {settings.data_dir} was cut short before its database was there; empty "
        "both and restore again"
    )


def _mark_restoring(settings: Settings, stage: str) -> None:
    path = settings.data_dir / RESTORING
    with path.open("w", encoding="ascii") as file:
        file.write(stage)
        file.flush()
        os.fsync(file.fileno())


def restore_node(settings: Settings, backup: Path | None) -> Settled:
    """Bring a backup back into an empty data directory, and settle rows and files.

    Parameters
    ----------
    backup
        None where database and files were brought back by other means.

    Raises
    ------
    InputError
        The node runs, something is there already, or nothing is that could be settled.
    """
    from pe_triage.node.backup import FOLDERS, copy_files, settle

    with hold_data_dir(settings):
        if backup is None:
            if _restoring(settings) == _COPYING:
                raise _cut_short(settings)
            # An empty one would be made, and every image taken for new.
            _require_database(settings)
        else:
            for folder in FOLDERS:
                if any(path.is_file() for path in (settings.store_dir / folder).rglob("*")):
                    raise InputError(f"{settings.store_dir / folder} is not empty; move it away")
            check_restorable(settings.database_url, backup)
            _mark_restoring(settings, _COPYING)
            # The database last: without it nobody takes half of the files for a node.
            copy_files(backup, settings.store_dir)
            restore_database(settings.database_url, backup)
        _mark_restoring(settings, _SETTLING)
        if backup is not None:
            # It is new, on PostgreSQL too: nobody works on it yet.
            upgrade(settings.database_url)
        prepare_database(settings)
        engine = open_engine(settings.database_url)
        try:
            restore_store(settings, engine)
            settled = settle(
                RetentionStore(engine),
                Quarantine(engine),
                Spool(settings.spool_dir),
                settings.store_dir,
            )
        finally:
            engine.dispose()
        (settings.data_dir / RESTORING).unlink()
        return settled


def _require_database(settings: Settings) -> None:
    parsed = parse_url(settings.database_url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
        raise InputError(f"no database at {parsed.database}; bring it back first")


def retention_store(
    settings: Settings, engine: Engine, clock: Callable[[], datetime]
) -> RetentionStore:
    """What may be removed, by the rules of the database."""
    table = settings.retention
    return RetentionStore(
        engine,
        clock=clock,
        commit_limit_s=table.uncommitted_days * DAY_S or None,
        unsent_limit_s=table.unsent_days * DAY_S or None,
    )


def retention(
    settings: Settings,
    engine: Engine,
    spool: Spool,
    part: Part,
    clock: Callable[[], datetime],
) -> Retention:
    """What removes files; where nothing may go it only finishes what it had begun."""
    from pe_triage.node.retention import Retention

    table = settings.retention
    on = is_on(table, has_destination=bool(settings.routes))
    table = table.model_copy(update={"enabled": on})
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
    from pe_triage.node.retrieval import ABANDONED_AFTER_S, clean_scratch

    return [
        ("retention", retention(settings, engine, spool, part, clock).tick, EVERY_S),
        ("scratch", partial(clean_scratch, settings.data_dir), ABANDONED_AFTER_S / 6),
    ]
