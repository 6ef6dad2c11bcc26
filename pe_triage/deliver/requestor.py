"""Opening an association as its requestor, with failures said in one line each."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from pe_triage.domain import Destination
from pe_triage.errors import PermanentDeliveryError, RetryableDeliveryError

MAX_CONTEXTS = 128
"""Presentation contexts in one request (PS3.8 Section 9.3.2.2: odd identifiers up to 255)."""

_PERMANENT = 1
_LASTING = {True: "permanent", False: "transient"}
_NAMED_ERRORS = {
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "host is unreachable",
    errno.ENETUNREACH: "network is unreachable",
    errno.ETIMEDOUT: "connection timed out",
    errno.ECONNRESET: "connection was reset",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestorOptions:
    """How long to wait for a peer."""

    connect_timeout_s: float = 10.0
    acse_timeout_s: float = 30.0
    """For the answer to an association or release request."""
    dimse_timeout_s: float = 60.0
    """For the answer to a C-STORE; also the longest stall while an object is being sent."""
    max_pdu_length: int = 131072


class DeliverySocket(AssociationSocket):
    """Keeps the reason of a failed connection; no Nagle delay; no endless reads and writes."""

    failure: OSError | None = None
    stall_s: float = 60.0

    def connect(self, primitive: T_CONNECT) -> None:
        """See pynetdicom."""
        sock = cast(socket.socket, self.socket)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        timeout = struct.pack("@ll", int(self.stall_s), int(self.stall_s % 1 * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self.socket = _Remembering.of(sock, self)
        super().connect(primitive)


class _Remembering(socket.socket):
    """A socket that tells its owner why it could not connect."""

    owner: DeliverySocket

    @classmethod
    def of(cls, sock: socket.socket, owner: DeliverySocket) -> _Remembering:
        timeout_s = sock.gettimeout()
        remembering = cls(sock.family, sock.type, sock.proto, sock.detach())
        remembering.settimeout(timeout_s)
        remembering.owner = owner
        return remembering

    def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]
        try:
            super().connect(address)
        except OSError as error:
            self.owner.failure = error
            raise


class DeliveryAE(AE):
    """An application entity whose connections are `DeliverySocket`s."""

    stall_s: float = 60.0

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> AssociationSocket:
        sock = DeliverySocket(assoc, address=address)
        sock.stall_s = self.stall_s
        sock.tls_args = tls_args
        return sock


def open_association(
    destination: Destination,
    *,
    calling_aet: str,
    contexts: Sequence[PresentationContext],
    options: RequestorOptions,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[Any] = (),
) -> Association:
    """Request an association and return it established.

    Parameters
    ----------
    roles
        Role selection items (PS3.7 Annex D.3.3.4), where we want to be SCP of a class.
    handlers
        pynetdicom's event handlers, for requests that the peer makes on this association.

    Raises
    ------
    RetryableDeliveryError
        No connection, no answer, aborted, or rejected for whatever reason.
    PermanentDeliveryError
        Nothing that was proposed is accepted.
    """
    ae = DeliveryAE(ae_title=calling_aet)
    ae.stall_s = options.dimse_timeout_s
    ae.connection_timeout = options.connect_timeout_s
    ae.acse_timeout = options.acse_timeout_s
    ae.dimse_timeout = options.dimse_timeout_s
    ae.network_timeout = options.dimse_timeout_s
    try:
        association = ae.associate(
            destination.host,
            destination.port,
            contexts=list(contexts),
            ae_title=destination.aet,
            max_pdu=options.max_pdu_length,
            ext_neg=list(roles),
            evt_handlers=list(handlers),
        )
    except (socket.gaierror, UnicodeError):
        raise RetryableDeliveryError(f"{destination}: unknown host {destination.host!r}") from None
    except OSError as error:
        raise RetryableDeliveryError(f"{destination}: {_words(error)}") from None
    if association.is_established:
        return association
    raise _why_not(destination, association, options)


def _why_not(
    destination: Destination, association: Association, options: RequestorOptions
) -> RetryableDeliveryError | PermanentDeliveryError:
    connection = association.dul.socket
    failure = connection.failure if isinstance(connection, DeliverySocket) else None
    if failure is not None:
        return RetryableDeliveryError(f"{destination}: {_words(failure)}")
    answer = association.acceptor.primitive
    if association.is_rejected and isinstance(answer, A_ASSOCIATE):
        line = f"{destination}: association rejected: {answer.reason_str.lower()}"
        # "Permanent" (PS3.8 Table 9-21) too: next morning an administrator enters our title there.
        return RetryableDeliveryError(f"{line} ({_LASTING[answer.result == _PERMANENT]})")
    if isinstance(answer, A_ASSOCIATE) and answer.result == 0:
        return PermanentDeliveryError(f"{destination}: accepted none of the proposed contexts")
    if association.is_aborted and association._sent_abort:
        return RetryableDeliveryError(
            f"{destination}: no answer to the association request within "
            f"{options.acse_timeout_s:g} s"
        )
    return RetryableDeliveryError(f"{destination}: association was aborted during negotiation")


def _words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "connection timed out"
    return _NAMED_ERRORS.get(error.errno or 0) or (error.strerror or str(error)).lower()
