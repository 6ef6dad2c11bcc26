"""Upper layer of an accepting association, with a short way through for C-STORE.

pynetdicom's state machine, negotiation and C-ECHO are used as they are. What is replaced is how
P-DATA is read while the association is established: the bytes of a data set go from the socket
straight into one buffer, the request is stored and answered on this thread, and the next PDU is
awaited in the kernel instead of by polling. Everything that is not C-STORE is handed on to
pynetdicom unchanged.

Limits (a peer is never trusted): length of a PDU, of a command set and of an object; time for one
PDU; bytes per second over one object.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import TYPE_CHECKING, cast

from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError, StateMachine
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from pe_triage.receive.contexts import VERIFICATION
from pe_triage.receive.message import (
    C_STORE_RQ,
    StoreRequest,
    command_field,
    parse_command,
    store_request,
    store_response,
)
from pe_triage.receive.storing import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, Answer

if TYPE_CHECKING:
    from pe_triage.receive.scp import StoreAssociation

MAX_PDU_LENGTH = 1 << 20
"""A longer PDU ends the association; senders that overstep what was agreed a little do not fall."""

MAX_COMMAND_LENGTH = 1 << 16
MAX_OTHER_LENGTH = 1 << 24
"""Bytes of a message that is not C-STORE."""

SOP_CLASS_NOT_SUPPORTED = 0x0122

_P_DATA, _LAST_TYPE = 0x04, 0x07
_ESTABLISHED, _CLOSING = "Sta6", "Sta13"
_CONNECTION_CLOSED, _INVALID_PDU = "Evt17", "Evt19"
_IS_COMMAND, _IS_LAST = 0x01, 0x02
_HEAD = struct.Struct(">BxII")
"""PDU type, PDU length, and the first four bytes of what follows: every PDU has those."""
_U32 = struct.Struct(">I")
_START_BUFFER = 1 << 20
_KEPT_BUFFER = 1 << 26
_BURST_WAIT_MS = 20
_IDLE_WAIT_MS = 5


class _ProtocolError(Exception):
    """The peer sent what PS3.8 does not allow, or too slowly; the association is aborted."""


class _ClosedError(Exception):
    """The connection is gone."""


class StoreSocket(AssociationSocket):
    """An accepted connection that waits in the kernel."""

    def __init__(self, assoc: StoreAssociation, client_socket: socket.socket) -> None:
        super().__init__(assoc, client_socket=client_socket)
        self._poll = select.poll()
        self._poll.register(client_socket, select.POLLIN)

    def wait(self, timeout_ms: int) -> bool:
        """Whether there is something to read, a closed connection included."""
        if self.socket is None:
            return False
        try:
            return bool(self._poll.poll(timeout_ms))
        except OSError:
            return True

    @property
    def ready(self) -> bool:
        """As `wait`, for a few milliseconds: pynetdicom's loop asks this each time round."""
        return self.wait(_IDLE_WAIT_MS)


class WakingStateMachine(StateMachine):
    """Tells the association's thread that something happened, so that it need not poll."""

    def do_action(self, event: str) -> None:
        """See pynetdicom."""
        try:
            super().do_action(event)
        except InvalidEventError:
            # Both sides ended it at the same moment, such as our idle time-out and their close.
            if self.dul.socket is not None:
                self.dul.socket.close()
            self.dul.kill_dul()
        cast("StoreAssociation", self.dul.assoc).wake.set()


