"""What was set aside, why, and what a person decided on it.

A study is QUARANTINED while its patient is in doubt. When the last of its objects in doubt has
been decided on, it goes back to RECEIVING, is found complete again, and runs with what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, exists, insert, select, update

from pe_triage.clock import utc_now
from pe_triage.domain import StudyState
from pe_triage.errors import InputError
from pe_triage.store import schema
from pe_triage.store.engine import read, write
from pe_triage.store.holding import send_held
from pe_triage.store.notices import Topic, notify
from pe_triage.store.schema import IN_DOUBT, QuarantineKind, QuarantineState

__all__ = ["Quarantine", "QuarantineEntry", "QuarantineKind", "QuarantineState"]

ADVICE = {
    QuarantineKind.IDENTITY: "a study is never filed under two patients: discard it where the "
    "patient held is the right one; otherwise correct the images and send them under a new Study "
    "Instance UID",
}
"""What to do instead of a release."""

_DELETED = "the file is deleted, the record stays"
_SETTLES = (
    f"{_DELETED}; once nothing of the study is in doubt, what was held back is sent and the study "
    "is assembled again with the images that are held"
)
CONSEQUENCES: Mapping[QuarantineKind, Mapping[str, str]] = {
    QuarantineKind.CONTENT: {"discard": f"{_DELETED}; the object that came first stays as it is"},
    QuarantineKind.IDENTITY: {"discard": _SETTLES},
    QuarantineKind.ELSEWHERE: {"discard": _SETTLES},
    QuarantineKind.STRAY: {"discard": f"{_DELETED}; its study is not touched"},
    QuarantineKind.OTHER: {
        "release": "the node reads the file again and takes it up, or sets it aside again",
        "discard": _DELETED,
    },
}
"""What each decision leads to; a decision that does not stand here is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineEntry:
    """One object that was set aside."""

    quarantine_id: int
    study_uid: str | None
    sop_instance_uid: str | None
    sha256: str | None
    path: Path
    """Relative to the data directory (absolute only where it was recorded so)."""
    kind: QuarantineKind
    reason: str
    state: QuarantineState
    created_at: datetime
    decided_at: datetime | None
    decided_by: str | None = None
    decided_why: str | None = None

    @property
    def consequence(self) -> Mapping[str, str]:
        """Decision that a person can take now, to what it leads to."""
        if self.state is not QuarantineState.HELD:
            return {}
        return CONSEQUENCES[self.kind]


