"""Decides, again and again, which receiving studies are complete, and queues them.

The decision itself is a pure function; this is its memory: which associations are open or how they
ended, and what the database says has come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from pe_triage.monitoring import SenderTable
from pe_triage.node.associations import Associations
from pe_triage.node.expectations import NOTHING, Expectation, Expectations
from pe_triage.node.files import to_received
from pe_triage.node.urgency import PlaceOf
from pe_triage.receive.spool import AssociationEvent, EventRecord
from pe_triage.store.engine import StoreUnavailableError
from pe_triage.store.jobs import Closing, JobQueue, StudyChangedError
from pe_triage.store.retrievals import Wanted, short_of
from pe_triage.store.studies import AssociationEnd, StudyProgress, StudyStore
from pe_triage.urgency import Place


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """Verdicts on a study's series, good as long as nothing has been added to it."""

    instances: int
    since: datetime
    """First arrival of what no run holds yet: a study that grows a day later starts anew."""
    series: tuple[SeriesProgress, ...]
    held: Mapping[str, int]
    """Series UID to images."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Who can be asked how many images a study has.

    Attributes
    ----------
    peer
        Name of the peer for every study whose sender has none of its own; None: nobody.
    by_sender
        Calling AE title to a name, or to None where nobody shall be asked.
    whole_study
        Whether every CT series of a study is sent here, and not only some.
    """

    expectations: Expectations
    peer: str | None
    by_sender: Mapping[str, str | None] = field(default_factory=dict)
    whole_study: bool = False

    def peer_of(self, calling_aets: frozenset[str]) -> str | None:
        """Whom to ask about a study that these have sent."""
        named = [self.by_sender[aet] for aet in sorted(calling_aets) if aet in self.by_sender]
        return named[0] if named else self.peer


def rules_for(
    calling_aets: frozenset[str], rules: CompletenessRules, senders: Mapping[str, SenderTable]
) -> CompletenessRules:
    """Rules of the study's senders; where several sent it, those of the most patient."""
    changed = [_of_sender(rules, senders.get(aet)) for aet in sorted(calling_aets)] or [rules]
    return replace(
        rules,
        **{
            name: max(getattr(r, name) for r in changed)
            for name in ("quiet_s", "grace_s", "max_wait_s", "expected_wait_s")
        },
    )


