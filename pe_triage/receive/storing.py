"""What happens to one C-STORE request: check, make durable, answer. No network in here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pe_triage.errors import InvalidInstanceError, SpoolError
from pe_triage.logs import get_logger
from pe_triage.receive.files import Buffer
from pe_triage.receive.part10 import FileMetaTemplate
from pe_triage.receive.spool import AssociationEvent, EventRecord, Spool
from pe_triage.receive.validate import check_instance
from pe_triage.retention import RECOVERY

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0xC001
"""Ours for an error of our own making: in the range "cannot understand", so a visible failure."""


SPARE_FILES = 1_000
"""Inodes without which a file system is as full as one without bytes."""


def usable_bytes(found: Any, spare_files: int = SPARE_FILES) -> int:
    """Bytes that an unprivileged user may still write, of what `os.statvfs` found.

    None where (almost) no further file can be made; file systems that make inodes as they need
    them state no number of them.
    """
    files = int(getattr(found, "f_files", 0))
    if files and int(found.f_favail) < spare_files:
        return 0
    return int(found.f_bavail) * int(found.f_frsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status of a C-STORE response and its Error Comment (0000,0902), at most 64 characters."""

    status: int
    comment: str = ""


class FreeSpace:
    """Free bytes where a path lives, asked of the file system at most once in `interval_s`."""

    def __init__(
        self,
        path: str,
        *,
        interval_s: float = 1.0,
        clock_s: Callable[[], float] = time.monotonic,
        statvfs: Callable[[str], Any] = os.statvfs,
    ) -> None:
        self._path = path
        self._interval_s = interval_s
        self._clock_s = clock_s
        self._statvfs = statvfs
        self._asked_at_s = float("-inf")
        self._found: Any = None

    def bytes(self, spare_files: int = SPARE_FILES) -> int:
        """Bytes that an unprivileged user may still write; see `usable_bytes`."""
        now = self._clock_s()
        if now - self._asked_at_s >= self._interval_s:
            self._found = self._statvfs(self._path)
            self._asked_at_s = now
        return usable_bytes(self._found, spare_files)


