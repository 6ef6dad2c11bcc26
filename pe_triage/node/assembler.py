"""Decides, again and again, which receiving studies are complete, and queues them.

The decision itself is a pure function; this is its memory: which associations are open, and what
the database says has come. A restart forgets the associations, which costs patience (the quiet
time) and never an image.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pe_triage.assemble.completeness import (
    CompletenessRules,
    SeriesProgress,
    judge_completeness,
)
from pe_triage.assemble.completeness import StudyProgress as Progress
from pe_triage.assemble.eligibility import EligibilityRules, judge_series
from pe_triage.assemble.geometry import series_geometry
from pe_triage.domain import InstanceRole, ReceivedInstance
from pe_triage.logs import get_logger
from pe_triage.node.files import to_received
from pe_triage.receive.spool import AssociationEvent, EventRecord
from pe_triage.store.engine import StoreUnavailableError
from pe_triage.store.jobs import JobQueue, StudyChangedError
from pe_triage.store.studies import StudyProgress, StudyStore

REMEMBERED = 10_000
"""Associations kept in memory after their end."""


@dataclass(frozen=True, kw_only=True)
class _Association:
    event: AssociationEvent
    calling_aet: str


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """Verdicts on a study's series, good as long as nothing has been added to it."""

    instances: int
    since: datetime
    """First arrival of what no run holds yet: a study that grows a day later starts anew."""
    series: tuple[SeriesProgress, ...]


class Assembler:
    """Watches the studies in state RECEIVING.

    Parameters
    ----------
    studies, queue
        The store.
    clock
        Aware wall-clock time.
    living_boots
        First parts of the identifiers of associations that can still be open: a receiver that was
        killed never says that its associations ended.
    """

    def __init__(
        self,
        *,
        studies: StudyStore,
        queue: JobQueue,
        data_dir: Path,
        completeness: CompletenessRules,
        eligibility: EligibilityRules,
        clock: Callable[[], datetime],
        living_boots: Callable[[], frozenset[str]],
    ) -> None:
        self._studies = studies
        self._queue = queue
        self._data_dir = data_dir
        self._completeness = completeness
        self._eligibility = eligibility
        self._clock = clock
        self._living_boots = living_boots
        self._lock = threading.Lock()
        self._associations: dict[str, _Association] = {}
        self._judged: dict[str, _Judged] = {}
        self._drained_s: float | None = None
        self._log = get_logger()

    def note_event(self, association_id: str, record: EventRecord) -> None:
        """Remember that an association was opened, released or aborted."""
        with self._lock:
            self._associations.pop(association_id, None)
            self._associations[association_id] = _Association(
                event=record.event, calling_aet=record.calling_aet
            )
            ended = [
                key
                for key, value in self._associations.items()
                if value.event is not AssociationEvent.OPENED
            ]
            for key in ended[:-REMEMBERED]:
                del self._associations[key]

    def note_drained(self, started_s: float) -> None:
        """Say that all that was acknowledged before `started_s` (monotonic) is in the database."""
        self._drained_s = started_s

    def calling_aet(self, association_id: str) -> str | None:
        """Calling AE title of an association, where its opening was seen."""
        with self._lock:
            known = self._associations.get(association_id)
            return None if known is None else known.calling_aet

    def tick(self) -> int:
        """Judge every receiving study; returns how many were found complete.

        Silence counts only up to the moment that the journal was last found empty: while the
        indexer lags behind the receivers (a locked database, a restart), acknowledged images of a
        study that looks silent still lie in ``incoming/``.
        """
        # Read before the studies are: what they hold is then at least as new.
        drained_s = self._drained_s
        if drained_s is None:
            return 0
        now = self._clock() - timedelta(seconds=max(0.0, time.monotonic() - drained_s))
        receiving = self._studies.receiving()
        if receiving:
            self._end_orphans()
        for gone in self._judged.keys() - {study.study_uid for study in receiving}:
            del self._judged[gone]
        complete = 0
        for study in receiving:
            try:
                complete += self._judge(study, now)
            except StoreUnavailableError:
                raise
            except Exception as error:  # noqa: BLE001 - the studies behind it must be judged too
                self._log.error(
                    "study.judge_failed", study_uid=study.study_uid, error=type(error).__name__
                )
        return complete

    def _end_orphans(self) -> None:
        """Count associations as aborted whose receiver died: none will say that they ended."""
        living = self._living_boots()
        with self._lock:
            for association_id, known in self._associations.items():
                if known.event is not AssociationEvent.OPENED:
                    continue
                if association_id.rpartition("-")[0] in living:
                    continue
                self._associations[association_id] = _Association(
                    event=AssociationEvent.ABORTED, calling_aet=known.calling_aet
                )
                self._log.warning("association.lost", association_id=association_id)

    def _judge(self, study: StudyProgress, now: datetime) -> bool:
        quiet_for_s = (now - study.last_activity_at).total_seconds()
        if 0 <= quiet_for_s < min(self._completeness.grace_s, self._completeness.quiet_s):
            # Nothing can close it yet, so its series need not be looked at.
            return False
        open_associations, all_released = self._associations_of(study)
        judged = self._judged_of(study)
        decision = judge_completeness(
            Progress(
                instances=study.instances,
                first_instance_at=judged.since,
                last_instance_at=study.last_activity_at,
                open_associations=open_associations,
                all_released=all_released,
                series=judged.series,
            ),
            self._completeness,
            now,
        )
        if not decision.complete:
            return False
        log = self._log.bind(study_uid=study.study_uid)
        digest = self._studies.manifest(study.study_uid).digest
        try:
            job = self._queue.enqueue(study.study_uid, digest)
        except StudyChangedError:
            # A slice came at this very moment: the study is not complete after all.
            return False
        log.info(
            "study.complete",
            sign=decision.sign,
            reason=decision.reason,
            instances=study.instances,
            run=None if job is None else job.run,
            job_id=None if job is None else job.job_id,
        )
        return True

    def _associations_of(self, study: StudyProgress) -> tuple[int, bool]:
        with self._lock:
            open_count = sum(
                association.event is AssociationEvent.OPENED
                and (
                    association_id in study.association_ids
                    or association.calling_aet in study.calling_aets
                )
                for association_id, association in self._associations.items()
            )
            all_released = all(
                association_id in self._associations
                and self._associations[association_id].event is AssociationEvent.RELEASED
                for association_id in study.association_ids
            )
        return open_count, all_released

    def _judged_of(self, study: StudyProgress) -> _Judged:
        known = self._judged.get(study.study_uid)
        if known is not None and known.instances == study.instances:
            return known
        by_series: dict[str, list[ReceivedInstance]] = {}
        since = study.last_activity_at
        for row in self._studies.instances(study.study_uid):
            if row.run is None:
                since = min(since, row.received_at)
            if row.role is InstanceRole.IMAGE:
                by_series.setdefault(row.series_uid, []).append(to_received(row, self._data_dir))
        series = tuple(
            SeriesProgress(
                verdict=judge_series(instances, self._eligibility),
                geometry=series_geometry(instances),
            )
            for _uid, instances in sorted(by_series.items())
        )
        judged = _Judged(instances=study.instances, since=since, series=series)
        self._judged[study.study_uid] = judged
        return judged
