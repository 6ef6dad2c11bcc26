"""Of several hosts on one database and one store, one coordinates: indexes, assembles, delivers.

Who leads knows by its own clocks until when, and acts only up to a margin before that; so a process
that was stopped for longer than its lease finds out before it does anything, and not by doing it.
What remains is the moment between the question and the act. Everything that the leader does may be
done twice; the exception is the removal of files, which asks before each of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from pe_triage.errors import RetryableError
from pe_triage.logs import get_logger
from pe_triage.repeating import repeating
from pe_triage.store.leases import COORDINATOR, Leases

LEASE_S = 15.0
"""After the death of the leader's host another leads within this and `LOOK_S`."""
LOOK_S = 2.0
"""How often one that does not lead tries to."""
MARGIN_S = 3.0
"""Before the end of the lease the leader stops acting: more than clocks drift or a step takes."""

Mark = tuple[float, float]


class NotLeadingError(RetryableError):
    """Another may be leading; nothing was done."""


def mark() -> Mark:
    """Note the moment on the clock that counts a machine's sleep, and on the wall clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.time()


def since_s(then: Mark) -> float:
    """Seconds since `then`, by the clock that says more: a paused virtual machine stops one."""
    now = mark()
    return max(now[0] - then[0], now[1] - then[1])


class Leadership:
    """The lease on coordinating, as one process holds it.

    Parameters
    ----------
    leases
        The store.
    owner
        Name of this process; see `Leases.release`.
    on_deposed
        Called when another leads: the process must end at once.
    """

    def __init__(
        self,
        leases: Leases,
        owner: str,
        *,
        on_deposed: Callable[[], None],
        ttl_s: float = LEASE_S,
        margin_s: float = MARGIN_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._leases = leases
        self._owner = owner
        self._on_deposed = on_deposed
        self._ttl_s = ttl_s
        self._margin_s = margin_s
        self._look_s = look_s
        self._token: int | None = None
        self._renewed = mark()
        self._log = get_logger(owner=owner)

    def holds(self) -> bool:
        """Whether this process may act now."""
        return self._token is not None and since_s(self._renewed) < self._ttl_s - self._margin_s

    def take(self, stop: threading.Event) -> bool:
        """Wait until this process leads; False at `stop`."""
        while not stop.is_set():
            at = mark()
            try:
                self._token = self._leases.take(COORDINATOR, self._owner, self._ttl_s)
            except RetryableError as error:
                self._log.warning("coordinator.waits_for_database", error=str(error))
            if self._token is not None:
                self._renewed = at
                self._log.info("coordinator.leads")
                return True
            stop.wait(self._look_s)
        return False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Renew the lease while the block runs."""
        with repeating(self._renew, self._ttl_s / 3, name="lead", join_s=self._ttl_s):
            yield

    def _renew(self) -> float | None:
        assert self._token is not None
        at = mark()
        try:
            held = self._leases.renew(COORDINATOR, self._token, self._ttl_s)
        except Exception as error:  # noqa: BLE001 - a database away for a moment
            self._log.warning("coordinator.not_renewed", error=type(error).__name__)
            return min(1.0, self._ttl_s / 3)
        if not held:
            self._token = None
            self._log.error("coordinator.deposed")
            self._on_deposed()
            return None
        self._renewed = at
        return self._ttl_s / 3


class LeaderGuard(AbstractContextManager[object]):
    """A lock that opens only for the leader.

    Parameters
    ----------
    holds
        See `Leadership.holds`.
    """

    def __init__(self, holds: Callable[[], bool]) -> None:
        self._holds = holds
        self._lock = threading.Lock()

    def __enter__(self) -> object:
        """Wait for the lock.

        Raises
        ------
        NotLeadingError
            This process does not lead (any more).
        """
        self._lock.acquire()
        if not self._holds():
            self._lock.release()
            raise NotLeadingError("another host may be coordinating")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._lock.release()
