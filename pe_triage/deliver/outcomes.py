"""How one delivery ended, whatever the road."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How one delivery ended this time.

    Attributes
    ----------
    error
        One line; the peer's remark when the verdict is WARNING.
    status
        Of the response where one came: a DIMSE status, or an HTTP status code.
    unreachable
        The peer itself was away: nothing of this object was judged, and others would fare alike.
    retry_after_s
        What the peer asked for; it is waited for at least so long.
    """

    verdict: Verdict
    error: str | None = None
    status: int | None = None
    unreachable: bool = False
    retry_after_s: float | None = None


class Sender(Protocol):
    """One road to one destination."""

    def send(self, deliveries: Sequence[Delivery]) -> Iterator[tuple[int, Sent]]:
        """Send in this order; every delivery gets exactly one outcome, as soon as it is known."""


def all_unreachable(deliveries: Sequence[Delivery], error: str) -> Iterator[tuple[int, Sent]]:
    """Say of each that the peer was away."""
    for delivery in deliveries:
        yield (
            delivery.delivery_id,
            Sent(verdict=Verdict.RETRY, error=error, unreachable=True),
        )
