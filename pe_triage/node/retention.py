"""Removes the files of answered, delivered studies: by age, and before the disk is full.

The rules are the database's (`store.retention`); this is the order of row and file. It never runs
while the indexer files an instance away: a slice that comes again at that very moment would find
its old file, and lose it a moment later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pe_triage.domain import StudyState
from pe_triage.logs import get_logger
from pe_triage.receive.spool import Spool
from pe_triage.receive.storing import usable_bytes
from pe_triage.retention import DAY_S, HOUR_S, Marks, RetentionTable
from pe_triage.store.alarms import AlarmStore
from pe_triage.store.retention import ANSWERED, Claimed, RetentionStore, Why
from pe_triage.watch.alarms import SPACE_ALARM, Finding

EVERY_S = 30.0
"""How often it is looked."""
BUDGET_S = 10.0
"""Time of one look: a stopping node waits for it, and what is left is for the next."""
RESULTS_EVERY_S = 3600.0
"""How often results are looked for that are old enough: every run ever made is looked at."""
AT_ONCE = 50
"""Candidates read from the database at once."""


CLOCK_STEP_S = 3600.0
"""A wall clock that gains more than this on the time that passed was set, and did not run."""
LONGEST_REST_S = 7 * DAY_S
"""A node that starts so long after anything was last written down rested, or its clock is ahead."""
CLOCK_HELD_S = DAY_S
"""So long nothing goes by age after that: whoever set it wrongly has the time to see it."""
SPARE_FILES = 10_000
"""Inodes below which files go: before new ones are refused for want of them."""


def free_bytes(path: Path) -> int:
    """Bytes that an unprivileged user may still write where `path` lies."""
    while not path.exists():
        path = path.parent
    return usable_bytes(os.statvfs(path), SPARE_FILES)


def lowest_free(data_dir: Path, spool_dir: Path, free: Callable[[Path], int] = free_bytes) -> int:
    """Free bytes of the fullest of the file systems that a node writes to."""
    return min(free(path) for path in (data_dir, spool_dir, data_dir / "results"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What one look removed."""

    studies: int = 0
    runs: int = 0
    """Runs whose results went."""
    free_bytes: int = 0
    """Afterwards."""


