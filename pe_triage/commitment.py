"""Storage commitment as values: what is asked, what is answered, what a refusal means.

Storage Commitment Push Model, PS3.4 Annex J; attributes of PS3.3 Section C.14. Requests and
reports hold UIDs only, so they may be written to a journal and a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pe_triage.identity import comparable, is_uid

PUSH_MODEL = "1.2.840.10008.1.20.1"
WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
"""PS3.4 Section J.3.5: the one SOP Instance of the class."""
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
REQUEST_ACTION = 1
"""Action Type ID, PS3.4 Table J.3-1."""
ALL_COMMITTED, FAILURES_EXIST = 1, 2
"""Event Type IDs, PS3.4 Table J.3-2."""
MAX_REFERENCES = 20_000
"""Instances in one request or report; a longer one is refused."""

PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
CLASS_CONFLICT = 0x0119
DUPLICATE_TRANSACTION = 0x0131


class Remedy(StrEnum):
    """What is done about an instance that a peer does not commit to."""

    ASK_AGAIN = "ASK_AGAIN"
    REDELIVER = "REDELIVER"
    PARK = "PARK"
    """Repeating cannot help: it waits where people see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRule:
    """One Failure Reason (0008,1197), PS3.3 Section C.14.1.1."""

    remedy: Remedy
    words: str


def _rule(remedy: Remedy, words: str) -> FailureRule:
    return FailureRule(remedy=remedy, words=words)


FAILURE_RULES: Mapping[int, FailureRule] = {
    PROCESSING_FAILURE: _rule(Remedy.ASK_AGAIN, "processing failure"),
    NO_SUCH_INSTANCE: _rule(Remedy.REDELIVER, "it does not hold the object"),
    CLASS_CONFLICT: _rule(Remedy.PARK, "it holds another class of object under this UID"),
    0x0122: _rule(Remedy.PARK, "it does not commit to objects of this class"),
    DUPLICATE_TRANSACTION: _rule(Remedy.ASK_AGAIN, "duplicate transaction UID"),
    0x0213: _rule(Remedy.ASK_AGAIN, "resource limitation"),
}
UNKNOWN_FAILURE = _rule(Remedy.ASK_AGAIN, "unknown reason")
"""Never taken for a commitment."""


def failure_rule(reason: int) -> FailureRule:
    """What a Failure Reason means."""
    return FAILURE_RULES.get(reason, UNKNOWN_FAILURE)


def describe_failure(reason: int) -> str:
    """One line in our own words."""
    return f"not committed: {reason:04X}: {failure_rule(reason).words}"


class MalformedCommitmentError(ValueError):
    """A request or report that cannot be understood; answered 0115H (invalid argument value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One instance, as the Referenced SOP Sequence (0008,1199) names it."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentRequest:
    """Action Information of an N-ACTION."""

    transaction_uid: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReport:
    """Event Information of an N-EVENT-REPORT."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...] = ()

    @property
    def event_type(self) -> int:
        """Event Type ID that says this."""
        return FAILURES_EXIST if self.failed else ALL_COMMITTED


# ------------------------------------------------------------------ as data sets


def request_dataset(request: CommitmentRequest) -> Dataset:
    """Action Information (PS3.4 Table J.3-1)."""
    ds = Dataset()
    ds.TransactionUID = request.transaction_uid
    ds.ReferencedSOPSequence = _items(request.references)
    return ds


def report_dataset(report: CommitmentReport) -> Dataset:
    """Event Information (PS3.4 Table J.3-2); a sequence without items is left out."""
    ds = Dataset()
    ds.TransactionUID = report.transaction_uid
    if report.committed:
        ds.ReferencedSOPSequence = _items(report.committed)
    if report.failed:
        ds.FailedSOPSequence = _items(reference for reference, _ in report.failed)
        for item, (_, reason) in zip(ds.FailedSOPSequence, report.failed, strict=True):
            item.FailureReason = reason
    return ds


