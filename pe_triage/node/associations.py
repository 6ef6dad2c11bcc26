"""Which associations are open, and how the others ended, as far as it was seen since the start.

A restart forgets them, which costs patience (the quiet time) and never an image.
"""

from __future__ import annotations

import threading
from collections.abc import Set
from dataclasses import dataclass

from pe_triage.receive.spool import AssociationEvent, EventRecord
from pe_triage.store.studies import StudyProgress

REMEMBERED = 10_000
"""Associations kept in memory after their end."""


@dataclass(frozen=True, kw_only=True)
class _Association:
    event: AssociationEvent
    calling_aet: str


class Associations:
    """Notes what the receivers say of their associations; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Association] = {}

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
            lost = [
                association_id
                for association_id, known in self._known.items()
                if known.event is AssociationEvent.OPENED
                and association_id.rpartition("-")[0] not in living_boots
            ]
            for association_id in lost:
                self._known[association_id] = _Association(
                    event=AssociationEvent.ABORTED,
                    calling_aet=self._known[association_id].calling_aet,
                )
        return lost

    def open_now(self, study: StudyProgress) -> int:
        """Count open associations that brought some of a study, or come from who did."""
        with self._lock:
            return sum(
                known.event is AssociationEvent.OPENED
                and (
                    association_id in study.association_ids
                    or known.calling_aet in study.calling_aets
                )
                for association_id, known in self._known.items()
            )

    def all_released(self, study: StudyProgress) -> bool:
        """Whether each association that brought some of a study was seen to be released."""
        events = self._events(study)
        return all(
            events.get(association_id) is AssociationEvent.RELEASED
            for association_id in study.association_ids
        )

    def broken_off(self, study: StudyProgress) -> bool:
        """Whether a sender aborted and has brought nothing since, neither new nor again."""
        events = self._events(study)
        return any(
            events.get(broken.association_id) is AssociationEvent.ABORTED
            and not any(
                later.calling_aet == broken.calling_aet
                and later.last_at >= broken.last_at
                and events.get(later.association_id) is not AssociationEvent.ABORTED
                for later in study.arrivals
            )
            for broken in study.arrivals
        )

    def _events(self, study: StudyProgress) -> dict[str, AssociationEvent]:
        with self._lock:
            return {
                association_id: self._known[association_id].event
                for association_id in study.association_ids
                if association_id in self._known
            }
