"""Storage commitment in the node: who asks, who answers, and what the journal brings in.

Each destination that is asked, the archive that is asked in a scanner's stead, and each scanner
that is answered has a thread of its own, so that one that is away delays no other. Everything that
they know stands in the database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from pe_triage.archive import CommitmentTable
from pe_triage.commitment import (
    CLASS_CONFLICT,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    CommitmentReport,
    CommitmentRequest,
    Reference,
    Remedy,
)
from pe_triage.deliver.backoff import MAX_DELAY_S, next_attempt_s
from pe_triage.deliver.commitment import OnReport, Said
from pe_triage.deliver.statuses import Verdict
from pe_triage.errors import QueryError
from pe_triage.logs import get_logger
from pe_triage.receive.commitments import CommitmentJournal
from pe_triage.receive.commitments import Said as Heard
from pe_triage.store.commitment_requests import (
    CommitmentRequestStore,
    Item,
    OpenRequest,
    Place,
    RequestState,
)
from pe_triage.store.commitments import CommitmentStore, Uncommitted

BATCH = 200
"""Objects in one request of ours."""
LONGEST_SILENCE_S = 86400.0
"""Longest wait for a report before it is asked again."""
REMEMBERED_S = 90 * 86400.0
"""How long a request's transaction UID is known, and so its report believed."""
POLL_S = 0.5
ARCHIVE_PATIENCE = 5
"""Times `check_every_s` that an archive has for the report on a request in a scanner's stead."""


class Peer(Protocol):
    """A `deliver.commitment.CommitmentPeer`."""

    def request(self, request: CommitmentRequest, on_report: OnReport) -> Said:
        """See there."""

    def report(self, report: CommitmentReport) -> Said:
        """See there."""


def silence_s(attempts: int, first_s: float) -> float:
    """Seconds to wait for a report on the request that is the `attempts`-th about an object."""
    wait_s: float = first_s * 2.0 ** min(max(attempts, 1) - 1, 32)
    return min(wait_s, max(LONGEST_SILENCE_S, first_s))