def read_request(ds: Dataset) -> CommitmentRequest:
    """Read Action Information.

    Raises
    ------
    MalformedCommitmentError
        It names no transaction, nothing, too much, or what is no UID.
    """
    references = _references(ds, "ReferencedSOPSequence")
    if not references:
        raise MalformedCommitmentError("no instance is referenced")
    return CommitmentRequest(
        transaction_uid=_uid(ds, "TransactionUID"),
        references=tuple(dict.fromkeys(references)),
    )


def read_report(ds: Dataset) -> CommitmentReport:
    """Read Event Information; what it lists counts, whatever its event type says.

    An instance that stands in both lists has failed: only an undivided yes is one.

    Raises
    ------
    MalformedCommitmentError
        As `read_request`, but a report without instances is one.
    """
    failed = [(_reference(item), _reason(item)) for item in _sequence(ds, "FailedSOPSequence")]
    denied = {reference.sop_instance_uid for reference, _ in failed}
    return CommitmentReport(
        transaction_uid=_uid(ds, "TransactionUID"),
        committed=tuple(
            reference
            for reference in dict.fromkeys(_references(ds, "ReferencedSOPSequence"))
            if reference.sop_instance_uid not in denied
        ),
        failed=tuple(failed),
    )


def _items(references: Iterable[Reference]) -> DicomSequence:
    items = []
    for reference in references:
        item = Dataset()
        item.ReferencedSOPClassUID = reference.sop_class_uid
        item.ReferencedSOPInstanceUID = reference.sop_instance_uid
        items.append(item)
    return DicomSequence(items)


def _sequence(ds: Dataset, keyword: str) -> Sequence[Dataset]:
    items = ds.get(keyword) or []
    if not isinstance(items, Sequence) or len(items) > MAX_REFERENCES:
        raise MalformedCommitmentError(f"{keyword} is no sequence, or too long")
    return items


def _references(ds: Dataset, keyword: str) -> list[Reference]:
    return [_reference(item) for item in _sequence(ds, keyword)]


def _reference(item: Dataset) -> Reference:
    return Reference(
        sop_class_uid=_uid(item, "ReferencedSOPClassUID"),
        sop_instance_uid=_uid(item, "ReferencedSOPInstanceUID"),
    )


def _uid(ds: Dataset, keyword: str) -> str:
    value = comparable(ds.get(keyword))
    if not is_uid(value.encode("ascii", "replace")):
        raise MalformedCommitmentError(f"{keyword} is absent, or no UID")
    return value


def _reason(item: Dataset) -> int:
    value = item.get("FailureReason")
    return value if isinstance(value, int) else PROCESSING_FAILURE


# ------------------------------------------------------------------ as JSON, for the journal


def to_json(value: CommitmentRequest | CommitmentReport) -> dict[str, Any]:
    """Write down for `from_json`."""
    if isinstance(value, CommitmentRequest):
        return {
            "request": value.transaction_uid,
            "references": [[r.sop_class_uid, r.sop_instance_uid] for r in value.references],
        }
    return {
        "report": value.transaction_uid,
        "committed": [[r.sop_class_uid, r.sop_instance_uid] for r in value.committed],
        "failed": [[r.sop_class_uid, r.sop_instance_uid, reason] for r, reason in value.failed],
    }


def from_json(doc: Mapping[str, Any]) -> CommitmentRequest | CommitmentReport:
    """Read what `to_json` wrote.

    Raises
    ------
    KeyError, ValueError, TypeError
        It is something else.
    """
    if "request" in doc:
        return CommitmentRequest(
            transaction_uid=doc["request"],
            references=tuple(
                Reference(sop_class_uid=c, sop_instance_uid=i) for c, i in doc["references"]
            ),
        )
    return CommitmentReport(
        transaction_uid=doc["report"],
        committed=tuple(
            Reference(sop_class_uid=c, sop_instance_uid=i) for c, i in doc["committed"]
        ),
        failed=tuple(
            (Reference(sop_class_uid=c, sop_instance_uid=i), int(reason))
            for c, i, reason in doc["failed"]
        ),
    )
