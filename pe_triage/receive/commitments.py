"""Storage commitment at the door: who may speak of it, and a journal of what was said.

As for images, the answer comes only after what was said is durable, and never waits for the
database: the coordinator takes the journal into it. Requests come from scanners (N-ACTION, where
this node is SCP), reports from archives (N-EVENT-REPORT on an association that they open, where it
stays SCU; PS3.4 Section J.3.3 and PS3.7 Annex D.3.3.4, role selection).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom.presentation import PresentationContext, build_context

from pe_triage.commitment import (
    ALL_COMMITTED,
    FAILURES_EXIST,
    PUSH_MODEL,
    REQUEST_ACTION,
    SYNTAXES,
    WELL_KNOWN_INSTANCE,
    CommitmentReport,
    CommitmentRequest,
    MalformedCommitmentError,
    from_json,
    read_report,
    read_request,
    to_json,
)
from pe_triage.errors import SpoolError
from pe_triage.receive.files import DIRECTORY_MODE, FileOps, RealFiles

DIRECTORY = "commitments"
"""Inside the spool."""

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_EVENT_TYPE = 0x0113
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
NOT_AUTHORISED = 0x0124

STATUS_WORDS = {
    SUCCESS: "what was said is durable here; what comes of it, comes later",
    PROCESSING_FAILURE: "it could not be made durable, or not be decoded",
    NO_SUCH_INSTANCE: "not the well-known instance of the class",
    NO_SUCH_EVENT_TYPE: "Event Type ID is neither 1 nor 2",
    INVALID_ARGUMENT: "no transaction, no instance, too many, or what is no UID",
    NO_SUCH_ACTION: "Action Type ID is not 1",
    NOT_AUTHORISED: "this caller is not configured for it",
}
"""Statuses of our responses, for the documentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentAccess:
    """Calling AE titles that may speak of storage commitment."""

    requesters: frozenset[str] = frozenset()
    reporters: frozenset[str] = frozenset()

    def contexts(self, calling_aet: str) -> list[PresentationContext]:
        """Context to support for this caller: none, or one in which both roles are accepted.

        Roles are accepted as the caller proposes them. One that proposes none gets the default
        (it is SCU); some archives report on such a context all the same, and are listened to.
        """
        if calling_aet not in self.requesters | self.reporters:
            return []
        context = build_context(PUSH_MODEL, list(SYNTAXES))
        context.scu_role = True
        context.scp_role = True
        return [context]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One entry of the journal."""

    path: Path
    calling_aet: str
    message: CommitmentRequest | CommitmentReport


class CommitmentJournal:
    """What was said, as files in the order in which it was said.

    Parameters
    ----------
    spool_root
        The directory is made inside it when absent.
    files
        File operations; tests pass ones that fail.
    """

    def __init__(self, spool_root: Path, *, files: FileOps | None = None) -> None:
        self.directory = spool_root / DIRECTORY
        self._files: FileOps = files or RealFiles()
        try:
            self.directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise SpoolError(f"cannot use {self.directory}: {error.strerror}") from error

    def write(
        self, calling_aet: str, message: CommitmentRequest | CommitmentReport, *, at_ns: int
    ) -> Path:
        """Make durable what was said.

        Raises
        ------
        SpoolError
            It is not.
        """
        name = f"{at_ns:020d}-{uuid.uuid4().hex}"
        temporary, final = self.directory / f"{name}.tmp", self.directory / f"{name}.json"
        text = json.dumps({"calling_aet": calling_aet, **to_json(message)})
        try:
            descriptor = self._files.write_new(temporary, (text.encode(),))
            try:
                self._files.fsync(descriptor)
            finally:
                self._files.close(descriptor)
            self._files.rename(temporary, final)
            self._files.fsync_directory(self.directory)
        except OSError as error:
            # A full disk must not be filled further by what nobody was promised.
            with suppress(OSError):
                self._files.unlink(temporary)
            raise SpoolError(f"cannot write {self.directory}: {error.strerror}") from error
        return final

    def entries(self) -> Iterator[Said | Path]:
        """Everything that waits, the oldest first; a path where it cannot be read."""
        for name in sorted(os.listdir(self.directory)):  # noqa: PTH208  (names are all it needs)
            path = self.directory / name
            if path.suffix != ".json":
                continue
            try:
                doc = json.loads(path.read_bytes())
                yield Said(path=path, calling_aet=str(doc["calling_aet"]), message=from_json(doc))
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError):
                yield path

    def forget(self, path: Path) -> None:
        """Remove what is in the database."""
        path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> Path:
        """Keep what cannot be read under a name that is not read again."""
        target = path.with_suffix(".unreadable")
        path.replace(target)
        return target


class CommitmentListener:
    """Answers N-ACTION and N-EVENT-REPORT of one association.

    Parameters
    ----------
    access
        Who may.
    journal
        Where it is written.
    clock_ns
        Wall clock in nanoseconds, for the order of the journal.
    """

    def __init__(
        self, access: CommitmentAccess, journal: CommitmentJournal, *, clock_ns: Any
    ) -> None:
        self._access = access
        self._journal = journal
        self._clock_ns = clock_ns

    def on_action(self, event: Any, calling_aet: str, log: Any) -> tuple[int, None]:
        """Status for an N-ACTION request (PS3.7 Section 10.1.4)."""
        request = event.request
        if calling_aet not in self._access.requesters:
            return self._answer(log, NOT_AUTHORISED, "commitment.refused")
        if str(request.RequestedSOPInstanceUID) != WELL_KNOWN_INSTANCE:
            return self._answer(log, NO_SUCH_INSTANCE, "commitment.refused")
        if request.ActionTypeID != REQUEST_ACTION:
            return self._answer(log, NO_SUCH_ACTION, "commitment.refused")
        return self._take(log, calling_aet, lambda: read_request(event.action_information))

    def on_report(self, event: Any, calling_aet: str, log: Any) -> tuple[int, None]:
        """Status for an N-EVENT-REPORT request (PS3.7 Section 10.1.1)."""
        request = event.request
        if calling_aet not in self._access.reporters:
            return self._answer(log, NOT_AUTHORISED, "commitment.refused")
        if str(request.AffectedSOPInstanceUID) != WELL_KNOWN_INSTANCE:
            return self._answer(log, NO_SUCH_INSTANCE, "commitment.refused")
        if request.EventTypeID not in (ALL_COMMITTED, FAILURES_EXIST):
            return self._answer(log, NO_SUCH_EVENT_TYPE, "commitment.refused")
        return self._take(log, calling_aet, lambda: read_report(event.event_information))

    def _take(self, log: Any, calling_aet: str, read: Any) -> tuple[int, None]:
        try:
            message = read()
        except MalformedCommitmentError as error:
            return self._answer(log, INVALID_ARGUMENT, "commitment.refused", str(error))
        except Exception as error:  # noqa: BLE001 - pydicom raises many kinds on bad bytes
            return self._answer(log, PROCESSING_FAILURE, "commitment.refused", type(error).__name__)
        try:
            self._journal.write(calling_aet, message, at_ns=self._clock_ns())
        except SpoolError as error:
            return self._answer(log, PROCESSING_FAILURE, "commitment.not_durable", error.message)
        log.info(
            "commitment.requested"
            if isinstance(message, CommitmentRequest)
            else "commitment.reported",
            transaction_uid=message.transaction_uid,
        )
        return SUCCESS, None

    @staticmethod
    def _answer(log: Any, status: int, event: str, words: str = "") -> tuple[int, None]:
        log.warning(event, status=f"{status:04X}", reason=words or STATUS_WORDS[status])
        return status, None