class Quarantine:
    """Objects that were set aside.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    clock
        For the times of entries and decisions.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._engine = engine
        self._clock = clock

    def add(
        self,
        *,
        path: Path,
        reason: str,
        study_uid: str | None = None,
        sop_instance_uid: str | None = None,
        sha256: str | None = None,
    ) -> int:
        """Enter a file that cannot be indexed at all; once for each path. Returns its id."""
        table = schema.quarantine

        def work(connection: Connection) -> int:
            known = connection.execute(
                select(table.c.quarantine_id).where(
                    table.c.path == path.as_posix(), table.c.state == QuarantineState.HELD.value
                )
            ).first()
            if known is not None:
                return int(known.quarantine_id)
            inserted = connection.execute(
                insert(table)
                .values(
                    study_uid=study_uid,
                    sop_instance_uid=sop_instance_uid,
                    sha256=sha256,
                    path=path.as_posix(),
                    kind=QuarantineKind.OTHER.value,
                    reason=reason,
                    state=QuarantineState.HELD.value,
                    created_at=self._clock(),
                )
                .returning(table.c.quarantine_id)
            )
            return int(inserted.scalar_one())

        return write(self._engine, work)

    def list(self, *, decided: bool = False) -> list[QuarantineEntry]:
        """Entries that await a decision, oldest first; with `decided`, all."""
        table = schema.quarantine
        statement = select(table).order_by(table.c.created_at, table.c.quarantine_id)
        if not decided:
            statement = statement.where(table.c.state == QuarantineState.HELD.value)
        with read(self._engine) as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def get(self, quarantine_id: int) -> QuarantineEntry:
        """One entry, decided or not.

        Raises
        ------
        InputError
            No such entry.
        """
        table = schema.quarantine
        with read(self._engine) as connection:
            row = connection.execute(
                select(table).where(table.c.quarantine_id == quarantine_id)
            ).one_or_none()
        if row is None:
            raise _unknown(quarantine_id)
        return _entry(row)

    def moved(self, quarantine_id: int, path: Path) -> None:
        """Say where the file lies now.

        Raises
        ------
        InputError
            No such entry.
        """
        table = schema.quarantine
        statement = (
            update(table)
            .where(table.c.quarantine_id == quarantine_id)
            .values(path=path.as_posix())
            .returning(table.c.quarantine_id)
        )
        if write(self._engine, lambda c: c.execute(statement).one_or_none()) is None:
            raise _unknown(quarantine_id)

    def check(self, quarantine_id: int, wanted: QuarantineState) -> QuarantineEntry:
        """Return the entry that `release` or `discard` would decide on; decides nothing.

        Raises
        ------
        InputError
            As they do.
        """
        entry = self.get(quarantine_id)
        _check(entry, wanted)
        return entry

    def release(
        self, quarantine_id: int, *, by: str | None = None, why: str | None = None
    ) -> QuarantineEntry:
        """Decide that a file that could not be read is to be looked at again.

        The caller has put its file back to be indexed: whatever fails before this leaves an entry
        that can be released again.

        Parameters
        ----------
        by, why
            Who decided so, and why; recorded.

        Raises
        ------
        InputError
            No such entry, decided already, or one that can never be taken beside what is held.
        """
        return self._decide(quarantine_id, QuarantineState.RELEASED, by, why)

    def discard(
        self, quarantine_id: int, *, by: str | None = None, why: str | None = None
    ) -> QuarantineEntry:
        """Decide that the object is not wanted; the caller deletes its file.

        Parameters
        ----------
        by, why
            Who decided so, and why; recorded.

        Raises
        ------
        InputError
            No such entry, or decided already.
        """
        return self._decide(quarantine_id, QuarantineState.DISCARDED, by, why)

    def _decide(
        self, quarantine_id: int, state: QuarantineState, by: str | None, why: str | None
    ) -> QuarantineEntry:
        table, studies = schema.quarantine, schema.studies

        def work(connection: Connection) -> QuarantineEntry:
            found = connection.execute(
                select(table).where(table.c.quarantine_id == quarantine_id)
            ).one_or_none()
            if found is None:
                raise _unknown(quarantine_id)
            # The study before its rows, as everywhere.
            connection.execute(
                select(studies.c.study_uid)
                .where(studies.c.study_uid == found.study_uid)
                .with_for_update()
            )
            entry = _entry(
                connection.execute(
                    select(table).where(table.c.quarantine_id == quarantine_id).with_for_update()
                ).one()
            )
            _check(entry, state)
            decided = connection.execute(
                update(table)
                .where(table.c.quarantine_id == quarantine_id)
                .values(
                    state=state.value,
                    decided_at=self._clock(),
                    decided_by=by,
                    decided_why=why,
                )
                .returning(*table.c)
            ).one()
            if entry.study_uid is not None and entry.kind in IN_DOUBT:
                self._resume(connection, entry.study_uid)
            return _entry(decided)

        return write(self._engine, work)

    def _resume(self, connection: Connection, study_uid: str) -> None:
        table, studies = schema.quarantine, schema.studies
        in_doubt = exists().where(
            table.c.study_uid == study_uid,
            table.c.kind.in_([kind.value for kind in IN_DOUBT]),
            table.c.state == QuarantineState.HELD.value,
        )
        settled = (studies.c.study_uid == study_uid) & ~in_doubt
        resumed = connection.execute(
            update(studies)
            .where(settled, studies.c.quarantine_reason.is_not(None))
            .values(quarantine_reason=None)
            .returning(studies.c.study_uid)
        ).all()
        if resumed:
            send_held(connection, study_uid)
        # A study that holds nothing stays where people see it.
        connection.execute(
            update(studies)
            .where(
                settled,
                studies.c.state == StudyState.QUARANTINED.value,
                studies.c.instances > 0,
            )
            .values(state=StudyState.RECEIVING.value, last_activity_at=self._clock())
        )
        notify(connection, Topic.ARRIVALS)


def _check(entry: QuarantineEntry, wanted: QuarantineState) -> None:
    if entry.state is not QuarantineState.HELD:
        raise InputError(f"quarantine entry {entry.quarantine_id} is {entry.state} already")
    if wanted is QuarantineState.RELEASED and entry.kind is not QuarantineKind.OTHER:
        raise InputError(
            f"quarantine entry {entry.quarantine_id} cannot be released: {entry.reason}; "
            f"{ADVICE.get(entry.kind, 'discard it, or correct it at its source and send it again')}"
        )


def _entry(row: Row[Any]) -> QuarantineEntry:
    return QuarantineEntry(
        quarantine_id=row.quarantine_id,
        study_uid=row.study_uid,
        sop_instance_uid=row.sop_instance_uid,
        sha256=row.sha256,
        path=Path(row.path),
        kind=QuarantineKind(row.kind),
        reason=row.reason,
        state=QuarantineState(row.state),
        created_at=row.created_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
        decided_why=row.decided_why,
    )


def _unknown(quarantine_id: int) -> InputError:
    return InputError(f"no quarantine entry {quarantine_id}")
