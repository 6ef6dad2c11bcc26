"""From a destination's settings to the road that leads there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from pe_triage.destinations import (
    AnyDestination,
    DicomDestination,
    Hl7Destination,
    UpsDestination,
    WebhookDestination,
)
from pe_triage.domain import Destination
from pe_triage.node.deliverer import Send
from pe_triage.node.watcher import Poster

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Clock = Callable[[], datetime]


def dicom_road(destination: Destination, *, aet: str) -> Send:
    """C-STORE to a storage SCP."""
    from pe_triage.deliver.store_scu import DicomSender

    return partial(DicomSender(aet).send, destination)


def road_to(table: AnyDestination, *, aet: str, clock: Clock) -> Send:
    """Road to a configured destination; only what it needs is imported.

    Parameters
    ----------
    aet
        Our AE title, for DICOM.
    clock
        Aware time, for signatures and for what a peer says in dates.
    """
    if isinstance(table, DicomDestination):
        return dicom_road(table.peer, aet=aet)
    send: Send = _sender(table, clock).send
    return send


def _sender(table: Any, clock: Clock) -> Any:
    tls = {
        "ca_file": table.ca_file,
        "client_cert_file": table.client_cert_file,
        "client_key_file": table.client_key_file,
    }
    if isinstance(table, Hl7Destination):
        from pe_triage.deliver.mllp import MllpOptions, MllpSender

        host, port = table.peer
        return MllpSender(
            MllpOptions(
                name=table.name,
                host=host,
                port=port,
                timeout_s=table.timeout_s,
                tls=table.tls,
                **tls,
            )
        )
    from pe_triage.deliver.http import HttpOptions, HttpSender, fhir_headers, webhook_headers

    options = HttpOptions(
        name=table.name,
        url=table.url,
        timeout_s=table.timeout_s,
        authorization=table.authorization,
        **tls,
    )
    if isinstance(table, UpsDestination):
        from pe_triage.deliver.ups import UpsSender

        return UpsSender(options, clock=clock)
    if isinstance(table, WebhookDestination):
        headers = webhook_headers(table.secret, clock)
        return HttpSender(options, headers=headers, clock=clock)
    return HttpSender(options, headers=fhir_headers, clock=clock)


def alarm_poster(table: WebhookDestination, *, clock: Clock) -> Poster:
    """Road of alarms to a webhook: as for results, but one body at a time."""
    poster: Poster = _sender(table, clock)
    return poster


def unprotected(tables: Sequence[AnyDestination]) -> list[str]:
    """Names of destinations beyond loopback without encryption: worth a warning at start."""
    return [table.name for table in tables if not table.encrypted and table.host not in LOOPBACK]
