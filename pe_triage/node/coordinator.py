"""The process that indexes, assembles, delivers and keeps the timers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from pe_triage.deliver.backoff import MAX_DELAY_S
from pe_triage.deliver.http_statuses import MAX_RETRY_AFTER_S
from pe_triage.logs import get_logger
from pe_triage.node.assembler import Assembler
from pe_triage.node.deliverer import Deliverer, start_threads
from pe_triage.node.indexer import Indexer
from pe_triage.receive.spool import Spool
from pe_triage.store.jobs import JobQueue
from pe_triage.store.outbox import Outbox

INDEX_PAUSE_S = 0.1
ASSEMBLE_EVERY_S = 0.5
REAP_EVERY_S = 5.0
LONGEST_JOB_WAIT_S = 660.0
"""A little more than the longest wait of a job that is tried again."""
LONGEST_LEASE_S = 900.0
LONGEST_DELIVERY_WAIT_S = MAX_RETRY_AFTER_S + MAX_DELAY_S
"""A little more than the longest wait that a peer's Retry-After is granted."""
CLEAN_EVERY_S = 3600.0
ABANDONED_AFTER_S = 6 * 3600.0
"""Age at which a temporary file in the spool belongs to no transfer any more."""
FORGOTTEN_AFTER_S = 24 * 3600.0
"""Age at which it is forgotten what a command, or a receiver of a host that is gone, announced."""

CLOCK_STEP_S = 1.0
"""By so much the wall clock must fall behind the steady one to count as set back."""

Timer = tuple[str, Callable[[], object], float]
"""Name, what is called, seconds between two calls."""
Loop = tuple[str, Callable[[threading.Event], None]]
"""Name, and what runs in a thread of its own until the event."""


class SetBack:
    """Tells whether the wall clock was set back since it was last asked.

    APScheduler waits until a time of day: timers that were to fire within the second would stand
    still for as long as the clock was set back by, and with them what notices such a step.
    """

    def __init__(
        self,
        wall_s: Callable[[], float] = time.time,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_s, self._steady_s = wall_s, steady_s
        self._ahead_s = wall_s() - steady_s()

    def __call__(self) -> bool:
        """Ask."""
        ahead_s = self._wall_s() - self._steady_s()
        set_back = ahead_s < self._ahead_s - CLOCK_STEP_S
        self._ahead_s = ahead_s
        return set_back


class Every(BaseTrigger):  # type: ignore[misc]  # the library has no types
    """Fires a while after it last did.

    The library's own interval counts every time of day that was missed: after a clock that was
    set forward by decades, as one without a battery is at its first synchronisation, it would
    count for hours.
    """

    def __init__(self, seconds: float) -> None:
        self._every = timedelta(seconds=seconds)

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        """Return when to fire next."""
        return now + self._every


class Coordinator:
    """Indexes in its own loop; everything periodic runs on APScheduler's timers.

    Parameters
    ----------
    living_boots
        See `Lives.boots`.
    hosts
        Those that live; None where there is only one.
    leading
        Whether it is this process that coordinates, and not another host's.
    """

    def __init__(
        self,
        *,
        indexer: Indexer,
        assembler: Assembler,
        spool: Spool,
        queue: JobQueue,
        deliverers: Sequence[Deliverer],
        outbox: Outbox,
        longest_lease_s: float = LONGEST_LEASE_S,
        timers: Sequence[Timer] = (),
        loops: Sequence[Loop] = (),
        living_boots: Callable[[], frozenset[str]] | None = None,
        hosts: Callable[[], frozenset[str]] | None = None,
        leading: Callable[[], bool] = lambda: True,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._living_boots = living_boots or (lambda: spool.lives.boots())
        self._hosts = hosts
        self._leading = leading
        self._indexer = indexer
        self._assembler = assembler
        self._spool = spool
        self._queue = queue
        self._deliverers = deliverers
        self._outbox = outbox
        self._longest_lease_s = longest_lease_s
        self._timers = tuple(timers)
        self._loops = tuple(loops)
        self._wall_s = wall_s
        self._log = get_logger()

    def run(
        self,
        stop: threading.Event,
        on_ready: Callable[[], None],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Work until `stop`; then index what the receivers took in last.

        Parameters
        ----------
        on_ready
            Called once, when everything has been started.
        on_turn
            Called each time that the loop goes round.
        """
        scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for name, function, seconds in (
            ("assemble", self._assembler.tick, ASSEMBLE_EVERY_S),
            ("reap", self._queue.reap, REAP_EVERY_S),
            ("clock", self.watch_clock, REAP_EVERY_S),
            ("clean", self._clean, CLEAN_EVERY_S),
            *self._timers,
        ):
            scheduler.add_job(self._guarded(name, function), Every(seconds), id=name)
        scheduler.start()
        threads = start_threads(self._deliverers, stop)
        for name, loop in self._loops:
            thread = threading.Thread(target=loop, args=(stop,), name=name, daemon=True)
            thread.start()
            threads.append(thread)
        on_ready()
        set_back = SetBack(self._wall_s)
        try:
            while not stop.is_set():
                on_turn()
                if set_back():
                    self._log.warning("clock.set_back")
                    for job in scheduler.get_jobs():
                        job.modify(next_run_time=datetime.now(UTC))
                if self._index() == 0:
                    stop.wait(INDEX_PAUSE_S)
            while self._index() > 0:
                pass
        finally:
            scheduler.shutdown(wait=True)
            for thread in threads:
                thread.join(5.0)

    def _index(self) -> int:
        if not self._leading():
            return 0
        try:
            return self._indexer.step()
        except Exception as error:  # noqa: BLE001 - what is in the journal stays there
            self._log.error("index.failed", error=f"{type(error).__name__}: {error}")
            return 0

    def _guarded(self, name: str, function: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            if not self._leading():
                return
            try:
                function()
            except Exception as error:  # noqa: BLE001 - a timer must fire again
                self._log.error(
                    "timer.failed", timer=name, error=f"{type(error).__name__}: {error}"
                )

        return run

    def watch_clock(self) -> None:
        """Bring back what lies further in the future than anything is ever put there."""
        jobs = self._queue.unfreeze(
            longest_wait_s=LONGEST_JOB_WAIT_S, longest_lease_s=self._longest_lease_s
        )
        deliveries = self._outbox.unfreeze(longest_wait_s=LONGEST_DELIVERY_WAIT_S)
        if jobs or deliveries:
            self._log.warning("clock.stepped_back", jobs=jobs, deliveries=deliveries)

    def _clean(self) -> None:
        removed = self._spool.clean_temporary(
            older_than_s=ABANDONED_AFTER_S, living=self._living_boots()
        )
        self._spool.lives.forget(
            None if self._hosts is None else self._hosts(), older_than_s=FORGOTTEN_AFTER_S
        )
        if removed:
            self._log.info("spool.cleaned", files=removed)
