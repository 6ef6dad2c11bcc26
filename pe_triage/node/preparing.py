"""One study's analysis done before its run, and handed to the run that asks for it.

The predictor serves one thread at a time: a run and a preparation take turns here. At most one
study is held, since its volume is large.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from pe_triage.domain import ReceivedInstance
from pe_triage.logs import get_logger
from pe_triage.node.work import FilesRead, StudyWork

UNCLAIMED_S = 3.0
"""What is prepared of a study is held for so long after it was queued, if its job does not come."""

Begin = Callable[[Sequence[ReceivedInstance], FilesRead], StudyWork]
Write = Callable[[StudyWork, Sequence[ReceivedInstance]], None]


class _InterruptedError(Exception):
    """The worker has a job of another study, or stops."""


class Preparing:
    """What an idle worker has prepared.

    Parameters
    ----------
    begin
        Makes the work of a study's images, by the worker's own predictor.
    key_slices
        How many a run explains.
    answer
        Writes the results as well, of what a run will most likely ask.
    """

    def __init__(
        self, begin: Begin, key_slices: int, answer: Write = lambda _work, _images: None
    ) -> None:
        self._begin = begin
        self._answer = answer
        self._key_slices = key_slices
        self._predicting = threading.Lock()
        self._wanted: str | None = None
        self._held: tuple[str, StudyWork] | None = None
        self._unclaimed_s: float | None = None

    @property
    def holds(self) -> bool:
        """Whether something is held."""
        return self._held is not None

    def expect(self, study_uid: str) -> None:
        """Say that a run of this study will ask: its preparation is not to stop any more."""
        self._wanted = study_uid

    @contextmanager
    def handing_over(self, study_uid: str) -> Iterator[StudyWork | None]:
        """Keep the predictor for a run of this study, and give it what is prepared of it.

        A preparation of it that is under way is waited for; one of another study must have been
        told to stop before.
        """
        try:
            with self._predicting:
                held, self._held = self._held, None
                yield held[1] if held is not None and held[0] == study_uid else None
        finally:
            self._wanted = None

    def prepare(
        self,
        study_uid: str,
        images: Sequence[ReceivedInstance],
        read: FilesRead,
        stopped: Callable[[], bool],
    ) -> bool:
        """Do the steps of an analysis of these images; whether they were done.

        Parameters
        ----------
        read
            What has been read of the images already.
        stopped
            Asked between pieces of the work; true: leave it, unless a run waits for it.

        Raises
        ------
        Exception
            What a step raises. Nothing is held then, and the run will say what it means.
        """

        def beat() -> None:
            if stopped() and self._wanted != study_uid:
                raise _InterruptedError

        if not self._predicting.acquire(blocking=False):
            return False  # a run has begun at this moment
        started_s = time.monotonic()
        try:
            self._held = None
            work = self._begin(images, read)
            beat()
            work.do_everything(self._key_slices, beat)
            if self._wanted != study_uid:
                # A run that waits knows better what it wants.
                self._answer(work, images)
                beat()
            self._held, self._unclaimed_s = (study_uid, work), None
        except _InterruptedError:
            return False
        finally:
            self._predicting.release()
        get_logger(study_uid=study_uid).debug(
            "ahead.prepared", images=len(images), seconds=round(time.monotonic() - started_s, 3)
        )
        return True

    def drop_unclaimed(self, open_studies: Collection[str]) -> None:
        """Let go of what another worker has the job of, or what has ended without one."""
        held = self._held
        if held is None or held[0] in open_studies:
            self._unclaimed_s = None
        elif self._unclaimed_s is None:
            self._unclaimed_s = time.monotonic()
        elif time.monotonic() - self._unclaimed_s > UNCLAIMED_S:
            self._held = None
