"""HL7 v2 over MLLP: one connection for a batch, one message and its acknowledgement at a time.

A message counts as delivered only by an acknowledgement that names its control identifier; a
repetition after a lost acknowledgement is the same bytes under the same identifier.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pe_triage.deliver.acknowledgements import parse_acknowledgement
from pe_triage.deliver.connect import read_body, tls_context, words_of
from pe_triage.deliver.outcomes import Sent, all_unreachable
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Delivery
from pe_triage.errors import PermanentDeliveryError, RetryableDeliveryError

START_BLOCK = b"\x0b"
END_BLOCK = b"\x1c\x0d"
MAX_ACKNOWLEDGEMENT_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class MllpOptions:
    """Where to, and how."""

    name: str
    """Of the destination, for what people read."""
    host: str
    port: int
    timeout_s: float = 30.0
    tls: bool = False
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None


class MllpSender:
    """Sends messages to one MLLP listener."""

    def __init__(self, options: MllpOptions) -> None:
        self._options = options

    def send(self, deliveries: Sequence[Delivery]) -> Iterator[tuple[int, Sent]]:
        """See `outcomes.Sender`."""
        name = self._options.name
        try:
            connection = self._connect()
        except socket.gaierror:
            yield from all_unreachable(deliveries, f"{name}: unknown host")
            return
        except OSError as error:
            yield from all_unreachable(deliveries, f"{name}: {words_of(error)}")
            return
        except RetryableDeliveryError as error:
            yield from all_unreachable(deliveries, f"{name}: {error.message}")
            return
        with connection:
            for index, delivery in enumerate(deliveries):
                try:
                    outcome = self._send_one(connection, delivery)
                except OSError as error:
                    # Whether it arrived is unknown, and an answer that comes late must not be
                    # taken for the next message's: this connection is over.
                    line = f"{name}: {words_of(error)} while waiting for the acknowledgement"
                    yield from all_unreachable(deliveries[index:], line)
                    return
                yield delivery.delivery_id, outcome

    def _connect(self) -> socket.socket:
        options = self._options
        context = (
            tls_context(options.ca_file, options.client_cert_file, options.client_key_file)
            if options.tls
            else None
        )
        raw = socket.create_connection((options.host, options.port), timeout=options.timeout_s)
        if context is None:
            return raw
        try:
            return context.wrap_socket(raw, server_hostname=options.host)
        except BaseException:
            raw.close()
            raise

    def _send_one(self, connection: socket.socket, delivery: Delivery) -> Sent:
        try:
            body = read_body(delivery)
        except PermanentDeliveryError as error:
            return Sent(verdict=Verdict.PARK, error=error.message)
        control_id = _control_id(body)
        if control_id is None or END_BLOCK in body or START_BLOCK in body:
            return Sent(verdict=Verdict.PARK, error=f"{delivery.path} is no HL7 message")
        connection.sendall(START_BLOCK + body + END_BLOCK)
        deadline = time.monotonic() + self._options.timeout_s
        while True:
            answer = parse_acknowledgement(_receive(connection, deadline))
            if answer is None:
                raise ConnectionAbortedError(0, "no HL7 acknowledgement came")
            if answer.control_id == control_id:
                break
            # One for an earlier message that was given up: read on.
        verdict, words = answer.judge()
        if verdict is Verdict.SENT:
            return Sent(verdict=verdict)
        return Sent(verdict=verdict, error=f"{self._options.name}: {words}")


def _control_id(body: bytes) -> str | None:
    """MSH-10 of our own message."""
    header = body.split(b"\r", 1)[0].split(body[3:4])
    return header[9].decode("ascii", errors="replace") if len(header) > 9 else None


def _receive(connection: socket.socket, deadline: float) -> bytes:
    """Read one MLLP block.

    Raises
    ------
    OSError
        Closed, silent past the deadline, or more than an acknowledgement can be.
    """
    received = b""
    while True:
        start = received.find(START_BLOCK)
        end = received.find(END_BLOCK, start + 1) if start >= 0 else -1
        if end >= 0:
            return received[start + 1 : end]
        if len(received) > MAX_ACKNOWLEDGEMENT_BYTES:
            raise ConnectionAbortedError(0, "the acknowledgement does not end")
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        chunk = connection.recv(4096)
        if not chunk:
            raise ConnectionResetError(0, "connection was closed")
        received += chunk
