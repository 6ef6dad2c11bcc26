"""A receiver process: serves a listening socket that it was given, until it is told to stop.

The supervisor listens and several receivers accept on the same socket, so a receiver that dies
takes none of the waiting connections with it, and a new one serves them.
"""

from __future__ import annotations

import errno
import gc
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pynetdicom import AE
from pynetdicom.transport import AssociationServer, RequestHandler

from pe_triage.addresses import AcceptRule
from pe_triage.logs import get_logger
from pe_triage.receive.access import AccessPolicy, Rejection, ResolverCache
from pe_triage.receive.commitments import CommitmentAccess, CommitmentJournal, CommitmentListener
from pe_triage.receive.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pe_triage.receive.scp import StoreAssociation, check_access
from pe_triage.receive.spool import Spool
from pe_triage.receive.storing import StoreService
from pe_triage.receive.upper_layer import StoreSocket

_POLL_S = 0.1
_COLLECT_S = 60.0
_ABORT_WAIT_S = 3.0
_NO_LIMIT_HERE = 1_000_000
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverOptions:
    """Settings of one receiver process; plain values, so that they travel to a spawned process."""

    aet: str
    spool_root: Path
    name: str = "receiver-1"
    """Unique among the receivers of one spool, the same in each life; see `Lives.announce`."""
    accept_from: tuple[AcceptRule, ...] = ()
    insecure: bool = False
    max_pdu_length: int = 131072
    """Announced to peers: bytes of a P-DATA-TF PDU that they may send."""
    max_associations: int = 200
    """Open at once in this process; past it a request is rejected as transient."""
    acse_timeout_s: float = 30.0
    """For the association request to arrive."""
    network_timeout_s: float = 60.0
    """Silence, or one unfinished PDU, that ends an association."""
    min_bytes_per_s: float = 1024.0
    """Rate below which an object is no longer waited for, once `network_timeout_s` passed."""
    max_object_bytes: int = 1 << 30
    """A larger object is answered A700."""
    min_free_bytes: int = 256 << 20
    """Below this much free space every object is answered A700; 0 switches the check off."""
    resume_free_bytes: int | None = None
    """Free space at which that ends; see `storing.StoreService`."""
    drain_s: float = 20.0
    """How long open associations may go on once the receiver is told to stop."""
    commitment: CommitmentAccess = field(default_factory=CommitmentAccess)
    """Who may speak of storage commitment; by default nobody."""

    @property
    def access(self) -> AccessPolicy:
        """Who may open associations."""
        return AccessPolicy(aet=self.aet, accept_from=self.accept_from, insecure=self.insecure)


class StoreRequestHandler(RequestHandler):
    """Makes a `StoreAssociation` of an accepted connection."""

    server: SharedListenerServer

    def _create_association(self) -> StoreAssociation:
        server = self.server
        association = StoreAssociation(server, peer_host=str(self.client_address[0]))
        association._server = server
        association.name = f"AcceptorThread@{self.client_address[0]}:{self.client_address[1]}"
        association.set_socket(StoreSocket(association, self.request))
        association.acceptor.maximum_length = server.options.max_pdu_length
        association.acceptor.ae_title = server.ae_title
        association.acceptor.address_info = self.local
        association.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        association.acceptor.implementation_version_name = server.ae.implementation_version_name
        association.requestor.address_info = self.remote
        server.remember(association)
        return association


