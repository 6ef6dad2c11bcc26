"""Peers that speak of storage commitment: a scanner that asks, an archive that misbehaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_role

from pe_triage.commitment import (
    PUSH_MODEL,
    REQUEST_ACTION,
    SYNTAXES,
    WELL_KNOWN_INSTANCE,
    CommitmentReport,
    CommitmentRequest,
    Reference,
    read_report,
    read_request,
    report_dataset,
    request_dataset,
)
from pe_triage.domain import Destination
from tests.support.postgres import free_port


class Scanner:
    """Asks for commitment and listens for reports on a port of its own."""

    def __init__(self, aet: str = "CT1") -> None:
        self.aet = aet
        self.port = free_port()
        self.reports: list[CommitmentReport] = []
        self.status = 0x0000
        self._server: Any = None

    @property
    def address(self) -> str:
        return f"{self.aet}@127.0.0.1:{self.port}"

    def listen(self, *, roles: bool = True) -> None:
        ae = AE(ae_title=self.aet)
        both = {"scu_role": True, "scp_role": True} if roles else {}
        ae.add_supported_context(PUSH_MODEL, list(SYNTAXES), **both)
        self._server = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._heard)],
        )

    def _heard(self, event: Any) -> tuple[int, None]:
        if self.status == 0x0000:
            self.reports.append(read_report(event.event_information))
        return self.status, None

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def ask(
        self,
        port: int,
        transaction_uid: str,
        references: Sequence[Reference],
        *,
        aet: str | None = None,
        action: int = REQUEST_ACTION,
        instance: str = WELL_KNOWN_INSTANCE,
        ds: Dataset | None = None,
    ) -> int | None:
        """Send an N-ACTION; its status, None where the context was refused."""
        ae = AE(ae_title=aet or self.aet)
        ae.add_requested_context(PUSH_MODEL, list(SYNTAXES))
        association = ae.associate("127.0.0.1", port, ae_title="PETRIAGE")
        if not association.is_established:
            return None
        request = CommitmentRequest(transaction_uid=transaction_uid, references=tuple(references))
        status, _ = association.send_n_action(
            request_dataset(request) if ds is None else ds, action, PUSH_MODEL, instance
        )
        association.release()
        return int(status.Status)

    def report_to(
        self,
        port: int,
        report: CommitmentReport,
        *,
        aet: str | None = None,
        event_type: int | None = None,
        instance: str = WELL_KNOWN_INSTANCE,
        ds: Dataset | None = None,
    ) -> int | None:
        """Report as an archive does, as SCP by role selection; the status of the answer."""
        ae = AE(ae_title=aet or self.aet)
        ae.add_requested_context(PUSH_MODEL, list(SYNTAXES))
        association = ae.associate(
            "127.0.0.1",
            port,
            ae_title="PETRIAGE",
            ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
        )
        if not association.is_established:
            return None
        status, _ = association.send_n_event_report(
            report_dataset(report) if ds is None else ds,
            event_type or report.event_type,
            PUSH_MODEL,
            instance,
        )
        association.release()
        return int(status.Status)


Act = Callable[[CommitmentRequest, Any], int]
"""What an archive does with a request, given the event; the status of its N-ACTION response."""


@contextmanager
def archive(act: Act) -> Iterator[Destination]:
    """Serve N-ACTION on loopback by `act`."""

    def asked(event: Any) -> tuple[int, None]:
        return act(read_request(event.action_information), event), None

    ae = AE(ae_title="PACS")
    ae.add_supported_context(PUSH_MODEL, list(SYNTAXES))
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_ACTION, asked)]
    )
    assert server is not None
    try:
        yield Destination(aet="PACS", host="127.0.0.1", port=server.server_address[1])
    finally:
        server.shutdown()


def report_on(event: Any, report: CommitmentReport) -> None:
    """Report on the requester's own association, before the N-ACTION is answered."""
    association = event.assoc
    for context in association.accepted_contexts:
        context._as_scp = True
    association.send_n_event_report(
        report_dataset(report), report.event_type, PUSH_MODEL, WELL_KNOWN_INSTANCE
    )


def report_soon(event: Any, report: CommitmentReport, after_s: float = 0.2) -> None:
    """Report on the requester's own association, once the N-ACTION is answered."""
    threading.Timer(after_s, report_on, (event, report)).start()
