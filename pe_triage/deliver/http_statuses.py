"""What an HTTP status means for a delivery, as a table (RFC 9110), and Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pe_triage.deliver.statuses import StatusRule, Verdict

MAX_RETRY_AFTER_S = 3600.0
"""However long a peer asks us to wait: urgency does not keep for days."""


def _rule(first: int, last: int, verdict: Verdict, words: str) -> StatusRule:
    return StatusRule(first=first, last=last, verdict=verdict, words=words)


HTTP_RULES: tuple[StatusRule, ...] = (
    _rule(200, 299, Verdict.SENT, "success"),
    # Redirects are not followed: a message that may name a patient goes where it was told.
    _rule(300, 399, Verdict.PARK, "redirected elsewhere; not followed"),
    # A credential can be renewed without a restart.
    _rule(401, 401, Verdict.RETRY, "not authenticated"),
    _rule(407, 407, Verdict.RETRY, "proxy authentication required"),
    _rule(408, 408, Verdict.RETRY, "request timed out"),
    _rule(421, 421, Verdict.RETRY, "misdirected"),
    _rule(423, 423, Verdict.RETRY, "locked"),
    _rule(425, 425, Verdict.RETRY, "too early"),
    _rule(429, 429, Verdict.RETRY, "too many requests"),
    _rule(400, 499, Verdict.PARK, "refused"),
    _rule(501, 501, Verdict.PARK, "not implemented"),
    _rule(505, 505, Verdict.PARK, "HTTP version not supported"),
    _rule(500, 599, Verdict.RETRY, "server error"),
)
"""The first rule that holds decides."""

UNKNOWN = _rule(0, 999, Verdict.RETRY, "unexpected status")


def classify_http(status: int) -> StatusRule:
    """Rule for a status code."""
    for rule in HTTP_RULES:
        if rule.first <= status <= rule.last:
            return rule
    return UNKNOWN


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110 Section 10.2.3): a number or a date.

    At most `MAX_RETRY_AFTER_S`; None where there is none or it cannot be read.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            when = parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - now).total_seconds()
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)
