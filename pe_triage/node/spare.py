"""Whether there is time to spare: for work that may wait, while images come and others compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

BUSY_PER_S = 100.0
"""Images a second, of all studies together, that come faster than scanners make them (some 20 to
40): they are sent from a disk, and need the processor for being received."""
OVER_S = 0.5
"""The pace of images is taken over so long at least, since they are recorded in batches."""
WAITING = 50
"""Images that were acknowledged and wait for the indexer, beyond which they come too fast."""
CROWDED = 0.4
"""Part of the time of computing for which this process had a processor; less: others want it."""
LOST_S = 0.3
"""Time without a processor that a single wait for a disk does not explain."""


class Pace:
    """How fast images come.

    Those that wait for the indexer count with those that it has recorded, which come in batches.

    Parameters
    ----------
    studies
        Images by study that is arriving.
    waiting
        Images that were acknowledged and are not recorded yet.
    """

    def __init__(
        self, studies: Callable[[], Mapping[str, int]], waiting: Callable[[], int]
    ) -> None:
        self._studies = studies
        self._waiting = waiting
        self._counted: tuple[float, Mapping[str, int], int] | None = None

    def is_fast(self) -> bool:
        """Whether more have come since this was last asked than scanners make."""
        now_s, images, waiting = time.monotonic(), self._studies(), self._waiting()
        before, self._counted = self._counted, (now_s, images, waiting)
        if waiting > WAITING:
            return True
        if before is None:
            return False
        new = sum(max(0, n - before[1].get(uid, 0)) for uid, n in images.items())
        return new + waiting - before[2] > BUSY_PER_S * max(now_s - before[0], OVER_S)


class Effort:
    """How much of the time that computing took this process had a processor."""

    def __init__(self) -> None:
        self._wall_s = self._processor_s = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what the block takes."""
        wall_s, processor_s = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self._wall_s += time.monotonic() - wall_s
            self._processor_s += time.process_time() - processor_s

    @property
    def is_crowded(self) -> bool:
        """Whether others want the processor more."""
        lost_s = self._wall_s - self._processor_s
        return lost_s > LOST_S and self._processor_s < CROWDED * self._wall_s


class Seldom:
    """Asks a question that costs something at most once in `every_s`; a yes stays."""

    def __init__(self, question: Callable[[], bool], every_s: float) -> None:
        self._question = question
        self._every_s = every_s
        self._asked_s = time.monotonic()
        self._answer = False

    def __call__(self) -> bool:
        """The answer, or the one before."""
        now_s = time.monotonic()
        if not self._answer and now_s - self._asked_s >= self._every_s:
            self._asked_s = now_s
            self._answer = self._question()
        return self._answer
