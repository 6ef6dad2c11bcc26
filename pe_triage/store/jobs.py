"""The job queue: one row for each run of a study, claimed, leased, beaten, fenced.

Runs of one study are worked strictly in order: a run can be claimed only while no earlier one is
QUEUED or RUNNING. Since a run never comes back from an end, that rule holds without locking the
other rows. Leases live on the database's clock. Who is next is said in `claim_order`; how a job
comes back that its worker did not finish, and when it ends FAILED instead, in `hand_back`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    exists,
    func,
    select,
    update,
)

from pe_triage.clock import utc_now
from pe_triage.domain import (
    TERMINAL_STATES,
    Job,
    Outcome,
    Priority,
    ResultKind,
    StudyState,
)
from pe_triage.routing import Route
from pe_triage.store import schema
from pe_triage.store.claim_order import FAIR_EVERY, claimable, starving
from pe_triage.store.engine import db_now, read, write
from pe_triage.store.finishing import ResultRow, end_run, write_results
from pe_triage.store.hand_back import (
    CLOCK_SLACK_S,
    Outage,
    expired,
    give_back,
    lease_lost,
    release,
    unfreeze,
)
from pe_triage.store.runs import (
    JOB_COLUMNS,
    QUEUED,
    RUNNING,
    Closing,
    StudyChangedError,
    closing_of,
    job_of,
    lock_study,
    queue_run,
)
from pe_triage.store.schema import Rank

__all__ = [
    "CLOCK_SLACK_S",
    "Closing",
    "JobQueue",
    "QueueDepth",
    "Rank",
    "ResultRow",
    "StudyChangedError",
    "claimable",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth:
    """How much work is left."""

    queued: int
    running: int

    @property
    def total(self) -> int:
        """Jobs that have not ended."""
        return self.queued + self.running


_jobs = schema.jobs


class JobQueue:
    """Queue of runs, shared by any number of processes and machines.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    max_attempts
        Claims of one job before it ends FAILED.
    clock
        For times that people read; leases use the database's own.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_attempts: int = 3,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._engine = engine
        self._max_attempts = max_attempts
        self._clock = clock
        self._outage = Outage()
        self._claims = 0
        self._fair = 0

    def enqueue(
        self,
        study_uid: str,
        manifest_digest: str,
        *,
        rank: int = Rank.ROUTINE,
        forced: bool = False,
        closing: Closing | None = None,
    ) -> Job | None:
        """Queue a run of everything that is held of a study.

        A newest run that is queued and was never claimed takes the larger manifest over, so that
        a slice that comes while the study waits makes one run and not two.

        Parameters
        ----------
        manifest_digest
            Of all instances held, see `StudyStore.manifest`; checked inside the transaction, so
            that a slice that came since the caller looked is never left out of the run.
        rank
            `Rank`, or any number; the smaller is claimed first.
        forced
            Make a new run even of a manifest that the newest run already had (reprocess).
        closing
            What closed the study; kept with the run and shown.

        Returns
        -------
        Job or None
            None where the newest run already is about these instances (the study goes back to
            where that run stands), or the study is quarantined.

        Raises
        ------
        StudyChangedError
            The study holds other instances than the digest says. It stays as it is.
        StudyNotFoundError
            Unknown, or nothing of it is held.
        InputError
            `forced` on a quarantined study.
        """

        def work(connection: Connection) -> Job | None:
            return queue_run(
                connection,
                study_uid,
                manifest_digest,
                rank=rank,
                forced=forced,
                at=self._clock(),
                closing=closing,
            )

        return write(self._engine, work)

    def closing(self, job: Job) -> Closing | None:
        """What closed the study for this run; None where a person asked for it."""
        statement = select(_jobs).where(_jobs.c.job_id == job.job_id)
        with read(self._engine) as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else closing_of(row)

    def claim(self, owner: str, lease_s: float) -> Job | None:
        """Take the next job for `lease_s` seconds, or None.

        Jobs whose lease ran out come back first: to the queue, or to FAILED after `max_attempts`.

        Parameters
        ----------
        owner
            Names the claiming process; see `release_owner`.
        """
        with self._outage.noticing(), read(self._engine) as connection:
            # An idle worker looks without taking SQLite's one write lock.
            dead = connection.execute(select(exists().where(expired()))).scalar_one()
            waiting = connection.execute(claimable(lock=False)).first()
            fair = self._claims % FAIR_EVERY == FAIR_EVERY - 1
            rank = starving(connection, self._fair) if fair else None
        if dead:
            self.reap()
        elif waiting is None:
            return None
        row = None
        if rank is not None:
            self._fair += 1
            row = self._claim(claimable(lock=True, rank=rank), owner, lease_s)
        if row is None:
            row = self._claim(claimable(lock=True), owner, lease_s)
        if row is None:
            return None
        self._claims += 1
        return job_of(row)

    def _claim(self, which: Select[tuple[int]], owner: str, lease_s: float) -> Row[Any] | None:
        statement = (
            update(_jobs)
            .where(_jobs.c.job_id == which.scalar_subquery())
            .values(
                state=RUNNING,
                attempts=_jobs.c.attempts + 1,
                fencing_token=_jobs.c.fencing_token + 1,
                lease_owner=owner,
                lease_until=db_now() + lease_s,
            )
            .returning(*JOB_COLUMNS)
        )
        return write(self._engine, lambda c: c.execute(statement).one_or_none())

    def heartbeat(self, job: Job, owner: str, lease_s: float) -> None:
        """Hold `job` for `lease_s` seconds from now.

        Raises
        ------
        LeaseLostError
            The job was given to another, ended, or released: stop and throw the work away.
        """
        statement = (
            update(_jobs)
            .where(
                _jobs.c.job_id == job.job_id,
                _jobs.c.fencing_token == job.fencing_token,
                _jobs.c.lease_owner == owner,
                _jobs.c.state == RUNNING,
            )
            .values(lease_until=db_now() + lease_s)
            .returning(_jobs.c.job_id)
        )
        if write(self._engine, lambda c: c.execute(statement).one_or_none()) is None:
            raise lease_lost(job)

    def finish(
        self,
        job: Job,
        *,
        state: StudyState,
        outcome: Outcome | None,
        reason: str | None,
        priority: Priority | None,
        document: Mapping[str, Any],
        model_sha256: str | None,
        results: Sequence[ResultRow],
        routes: Sequence[Route],
    ) -> None:
        """End `job`: its answer, its results, their deliveries and its study, in one transaction.

        Doing it twice with the same job is harmless: the second call finds it done.

        Parameters
        ----------
        document
            Keys ``series_uid``, ``exam``, ``pe_probability``, ``findings``, ``slices``, ``model``
            of the show document; others are shown as they are.
        results
            In the order in which they should be sent; their files are durable already.
        routes
            Which destination gets which results; see `routing.plan_deliveries`. None at all: this
            was sent nowhere on purpose, which retention is told (`keeping_rules.is_unsent`).

        Raises
        ------
        LeaseLostError
            The fencing token is old. Nothing was written.
        """
        if state not in TERMINAL_STATES:
            raise ValueError(f"a run cannot end in {state}")

        def work(connection: Connection) -> None:
            study = lock_study(connection, job.study_uid)
            row = _held_job(connection, job)
            if row is None:
                return
            end_run(
                connection,
                study,
                job,
                state=state,
                at=self._clock(),
                values={
                    "outcome": None if outcome is None else outcome.value,
                    "reason": reason,
                    "priority": None if priority is None else priority.value,
                    "model_sha256": model_sha256,
                    "document": {k: v for k, v in document.items() if k != "slices"},
                    "slices": list(document.get("slices") or ()),
                    "pe_probability": document.get("pe_probability"),
                    "attention_entropy": document.get("attention_entropy"),
                    "unsent": bool(results) and not routes,
                },
            )
            write_results(connection, job, priority, outcome, results, routes)

        write(self._engine, work)

    def fail(
        self,
        job: Job,
        error: str,
        *,
        retry: bool,
        delay_s: float | None = 0.0,
        counted: bool = True,
    ) -> StudyState:
        """Say that an attempt went wrong.

        Parameters
        ----------
        error
            One line without patient identity; shown to people.
        retry
            Whether another attempt could succeed; after `max_attempts` there is none.
        delay_s
            None keeps the job's place in the queue.
        counted
            Whether the claim counts as an attempt; False where the study cannot be at fault.

        Returns
        -------
        StudyState
            QUEUED (again in `delay_s` seconds) or FAILED.

        Raises
        ------
        LeaseLostError
            The fencing token is old.
        """

        def work(connection: Connection) -> StudyState:
            study = lock_study(connection, job.study_uid)
            row = _held_job(connection, job)
            if row is None:
                raise lease_lost(job)
            return give_back(
                connection,
                study,
                row,
                error,
                retry=retry,
                delay_s=delay_s,
                counted=counted,
                max_attempts=self._max_attempts,
                at=self._clock(),
            )

        return write(self._engine, work)

    def release_owner(
        self, owner_prefix: str, error: str = "the worker process died", *, counted: bool = True
    ) -> int:
        """Give back at once what a process that is gone held.

        Parameters
        ----------
        owner_prefix
            Start of the owner's name. End it with a separator, or worker 1 is taken for worker 10.
        counted
            Whether the claims count as attempts: a death does, an orderly stop does not.

        Returns
        -------
        int
            Jobs given back or failed.
        """
        if not owner_prefix:
            raise ValueError("an empty prefix would release everyone's jobs")
        return self._release(
            _jobs.c.lease_owner.startswith(owner_prefix, autoescape=True), error, counted=counted
        )

    def reap(self) -> int:
        """Give back jobs whose lease ran out; `claim` does it by itself. Returns how many.

        None for a while after the database was away: a living worker could not renew its lease
        then, and must have the time to do so before it counts as dead.
        """
        if not self._outage.over(self._engine):
            return 0
        with self._outage.noticing():
            return self._release(expired(), "the lease ran out: the worker died or hung")

    def _release(self, which: ColumnElement[bool], error: str, *, counted: bool = True) -> int:
        return release(
            self._engine,
            which,
            error,
            counted=counted,
            max_attempts=self._max_attempts,
            clock=self._clock,
        )

    def unfreeze(self, *, longest_wait_s: float, longest_lease_s: float) -> int:
        """Bring back what a clock set backwards has put out of reach; see `hand_back.unfreeze`."""
        return unfreeze(
            self._engine, longest_wait_s=longest_wait_s, longest_lease_s=longest_lease_s
        )

    def latest(self, study_uid: str) -> Job | None:
        """Newest run of a study, whatever its state; None where there is none."""
        statement = (
            select(*JOB_COLUMNS)
            .where(_jobs.c.study_uid == study_uid)
            .order_by(_jobs.c.run.desc())
            .limit(1)
        )
        with read(self._engine) as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else job_of(row)

    def earlier_results(self, job: Job) -> list[ResultRow]:
        """Results of the newest earlier run that made any: what `job`'s results supersede."""
        results = schema.results
        newest = (
            select(func.max(_jobs.c.run))
            .join(results, results.c.job_id == _jobs.c.job_id)
            .where(_jobs.c.study_uid == job.study_uid, _jobs.c.run < job.run)
            .scalar_subquery()
        )
        statement = (
            select(results)
            .join(_jobs, results.c.job_id == _jobs.c.job_id)
            .where(_jobs.c.study_uid == job.study_uid, _jobs.c.run == newest)
            .order_by(results.c.ordinal)
        )
        with read(self._engine) as connection:
            return [
                ResultRow(
                    kind=ResultKind(row.kind),
                    sop_class_uid=row.sop_class_uid,
                    sop_instance_uid=row.sop_instance_uid,
                    sha256=row.sha256,
                    path=None if row.path is None else Path(row.path),
                )
                for row in connection.execute(statement)
            ]

    def next_due_s(self) -> float | None:
        """Seconds until a job that waits for its next attempt may be claimed; None: none waits."""
        statement = select(func.min(_jobs.c.available_at) - db_now()).where(
            _jobs.c.state == QUEUED, _jobs.c.available_at > db_now()
        )
        with self._outage.noticing(), read(self._engine) as connection:
            seconds = connection.execute(statement).scalar_one()
        return None if seconds is None else max(0.0, float(seconds))

    def pending(self) -> QueueDepth:
        """Jobs that have not ended, for draining and for scaling."""
        # One question for each state: each has an index that holds nothing else.
        queued, running = (
            select(func.count()).where(_jobs.c.state == state).scalar_subquery()
            for state in (QUEUED, RUNNING)
        )
        with read(self._engine) as connection:
            row = connection.execute(select(queued, running)).one()
        return QueueDepth(queued=row[0], running=row[1])


def _held_job(connection: Connection, job: Job) -> Row[Any] | None:
    """Row of a job that `job` still holds; None where the same claim has ended it already."""
    row = connection.execute(
        select(_jobs).where(_jobs.c.job_id == job.job_id).with_for_update()
    ).one_or_none()
    if row is None or row.fencing_token != job.fencing_token or row.state == QUEUED:
        raise lease_lost(job)
    return row if row.state == RUNNING else None
