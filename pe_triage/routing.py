"""Which result goes where: a pure function over values.

A DICOM object goes to every destination that takes its kind. A message is written for one
destination (its receiving application, its character set, with or without identity), so it is
addressed, and goes to that one alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pe_triage.domain import Outcome, ResultKind

MESSAGE_KINDS: frozenset[ResultKind] = frozenset(
    {ResultKind.HL7, ResultKind.FHIR, ResultKind.WEBHOOK, ResultKind.UPS}
)
"""Results that are messages; every other kind is a DICOM object."""

DICOM_KINDS: frozenset[ResultKind] = frozenset(ResultKind) - MESSAGE_KINDS

ALL_OUTCOMES: frozenset[Outcome] = frozenset(Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What one destination takes.

    Attributes
    ----------
    name
        Of the destination, as ``show`` prints it.
    kinds
        Result kinds that it gets.
    outcomes
        Answers of which it gets anything.
    """

    name: str
    kinds: frozenset[ResultKind] = DICOM_KINDS
    outcomes: frozenset[Outcome] = ALL_OUTCOMES


class Routable(Protocol):
    """What the plan needs to know of a result."""

    @property
    def kind(self) -> ResultKind:
        """What the result is."""

    @property
    def addressee(self) -> str | None:
        """Name of the only destination that it was written for; None for a DICOM object."""


def plan_deliveries(
    results: Sequence[Routable], routes: Iterable[Route], outcome: Outcome | None
) -> tuple[tuple[int, str], ...]:
    """Pair each result with the destinations that get it.

    Parameters
    ----------
    results
        In the order in which they should be sent.
    routes
        A name that comes twice counts once: the first.
    outcome
        Of the run; None (a run without an answer) passes every filter, since nothing may be held
        back for want of a word.

    Returns
    -------
    tuple of (int, str)
        Index of the result and name of the destination, by result, then in the routes' order.
    """
    by_name: dict[str, Route] = {}
    for route in routes:
        by_name.setdefault(route.name, route)
    open_to = [r for r in by_name.values() if outcome is None or outcome in r.outcomes]
    return tuple(
        (index, route.name)
        for index, result in enumerate(results)
        for route in open_to
        if _takes(route, result)
    )


def _takes(route: Route, result: Routable) -> bool:
    if result.kind not in route.kinds:
        return False
    if result.kind in MESSAGE_KINDS:
        return result.addressee == route.name
    return result.addressee in (None, route.name)
