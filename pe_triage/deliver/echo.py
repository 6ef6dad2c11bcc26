"""C-ECHO to a peer, for commissioning (PS3.4 Annex A)."""

from __future__ import annotations

from pynetdicom.presentation import build_context

from pe_triage.deliver.requestor import RequestorOptions, open_association
from pe_triage.domain import Destination
from pe_triage.errors import PermanentDeliveryError, RetryableDeliveryError

_VERIFICATION = "1.2.840.10008.1.1"


def echo(destination: Destination, *, calling_aet: str, timeout_s: float = 10.0) -> None:
    """Return once the peer answered a C-ECHO with success.

    Raises
    ------
    RetryableDeliveryError, PermanentDeliveryError
        One line that says at which step it failed and why.
    """
    options = RequestorOptions(
        connect_timeout_s=timeout_s, acse_timeout_s=timeout_s, dimse_timeout_s=timeout_s
    )
    association = open_association(
        destination,
        calling_aet=calling_aet,
        contexts=[build_context(_VERIFICATION)],
        options=options,
    )
    try:
        answer = association.send_c_echo()
        status = answer.get("Status")
    except (RuntimeError, ValueError) as error:
        raise RetryableDeliveryError(f"{destination}: connection lost during C-ECHO") from error
    finally:
        if association.is_established:
            association.release()
    if status is None:
        raise RetryableDeliveryError(f"{destination}: no answer to C-ECHO within {timeout_s:g} s")
    if status != 0:
        raise PermanentDeliveryError(
            f"{destination}: C-ECHO answered with status {status:04X}", status=int(status)
        )