class SharedListenerServer(AssociationServer):
    """Accepts on a socket that other processes accept on too."""

    def __init__(
        self, ae: AE, listener: socket.socket, options: ReceiverOptions, service: StoreService
    ) -> None:
        self._listener = listener
        self.options = options
        self.service = service
        self.resolve = ResolverCache()
        self.commitment_listener: CommitmentListener | None = None
        if options.commitment != CommitmentAccess():
            self.commitment_listener = CommitmentListener(
                options.commitment,
                CommitmentJournal(options.spool_root),
                clock_ns=time.time_ns,
            )
        self.log: Any = get_logger(aet=options.aet)
        self._open: set[StoreAssociation] = set()
        self._open_lock = threading.Lock()
        self._collected_s = time.monotonic()
        self.on_turn: Callable[[], None] = lambda: None
        super().__init__(
            ae,
            listener.getsockname(),
            options.aet,
            contexts=[],
            request_handler=StoreRequestHandler,
        )

    # ---------------------------------------------------------------- hooks of socketserver

    def server_bind(self) -> None:
        """Take the socket that is listening already instead of the one made for us."""
        if self.socket is not None:
            self.socket.close()
        self.socket = self._listener
        # Another process may take the connection between the poll and the accept.
        self.socket.setblocking(False)
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Nothing to do: it listens already."""

    def server_close(self) -> None:
        """Close our descriptor only: a shutdown would end it for the other receivers too."""
        self._listener.close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection and set its options."""
        try:
            connection, address = self._listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                self.log.error("receiver.cannot_accept", reason=error.strerror)
                time.sleep(_POLL_S)
            raise
        timeout = struct.pack("@ll", *_seconds_and_microseconds(self.options.network_timeout_s))
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Time-outs of the kernel's own cost no additional system call for each read.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong before an association existed."""
        self.log.error("receiver.connection_failed", peer_host=str(client_address[0]))

    def service_actions(self) -> None:
        """Say that the loop went round; now and then collect what ended associations leave."""
        self.on_turn()
        if time.monotonic() - self._collected_s > _COLLECT_S:
            gc.collect()
            self._collected_s = time.monotonic()

    # ---------------------------------------------------------------- associations

    def check(self, *, called_aet: str, calling_aet: str, peer_host: str) -> Rejection | None:
        """Whether to reject an association request."""
        return check_access(
            self, called_aet=called_aet, calling_aet=calling_aet, peer_host=peer_host
        )

    def remember(self, association: StoreAssociation) -> None:
        """Count an association as open."""
        with self._open_lock:
            self._open.add(association)

    def forget(self, association: StoreAssociation) -> None:
        """Count an association as ended."""
        with self._open_lock:
            self._open.discard(association)

    def open_associations(self) -> int:
        """How many connections are being served, unnegotiated ones included."""
        with self._open_lock:
            return len(self._open)

    def cut_all(self) -> int:
        """Abort every association that is still open; returns how many there were."""
        with self._open_lock:
            associations = list(self._open)
        for association in associations:
            association.cut()
        return len(associations)


def run_receiver(
    listen_socket: socket.socket,
    options: ReceiverOptions,
    on_ready: Callable[[], None],
    stop: threading.Event,
    on_turn: Callable[[], None] = lambda: None,
) -> None:
    """Serve `listen_socket` until `stop` is set, then drain.

    Parameters
    ----------
    listen_socket
        Bound and listening. It is taken over: closed as soon as nothing more is accepted, so that
        waiting connections go to the receivers that still run. Pass a duplicate to keep it.
    options
        See `ReceiverOptions`.
    on_ready
        Called once associations are accepted.
    stop
        Set from any thread or a signal handler.
    on_turn
        Called each time that the loop which accepts goes round.

    Raises
    ------
    SpoolError
        The spool cannot be used.
    """
    log = get_logger(aet=options.aet)
    spool = Spool(options.spool_root)
    spool.lives.announce(options.name)
    service = StoreService(
        spool,
        min_free_bytes=options.min_free_bytes,
        resume_free_bytes=options.resume_free_bytes,
    )
    ae = AE(ae_title=options.aet)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = _NO_LIMIT_HERE  # ours is checked in `scp.check_access`
    ae.acse_timeout = options.acse_timeout_s
    ae.network_timeout = options.network_timeout_s
    server = SharedListenerServer(ae, listen_socket, options, service)
    server.on_turn = on_turn
    accepting = threading.Thread(
        target=server.serve_forever, args=(_POLL_S,), name="receiver-accept", daemon=True
    )
    accepting.start()
    on_ready()
    try:
        stop.wait()
    finally:
        # The base class's own `shutdown` would also look for the server in its AE's list.
        super(AssociationServer, server).shutdown()
        server.server_close()
        accepting.join()
    _drain(server, options.drain_s)
    log.info("receiver.stopped")


def _drain(server: SharedListenerServer, drain_s: float) -> None:
    if not _wait_closed(server, drain_s):
        cut = server.cut_all()
        server.log.warning("receiver.drain_timeout", aborted=cut)
        _wait_closed(server, _ABORT_WAIT_S)


def _wait_closed(server: SharedListenerServer, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while server.open_associations():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _seconds_and_microseconds(duration_s: float) -> tuple[int, int]:
    return int(duration_s), int(duration_s % 1 * 1_000_000)


def listen(host: str, port: int, *, backlog: int = 256) -> socket.socket:
    """Bind and listen, for a supervisor that hands the socket to its receivers.

    Raises
    ------
    OSError
        The port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
