"""The database of a node, for commands that look at what it holds.

Kept apart from `pe_triage.app`, which brings in every part of a node: who asks for the worklist
should not wait for the parts that receive, analyse and deliver.
"""

from __future__ import annotations

from sqlalchemy import Engine

from pe_triage.config import Settings
from pe_triage.errors import InputError
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import check_schema


def open_existing_database(settings: Settings) -> Engine:
    """Database of a node for commands that look at it.

    Raises
    ------
    InputError
        No node has ever run there, or the schema is not this program's.
    """
    if settings.embedded_database and settings.database is None:
        file = settings.data_dir / "pe-triage.sqlite3"
        if not file.exists():
            raise InputError(f"no pe-triage database in {settings.data_dir}; is --data-dir right?")
    engine = open_engine(settings.database_url)
    check_schema(engine)
    return engine
