"""The demo's two peers: a storage SCP that stands in for the PACS, and a sender of files.

Neither is meant for anything but loopback: the SCP accepts whoever calls and keeps what it gets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from pe_triage.errors import PeTriageError

PACS_AET = "STANDINPACS"


class StandInPacs:
    """A storage SCP on a free loopback port that files what it receives under `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.received: dict[str, Path] = {}
        """SOP Instance UID to file."""
        self._lock = threading.Lock()
        ae = AE(ae_title=PACS_AET)
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(Verification)
        server = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        assert server is not None
        assert server.socket is not None
        self._server = server
        self.port: int = server.socket.getsockname()[1]

    @property
    def address(self) -> str:
        """As ``--send-to`` takes it."""
        return f"{PACS_AET}@127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        ds = event.dataset
        study, sop = UID(ds.StudyInstanceUID), UID(ds.SOPInstanceUID)
        if not (study.is_valid and sop.is_valid):
            return 0xA900
        folder = self.directory / study
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock:
                path = self.received.get(sop)
                if path is None:
                    path = folder / file_name(ds)
                path.write_bytes(event.encoded_dataset())
                self.received[sop] = path
        except OSError:
            return 0xA700
        return 0x0000


def file_name(ds: Dataset) -> str:
    """Modality, series and instance number, which tell the objects of one study apart."""
    modality = "".join(c for c in str(ds.get("Modality", "")) if c.isalnum()) or "XX"
    numbers = [int(ds.get(name) or 0) for name in ("SeriesNumber", "InstanceNumber")]
    return f"{modality}-{numbers[0]}-{numbers[1]}.dcm"


def send_files(
    files: Sequence[Path], *, host: str, port: int, aet: str, on_sent: Callable[[], None]
) -> None:
    """Send one study's files over one association, each in its own transfer syntax.

    Raises
    ------
    PeTriageError
        The association failed, or an instance was not answered with Success.
    """
    headers = [dcmread(file, stop_before_pixels=True) for file in files]
    wanted = sorted({(h.SOPClassUID, h.file_meta.TransferSyntaxUID) for h in headers})
    ae = AE(ae_title="DEMOSCANNER")
    ae.requested_contexts = [build_context(sop_class, syntax) for sop_class, syntax in wanted]
    association = ae.associate(host, port, ae_title=aet)
    if not association.is_established:
        raise PeTriageError(f"no association with {aet}@{host}:{port}")
    try:
        for file in files:
            status = association.send_c_store(file)
            if "Status" not in status or status.Status != 0x0000:
                code = f"0x{status.Status:04X}" if "Status" in status else "no answer"
                raise PeTriageError(f"{file.name} was not taken: {code}")
            on_sent()
    finally:
        association.release()
