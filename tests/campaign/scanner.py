"""A modality that sends until every instance is answered 0000, and remembers the answers."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE

from tests.campaign.studies import TRANSFER_SYNTAX, Image, SentStudy

TRY_AGAIN_S = 0.3


@dataclass
class Scanner:
    """Sends to one node; an instance without 0000 is sent again, in an association of its own."""

    host: str
    port: int
    acked: dict[str, float] = field(default_factory=dict)
    """SOP Instance UID to `time.monotonic()` of its first 0000."""
    statuses: Counter[int] = field(default_factory=Counter)
    sent: dict[str, SentStudy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def first_ack_after(self, at_s: float) -> float | None:
        """When the first instance was answered 0000 after a moment; None: none was yet."""
        return min((s for s in list(self.acked.values()) if s > at_s), default=None)

    def send(
        self,
        study: SentStudy,
        *,
        deadline_s: float = 120.0,
        pause_s: float = 0.0,
        stop: threading.Event | None = None,
    ) -> bool:
        """Send until all is answered 0000, the time is over, or `stop`; whether all was."""
        self.sent[study.study_uid] = study
        until = time.monotonic() + deadline_s
        while time.monotonic() < until and not (stop is not None and stop.is_set()):
            todo = [i for i in study.images if i.sop_instance_uid not in self.acked]
            if not todo:
                return True
            if not self.attempt(todo, pause_s=pause_s):
                time.sleep(TRY_AGAIN_S)
        return all(i.sop_instance_uid in self.acked for i in study.images)

    def attempt(self, images: Sequence[Image], *, pause_s: float = 0.0) -> bool:
        """One association; whether every image was answered 0000 in it."""
        ae = AE(ae_title="SCANNER")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        ae.connection_timeout = 5
        ae.add_requested_context(images[0].sop_class_uid, TRANSFER_SYNTAX)
        association = ae.associate(self.host, self.port, ae_title="PETRIAGE")
        if not association.is_established:
            return False
        good = True
        try:
            for number, image in enumerate(images, 1):
                status = self._store(association, image, number)
                if status is None:
                    return False
                good = good and status == 0x0000
                if pause_s:
                    time.sleep(pause_s)
        finally:
            if association.is_established:
                association.release()
        return good

    def _store(self, association: Any, image: Image, number: int) -> int | None:
        # By its own message and not by a data set: what goes out is `encoded`, byte for byte.
        request = C_STORE()
        request.MessageID = number
        request.AffectedSOPClassUID = image.sop_class_uid
        request.AffectedSOPInstanceUID = image.sop_instance_uid
        request.Priority = 0
        request.DataSet = io.BytesIO(image.encoded)
        try:
            contexts = association.accepted_contexts
            # As the library's own send_c_store does: its reactor must not read the answer.
            association._reactor_checkpoint.clear()
            while not association._is_paused:
                if not association.is_established:
                    return None
                time.sleep(0.0001)
            association.dimse.send_msg(request, contexts[0].context_id)
            _, answer = association.dimse.get_msg(block=True)
        except Exception:
            return None
        finally:
            association._reactor_checkpoint.set()
        if answer is None or not hasattr(answer, "Status"):
            return None
        status = int(answer.Status)
        now = time.monotonic()
        with self._lock:
            self.statuses[status] += 1
            if status == 0x0000:
                self.acked.setdefault(image.sop_instance_uid, now)
        return status
