"""Storage commitment over the network: our requests (N-ACTION) and our answers (N-EVENT-REPORT).

PS3.4 Annex J. A request's own association is kept open for a moment, since some archives report on
it at once, a few even before they answer the request; most report on an association that they
open, which the receivers hear (`receive.commitments`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from pe_triage.commitment import (
    PUSH_MODEL,
    REQUEST_ACTION,
    SYNTAXES,
    WELL_KNOWN_INSTANCE,
    CommitmentReport,
    CommitmentRequest,
    MalformedCommitmentError,
    read_report,
    report_dataset,
    request_dataset,
)
from pe_triage.deliver.requestor import RequestorOptions, open_association
from pe_triage.deliver.statuses import StatusRule, Verdict
from pe_triage.domain import Destination
from pe_triage.errors import PermanentDeliveryError, RetryableDeliveryError

T = TypeVar("T", N_ACTION, N_EVENT_REPORT)

_SUCCESS, _PROCESSING_FAILURE, _INVALID_ARGUMENT = 0x0000, 0x0110, 0x0115
_POLL_S = 0.02
_RELEASE_S = 2.0


def _rule(status: int, verdict: Verdict, words: str) -> StatusRule:
    return StatusRule(first=status, last=status, verdict=verdict, words=words)


COMMITMENT_RULES: tuple[StatusRule, ...] = (
    _rule(0x0000, Verdict.SENT, "success"),
    _rule(0x0107, Verdict.WARNING, "attribute list error"),
    _rule(0x0110, Verdict.RETRY, "processing failure"),
    _rule(0x0112, Verdict.PARK, "no such SOP instance"),
    _rule(0x0113, Verdict.PARK, "no such event type"),
    _rule(0x0114, Verdict.PARK, "no such argument"),
    _rule(0x0115, Verdict.PARK, "invalid argument value"),
    _rule(0x0116, Verdict.WARNING, "attribute value out of range"),
    _rule(0x0117, Verdict.PARK, "invalid SOP instance"),
    _rule(0x0118, Verdict.PARK, "no such SOP class"),
    _rule(0x0119, Verdict.PARK, "class-instance conflict"),
    _rule(0x0122, Verdict.PARK, "SOP class not supported"),
    _rule(0x0123, Verdict.PARK, "no such action"),
    _rule(0x0124, Verdict.PARK, "not authorised"),
    _rule(0x0210, Verdict.RETRY, "duplicate invocation"),
    _rule(0x0211, Verdict.PARK, "unrecognised operation"),
    _rule(0x0212, Verdict.PARK, "mistyped argument"),
    _rule(0x0213, Verdict.RETRY, "resource limitation"),
)
"""Statuses of N-ACTION and N-EVENT-REPORT responses (PS3.7 Section 10.1, Annex C)."""

UNKNOWN = StatusRule(first=0, last=0xFFFF, verdict=Verdict.RETRY, words="unknown status")
"""Never taken for success."""


def rule_of(status: int) -> StatusRule:
    """What a status of a response means."""
    for rule in COMMITMENT_RULES:
        if rule.first <= status <= rule.last:
            return rule
    return UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """How one exchange ended; nothing is raised for what a peer does."""

    verdict: Verdict
    error: str | None = None
    unreachable: bool = False
    """The peer itself was away."""

    @property
    def accepted(self) -> bool:
        """Whether the peer has taken it."""
        return self.verdict in (Verdict.SENT, Verdict.WARNING)


OnReport = Callable[[CommitmentReport], bool]
"""Told of a report that comes on our own association; True once it is durable."""


class CommitmentPeer:
    """One peer with which storage commitment is spoken.

    Parameters
    ----------
    peer
        Its address.
    calling_aet
        Our AE title.
    options
        Time-outs.
    linger_s
        How long the association of a request is kept open for a report.
    """

    def __init__(
        self,
        peer: Destination,
        calling_aet: str,
        *,
        options: RequestorOptions | None = None,
        linger_s: float = 3.0,
    ) -> None:
        self._peer = peer
        self._calling_aet = calling_aet
        self._options = options or RequestorOptions()
        self._linger_s = linger_s

    def request(self, request: CommitmentRequest, on_report: OnReport) -> Said:
        """Ask for commitment (N-ACTION)."""
        heard: set[str] = set()
        serving: list[threading.Thread] = []

        def listen(event: Any) -> tuple[int, None]:
            serving.append(threading.current_thread())
            try:
                report = read_report(event.event_information)
            except MalformedCommitmentError:
                return _INVALID_ARGUMENT, None
            except Exception:  # noqa: BLE001 - pydicom raises many kinds on bad bytes
                return _PROCESSING_FAILURE, None
            if not on_report(report):
                return _PROCESSING_FAILURE, None
            heard.add(report.transaction_uid)
            return _SUCCESS, None

        message = N_ACTION()
        message.MessageID = 1
        message.RequestedSOPClassUID = UID(PUSH_MODEL)
        message.RequestedSOPInstanceUID = UID(WELL_KNOWN_INSTANCE)
        message.ActionTypeID = REQUEST_ACTION

        def exchange(association: Association, context: PresentationContext) -> Said:
            message.ActionInformation = _encoded(request_dataset(request), context)
            return self._exchange(
                association,
                context,
                message,
                until=lambda: request.transaction_uid in heard,
                serving=serving,
            )

        return self._talk(exchange, handlers=[(evt.EVT_N_EVENT_REPORT, listen)])

    def report(self, report: CommitmentReport) -> Said:
        """Answer a request of the peer's (N-EVENT-REPORT), as SCP on an association that we open.

        The role is proposed (PS3.7 Annex D.3.3.4). A peer that takes the context but says nothing
        of roles is reported to all the same: many scanners are such, and one that minds aborts.
        """
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid = UID(PUSH_MODEL)
        role.scu_role = False
        role.scp_role = True
        message = N_EVENT_REPORT()
        message.MessageID = 1
        message.AffectedSOPClassUID = UID(PUSH_MODEL)
        message.AffectedSOPInstanceUID = UID(WELL_KNOWN_INSTANCE)
        message.EventTypeID = report.event_type

        def exchange(association: Association, context: PresentationContext) -> Said:
            message.EventInformation = _encoded(report_dataset(report), context)
            return self._exchange(association, context, message)

        return self._talk(exchange, roles=[role])

    def _talk(
        self,
        exchange: Callable[[Association, PresentationContext], Said],
        *,
        roles: list[SCP_SCU_RoleSelectionNegotiation] | None = None,
        handlers: list[Any] | None = None,
    ) -> Said:
        try:
            association = open_association(
                self._peer,
                calling_aet=self._calling_aet,
                contexts=[build_context(PUSH_MODEL, list(SYNTAXES))],
                options=self._options,
                roles=roles or (),
                handlers=handlers or (),
            )
        except RetryableDeliveryError as error:
            return Said(verdict=Verdict.RETRY, error=error.message, unreachable=True)
        except PermanentDeliveryError as error:
            return Said(verdict=Verdict.PARK, error=f"{error.message} (storage commitment)")
        try:
            context = association.accepted_contexts[0]
            return exchange(association, context)
        except (RuntimeError, ValueError, OSError) as error:
            return Said(
                verdict=Verdict.RETRY,
                error=f"{self._peer}: storage commitment broke off ({type(error).__name__})",
            )
        finally:
            # `_exchange` has released it, or the peer is about to.
            deadline_s = time.monotonic() + _RELEASE_S
            while association.is_established and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
            if association.is_established:
                association.abort()

    def _exchange(
        self,
        association: Association,
        context: PresentationContext,
        message: T,
        *,
        until: Callable[[], bool] = lambda: True,
        serving: Sequence[threading.Thread] = (),
    ) -> Said:
        """Send a request, wait for its response, linger for a report, release.

        pynetdicom serves each N-EVENT-REPORT in a thread of its own, and its `release` heeds
        neither that thread nor what is still to be sent, so the release would overtake our answer.
        Here the reactor rests until the association is released.
        """
        association._reactor_checkpoint.clear()
        while not association._is_paused and association.is_alive():
            time.sleep(0.0001)
        try:
            association.dimse.send_msg(message, int(context.context_id or 0))
            said = self._await(association, message)
            if said.accepted:
                self._linger(association, until)
            if association.is_established and not association.acse.is_release_requested():
                for thread in serving:
                    thread.join(_RELEASE_S)
                _drain(association)
                association.acse.negotiate_release()
            return said
        finally:
            association._reactor_checkpoint.set()

    def _await(self, association: Association, message: N_ACTION | N_EVENT_REPORT) -> Said:
        """Wait for the response to `message`."""
        deadline_s = time.monotonic() + self._options.dimse_timeout_s
        while time.monotonic() < deadline_s:
            _, response = association.dimse.get_msg(block=True)
            if response is None:
                break
            status = response.Status if isinstance(response, type(message)) else None
            if status is None or response.MessageIDBeingRespondedTo != message.MessageID:
                association.abort()
                return self._failed("an invalid answer to storage commitment")
            rule = rule_of(int(status))
            accepted = rule.verdict in (Verdict.SENT, Verdict.WARNING)
            words = f"{self._peer}: storage commitment: status {int(status):04X}: {rule.words}"
            return Said(verdict=rule.verdict, error=None if accepted else words)
        if association.is_established and not association.acse.is_aborted():
            association.abort()
            return self._failed(
                f"no answer to storage commitment within {self._options.dimse_timeout_s:g} s"
            )
        return self._failed("the association was aborted during storage commitment")

    def _linger(self, association: Association, until: Callable[[], bool]) -> None:
        """Keep the association open for a report, at most `linger_s`."""
        deadline_s = time.monotonic() + self._linger_s
        while not until() and time.monotonic() < deadline_s:
            if association.acse.is_aborted() or association.acse.is_release_requested():
                return
            time.sleep(_POLL_S)

    def _failed(self, words: str) -> Said:
        return Said(verdict=Verdict.RETRY, error=f"{self._peer}: {words}")


def _drain(association: Association) -> None:
    """Wait until the upper layer has sent what it was given."""
    deadline_s = time.monotonic() + _RELEASE_S
    dul = association.dul
    while dul.to_provider_queue.queue or dul.event_queue.queue:
        if time.monotonic() > deadline_s:
            return
        time.sleep(_POLL_S)


def _encoded(ds: Dataset, context: PresentationContext) -> BytesIO:
    syntax = context.transfer_syntax[0]
    data = encode(ds, syntax.is_implicit_VR, syntax.is_little_endian)
    if data is None:
        raise ValueError("cannot be encoded")
    return BytesIO(data)
