"""How many images the PACS has of a study that is being received, asked in the background.

A decision never waits for a socket: `of` answers at once with what is known, and says whether a
fresher answer is on its way. A peer that does not answer is left alone for a while, and studies are
then judged as if nobody could be asked.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pe_triage.deliver.find_scu import PacsSeries
from pe_triage.errors import QueryError
from pe_triage.logs import get_logger

Ask = Callable[[str], Sequence[PacsSeries]]
"""Series of a study: `deliver.find_scu.QueryScu.series`."""

AGAIN_S = 30.0
"""Seconds after which a study that is still open is asked about again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the PACS says of one study.

    Attributes
    ----------
    series
        CT series UID to instances; None where nothing is known.
    fresh
        Whether the answer is newer than the time asked for.
    asking
        Whether an answer that would be fresh is on its way.
    """

    series: Mapping[str, int] | None = None
    fresh: bool = False
    asking: bool = False

    def missing(self, held: Mapping[str, int], *, whole_study: bool) -> int | None:
        """Images that the PACS has and we have not.

        Parameters
        ----------
        held
            Series UID to images here.
        whole_study
            Count also the CT series of which nothing came.

        Returns
        -------
        int or None
            0 only where the PACS has exactly what came; None where it cannot tell: it does not
            answer, or has less than we (it is still being filled).
        """
        if self.series is None or not held:
            return None
        wanted = self.series.keys() | held.keys() if whole_study else held.keys()
        short = sum(max(0, self.series.get(uid, 0) - held.get(uid, 0)) for uid in wanted)
        if short:
            return short
        if any(self.series.get(uid, 0) < count for uid, count in held.items()):
            return None
        return 0 if self.fresh else None


NOTHING = Expectation()


@dataclass(kw_only=True)
class _Known:
    asked_at: datetime | None = None
    series: Mapping[str, int] | None = None
    queued: bool = False
    again_at_s: float = 0.0


class Expectations:
    """Asks peers about studies, one question at a time, in a thread of its own.

    Parameters
    ----------
    peers
        Name of a peer to the way to ask it.
    clock
        Aware time: that of the instances' arrival.
    pause_s
        For how long a peer that failed is left alone.
    """

    def __init__(
        self,
        peers: Mapping[str, Ask],
        *,
        clock: Callable[[], datetime],
        pause_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._peers = dict(peers)
        self._clock = clock
        self._pause_s = pause_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._queue: deque[tuple[str, str]] = deque()
        self._paused_until_s: dict[str, float] = {}
        self._wake = threading.Event()
        self._log = get_logger()

    def of(self, study_uid: str, peer: str | None, since: datetime) -> Expectation:
        """What is known of a study now; a question is put in line where it would help.

        Parameters
        ----------
        peer
            Whom to ask; None: nobody.
        since
            When the study last changed: older answers confirm nothing.
        """
        if peer is None or peer not in self._peers:
            return NOTHING
        now_s = self._monotonic()
        with self._lock:
            known = self._known.setdefault(study_uid, _Known())
            stale = known.asked_at is None or known.asked_at < since
            paused = now_s < self._paused_until_s.get(peer, 0.0)
            if not known.queued and not paused and (stale or now_s >= known.again_at_s):
                known.queued = True
                self._queue.append((study_uid, peer))
                self._wake.set()
            return Expectation(
                series=known.series, fresh=not stale, asking=stale and known.queued and not paused
            )

    def keep(self, study_uids: Collection[str]) -> None:
        """Forget every other study."""
        with self._lock:
            for uid in self._known.keys() - set(study_uids):
                del self._known[uid]

    def step(self) -> bool:
        """Ask the next question in line; False where there is none."""
        with self._lock:
            if not self._queue:
                return False
            study_uid, peer = self._queue.popleft()
            if study_uid not in self._known:
                return True
            paused = self._monotonic() < self._paused_until_s.get(peer, 0.0)
        asked_at = self._clock()
        series: Mapping[str, int] | None = None
        if not paused:
            try:
                found = self._peers[peer](study_uid)
                series = {s.series_uid: s.instances or 0 for s in found if s.modality == "CT"}
            except Exception as error:  # noqa: BLE001 - whatever a peer can cause is no answer
                words = error.message if isinstance(error, QueryError) else type(error).__name__
                self._log.warning("query.failed", study_uid=study_uid, error=words)
                with self._lock:
                    self._paused_until_s[peer] = self._monotonic() + self._pause_s
        with self._lock:
            known = self._known.get(study_uid)
            if known is not None:
                known.asked_at, known.series, known.queued = asked_at, series, False
                known.again_at_s = self._monotonic() + AGAIN_S
        return True

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop`."""
        while not stop.is_set():
            try:
                if self.step():
                    continue
            except Exception as error:  # noqa: BLE001 - the thread must outlive a bad moment
                self._log.error("query.loop_failed", error=type(error).__name__)
                stop.wait(2.0)
            self._wake.wait(0.5)
            self._wake.clear()
