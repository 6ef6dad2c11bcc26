"""Retrieval from an archive: C-MOVE and C-GET in the Study Root model (PS3.4 Annex C.4.2, C.4.3).

A final status tells only how the archive judged its own sub-operations. What really came is what
the caller counts; see `node.retrieval`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import build_context

from pe_triage.deliver.requestor import MAX_CONTEXTS, RequestorOptions, open_association
from pe_triage.domain import Destination
from pe_triage.errors import PermanentDeliveryError, RetryableDeliveryError

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
UIDS_AT_ONCE = 100
"""SOP Instance UIDs in one identifier at IMAGE level (a list of UIDs, PS3.4 C.2.2.2.2)."""

_PENDING = (0xFF00, 0xFF01)


class Course(StrEnum):
    """What happens after a retrieval has ended."""

    DONE = "DONE"
    PARTIAL = "PARTIAL"
    """Some of it did not come; what is missing may be asked for again."""
    AGAIN = "AGAIN"
    """Nothing is known to have come; later the same may succeed."""
    REFUSED = "REFUSED"
    """Repeating cannot help before somebody has changed something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveRule:
    """Statuses that end a C-MOVE or C-GET (PS3.4 Tables C.4-2 and C.4-3), both ends included."""

    first: int
    last: int
    course: Course
    words: str


def _rule(first: int, last: int, course: Course, words: str) -> RetrieveRule:
    return RetrieveRule(first=first, last=last, course=course, words=words)


RETRIEVE_RULES: tuple[RetrieveRule, ...] = (
    _rule(0x0000, 0x0000, Course.DONE, "success"),
    _rule(0x0110, 0x0110, Course.AGAIN, "processing failure"),
    _rule(0x0122, 0x0122, Course.REFUSED, "SOP class not supported"),
    _rule(0x0124, 0x0124, Course.REFUSED, "not authorised"),
    _rule(0x0210, 0x0210, Course.AGAIN, "duplicate invocation"),
    _rule(0x0211, 0x0212, Course.REFUSED, "unrecognised operation or mistyped argument"),
    _rule(0x0213, 0x0213, Course.AGAIN, "resource limitation"),
    _rule(0xA701, 0xA701, Course.AGAIN, "out of resources: cannot count the matches"),
    _rule(0xA702, 0xA702, Course.AGAIN, "out of resources: cannot send"),
    _rule(0xA700, 0xA7FF, Course.AGAIN, "out of resources"),
    _rule(0xA801, 0xA801, Course.REFUSED, "it does not know our AE title as a destination"),
    _rule(0xA900, 0xA9FF, Course.REFUSED, "identifier does not match SOP class"),
    _rule(0xB000, 0xB000, Course.PARTIAL, "some of it could not be sent"),
    _rule(0xC000, 0xCFFF, Course.REFUSED, "unable to process"),
    _rule(0xFE00, 0xFE00, Course.PARTIAL, "the retrieval was cancelled"),
)
"""The first rule that holds decides."""

UNKNOWN = _rule(0, 0xFFFF, Course.AGAIN, "unknown status")
"""Never taken for success."""


def rule_of(status: int) -> RetrieveRule:
    """What a status means that ends a retrieval."""
    for rule in RETRIEVE_RULES:
        if rule.first <= status <= rule.last:
            return rule
    return UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Numbers of sub-operations, as the archive last stated them; None where it does not."""

    remaining: int | None = None
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """How one retrieval ended; nothing is raised for what a peer does."""

    course: Course
    progress: Progress = Progress()
    error: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is retrieved at once: a series, or some instances of it."""

    study_uid: str
    series_uid: str
    sop_instance_uids: tuple[str, ...] = ()
    """Empty: the whole series."""

    def identifier(self) -> Dataset:
        """Identifier of the request (PS3.4 Section C.4.2.1.4.1)."""
        ds = Dataset()
        ds.QueryRetrieveLevel = "IMAGE" if self.sop_instance_uids else "SERIES"
        ds.StudyInstanceUID = self.study_uid
        ds.SeriesInstanceUID = self.series_uid
        if self.sop_instance_uids:
            ds.SOPInstanceUID = list(self.sop_instance_uids)
        return ds


