"""Which associations are open, and how the others ended.

What was seen since the start is in memory; how each association ended that brought something is in
the database besides (`StudyStore.note_ends`), so that a restart forgets no abort. What it forgets
are associations that are open and have brought nothing yet: that costs a second run at worst.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Set
from dataclasses import dataclass

from pe_triage.receive.spool import AssociationEvent, EventRecord, boot_of
from pe_triage.store.studies import Arrival, StudyProgress

REMEMBERED = 10_000
"""Associations kept in memory after their end."""

GOES_ON = (AssociationEvent.OPENED, AssociationEvent.RELEASED)
"""What shows of a sender that it did not give up."""


@dataclass(frozen=True, kw_only=True)
class _Association:
    event: AssociationEvent
    calling_aet: str


class Associations:
    """Notes what the receivers say of their associations; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Association] = {}
        self._living: Set[str] = frozenset()

    def note(self, association_id: str, record: EventRecord) -> None:
        """Remember that an association was opened, released or aborted."""
        with self._lock:
            self._known.pop(association_id, None)
            self._known[association_id] = _Association(
                event=record.event, calling_aet=record.calling_aet
            )
            ended = [
                key
                for key, value in self._known.items()
                if value.event is not AssociationEvent.OPENED
            ]
            for key in ended[:-REMEMBERED]:
                del self._known[key]

    def calling_aet(self, association_id: str) -> str | None:
        """Calling AE title of an association, where its opening was seen."""
        with self._lock:
            known = self._known.get(association_id)
            return None if known is None else known.calling_aet

    def end_orphans(self, living_boots: Set[str]) -> list[str]:
        """Count associations as aborted whose receiver died: none will say that they ended.

        Returns
        -------
        list of str
            Those that were open until now.
        """
        with self._lock:
            self._living = living_boots
            lost = [
                association_id
                for association_id, known in self._known.items()
                if known.event is AssociationEvent.OPENED
                and boot_of(association_id) not in living_boots
            ]
            for association_id in lost:
                self._known[association_id] = _Association(
                    event=AssociationEvent.ABORTED,
                    calling_aet=self._known[association_id].calling_aet,
                )
        return lost

    def open_now(self, study: StudyProgress) -> int:
        """Count open associations that brought some of a study, or come from who did."""
        events = self._events(study)
        with self._lock:
            others = sum(
                known.event is AssociationEvent.OPENED
                and association_id not in events
                and known.calling_aet in study.calling_aets
                for association_id, known in self._known.items()
            )
        return others + sum(event is AssociationEvent.OPENED for event in events.values())

    def all_released(self, study: StudyProgress) -> bool:
        """Whether each association that brought some of a study is known to have been released."""
        return all(event is AssociationEvent.RELEASED for event in self._events(study).values())

    def broken_off(self, study: StudyProgress) -> bool:
        """Whether a sender aborted and has brought nothing since, neither new nor again."""
        events = self._events(study)
        return any(
            events[broken.association_id] is AssociationEvent.ABORTED
            and not any(
                later.calling_aet == broken.calling_aet
                and later.last_at >= broken.last_at
                and events[later.association_id] in GOES_ON
                for later in study.arrivals
            )
            for broken in study.arrivals
        )

    def _events(self, study: StudyProgress) -> Mapping[str, AssociationEvent | None]:
        """What is known last of each association that brought some of a study."""
        with self._lock:
            return {arrival.association_id: self._event(arrival) for arrival in study.arrivals}

    def _event(self, arrival: Arrival) -> AssociationEvent | None:
        known = self._known.get(arrival.association_id)
        if known is not None:
            return known.event
        if arrival.ended is not None:
            return _ENDS.get(arrival.ended)
        boot = boot_of(arrival.association_id)
        if boot is None:
            return None
        # Its end was not seen, and cannot have been missed but by a death of its receiver.
        return AssociationEvent.OPENED if boot in self._living else AssociationEvent.ABORTED


_ENDS = {event.value: event for event in (AssociationEvent.RELEASED, AssociationEvent.ABORTED)}
"""How an association ended, as `Arrival.ended` says it."""