class StoreUpperLayer(DULServiceProvider):
    """See the module's text."""

    def __init__(self, assoc: StoreAssociation) -> None:
        super().__init__(assoc)
        self.daemon = True
        self.state_machine = WakingStateMachine(self)
        self._association = assoc
        self._options = assoc.receiver_options
        self._head = memoryview(bytearray(_HEAD.size))
        self._two = memoryview(bytearray(2))
        self._buffer = bytearray(_START_BUFFER)
        self._filled = 0
        self._command = bytearray()
        self._context_id = 0
        self._request: StoreRequest | None = None
        self._in_data = False
        self._too_large = False
        self._other_length = 0
        self._busy = False
        self._started_s = 0.0
        self._deadline_s = 0.0

    # ---------------------------------------------------------------- hooks of pynetdicom

    def run_reactor(self) -> None:
        """See pynetdicom."""
        try:
            super().run_reactor()
        finally:
            # The association's thread may be waiting for a request that will never come: a load
            # balancer's probe connects and closes, and must not hold a place for the time-out.
            self.to_user_queue.put(None)
            self._association.wake.set()

    def idle_timer_expired(self) -> bool:
        """Whether the peer was silent for too long; our own slow disk is not its silence."""
        return not self._busy and super().idle_timer_expired()

    def _is_transport_event(self) -> bool:
        connection = cast(StoreSocket, self.socket)
        if self.state_machine.current_state == _CLOSING:
            # Unread bytes would turn the close into a reset that overtakes our last PDU.
            self._discard(connection.socket)
            connection.close()
            return True
        if not connection.ready:
            return False
        self._read_pdu_data()
        return True

    def _read_pdu_data(self) -> None:
        connection = cast(StoreSocket, self.socket)
        sock = connection.socket
        if sock is None:
            return
        try:
            while self._read_pdu(sock):
                self._idle_timer.restart()
                if self._kill_thread or self.to_provider_queue.queue or self.event_queue.queue:
                    return
                if not connection.wait(_BURST_WAIT_MS):
                    return
        except _ProtocolError as error:
            self._association.log.warning("association.protocol_error", reason=str(error))
            self.event_queue.put(_INVALID_PDU)
        except (_ClosedError, OSError):
            self.event_queue.put(_CONNECTION_CLOSED)

    # ---------------------------------------------------------------- reading

    def _read_pdu(self, sock: socket.socket) -> bool:
        """Read one PDU; True when it was P-DATA of an established association, and is done."""
        self._deadline_s = time.monotonic() + self._options.network_timeout_s
        self._fill(sock, self._head)
        pdu_type, length, first = _HEAD.unpack(self._head)
        if not 1 <= pdu_type <= _LAST_TYPE:
            raise _ProtocolError(f"unknown PDU type {pdu_type:02X}")
        if not 4 <= length <= MAX_PDU_LENGTH:
            raise _ProtocolError(f"PDU of {length} bytes")
        if pdu_type == _P_DATA and self.state_machine.current_state == _ESTABLISHED:
            self._read_pdvs(sock, length, first)
            return True
        pdu_bytes = bytearray(6 + length)
        pdu_bytes[: _HEAD.size] = self._head
        self._fill(sock, memoryview(pdu_bytes)[_HEAD.size :])
        try:
            pdu, event = self._decode_pdu(pdu_bytes)
        except Exception as error:
            raise _ProtocolError(f"PDU of type {pdu_type:02X} cannot be decoded") from error
        self.event_queue.put(event)
        self._recv_pdu.put(pdu)
        return False

    def _read_pdvs(self, sock: socket.socket, length: int, item_length: int) -> None:
        """Presentation data values of one P-DATA-TF PDU (PS3.8 Section 9.3.5.1)."""
        while True:
            length -= 4
            if item_length < 2 or item_length > length:
                raise _ProtocolError("presentation data value does not fit its PDU")
            self._fill(sock, self._two)
            self._read_fragment(sock, self._two[0], self._two[1], item_length - 2)
            length -= item_length
            if length == 0:
                return
            if length < 4:
                raise _ProtocolError("stray bytes behind the last presentation data value")
            four = memoryview(bytearray(4))
            self._fill(sock, four)
            (item_length,) = _U32.unpack(four)

    def _read_fragment(
        self, sock: socket.socket, context_id: int, control: int, length: int
    ) -> None:
        if self._in_data and (control & _IS_COMMAND or context_id != self._context_id):
            raise _ProtocolError("a message begins inside another")
        if self._request is not None:
            self._read_data(sock, length)
            if control & _IS_LAST:
                self._finish(sock)
            return
        fragment = bytearray(length)
        self._fill(sock, memoryview(fragment))
        if self._in_data:
            self._hand_on(context_id, control, fragment)
            return
        if not control & _IS_COMMAND:
            raise _ProtocolError("a data set without a command")
        if self._command and context_id != self._context_id:
            raise _ProtocolError("a command set in two presentation contexts")
        self._context_id = context_id
        self._command += fragment
        if len(self._command) > MAX_COMMAND_LENGTH:
            raise _ProtocolError("command set is too long")
        if control & _IS_LAST:
            command, self._command = bytes(self._command), bytearray()
            self._begin(sock, command)

    def _read_data(self, sock: socket.socket, length: int) -> None:
        start, end = self._filled, self._filled + length
        if end > self._options.max_object_bytes:
            self._too_large = True
        if self._too_large:
            start, end = 0, length
        if end > len(self._buffer):
            # One allocation, one copy: no view of the old buffer is alive here.
            self._buffer.extend(bytes(max(end, 2 * len(self._buffer)) - len(self._buffer)))
        with memoryview(self._buffer) as view, view[start:end] as part:
            self._fill(sock, part)
        self._filled = end
        elapsed_s = time.monotonic() - self._started_s
        if (
            elapsed_s > self._options.network_timeout_s
            and not self._too_large
            and self._filled < elapsed_s * self._options.min_bytes_per_s
        ):
            raise _ProtocolError("data arrives more slowly than the minimum rate")

    def _fill(self, sock: socket.socket, part: memoryview) -> None:
        """Read until `part` is full, at the latest until the deadline of this PDU."""
        wanted = len(part)
        got = 0
        while got < wanted:
            try:
                count = sock.recv_into(part[got:], wanted - got, socket.MSG_WAITALL)
            except BlockingIOError:
                # SO_RCVTIMEO ran out.
                raise _ProtocolError("time-out inside a PDU") from None
            if count == 0:
                raise _ClosedError
            got += count
            if got < wanted and time.monotonic() > self._deadline_s:
                raise _ProtocolError("time-out inside a PDU")

    @staticmethod
    def _discard(sock: socket.socket | None) -> None:
        if sock is None:
            return
        try:
            for _ in range(64):
                if not sock.recv(1 << 16, socket.MSG_DONTWAIT):
                    return
        except OSError:
            return

    # ---------------------------------------------------------------- messages

    def _begin(self, sock: socket.socket, command: bytes) -> None:
        """Act on a complete command set."""
        elements = parse_command(command)
        if command_field(elements) != C_STORE_RQ:
            self._other_length = 0
            self._in_data = True
            self._hand_on(self._context_id, _IS_COMMAND | _IS_LAST, bytearray(command))
            return
        request = store_request(elements)
        if request is None:
            raise _ProtocolError("malformed C-STORE request")
        if self._context_id not in self._association._accepted_cx:
            raise _ProtocolError("C-STORE in a presentation context that was not accepted")
        self._request = request
        self._in_data = True
        self._filled = 0
        self._too_large = False
        self._started_s = time.monotonic()
        if not request.has_data_set:
            self._finish(sock)

    def _hand_on(self, context_id: int, control: int, fragment: bytearray) -> None:
        """Give a fragment of another message to pynetdicom."""
        self._other_length += len(fragment)
        if self._other_length > MAX_OTHER_LENGTH:
            raise _ProtocolError("message is too long")
        primitive = P_DATA()
        primitive.presentation_data_value_list = [
            [context_id, bytes((control,)) + bytes(fragment)]  # type: ignore[list-item]
        ]
        dimse = self._association.dimse
        dimse.receive_primitive(primitive)
        # pynetdicom drops its message once it is complete.
        self._in_data = dimse.message is not None
        self._association.wake.set()

    def _finish(self, sock: socket.socket) -> None:
        """Store a complete C-STORE request, then answer it."""
        request = cast(StoreRequest, self._request)
        self._request = None
        self._in_data = False
        self._busy = True
        try:
            answer = self._store(request)
        finally:
            self._busy = False
            if len(self._buffer) > _KEPT_BUFFER:
                self._buffer = bytearray(_START_BUFFER)
        sock.sendall(
            store_response(
                request,
                context_id=self._context_id,
                status=answer.status,
                comment=answer.comment,
                max_pdu=self._association.requestor.maximum_length or 0,
            )
        )
        self._idle_timer.restart()

    def _store(self, request: StoreRequest) -> Answer:
        association = self._association
        context = association._accepted_cx[self._context_id]
        session = association.session
        if session is None:
            return Answer(status=CANNOT_UNDERSTAND, comment="association is not open")
        uid = request.sop_instance_uid
        if context.abstract_syntax == VERIFICATION:
            return session.refuse(uid, SOP_CLASS_NOT_SUPPORTED, "no storage context")
        if not request.has_data_set:
            return session.refuse(uid, CANNOT_UNDERSTAND, "no data set")
        if self._too_large:
            return session.refuse(uid, OUT_OF_RESOURCES, "object is larger than the limit")
        with memoryview(self._buffer) as view, view[: self._filled] as data:
            return session.store(
                data,
                transfer_syntax_uid=str(context.transfer_syntax[0]),
                sop_class_uid=request.sop_class_uid,
                sop_instance_uid=uid,
            )
