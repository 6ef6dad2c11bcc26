"""What a C-STORE status means for a delivery, as a table (PS3.4 Annex B.2.3, PS3.7 Annex C)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What happens to a delivery next."""

    SENT = "SENT"
    WARNING = "WARNING"
    """Stored; the peer's remark is kept."""
    RETRY = "RETRY"
    PARK = "PARK"
    """Repeating cannot help: it waits where people see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRule:
    """A range of statuses, both ends included."""

    first: int
    last: int
    verdict: Verdict
    words: str


def _rule(first: int, last: int, verdict: Verdict, words: str) -> StatusRule:
    return StatusRule(first=first, last=last, verdict=verdict, words=words)


STATUS_RULES: tuple[StatusRule, ...] = (
    _rule(0x0000, 0x0000, Verdict.SENT, "success"),
    _rule(0x0001, 0x0001, Verdict.WARNING, "warning"),
    _rule(0x0107, 0x0107, Verdict.WARNING, "attribute list error"),
    _rule(0x0110, 0x0110, Verdict.RETRY, "processing failure"),
    # Our UIDs are derived from the work, so what it has under this UID is what we send.
    _rule(0x0111, 0x0111, Verdict.WARNING, "duplicate SOP instance: it is there already"),
    _rule(0x0112, 0x0112, Verdict.PARK, "no such object instance"),
    _rule(0x0116, 0x0116, Verdict.WARNING, "attribute value out of range"),
    _rule(0x0117, 0x0117, Verdict.PARK, "invalid object instance"),
    _rule(0x0122, 0x0122, Verdict.PARK, "SOP class not supported"),
    _rule(0x0124, 0x0124, Verdict.PARK, "not authorised"),
    _rule(0x0210, 0x0210, Verdict.RETRY, "duplicate invocation"),
    _rule(0x0211, 0x0211, Verdict.PARK, "unrecognised operation"),
    _rule(0x0212, 0x0212, Verdict.PARK, "mistyped argument"),
    _rule(0x0213, 0x0213, Verdict.RETRY, "resource limitation"),
    _rule(0xA700, 0xA7FF, Verdict.RETRY, "out of resources"),
    _rule(0xA900, 0xA9FF, Verdict.PARK, "data set does not match SOP class"),
    _rule(0xB000, 0xB000, Verdict.WARNING, "coercion of data elements"),
    _rule(0xB006, 0xB006, Verdict.WARNING, "elements discarded"),
    _rule(0xB007, 0xB007, Verdict.WARNING, "data set does not match SOP class, stored"),
    _rule(0xB000, 0xBFFF, Verdict.WARNING, "warning"),
    _rule(0xC000, 0xCFFF, Verdict.PARK, "cannot understand"),
)
"""The first rule that holds decides."""

UNKNOWN = _rule(0, 0xFFFF, Verdict.RETRY, "unknown status")
"""Never taken for success; retried until delivery gives up, then parked."""


def classify(status: int) -> StatusRule:
    """Rule for the Status (0000,0900) of a C-STORE response."""
    for rule in STATUS_RULES:
        if rule.first <= status <= rule.last:
            return rule
    return UNKNOWN


def describe(status: int) -> str:
    """One line: the status in hexadecimal and its meaning, in our own words.

    The peer's Error Comment (0000,0902) is free text and often quotes the patient's identifier,
    so it is never kept: this line reaches logs and the database. It stands in the peer's own log.
    """
    return f"status {status:04X}: {classify(status).words}"
