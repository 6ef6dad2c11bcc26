"""One accepted association: who may open it, and the thread that waits for its end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE

from pe_triage.logs import get_logger
from pe_triage.receive.access import Rejection, decide
from pe_triage.receive.contexts import supported_contexts
from pe_triage.receive.storing import StoreSession
from pe_triage.receive.upper_layer import StoreUpperLayer

if TYPE_CHECKING:
    from pe_triage.receive.server import ReceiverOptions, SharedListenerServer

_WAKE_S = 0.25
TOO_MANY = Rejection(result=2, source=3, reason=2, words="too many associations are open")
"""Transient, local limit exceeded (PS3.8 Table 9-21): a well-made sender tries again."""

_ABORT_PDU = bytes((0x07, 0, 0, 0, 0, 4, 0, 0, 2, 0))
"""A-ABORT by the service provider, reason not specified (PS3.8 Section 9.3.8)."""


class GuardedAcse(ACSE):
    """Negotiation with access rules, and contexts made for what was proposed."""

    def _negotiate_as_acceptor(self) -> None:
        association = cast("StoreAssociation", self.assoc)
        request = cast(A_ASSOCIATE, self.requestor.primitive)
        rejection = association.server.check(
            called_aet=request.called_ae_title or "",
            calling_aet=request.calling_ae_title or "",
            peer_host=association.peer_host,
        )
        if rejection is not None:
            association.log.warning(
                "association.rejected",
                calling_aet=request.calling_ae_title,
                called_aet=request.called_ae_title,
                reason=rejection.words,
            )
            self.send_reject(rejection.result, rejection.source, rejection.reason)
            evt.trigger(self.assoc, evt.EVT_REJECTED, {})
            self.assoc.kill()
            return
        proposed = [str(c.abstract_syntax) for c in request.presentation_context_definition_list]
        self.acceptor.supported_contexts = [
            *supported_contexts(proposed),
            *association.receiver_options.commitment.contexts(
                (request.calling_ae_title or "").strip(" ")
            ),
        ]
        super()._negotiate_as_acceptor()

    def send_accept(self) -> None:
        """Open the session before the peer can send its first object."""
        association = cast("StoreAssociation", self.assoc)
        association.open_session()
        super().send_accept()


class StoreAssociation(Association):
    """Acceptor of one association; see `upper_layer` for how its data is read."""

    def __init__(self, server: SharedListenerServer, peer_host: str) -> None:
        self.server = server
        self.peer_host = peer_host
        self.receiver_options: ReceiverOptions = server.options
        self.wake = threading.Event()
        self.session: StoreSession | None = None
        self.log: Any = get_logger(peer_host=peer_host)
        super().__init__(server.ae, MODE_ACCEPTOR)
        self.acse = GuardedAcse(self)
        self.dul = StoreUpperLayer(self)
        # These also set the timers of the upper layer, which is another one now.
        self.acse_timeout = server.ae.acse_timeout
        self.network_timeout = server.ae.network_timeout
        listener = server.commitment_listener
        if listener is not None:
            self.bind(
                evt.EVT_N_ACTION, lambda e: listener.on_action(e, self._calling_aet, self.log)
            )
            self.bind(
                evt.EVT_N_EVENT_REPORT, lambda e: listener.on_report(e, self._calling_aet, self.log)
            )

    @property
    def _calling_aet(self) -> str:
        return "" if self.session is None else self.session.calling_aet

    def open_session(self) -> None:
        """Begin to account for what this association stores."""
        request = cast(A_ASSOCIATE, self.requestor.primitive)
        self.session = self.server.service.open_association(
            calling_aet=(request.calling_ae_title or "").strip(" "), host=self.peer_host
        )
        self.log = self.session.log

    def run_reactor(self) -> None:
        """See pynetdicom; whatever ends the association is told to its session."""
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001  (a thread's end: nobody else would hear of it)
            self.log.error("association.failed", error=type(error).__name__)
        finally:
            if self.session is not None:
                self.session.close(released=self.is_released)
            self.server.forget(self)

    def _run_reactor(self) -> None:
        """As pynetdicom's loop for an acceptor, but woken by events instead of a clock."""
        while not self._kill:
            self.wake.wait(_WAKE_S)
            self.wake.clear()
            context_id, message = self.dimse.get_msg(block=False)
            if message and context_id is not None:
                self._serve_request(message, context_id)
                self.wake.set()
            if self.is_established and self.acse.is_release_requested():
                self.acse.send_release(is_response=True)
                self.is_released = True
                self.is_established = False
                evt.trigger(self, evt.EVT_RELEASED, {})
                self.kill()
            elif self.acse.is_aborted():
                self.dul.receive_pdu(wait=False)
                self.is_aborted = True
                self.is_established = False
                evt.trigger(self, evt.EVT_ABORTED, {})
                self.kill()
            elif not self.dul.is_alive():
                self.kill()
            elif self.dul.idle_timer_expired():
                self.log.warning("association.idle_timeout")
                self.abort()
                self.kill()

    def cut(self) -> None:
        """Abort at once, from any thread, even while a PDU is being read."""
        sock = self.dul.socket.socket if self.dul.socket is not None else None
        if sock is None:
            return
        try:
            sock.send(_ABORT_PDU)
            sock.shutdown(2)
        except OSError:
            return


def check_access(
    server: SharedListenerServer, *, called_aet: str, calling_aet: str, peer_host: str
) -> Rejection | None:
    """Apply the access policy, then the limit on open associations."""
    rejection = decide(
        server.options.access,
        called_aet=called_aet,
        calling_aet=calling_aet,
        peer_host=peer_host,
        resolve=server.resolve,
    )
    if rejection is None and server.open_associations() > server.options.max_associations:
        return TOO_MANY
    return rejection
