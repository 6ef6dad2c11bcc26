"""The clock of the machine that keeps the files.

When an image came is read off its file, and a file server dates its files by its own clock. How
long a study has been silent must be told by the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from pe_triage.logs import get_logger

MEASURED_EVERY_S = 30.0
TOLD_FROM_S = 5.0
"""A difference of so much is a clock that somebody should set."""


class StoreClock:
    """Aware time, UTC, by the store's clock.

    Parameters
    ----------
    now_s
        What the store's clock shows, in seconds since the epoch; see `Spool.now_s`.
    """

    def __init__(
        self,
        now_s: Callable[[], float],
        *,
        wall_s: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now_s = now_s
        self._wall_s = wall_s
        self._monotonic = monotonic
        self._offset_s = 0.0
        self._measured_s = float("-inf")
        self._told = False
        self._log = get_logger()

    def __call__(self) -> datetime:
        """Return the time."""
        if self._monotonic() - self._measured_s >= MEASURED_EVERY_S:
            # In this order: a slow answer then makes no study look silent for longer.
            self._offset_s = self._now_s() - self._wall_s()
            self._measured_s = self._monotonic()
            differs = abs(self._offset_s) >= TOLD_FROM_S
            if differs and not self._told:
                self._log.warning("store.clock_differs", seconds=round(self._offset_s, 1))
            self._told = differs
        return datetime.fromtimestamp(self._wall_s() + self._offset_s, UTC)
