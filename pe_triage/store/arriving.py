"""What has come of studies that are still being received, a piece at a time.

For work ahead of a study's end, which looks often: each look reads what is new, and not again all
that a long study already holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, select

from pe_triage.domain import InstanceRole, StudyState
from pe_triage.store import schema
from pe_triage.store.engine import read
from pe_triage.store.studies import StoredInstance, instances_where

AT_ONCE = 500
"""Instances of one look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """CT images of one study beyond those that were read before."""

    instances: tuple[StoredInstance, ...]
    last: int
    """To be handed to the next look."""


class Arriving:
    """Looks at studies in state RECEIVING.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def studies(self) -> dict[str, int]:
        """Study Instance UID to images, the study first that began first."""
        table = schema.studies
        with read(self._engine) as connection:
            rows = connection.execute(
                select(table.c.study_uid, table.c.images, table.c.received_at).where(
                    table.c.state == StudyState.RECEIVING.value
                )
            ).all()
        # Asked for an order, SQLite reads all studies that are held by an index that has it.
        rows = sorted(rows, key=lambda row: (row.received_at, row.study_uid))
        return {row.study_uid: row.images for row in rows}

    def after(self, study_uid: str, last: int) -> Arrived:
        """Return CT images of a study that were recorded after `last`; 0: from the beginning.

        Where several nodes record one study at the same moment, one may be passed over: nobody may
        count on these being all.
        """
        table = schema.instances
        mine = (table.c.study_uid == study_uid) & (table.c.instance_id > last)
        with read(self._engine) as connection:
            ids = (
                connection.execute(
                    select(table.c.instance_id)
                    .where(mine)
                    .order_by(table.c.instance_id)
                    .limit(AT_ONCE)
                )
                .scalars()
                .all()
            )
            if not ids:
                return Arrived(instances=(), last=last)
            found = instances_where(
                connection,
                mine
                & (table.c.instance_id <= ids[-1])
                & (table.c.role == InstanceRole.IMAGE.value),
            )
        return Arrived(instances=tuple(found), last=ids[-1])
