"""What the roads beside DICOM share: TLS, the message's file, a peer's failure in words."""

from __future__ import annotations

import errno
import ssl
from pathlib import Path

from pe_triage.domain import Delivery
from pe_triage.errors import PermanentDeliveryError, RetryableDeliveryError

_NAMED_ERRORS = {
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "host is unreachable",
    errno.ENETUNREACH: "network is unreachable",
    errno.ETIMEDOUT: "connection timed out",
    errno.ECONNRESET: "connection was reset",
    errno.EPIPE: "connection was reset",
}


def tls_context(
    ca_file: Path | None, client_cert_file: Path | None, client_key_file: Path | None
) -> ssl.SSLContext:
    """Client side: TLS 1.2 or newer, the peer's certificate and name verified, always.

    Raises
    ------
    RetryableDeliveryError
        A file cannot be used; somebody may put it right.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if client_cert_file is not None:
            context.load_cert_chain(client_cert_file, client_key_file)
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or "unreadable"
        raise RetryableDeliveryError(f"TLS files cannot be used: {why}") from None
    return context


def words_of(error: OSError) -> str:
    """Say why a connection failed, without what a peer sent."""
    if isinstance(error, TimeoutError):
        return "connection timed out"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'unknown reason'}"
    return _NAMED_ERRORS.get(error.errno or 0) or (error.strerror or "connection failed").lower()


def read_body(delivery: Delivery) -> bytes:
    """Read the message to send.

    Raises
    ------
    PermanentDeliveryError
        The file is gone or cannot be read.
    """
    try:
        return delivery.path.read_bytes()
    except FileNotFoundError:
        raise PermanentDeliveryError(f"{delivery.path} no longer exists") from None
    except OSError as error:
        raise PermanentDeliveryError(f"cannot read {delivery.path}: {error.strerror}") from None