def parts_of(
    study_uid: str, wanted: Mapping[str, Iterable[str]], missing: set[str]
) -> Iterator[Part]:
    """Whole series where all of one is missing, else its missing instances.

    Parameters
    ----------
    wanted
        Series UID to its SOP Instance UIDs.
    """
    for series_uid, uids in sorted(wanted.items()):
        every = set(uids)
        lacking = sorted(every & missing)
        if not lacking:
            continue
        if len(lacking) == len(every):
            yield Part(study_uid=study_uid, series_uid=series_uid)
            continue
        for start in range(0, len(lacking), UIDS_AT_ONCE):
            yield Part(
                study_uid=study_uid,
                series_uid=series_uid,
                sop_instance_uids=tuple(lacking[start : start + UIDS_AT_ONCE]),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One object that came on our own association (C-GET)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes
    """The data set as received, without file meta."""


Store = Callable[[Sent], int]
"""Takes one object; the status of its C-STORE response."""
OnProgress = Callable[[Progress], None]


class RetrieveScu:
    """Retrieves from one archive; each request is an association of its own.

    Parameters
    ----------
    peer
        The archive.
    calling_aet
        Our AE title; of C-MOVE also the destination.
    timeout_s
        Longest silence.
    """

    def __init__(self, peer: Destination, calling_aet: str, *, timeout_s: float = 120.0) -> None:
        self.peer = peer
        self._calling_aet = calling_aet
        self._options = RequestorOptions(
            connect_timeout_s=min(10.0, timeout_s), dimse_timeout_s=timeout_s
        )

    def move(self, part: Part, on_progress: OnProgress = lambda _: None) -> Retrieved:
        """Have the archive send `part` to our own AE title (C-MOVE)."""
        return self._retrieve(
            STUDY_ROOT_MOVE,
            lambda association, model: association.send_c_move(
                part.identifier(), self._calling_aet, model
            ),
            on_progress,
        )

    def get(
        self,
        part: Part,
        store: Store,
        *,
        sop_classes: Sequence[str],
        syntaxes: Sequence[str],
        on_progress: OnProgress = lambda _: None,
    ) -> Retrieved:
        """Have the archive send `part` on this association (C-GET).

        Parameters
        ----------
        sop_classes, syntaxes
            What may come; the archive sends nothing of another class.
        """

        def stored(event: Any) -> int:
            request, context = event.request, event.context
            return store(
                Sent(
                    sop_class_uid=str(request.AffectedSOPClassUID),
                    sop_instance_uid=str(request.AffectedSOPInstanceUID),
                    transfer_syntax_uid=str(context.transfer_syntax),
                    data=request.DataSet.getvalue(),
                )
            )

        return self._retrieve(
            STUDY_ROOT_GET,
            lambda association, model: association.send_c_get(part.identifier(), model),
            on_progress,
            storage=list(dict.fromkeys(sop_classes))[: MAX_CONTEXTS - 1],
            syntaxes=syntaxes,
            handlers=[(evt.EVT_C_STORE, stored)],
        )

    def _retrieve(
        self,
        model: str,
        ask: Callable[[Association, str], Iterator[tuple[Dataset, Dataset | None]]],
        on_progress: OnProgress,
        *,
        storage: Sequence[str] = (),
        syntaxes: Sequence[str] = (),
        handlers: Sequence[Any] = (),
    ) -> Retrieved:
        try:
            association = open_association(
                self.peer,
                calling_aet=self._calling_aet,
                contexts=[
                    build_context(model, list(SYNTAXES)),
                    *(build_context(uid, list(syntaxes)) for uid in storage),
                ],
                options=self._options,
                roles=[_as_scp(uid) for uid in storage],
                handlers=handlers,
            )
        except RetryableDeliveryError as error:
            return Retrieved(course=Course.AGAIN, error=error.message)
        except PermanentDeliveryError as error:
            return Retrieved(course=Course.REFUSED, error=f"{error.message} ({UID(model).name})")
        progress = Progress()
        try:
            for status, _ in ask(association, model):
                progress = _progress(status, progress)
                code = status.get("Status")
                if code is None:
                    break
                if int(code) not in _PENDING:
                    return self._ended(int(code), progress)
                on_progress(progress)
        except ValueError as error:
            return Retrieved(
                course=Course.REFUSED, error=f"{self.peer}: {str(error).splitlines()[0]}"
            )
        except RuntimeError:
            pass
        finally:
            if association.is_established:
                association.release()
        return Retrieved(
            course=Course.AGAIN,
            progress=progress,
            error=f"{self.peer}: the retrieval broke off without a status",
        )

    def _ended(self, status: int, progress: Progress) -> Retrieved:
        rule = rule_of(status)
        course = rule.course
        if course is Course.DONE and progress.failed:
            # Success with failures is none, whoever says so.
            course = Course.PARTIAL
        if course is Course.DONE:
            return Retrieved(course=course, progress=progress, status=status)
        failed = "" if not progress.failed else f", {progress.failed} failed"
        return Retrieved(
            course=course,
            progress=progress,
            status=status,
            error=f"{self.peer}: the retrieval ended with status {status:04X}: "
            f"{rule.words}{failed}",
        )


def _as_scp(sop_class_uid: str) -> SCP_SCU_RoleSelectionNegotiation:
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = UID(sop_class_uid)
    role.scu_role = False
    role.scp_role = True
    return role


def _progress(status: Dataset, before: Progress) -> Progress:
    def number(keyword: str, known: int | None) -> int | None:
        value = status.get(keyword)
        return int(value) if isinstance(value, int) else known

    return Progress(
        remaining=number("NumberOfRemainingSuboperations", before.remaining),
        completed=number("NumberOfCompletedSuboperations", before.completed),
        failed=number("NumberOfFailedSuboperations", before.failed),
        warning=number("NumberOfWarningSuboperations", before.warning),
    )