class StoreService:
    """Shared by all associations of one receiver process.

    Parameters
    ----------
    min_free_bytes
        Free space below which everything is refused; 0: it is not looked at.
    resume_free_bytes
        Free space at which that ends; None: `RECOVERY` times as much.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        min_free_bytes: int = 0,
        resume_free_bytes: int | None = None,
        free_space: FreeSpace | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.spool = spool
        self._min_free_bytes = min_free_bytes
        self._resume_free_bytes = (
            int(RECOVERY * min_free_bytes) if resume_free_bytes is None else resume_free_bytes
        )
        self._refusing = False
        self._free_space = free_space or FreeSpace(str(spool.incoming))
        self._now = now
        self._lock = threading.Lock()
        self._associations = 0

    def open_association(self, *, calling_aet: str, host: str) -> StoreSession:
        """Begin an association that was accepted."""
        with self._lock:
            self._associations += 1
            number = self._associations
        return StoreSession(self, number=number, calling_aet=calling_aet, host=host)

    def check_space(self) -> None:
        """Raise SpoolError from when free space is below the floor until it is well above it."""
        if not self._min_free_bytes:
            return
        refusing = self._refusing
        floor = self._resume_free_bytes if refusing else self._min_free_bytes
        spare_files = int(RECOVERY * SPARE_FILES) if refusing else SPARE_FILES
        try:
            free = self._free_space.bytes(spare_files)
        except OSError as error:
            raise SpoolError(f"cannot ask for free space: {error.strerror}") from error
        self._refusing = free < floor
        if self._refusing is not refusing:
            get_logger().warning(
                "receiver.space_low" if self._refusing else "receiver.space_back",
                free_mb=free >> 20,
                taken_again_at_mb=self._resume_free_bytes >> 20,
            )
        if self._refusing:
            raise SpoolError(
                "free space has not yet recovered from below the configured floor"
                if refusing
                else "free space is below the configured floor"
            )

    def now(self) -> datetime:
        """Return the current time, aware."""
        return self._now()


class StoreSession:
    """One association: its counters, its templates, its log.

    Used by the association's own threads only, one at a time.
    """

    def __init__(self, service: StoreService, *, number: int, calling_aet: str, host: str) -> None:
        self._service = service
        self._number = number
        self._sequence = 0
        self._templates: dict[str, FileMetaTemplate] = {}
        self._closed = False
        self.calling_aet = calling_aet
        self.host = host
        self.stored: dict[str, int] = {}
        self.refused = 0
        self.association_id = f"{service.spool.boot_id}-{number:08d}"
        # Bound here, not by context variables: pynetdicom's threads do not inherit those.
        self.log = get_logger(
            association_id=self.association_id, calling_aet=calling_aet, peer_host=host
        )
        self._record(AssociationEvent.OPENED)
        self.log.info("association.opened")

    def store(
        self,
        data: Buffer,
        *,
        transfer_syntax_uid: str,
        sop_class_uid: str,
        sop_instance_uid: str,
    ) -> Answer:
        """Check one instance and make it durable; never raises, 0000 only when it is durable."""
        try:
            header = check_instance(
                data,
                transfer_syntax_uid=transfer_syntax_uid,
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
            )
            self._service.check_space()
            template = self._templates.get(transfer_syntax_uid)
            if template is None:
                template = self._templates[transfer_syntax_uid] = FileMetaTemplate(
                    transfer_syntax_uid=transfer_syntax_uid, calling_aet=self.calling_aet
                )
            start = template.header(
                sop_class_uid=header.sop_class_uid, sop_instance_uid=header.sop_instance_uid
            )
            self._sequence += 1
            self._service.spool.store(
                (start, data), association=self._number, sequence=self._sequence
            )
        except InvalidInstanceError as error:
            return self._refuse(sop_instance_uid, error.status, error.message)
        except SpoolError as error:
            return self._refuse(sop_instance_uid, OUT_OF_RESOURCES, error.message, "cannot store")
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not become 0000)
            return self._refuse(
                sop_instance_uid, PROCESSING_FAILURE, type(error).__name__, "internal error"
            )
        self.stored[header.study_uid] = self.stored.get(header.study_uid, 0) + 1
        self.log.debug(
            "instance.stored",
            study_uid=header.study_uid,
            sop_instance_uid=header.sop_instance_uid,
            size_bytes=len(data),
        )
        return Answer(status=SUCCESS)

    def refuse(self, sop_instance_uid: str, status: int, message: str) -> Answer:
        """Refuse an instance for a reason that was found before it came here."""
        return self._refuse(sop_instance_uid, status, message)

    def _refuse(
        self, sop_instance_uid: str, status: int, message: str, comment: str = ""
    ) -> Answer:
        self.refused += 1
        self.log.warning(
            "instance.refused",
            sop_instance_uid=sop_instance_uid,
            status=f"{status:04X}",
            reason=message,
        )
        return Answer(status=status, comment=comment or message)

    def close(self, *, released: bool) -> None:
        """End the association; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._record(AssociationEvent.RELEASED if released else AssociationEvent.ABORTED)
        self.log.info(
            "association.released" if released else "association.aborted",
            instances=sum(self.stored.values()),
            studies=len(self.stored),
            refused=self.refused,
        )

    def _record(self, event: AssociationEvent) -> None:
        self._sequence += 1
        record = EventRecord(
            event=event,
            calling_aet=self.calling_aet,
            host=self.host,
            at=self._service.now(),
            instances=dict(self.stored),
        )
        try:
            self._service.spool.record_event(
                record, association=self._number, sequence=self._sequence
            )
        except SpoolError as error:
            # Only a hint: without it the study waits for its quiet time.
            self.log.warning("association.event_lost", reason=error.message)