class Retention:
    """One look after another; several nodes may do so on one database.

    Parameters
    ----------
    store
        The rules.
    spool
        Files outside it, and outside `results_dir`, are never touched.
    marks
        See `pe_triage.retention.marks_of`.
    guard
        Held while files are deleted; the indexer holds it while it files away.
    alarms
        Where it is said that nothing can be removed; None: nowhere but in the log.
    free
        Asks for free bytes.
    leading
        Asked before each file, where several hosts share them.
    """

    def __init__(
        self,
        *,
        store: RetentionStore,
        spool: Spool,
        data_dir: Path,
        table: RetentionTable,
        marks: Marks,
        guard: AbstractContextManager[object],
        clock: Callable[[], datetime],
        alarms: AlarmStore | None = None,
        remind_s: float = DAY_S,
        free: Callable[[Path], int] = free_bytes,
        budget_s: float = BUDGET_S,
        monotonic: Callable[[], float] = time.monotonic,
        longest_rest_s: float = LONGEST_REST_S,
        leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._leading = leading
        self._longest_rest_s = longest_rest_s
        self._store = store
        self._spool = spool
        self._data_dir = data_dir
        self._results = data_dir / "results"
        self._table = table
        self._marks = marks
        self._guard = guard
        self._clock = clock
        self._alarms = alarms
        self._remind_s = remind_s
        self._free = free
        self._budget_s = budget_s
        self._monotonic = monotonic
        self._last_look: tuple[datetime, float] | None = None
        self._held_until_s = float("-inf")
        self._results_at_s = float("-inf")
        self._log = get_logger()

    def tick(self) -> Removed:
        """Finish what a crash interrupted, remove by age, then for want of space."""
        self._finish_interrupted()
        until_s = time.monotonic() + self._budget_s
        studies = runs = 0
        if self._table.enabled:
            if self._clock_runs():
                studies, runs = self._by_age(until_s)
            more, further = self._for_space(until_s)
            studies, runs = studies + more, runs + further
        free = lowest_free(self._data_dir, self._spool.root, self._free)
        self._say(free, exhausted=time.monotonic() < until_s)
        return Removed(studies=studies, runs=runs, free_bytes=free)

    # ---------------------------------------------------------------- which

    def _before(self, seconds: float) -> datetime:
        return self._clock() - timedelta(seconds=max(seconds, self._table.settle_h * HOUR_S))

    def _clock_runs(self) -> bool:
        """Whether ages mean anything: a clock set a year ahead makes everything a year old."""
        now, now_s = self._clock(), self._monotonic()
        if self._last_look is not None:
            before, before_s = self._last_look
            step_s = (now - before).total_seconds() - (now_s - before_s)
            if step_s > CLOCK_STEP_S:
                self._held_until_s = now_s + CLOCK_HELD_S
                self._log.error("retention.clock_stepped", hours=round(step_s / HOUR_S, 1))
        elif (newest := self._store.newest_at()) is not None:
            rest_s = (now - newest).total_seconds()
            if rest_s > self._longest_rest_s:
                self._held_until_s = now_s + CLOCK_HELD_S
                self._log.warning("retention.long_rest", days=round(rest_s / DAY_S, 1))
        self._last_look = (now, now_s)
        return now_s >= self._held_until_s

    def _by_age(self, until_s: float) -> tuple[int, int]:
        studies = runs = 0
        for days, states in (
            (self._table.images_days, ANSWERED),
            (self._table.failed_days, (StudyState.FAILED,)),
        ):
            if days:
                before = self._before(days * DAY_S)
                studies += sum(self._images(before, Why.AGE, states, until_s))
        if self._table.results_days and until_s - self._results_at_s >= RESULTS_EVERY_S:
            self._results_at_s = until_s
            before = self._before(self._table.results_days * DAY_S)
            runs = sum(self._results_of(before, Why.AGE, until_s))
        return studies, runs

    def _for_space(self, until_s: float) -> tuple[int, int]:
        """Images, then results, each only where it frees the file system that is short of space."""
        before = self._before(0.0)
        studies = runs = 0
        if self._free(self._spool.studies) < self._marks.low:
            for done in self._images(before, Why.SPACE, ANSWERED, until_s):
                studies += done
                if self._free(self._spool.studies) >= self._marks.target:
                    break
        if self._free(self._results) < self._marks.low:
            for done in self._results_of(before, Why.SPACE, until_s):
                runs += done
                if self._free(self._results) >= self._marks.target:
                    break
        return studies, runs

    def _images(
        self, before: datetime, why: Why, states: Sequence[StudyState], until_s: float
    ) -> Iterator[int]:
        """Remove one study after another; yields 1 where it went, 0 where it would not."""
        seen: set[str] = set()
        while time.monotonic() < until_s:
            found = self._store.removable(before, states=states, limit=AT_ONCE + len(seen))
            fresh = [uid for uid in found if uid not in seen]
            if not fresh:
                return
            for study_uid in fresh:
                seen.add(study_uid)
                yield int(self._remove_images(study_uid, before, why, states))
                if time.monotonic() >= until_s:
                    return

    def _results_of(self, before: datetime, why: Why, until_s: float) -> Iterator[int]:
        seen: set[int] = set()
        while time.monotonic() < until_s:
            found = self._store.removable_results(before, limit=AT_ONCE + len(seen))
            fresh = [job_id for job_id in found if job_id not in seen]
            if not fresh:
                return
            for job_id in fresh:
                seen.add(job_id)
                claimed = self._store.claim_results(job_id, before)
                yield int(claimed is not None and self._delete_results(claimed, why))
                if time.monotonic() >= until_s:
                    return

    # ---------------------------------------------------------------- how

    def _remove_images(
        self, study_uid: str, before: datetime, why: Why, states: Sequence[StudyState]
    ) -> bool:
        claimed = self._store.claim(study_uid, before, why, states=states)
        return claimed is not None and self._delete_images(study_uid, str(why))

    def _finish_interrupted(self) -> None:
        for study_uid in self._store.interrupted():
            self._delete_images(study_uid, "INTERRUPTED")
        for claimed in self._store.interrupted_results():
            self._delete_results(claimed, "INTERRUPTED")

    def _delete_images(self, study_uid: str, why: str) -> bool:
        with self._guard:
            # Asked again under the guard: an instance that came again in between is not listed.
            claimed = self._store.claimed(study_uid)
            if not self._delete(claimed.paths, inside=self._spool.studies):
                return False
            self._store.finished(study_uid)
        self._log.info(
            "retention.images_removed",
            study_uid=study_uid,
            why=why,
            files=len(claimed.paths),
            mb=claimed.size_bytes >> 20,
        )
        return True

    def _delete_results(self, claimed: Claimed, why: str) -> bool:
        if not self._delete(claimed.paths, inside=self._results):
            return False
        self._store.finished_results(claimed.paths)
        self._log.info(
            "retention.results_removed",
            study_uid=claimed.study_uid,
            why=why,
            files=len(claimed.paths),
        )
        return True

    def _delete(self, relative: Sequence[Path], *, inside: Path) -> bool:
        """Delete files durably, and their directories where these are empty then.

        Returns
        -------
        bool
            False where one would not go: the claim stays open, and the next look tries again.
        """
        folders: set[Path] = set()
        for name in relative:
            path = self._data_dir / name
            if not path.is_relative_to(inside) or ".." in path.parts:
                self._log.error("retention.foreign_path", file=path.name)
                return False
            if not self._leading():
                return False
            try:
                os.unlink(path)  # noqa: PTH108 - as in `receive.files`
            except FileNotFoundError:
                pass
            except OSError as error:
                self._log.error("retention.failed", error=error.strerror or str(error))
                return False
            folders.add(path.parent)
        for folder in sorted(folders):
            _sync(folder)
            for directory in (folder, folder.parent):
                if directory == inside:
                    break
                # Not empty: something of it is still here, or has come again.
                with suppress(OSError):
                    directory.rmdir()
        return True

    # ---------------------------------------------------------------- what is said

    def _say(self, free: int, *, exhausted: bool) -> None:
        """Raise, keep or clear the alarm; only a look that tried everything may raise it."""
        if self._alarms is None or not (exhausted or free >= self._marks.low):
            return
        findings = []
        if free < self._marks.low:
            kept = self._store.kept()
            off = (
                ""
                if self._table.enabled
                else " (nothing is removed: retention is off, or results are sent nowhere)"
            )
            findings.append(
                Finding(
                    name=SPACE_ALARM,
                    message=f"{free >> 20} MiB are free, below {self._marks.low >> 20}, and "
                    f"nothing more can be removed: {kept.undelivered} studies are not delivered, "
                    f"{kept.unsent} sent nowhere on purpose (retention.unsent_days), "
                    f"{kept.in_doubt} in doubt, {kept.failed} failed{off}; see "
                    "pe-triage retention",
                    facts={"free_mb": free >> 20, "low_mb": self._marks.low >> 20},
                )
            )
        changes = self._alarms.settle(
            findings, names={SPACE_ALARM}, at=self._clock(), remind_s=self._remind_s
        )
        for alarm in (*changes.raised, *changes.reminded):
            self._log.error(alarm.name, message=alarm.message, **alarm.facts)
        for alarm in changes.cleared:
            self._log.info("watch.cleared", alarm=alarm.name, subject=None)


def _sync(directory: Path) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
