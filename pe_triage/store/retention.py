"""Which files may go, and what the database says of those that went.

The row first, then the file. A study is claimed in one transaction, in which every rule is looked
at under its lock: from there on its images count as not held, so nothing reads them and no run can
be queued on them. Then its files are deleted, then the claim is closed. After a crash at any point
the rows never promise a file that is gone, and `interrupted` names what is still to be deleted.

A study keeps its rows: its answer, the names of its images and their digests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    case,
    exists,
    func,
    select,
    text,
    update,
)

from pe_triage.clock import utc_now
from pe_triage.domain import InstanceRole, ResultKind, StudyState
from pe_triage.errors import StudyNotFoundError
from pe_triage.store import schema
from pe_triage.store.engine import read, write
from pe_triage.store.keeping_rules import (
    has_undelivered,
    is_active,
    is_in_doubt,
    is_unsent,
    settled,
)
from pe_triage.store.newest import newest_at
from pe_triage.store.runs import lock_study

ANSWERED = (StudyState.DONE, StudyState.NOT_EVALUATED)
"""What can go at all once it is delivered; FAILED goes by an age of its own."""

KEPT_KINDS = (ResultKind.SR.value,)
"""Never deleted: a later run's report names it as its predecessor, and it is small."""

_studies, _instances, _jobs = schema.studies, schema.instances, schema.jobs
_results = schema.results


class Why(StrEnum):
    """What made files go."""

    AGE = "AGE"
    SPACE = "SPACE"
    LOST = "LOST"
    """They were not there: a restored backup is older or smaller than its database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """Images or results that were claimed: their files are to be deleted now."""

    study_uid: str
    paths: tuple[Path, ...]
    """Relative to the data directory."""
    size_bytes: int = 0
    """Of images, as received."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How many studies hold files, by what keeps them, for people."""

    studies: int
    active: int
    """Still received, queued or analysed."""
    undelivered: int
    """A destination has not taken a result, or has not committed to one."""
    unsent: int
    """Their answer was sent nowhere on purpose, by a worker without a destination."""
    in_doubt: int
    """In quarantine, or something of theirs is."""
    failed: int