class Loop:
    """Repeats `step` until it is stopped, and survives a bad moment."""

    name = "commitment"

    def __init__(self) -> None:
        self._log = get_logger(loop=self.name)

    def step(self) -> bool:
        """Do what is due; False where nothing was."""
        raise NotImplementedError

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`."""
        while not stop.is_set():
            try:
                busy = self.step()
            except Exception as error:  # noqa: BLE001 - the thread must outlive a bad moment
                self._log.error("commitment.loop_failed", error=f"{type(error).__name__}: {error}")
                stop.wait(2.0)
                continue
            if not busy:
                stop.wait(POLL_S)


class Reports:
    """Acts on reports, wherever they were heard.

    Parameters
    ----------
    reporters
        Who was asked (a destination's name, the archive's address) to the calling AE titles that
        may report for it.
    """

    def __init__(
        self,
        commitments: CommitmentStore,
        table: CommitmentTable,
        reporters: Mapping[str, Collection[str]],
    ) -> None:
        self._commitments = commitments
        self._table = table
        self._reporters = reporters
        self._log = get_logger()

    def take(self, report: CommitmentReport, aet: str) -> None:
        """Settle one report; what nobody asked for is logged and forgotten.

        Parameters
        ----------
        aet
            Who says so: the caller, or on the association of our own request the one called. One
            archive never speaks for another.
        """
        log = self._log.bind(transaction_uid=report.transaction_uid)
        peer = self._commitments.peer_of(report.transaction_uid)
        allowed = () if peer is None else self._reporters.get(peer, ())
        if aet not in allowed:
            log.warning("commitment.unknown_transaction", calling_aet=aet)
            return
        settled = self._commitments.settle(
            report, redeliveries=self._table.redeliveries, retry_s=MAX_DELAY_S
        )
        if settled is None:
            log.warning("commitment.unknown_transaction", calling_aet=aet)
            return
        parked = settled.failed.get(Remedy.PARK, 0)
        say = log.error if parked else log.warning if settled.failed else log.info
        say(
            "commitment.settled",
            peer=settled.peer,
            committed=settled.committed,
            redelivered=settled.failed.get(Remedy.REDELIVER, 0),
            asked_again=settled.failed.get(Remedy.ASK_AGAIN, 0),
            parked=parked,
            stale=settled.stale,
        )


class Committer(Loop):
    """Asks one destination to commit to what it took.

    Parameters
    ----------
    peer, aet
        Who answers for it, and its AE title.
    """

    def __init__(
        self,
        name: str,
        *,
        commitments: CommitmentStore,
        peer: Peer,
        aet: str,
        table: CommitmentTable,
        reports: Reports,
        make_uid: Callable[[], str],
        jitter: Callable[[], float],
    ) -> None:
        self.name = f"commit-{name}"
        super().__init__()
        self._destination = name
        self._commitments = commitments
        self._peer = peer
        self._aet = aet
        self._table = table
        self._reports = reports
        self._make_uid = make_uid
        self._jitter = jitter
        self._log = get_logger(destination=name)

    def step(self) -> bool:
        """Ask once about what is due; give up on what has waited too long."""
        longest_s = max(LONGEST_SILENCE_S, self._table.ask_again_s)
        due = self._commitments.due(self._destination, BATCH, longest_wait_s=longest_s)
        late = [item for item in due if item.age_s >= self._table.give_up_s]
        if late:
            days = self._table.give_up_s / 86400
            self._commitments.put_off(late, f"not committed within {days:.3g} days", None)
            self._log.error("commitment.given_up", objects=len(late))
        items = [item for item in due if item.age_s < self._table.give_up_s]
        if not items:
            return bool(late)
        uid = self._make_uid()
        first_s = self._table.ask_again_s
        # Before it is sent: its report must be known even if we die right after.
        self._commitments.begin(
            self._destination,
            uid,
            items,
            ask_again_s=lambda item: silence_s(item.attempts + 1, first_s),
        )
        request = CommitmentRequest(
            transaction_uid=uid, references=tuple(item.reference for item in items)
        )
        said = self._peer.request(request, self._heard)
        log = self._log.bind(transaction_uid=uid, objects=len(items))
        if said.accepted:
            log.info("commitment.asked")
            return True
        self._put_off(items, said)
        log.warning("commitment.not_asked", error=said.error)
        return True

    def _heard(self, report: CommitmentReport) -> bool:
        try:
            self._reports.take(report, self._aet)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not be acknowledged
            self._log.error("commitment.report_failed", error=f"{type(error).__name__}: {error}")
            return False
        return True

    def _put_off(self, items: Sequence[Uncommitted], said: Said) -> None:
        # Also what seems to be for good: tomorrow an administrator may have allowed it.
        attempts = max(item.attempts for item in items) + 1
        wait_s = (
            MAX_DELAY_S
            if said.verdict is Verdict.PARK
            else next_attempt_s(attempts, 0.0, jitter=self._jitter()) or MAX_DELAY_S
        )
        self._commitments.put_off(items, said.error or "", wait_s)


class JournalReader(Loop):
    """Takes what the receivers wrote down into the database; exactly one runs on a spool."""

    name = "commitment-journal"

    def __init__(
        self,
        journal: CommitmentJournal,
        *,
        requests: CommitmentRequestStore,
        reports: Reports,
        requesters: Mapping[str, str],
        delay_s: float,
    ) -> None:
        super().__init__()
        self._journal = journal
        self._requests = requests
        self._reports = reports
        self._requesters = dict(requesters)
        self._delay_s = delay_s

    def step(self) -> bool:
        """Take all that waits."""
        count = 0
        for entry in self._journal.entries():
            count += 1
            if isinstance(entry, Heard):
                self._take(entry)
                self._journal.forget(entry.path)
                continue
            aside = self._journal.set_aside(entry)
            self._log.error("commitment.unreadable", file=aside.name)
        return count > 0

    def _take(self, entry: Heard) -> None:
        if isinstance(entry.message, CommitmentReport):
            self._reports.take(entry.message, entry.calling_aet)
            return
        requester = self._requesters.get(entry.calling_aet)
        if requester is None:
            # It was listed when it asked, and is no more: nobody may be told.
            self._log.error("commitment.no_such_requester", calling_aet=entry.calling_aet)
            return
        taken = self._requests.take(requester, entry.message, delay_s=self._delay_s)
        self._log.info(
            "commitment.taken",
            requester=requester,
            transaction_uid=entry.message.transaction_uid,
            instances=len(entry.message.references),
            taken=str(taken),
        )


Find = Callable[[Place], Mapping[str, str]]
"""Asks an archive for the instances of a series: SOP Instance UID to SOP Class UID, empty where it
does not say. Raises QueryError."""


class Confirmer(Loop):
    """Asks the archive whether it holds what scanners want to delete.

    Parameters
    ----------
    find
        Asks by C-FIND; None where `peer` is asked by storage commitment.
    peer, archive
        Who is asked by storage commitment, and its name.
    """

    name = "commitment-confirm"

    def __init__(
        self,
        *,
        requests: CommitmentRequestStore,
        commitments: CommitmentStore,
        table: CommitmentTable,
        make_uid: Callable[[], str],
        archive: str,
        find: Find | None = None,
        peer: Peer | None = None,
        heard: OnReport = lambda _: False,
    ) -> None:
        super().__init__()
        self._requests = requests
        self._commitments = commitments
        self._table = table
        self._make_uid = make_uid
        self._archive = archive
        self._find = find
        self._peer = peer
        self._heard = heard

    def step(self) -> bool:
        """Ask about every request whose time has come."""
        longest_s = max(LONGEST_SILENCE_S, ARCHIVE_PATIENCE * self._table.check_every_s)
        due = self._requests.due(RequestState.OPEN, longest_wait_s=longest_s)
        for request in due:
            self._confirm(request)
        return bool(due)

    def _confirm(self, request: OpenRequest) -> None:
        items = [i for i in self._requests.items(request.request_id) if not i.held]
        error = None
        # One that came late is asked about at least once.
        if items and (request.age_s < self._table.settle_s or request.attempts == 0):
            ask = self._by_commitment if self._find is None else self._by_find
            doubted = self._requests.contradicted([i.reference.sop_instance_uid for i in items])
            # Two objects go by this UID: which of them the archive holds, its yes does not say.
            self._requests.note(request.request_id, dict.fromkeys(doubted, PROCESSING_FAILURE))
            clear = [i for i in items if i.reference.sop_instance_uid not in doubted]
            if clear:
                error = ask(request, clear)
            items = [i for i in self._requests.items(request.request_id) if not i.held]
        if not items or (request.age_s >= self._table.settle_s and request.attempts > 0):
            self._requests.decide(request.request_id)
            self._log.info(
                "commitment.decided",
                requester=request.requester,
                transaction_uid=request.transaction_uid,
                failed=len(items),
            )
            return
        every_s = self._table.check_every_s
        if self._find is None and error is None:
            # It was asked and has time to report; `CommitmentStore.settle` makes due what is held.
            every_s = silence_s(request.attempts + 1, ARCHIVE_PATIENCE * every_s)
        left_s = max(0.0, self._table.settle_s - request.age_s)
        self._requests.put_off(
            request.request_id, min(every_s, left_s) if left_s else every_s, error
        )

    def _by_find(self, request: OpenRequest, items: Sequence[Item]) -> str | None:
        assert self._find is not None
        references = {i.reference.sop_instance_uid: i.reference for i in items}
        places = self._requests.places(list(references))
        verdicts: dict[str, int | None] = dict.fromkeys(
            references.keys() - places.keys(), NO_SUCH_INSTANCE
        )
        error = None

        def key(uid: str) -> tuple[str, str]:
            return places[uid].study_uid, places[uid].series_uid

        for _, group in groupby(sorted(places, key=key), key=key):
            uids = list(group)
            try:
                found = self._find(places[uids[0]])
            except QueryError as failure:
                # Unknown is neither held nor missing: what was known of them stays.
                error = failure.message
                continue
            verdicts |= {uid: verdict_on(references[uid], found) for uid in uids}
        self._requests.note(request.request_id, verdicts)
        return error

    def _by_commitment(self, request: OpenRequest, items: Sequence[Item]) -> str | None:
        assert self._peer is not None
        uid = self._make_uid()
        references = tuple(item.reference for item in items)
        self._commitments.begin_for_request(self._archive, uid, request.request_id, references)
        said = self._peer.request(
            CommitmentRequest(transaction_uid=uid, references=references), self._heard
        )
        return said.error


def verdict_on(reference: Reference, found: Mapping[str, str]) -> int | None:
    """Failure Reason for one instance, None where the archive holds it."""
    if reference.sop_instance_uid not in found:
        return NO_SUCH_INSTANCE
    held_class = found[reference.sop_instance_uid]
    return CLASS_CONFLICT if held_class not in ("", reference.sop_class_uid) else None


class Reporter(Loop):
    """Tells one scanner what it may delete."""

    def __init__(
        self,
        requester: str,
        *,
        requests: CommitmentRequestStore,
        peer: Peer,
        jitter: Callable[[], float],
    ) -> None:
        self.name = f"commitment-report-{requester}"
        super().__init__()
        self._requester = requester
        self._requests = requests
        self._peer = peer
        self._jitter = jitter
        self._log: Any = get_logger(requester=requester)

    def step(self) -> bool:
        """Send every answer that is due, until the scanner turns out to be away."""
        due = self._requests.due(
            RequestState.REPORTING, requester=self._requester, longest_wait_s=LONGEST_SILENCE_S
        )
        for request in due:
            report = self._requests.answer(request)
            said = self._peer.report(report)
            log = self._log.bind(transaction_uid=request.transaction_uid)
            if said.accepted:
                self._requests.end(request.request_id, RequestState.REPORTED)
                log.info(
                    "commitment.answered",
                    committed=len(report.committed),
                    failed=len(report.failed),
                )
                continue
            wait_s = next_attempt_s(request.attempts + 1, request.age_s, jitter=self._jitter())
            if wait_s is None:
                self._requests.end(request.request_id, RequestState.PARKED, said.error)
                log.error("commitment.answer_given_up", error=said.error)
                continue
            self._requests.put_off(request.request_id, wait_s, said.error)
            log.warning("commitment.answer_retry", error=said.error, retry_in_s=round(wait_s, 1))
            if said.unreachable:
                # The ones behind it would fare alike.
                break
        return bool(due)
