"""Where results go: a storage SCP whose answers are scripted, and which forgets nothing it took."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

CUT = -1
"""In place of a status: keep the object and break the connection before the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One object that was kept."""

    study_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    patient_id: str
    sha256: str
    """Of the data set's bytes."""
    images: frozenset[str]
    """SOP Instance UIDs of CT images that it refers to."""
    numbers: frozenset[float]
    """Numeric values of its content tree."""
    at_s: float
    """`time.monotonic()`."""


def arrival_of(encoded: bytes, *, implicit: bool = False) -> Arrival:
    """Read what the check needs from a data set's bytes (little endian)."""
    ds = read_dataset(DicomBytesIO(encoded), is_implicit_VR=implicit, is_little_endian=True)
    images: set[str] = set()
    numbers: set[float] = set()
    _walk(ds, images, numbers)
    return Arrival(
        study_uid=str(ds.StudyInstanceUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        patient_id=str(ds.get("PatientID", "")),
        sha256=hashlib.sha256(encoded).hexdigest(),
        images=frozenset(images),
        numbers=frozenset(numbers),
        at_s=time.monotonic(),
    )


CT_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.2"})


def _walk(ds: Dataset, images: set[str], numbers: set[float]) -> None:
    if str(ds.get("ReferencedSOPClassUID", "")) in CT_CLASSES:
        images.add(str(ds.ReferencedSOPInstanceUID))
    if ds.get("NumericValue") is not None:
        value = ds.NumericValue
        numbers.update(float(v) for v in (value if isinstance(value, list) else [value]))
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                _walk(item, images, numbers)


@dataclass
class Pacs:
    """Keeps everything; answers what `script` says of the object's number and data set."""

    aet: str = "PACS"
    host: str = "127.0.0.1"
    port: int = 0
    script: Callable[[int], int] = lambda _number: 0x0000
    arrivals: list[Arrival] = field(default_factory=list)
    asked: int = 0
    _server: Any = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"

    def start(self) -> None:
        """Listen; the port stays the same over stop and start."""
        ae = AE(ae_title=self.aet)
        for uid in (
            ComprehensiveSRStorage,
            Comprehensive3DSRStorage,
            EnhancedSRStorage,
            BasicTextSRStorage,
            SecondaryCaptureImageStorage,
            MultiFrameTrueColorSecondaryCaptureImageStorage,
        ):
            context = build_context(uid, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
            ae.add_supported_context(uid, context.transfer_syntax)
        ae.add_supported_context("1.2.840.10008.1.1")
        ae.maximum_associations = 50
        self._server = ae.start_server(
            (self.host, self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take)]
        )
        self.port = self._server.socket.getsockname()[1]

    def stop(self) -> None:
        """Go away: connections are refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _take(self, event: Any) -> int:
        with self._lock:
            self.asked += 1
            number = self.asked
        status = self.script(number)
        if status in (0x0000, CUT, 0xB000, 0xB006, 0xB007):
            implicit = event.context.transfer_syntax == "1.2.840.10008.1.2"
            arrival = arrival_of(event.request.DataSet.getvalue(), implicit=implicit)
            with self._lock:
                self.arrivals.append(arrival)
        if status == CUT:
            event.assoc.abort()
            return 0xA700
        return status