class RetentionStore:
    """Claims files for deletion, and closes the claims.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    clock
        For the times of removals.
    commit_limit_s
        So long a commitment is waited for, after the delivery; None: for ever.
    unsent_limit_s
        So long an answer is kept that was sent nowhere on purpose; None: for ever.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], datetime] = utc_now,
        commit_limit_s: float | None = None,
        unsent_limit_s: float | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._commit_limit_s = commit_limit_s
        self._unsent_limit_s = unsent_limit_s

    def _settled(self, before: datetime, states: Collection[StudyState]) -> ColumnElement[bool]:
        return settled(before, states, self._commit_limit_s, self._unsent_before())

    def _unsent_before(self) -> datetime | None:
        if self._unsent_limit_s is None:
            return None
        return self._clock() - timedelta(seconds=self._unsent_limit_s)

    def newest_at(self) -> datetime | None:
        """See `store.newest`."""
        return newest_at(self._engine)

    # ---------------------------------------------------------------- images

    def removable(
        self, before: datetime, *, states: Collection[StudyState] = ANSWERED, limit: int = 100
    ) -> list[str]:
        """Studies whose images may go, the longest untouched first.

        Parameters
        ----------
        before
            Only studies that nothing has touched since.
        states
            In which they must stand.
        """
        statement = (
            select(_studies.c.study_uid)
            .where(_studies.c.held > 0, self._settled(before, states))
            .order_by(_studies.c.last_activity_at, _studies.c.study_uid)
            .limit(limit)
        )
        with read(self._engine) as connection:
            return list(connection.execute(statement).scalars())

    def count(self, before: datetime, *, states: Collection[StudyState] = ANSWERED) -> int:
        """How many studies `removable` would name in the end."""
        statement = select(func.count()).where(_studies.c.held > 0, self._settled(before, states))
        with read(self._engine) as connection:
            return int(connection.execute(statement).scalar_one())

    def claim(
        self,
        study_uid: str,
        before: datetime,
        why: Why,
        *,
        states: Collection[StudyState] = ANSWERED,
    ) -> Claimed | None:
        """Declare a study's images gone; its files are deleted next, then `finished`.

        Returns
        -------
        Claimed or None
            None where the study may not lose them (any more): it grew, was queued again or is in
            doubt since `removable` looked.
        """

        def work(connection: Connection) -> bool:
            # Whatever adds to a study or queues it takes this lock first.
            lock_study(connection, study_uid)
            may = connection.execute(
                select(_studies.c.study_uid).where(
                    _studies.c.study_uid == study_uid,
                    _studies.c.held > 0,
                    self._settled(before, states),
                )
            ).one_or_none()
            if may is None:
                return False
            self._declare(connection, study_uid, why)
            return True

        try:
            claimed = write(self._engine, work)
        except StudyNotFoundError:
            return None
        return self.claimed(study_uid) if claimed else None

    def lost(self, study_uid: str, sop_instance_uids: Collection[str]) -> None:
        """Say that the files of these instances are not there, whatever their study's state."""

        def work(connection: Connection) -> None:
            lock_study(connection, study_uid)
            self._declare(connection, study_uid, Why.LOST, only=sop_instance_uids)
            connection.execute(
                update(_studies).where(_studies.c.study_uid == study_uid).values(removing=False)
            )

        write(self._engine, work)

    def _declare(
        self,
        connection: Connection,
        study_uid: str,
        why: Why,
        *,
        only: Collection[str] | None = None,
    ) -> None:
        now = self._clock()
        which = (_instances.c.study_uid == study_uid) & _instances.c.removed_at.is_(None)
        if only is not None:
            which &= _instances.c.sop_instance_uid.in_(list(only))
        connection.execute(update(_instances).where(which).values(removed_at=now))
        row = connection.execute(
            select(
                func.count().label("rows"),
                func.count(_instances.c.removed_at).label("gone"),
                func.coalesce(
                    func.sum(
                        case(
                            (
                                and_(
                                    _instances.c.removed_at.is_not(None),
                                    _instances.c.role != InstanceRole.OWN_RESULT.value,
                                ),
                                1,
                            ),
                            else_=0,
                        )
                    ),
                    0,
                ).label("counted"),
            ).where(_instances.c.study_uid == study_uid)
        ).one()
        connection.execute(
            update(_studies)
            .where(_studies.c.study_uid == study_uid)
            .values(
                held=row.rows - row.gone,
                removed=row.counted,
                removing=True,
                removed_at=now,
                removed_why=why.value,
            )
        )

    def held_files(self) -> Iterator[tuple[str, str, str]]:
        """Study, SOP Instance UID and path of every instance whose file should be here."""
        statement = select(
            _instances.c.study_uid, _instances.c.sop_instance_uid, _instances.c.path
        ).where(_instances.c.removed_at.is_(None))
        with read(self._engine) as connection:
            for row in connection.execution_options(yield_per=5000).execute(statement):
                yield row.study_uid, row.sop_instance_uid, row.path

    def interrupted(self) -> list[str]:
        """Studies that were claimed and not finished, by a crash or a file that would not go."""
        # As the index says it: SQLAlchemy's `removing = 1` reads every study on SQLite.
        statement = select(_studies.c.study_uid).where(text("removing"))
        with read(self._engine) as connection:
            return sorted(connection.execute(statement).scalars())

    def claimed(self, study_uid: str) -> Claimed:
        """Files of a study that are to be deleted; never one that has come again."""
        statement = (
            select(_instances.c.path, _instances.c.size_bytes)
            .where(_instances.c.study_uid == study_uid, _instances.c.removed_at.is_not(None))
            .order_by(_instances.c.path)
        )
        with read(self._engine) as connection:
            rows = connection.execute(statement).all()
        return Claimed(
            study_uid=study_uid,
            paths=tuple(Path(row.path) for row in rows),
            size_bytes=sum(row.size_bytes for row in rows),
        )

    def finished(self, study_uid: str) -> None:
        """Close a claim: none of its files is there any more, durably."""
        statement = update(_studies).where(_studies.c.study_uid == study_uid).values(removing=False)
        write(self._engine, lambda connection: connection.execute(statement))

    # ---------------------------------------------------------------- results

    def removable_results(self, before: datetime, *, limit: int = 100) -> list[int]:
        """Runs whose delivered results may go, oldest first; their reports (SR) stay."""
        files = exists().where(
            _results.c.job_id == _jobs.c.job_id,
            _results.c.path.is_not(None),
            _results.c.kind.not_in(KEPT_KINDS),
        )
        statement = (
            select(_jobs.c.job_id)
            .join(_studies, _jobs.c.study_uid == _studies.c.study_uid)
            .where(_jobs.c.completed_at < before, files, self._settled(before, ANSWERED))
            .order_by(_jobs.c.completed_at, _jobs.c.job_id)
            .limit(limit)
        )
        with read(self._engine) as connection:
            return list(connection.execute(statement).scalars())

    def claim_results(self, job_id: int, before: datetime) -> Claimed | None:
        """Declare the results of a run gone; their files are deleted next, then `finished_results`.

        Returns
        -------
        Claimed or None
            None where they may not go (any more).
        """

        def work(connection: Connection) -> str | None:
            study_uid = connection.execute(
                select(_jobs.c.study_uid).where(_jobs.c.job_id == job_id)
            ).scalar_one_or_none()
            if study_uid is None:
                return None
            lock_study(connection, study_uid)
            may = connection.execute(
                select(_studies.c.study_uid).where(
                    _studies.c.study_uid == study_uid, self._settled(before, ANSWERED)
                )
            ).one_or_none()
            if may is None:
                return None
            connection.execute(
                update(_results)
                .where(
                    _results.c.job_id == job_id,
                    _results.c.path.is_not(None),
                    _results.c.kind.not_in(KEPT_KINDS),
                )
                .values(removed_at=self._clock())
            )
            return str(study_uid)

        study_uid = write(self._engine, work)
        return None if study_uid is None else self._claimed_results(job_id, study_uid)

    def interrupted_results(self) -> list[Claimed]:
        """Runs whose results were claimed and not finished."""
        statement = (
            select(_jobs.c.job_id, _jobs.c.study_uid)
            .join(_results, _results.c.job_id == _jobs.c.job_id)
            .where(_results.c.removed_at.is_not(None), _results.c.path.is_not(None))
            .distinct()
        )
        with read(self._engine) as connection:
            rows = connection.execute(statement).all()
        return [self._claimed_results(row.job_id, row.study_uid) for row in rows]

    def _claimed_results(self, job_id: int, study_uid: str) -> Claimed:
        statement = select(_results.c.path).where(
            _results.c.job_id == job_id,
            _results.c.removed_at.is_not(None),
            _results.c.path.is_not(None),
        )
        with read(self._engine) as connection:
            paths = tuple(Path(path) for path in connection.execute(statement).scalars())
        return Claimed(study_uid=study_uid, paths=paths)

    def finished_results(self, paths: Collection[Path]) -> None:
        """Close a claim on results: these files are gone, durably."""
        statement = (
            update(_results)
            .where(
                _results.c.path.in_([path.as_posix() for path in paths]),
                _results.c.removed_at.is_not(None),
            )
            .values(path=None)
        )
        write(self._engine, lambda connection: connection.execute(statement))

    def result_files(self) -> list[tuple[int, str]]:
        """Number and path of every result whose file should be here."""
        statement = select(_results.c.result_id, _results.c.path).where(
            _results.c.path.is_not(None)
        )
        with read(self._engine) as connection:
            return [(row.result_id, row.path) for row in connection.execute(statement)]

    def lost_results(self, result_ids: Collection[int]) -> None:
        """Say that the files of these results are not there.

        A later run then names no predecessor that it cannot read, and what was to be sent is
        parked.
        """
        now = self._clock()

        def work(connection: Connection) -> None:
            for result_id in result_ids:
                connection.execute(
                    update(_results)
                    .where(_results.c.result_id == result_id)
                    .values(path=None, removed_at=now)
                )

        write(self._engine, work)

    # ---------------------------------------------------------------- for people

    def held_bytes(self) -> int:
        """Size of all images that are here, as received; reads a row for each of them."""
        statement = select(func.coalesce(func.sum(_instances.c.size_bytes), 0)).where(
            _instances.c.removed_at.is_(None)
        )
        with read(self._engine) as connection:
            return int(connection.execute(statement).scalar_one())

    def kept(self) -> Kept:
        """What holds files here, and what keeps them; a study counts once, by the first reason."""
        word = case(
            (is_active(), "active"),
            (is_in_doubt(), "in_doubt"),
            (has_undelivered(self._commit_limit_s), "undelivered"),
            (is_unsent(self._unsent_before()), "unsent"),
            (_studies.c.state == StudyState.FAILED.value, "failed"),
            else_="free",
        )
        reasons = select(word.label("word")).where(_studies.c.held > 0).subquery()
        with read(self._engine) as connection:
            rows: Any = connection.execute(
                select(reasons.c.word, func.count().label("n")).group_by(reasons.c.word)
            )
            counts = {row.word: int(row.n) for row in rows}
        return Kept(
            studies=sum(counts.values()),
            active=counts.get("active", 0),
            undelivered=counts.get("undelivered", 0),
            unsent=counts.get("unsent", 0),
            in_doubt=counts.get("in_doubt", 0),
            failed=counts.get("failed", 0),
        )
