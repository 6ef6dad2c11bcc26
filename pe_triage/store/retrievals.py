"""What is fetched from an archive, until all of it has come.

By C-MOVE images come as if a scanner had sent them; by C-GET the command itself puts them into
the spool, one after the other. What tells a part from the whole must outlive the command that
asked, and an archive that does not answer any more.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Engine, delete, insert, select

from pe_triage.store import schema
from pe_triage.store.engine import db_now, read, write

FORGOTTEN_AFTER_S = 30 * 86_400.0
"""What has not come by then is not waited for: the archive may have other images by now."""

_retrievals = schema.retrievals

Wanted = Mapping[str, int]
"""CT series UID to the number of its images."""


class Retrievals:
    """Shared by the commands that fetch and the assembler.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, study_uid: str, wanted: Wanted) -> None:
        """Say what of a study is to come; before it is asked for."""

        def work(connection: Connection) -> None:
            old = _retrievals.c.begun_at < db_now() - FORGOTTEN_AFTER_S
            connection.execute(
                delete(_retrievals).where((_retrievals.c.study_uid == study_uid) | old)
            )
            connection.execute(
                insert(_retrievals).values(
                    study_uid=study_uid, wanted=dict(wanted), begun_at=db_now()
                )
            )

        write(self._engine, work)

    def end(self, study_uid: str) -> None:
        """Say that all of it has come."""
        statement = delete(_retrievals).where(_retrievals.c.study_uid == study_uid)
        write(self._engine, lambda connection: connection.execute(statement))

    def unfinished(self) -> dict[str, Wanted]:
        """Study Instance UID to what was to come, of those of which not all has come."""
        statement = select(_retrievals.c.study_uid, _retrievals.c.wanted).where(
            _retrievals.c.begun_at > db_now() - FORGOTTEN_AFTER_S
        )
        with read(self._engine) as connection:
            return {row.study_uid: row.wanted for row in connection.execute(statement)}


def short_of(wanted: Wanted, held: Mapping[str, int]) -> int:
    """How many images of `wanted` are not held.

    Parameters
    ----------
    held
        Series UID to images here.
    """
    return sum(max(0, count - held.get(series_uid, 0)) for series_uid, count in wanted.items())