def _of_sender(rules: CompletenessRules, sender: SenderTable | None) -> CompletenessRules:
    if sender is None:
        return rules
    names = ("quiet_s", "grace_s", "max_wait_s", "expected_wait_s")
    return replace(rules, **{n: v for n in names if (v := getattr(sender, n)) is not None})


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
    senders
        Calling AE title to what holds for its studies.
    asking
        Who can be asked how many images a study has; None: nobody.
    place_of
        Where a study stands in the queue.
    retrieving
        What an archive was asked to send here and has not come whole, by study.
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
        senders: Mapping[str, SenderTable] | None = None,
        asking: Asking | None = None,
        place_of: PlaceOf = lambda _study_uid, _calling_aets: Place.ROUTINE,
        retrieving: Callable[[], Mapping[str, Wanted]] = dict,
    ) -> None:
        self._retrieving = retrieving
        self._fetched: Mapping[str, Wanted] = {}
        self._studies = studies
        self._queue = queue
        self._data_dir = data_dir
        self._completeness = completeness
        self._eligibility = eligibility
        self._clock = clock
        self._living_boots = living_boots
        self._senders = dict(senders or {})
        self._asking = asking
        self._place_of = place_of
        self._associations = Associations()
        self._judged: dict[str, _Judged] = {}
        self._drained_s: float | None = None
        self._log = get_logger()

    def note_event(self, association_id: str, record: EventRecord) -> None:
        """Remember that an association was opened, released or aborted."""
        self.note_events([(association_id, record)])

    def note_events(self, events: Sequence[tuple[str, EventRecord]]) -> None:
        """Remember it of several; how they ended is durable when this returns.

        What they brought must be in the database before.

        Raises
        ------
        StoreUnavailableError
            Do it again.
        """
        ends = [
            AssociationEnd(
                association_id=association_id,
                ended=record.event.value,
                study_uids=tuple(record.instances),
            )
            for association_id, record in events
            if record.event is not AssociationEvent.OPENED
        ]
        if ends:
            self._studies.note_ends(ends)
        for association_id, record in events:
            self._associations.note(association_id, record)

    def note_drained(self, started_s: float) -> None:
        """Say that all that was acknowledged before `started_s` (monotonic) is in the database."""
        self._drained_s = started_s

    def calling_aet(self, association_id: str) -> str | None:
        """Calling AE title of an association, where its opening was seen."""
        return self._associations.calling_aet(association_id)

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
        clock_at = self._clock()
        now = clock_at - timedelta(seconds=max(0.0, time.monotonic() - drained_s))
        receiving = self._studies.receiving()
        if receiving:
            for association_id in self._associations.end_orphans(self._living_boots()):
                self._log.warning("association.lost", association_id=association_id)
            self._fetched = self._retrieving()
        open_uids = {study.study_uid for study in receiving}
        for gone in self._judged.keys() - open_uids:
            del self._judged[gone]
        if self._asking is not None:
            self._asking.expectations.keep(open_uids)
        complete = 0
        for study in receiving:
            try:
                complete += self._judge(study, now, clock_at)
            except StoreUnavailableError:
                raise
            except Exception as error:  # noqa: BLE001 - the studies behind it must be judged too
                self._log.error(
                    "study.judge_failed", study_uid=study.study_uid, error=type(error).__name__
                )
        return complete

    def _judge(self, study: StudyProgress, now: datetime, clock_at: datetime) -> bool:
        rules = rules_for(study.calling_aets, self._completeness, self._senders)
        quiet_for_s = (now - study.last_activity_at).total_seconds()
        age_s = (now - _not_before(study.received_at, study.settled_at)).total_seconds()
        set_back = (study.last_activity_at - clock_at).total_seconds() > rules.quiet_s
        soon = quiet_for_s < min(rules.grace_s, rules.quiet_s)
        if soon and not set_back and age_s < rules.max_wait_s:
            # Nothing can close it yet, so its series need not be looked at. A sender that never
            # falls silent (it repeats one image for ever) is the matter of `max_wait_s`.
            return False
        open_associations = self._associations.open_now(study)
        judged = self._judged_of(study)
        # While it lay in quarantine nobody waited for its images.
        since = _not_before(judged.since, study.settled_at)
        expectation = self._expectation(study)
        missing = self._missing(expectation, judged)
        if missing == 0 and open_associations:
            # The PACS may be filled by the same hand at this very moment.
            missing = None
        more_series = set(expectation.series or ()) - judged.held.keys()
        if missing == 0 and more_series and not any(s.verdict.eligible for s in judged.series):
            # A localizer that has come whole says nothing of the chest that is to follow.
            missing = None
        short = short_of(self._fetched.get(study.study_uid, {}), judged.held)
        if short:
            # The archive told us before it began to send, and may be away by now.
            missing = max(missing or 0, short)
        expected = None if missing is None else study.instances + missing
        decision = judge_completeness(
            Progress(
                instances=study.instances,
                first_instance_at=since,
                last_instance_at=study.last_activity_at,
                open_associations=open_associations,
                all_released=self._associations.all_released(study),
                broken_off=self._associations.broken_off(study),
                series=judged.series,
                expected_instances=expected,
            ),
            rules,
            now,
            clock_at=clock_at,
        )
        if not decision.complete:
            return False
        if (
            decision.sign == "released_and_contiguous"
            and expectation.asking
            and quiet_for_s < rules.quiet_s
            and (now - since).total_seconds() < rules.max_wait_s
        ):
            # The answer that is on its way may say that more is to come; but a question that is
            # never answered must not keep a study open when nothing else would.
            return False
        log = self._log.bind(study_uid=study.study_uid)
        digest = self._studies.manifest(study.study_uid).digest
        place = self._place_of(study.study_uid, study.calling_aets)
        try:
            job = self._queue.enqueue(
                study.study_uid,
                digest,
                rank=place,
                closing=Closing(
                    sign=decision.sign,
                    reason=decision.reason,
                    expected_images=None
                    if missing is None
                    else sum(judged.held.values()) + missing,
                ),
            )
        except StudyChangedError:
            # A slice came at this very moment: the study is not complete after all.
            return False
        log.info(
            "study.complete",
            sign=decision.sign,
            reason=decision.reason,
            instances=study.instances,
            missing=missing or None,
            place=None if place is Place.ROUTINE else place.name,
            run=None if job is None else job.run,
            job_id=None if job is None else job.job_id,
        )
        return True

    def _expectation(self, study: StudyProgress) -> Expectation:
        if self._asking is None:
            return NOTHING
        peer = self._asking.peer_of(study.calling_aets)
        return self._asking.expectations.of(study.study_uid, peer, study.last_activity_at)

    def _missing(self, expectation: Expectation, judged: _Judged) -> int | None:
        if self._asking is None:
            return None
        return expectation.missing(judged.held, whole_study=self._asking.whole_study)

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
            progress
            for _uid, instances in sorted(by_series.items())
            if (progress := self._progress_of(instances)) is not None
        )
        held = {uid: len(images) for uid, images in by_series.items()}
        judged = _Judged(instances=study.instances, since=since, series=series, held=held)
        self._judged[study.study_uid] = judged
        return judged

    def _progress_of(self, instances: list[ReceivedInstance]) -> SeriesProgress | None:
        """Verdict on one series; None where headers of a kind that nobody foresaw raise.

        Time then closes the study, and the worker says visibly what is wrong with it: an exception
        here would keep it open, unseen, for ever.
        """
        try:
            return SeriesProgress(
                verdict=judge_series(instances, self._eligibility),
                geometry=series_geometry(instances),
            )
        except Exception as error:  # noqa: BLE001 - see above
            self._log.error(
                "series.judge_failed",
                study_uid=instances[0].study_uid,
                series_uid=instances[0].series_uid,
                error=type(error).__name__,
            )
            return None


def _not_before(at: datetime, settled_at: datetime | None) -> datetime:
    return at if settled_at is None else max(at, settled_at)
