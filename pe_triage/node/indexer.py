"""From the spool's journal into the database, in batches, surviving a crash at any point.

For each incoming instance: give it its final name (a second link), commit its row, and only then
remove the incoming name. Whatever moment the process dies at, the next look into ``incoming/``
finds either nothing to do or the same work again, and doing it again changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.filereader import read_file_meta_info

from pe_triage.domain import ReceivedInstance
from pe_triage.errors import InvalidInstanceError
from pe_triage.imaging.facts import facts_to_json, read_instance
from pe_triage.logs import get_logger
from pe_triage.node.assembler import Assembler
from pe_triage.node.leadership import NotLeadingError
from pe_triage.node.roles import role_of
from pe_triage.receive.spool import AssociationEvent, Entry, EventRecord, Filed, Spool
from pe_triage.store.quarantine import Quarantine
from pe_triage.store.recording import Recorded, RecordStatus
from pe_triage.store.studies import StudyStore

BATCH = 256
"""Instances in one transaction: bounds both the lock's time and the work that a crash repeats."""


@dataclass(frozen=True, kw_only=True)
class _Pending:
    entry: Entry
    instance: ReceivedInstance
    facts: dict[str, Any]
    filed: Filed


class Indexer:
    """Empties ``incoming/``; exactly one runs on a spool.

    Parameters
    ----------
    guard
        Held during each step: nobody deletes indexed files meanwhile (`node.retention`).
    lag_s
        So late a directory may show what another host has put there; 0 on a local disk.
    leading
        Asked before the one act that would harm were another indexing too.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        studies: StudyStore,
        quarantine: Quarantine,
        assembler: Assembler,
        data_dir: Path,
        guard: AbstractContextManager[object] | None = None,
        lag_s: float = 0.0,
        leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._lag_s = lag_s
        self._leading = leading
        self._guard = guard or nullcontext()
        self._spool = spool
        self._studies = studies
        self._quarantine = quarantine
        self._assembler = assembler
        self._data_dir = data_dir
        self._log = get_logger()

    def step(self) -> int:
        """Handle what is there now, at most `BATCH` entries; returns how many.

        Raises
        ------
        SpoolError, StoreUnavailableError
            Nothing is lost: the entries stay in ``incoming/``.
        """
        with self._guard:
            return self._step()

    def _step(self) -> int:
        started_s = time.monotonic()
        entries = self._spool.incoming_entries()
        pending: list[_Pending] = []
        ends: list[tuple[Entry, EventRecord]] = []
        for entry in entries[:BATCH]:
            if entry.is_event:
                self._take_event(entry, ends)
                continue
            item = self._read(entry, pending)
            if item is not None:
                pending.append(item)
        self._record(pending)
        # What the associations brought must be recorded before their end is known.
        if ends:
            self._assembler.note_events([(entry.association_id, record) for entry, record in ends])
        for entry, _ in ends:
            self._spool.forget(entry.path)
        if len(entries) <= BATCH:
            # Whatever was acknowledged before `started_s` is in the database now.
            self._assembler.note_drained(started_s - self._lag_s)
        return min(len(entries), BATCH)

    def _take_event(self, entry: Entry, ends: list[tuple[Entry, EventRecord]]) -> None:
        """Note an opening at once, which says who sends what follows; keep an end for later."""
        record = self._spool.read_event(entry.path)
        if record is not None and record.event is not AssociationEvent.OPENED:
            ends.append((entry, record))
            return
        if record is not None:
            self._assembler.note_event(entry.association_id, record)
        self._spool.forget(entry.path)

    def _read(self, entry: Entry, pending: list[_Pending]) -> _Pending | None:
        try:
            record = read_instance(entry.path)
            digest = self._spool.digest(entry.path)
            status = entry.path.stat()
        except FileNotFoundError:
            return None
        except InvalidInstanceError as error:
            self._set_unreadable_aside(entry, str(error), error)
            return None
        except OSError:
            # The file system, not the instance: it stays where it is and is tried again.
            raise
        except Exception as error:  # noqa: BLE001 - one odd instance must not stop all others
            self._set_unreadable_aside(entry, f"unreadable ({type(error).__name__})")
            return None
        final = self._spool.final_path(record.study_uid, record.sop_instance_uid)
        instance = ReceivedInstance(
            study_uid=record.study_uid,
            series_uid=record.series_uid,
            sop_instance_uid=record.sop_instance_uid,
            sop_class_uid=record.sop_class_uid,
            transfer_syntax_uid=record.transfer_syntax_uid,
            identity=record.identity,
            sha256=digest,
            size_bytes=status.st_size,
            path=final,
            received_at=datetime.fromtimestamp(status.st_mtime, UTC),
            calling_aet=self._assembler.calling_aet(entry.association_id) or source_aet(entry.path),
            facts=record.facts,
            role=role_of(record.sop_class_uid, record.facts),
        )
        filed = self._spool.file_away(entry.path, final)
        if filed is Filed.DIFFERENT and pending:
            # Its namesake may have come in this very batch: once that is recorded, the database
            # tells it from an orphan.
            self._record(pending)
            pending.clear()
            filed = self._spool.file_away(entry.path, final)
        if filed is Filed.DIFFERENT and not self._is_held(instance):
            if not self._leading():
                raise NotLeadingError("another host may be indexing")
            # Left by a crash between link and commit of an object that was then refused.
            orphan = self._spool.set_aside(final, "orphan")
            self._quarantine.add(
                path=orphan.relative_to(self._data_dir),
                reason="left by a crash under the name of another object",
                study_uid=record.study_uid,
                sop_instance_uid=record.sop_instance_uid,
            )
            self._log.warning("instance.orphan_set_aside", file=orphan.name)
            filed = self._spool.file_away(entry.path, final)
        return _Pending(
            entry=entry, instance=instance, facts=facts_to_json(record.facts), filed=filed
        )

    def _set_unreadable_aside(
        self, entry: Entry, reason: str, error: InvalidInstanceError | None = None
    ) -> None:
        """Keep what was acknowledged: a person must see what the check on receipt let through."""
        path = self._spool.set_aside(entry.path, "unreadable")
        self._quarantine.add(
            path=path.relative_to(self._data_dir),
            reason=reason,
            study_uid=None if error is None else error.study_uid,
            sop_instance_uid=None if error is None else error.sop_instance_uid,
        )
        self._log.error("instance.unreadable", file=path.name, error=reason)

    def _is_held(self, instance: ReceivedInstance) -> bool:
        return any(
            row.sop_instance_uid == instance.sop_instance_uid
            for row in self._studies.instances(instance.study_uid)
        )

    def _record(self, pending: list[_Pending]) -> None:
        if not pending:
            return
        outcomes = self._studies.record(
            [(item.instance, item.facts, item.entry.association_id) for item in pending]
        )
        for item, recorded in zip(pending, outcomes, strict=True):
            if recorded.status.conflict:
                self._quarantine_one(item, recorded)
                continue
            if recorded.status is RecordStatus.DUPLICATE and item.filed is Filed.DIFFERENT:
                self._replace_damaged(item)
            self._spool.forget(item.entry.path)
        new = sum(r.status is RecordStatus.NEW for r in outcomes)
        self._log.debug("instances.indexed", new=new, known=len(outcomes) - new)

    def _replace_damaged(self, item: _Pending) -> None:
        """Put back what the disk has spoilt: this has the digest of the one held, its file not."""
        damaged = self._spool.set_aside(item.instance.path, "damaged")
        self._spool.file_away(item.entry.path, item.instance.path)
        self._quarantine.add(
            path=damaged.relative_to(self._data_dir),
            reason="damaged on the disk; the same image came again and took its place",
            study_uid=item.instance.study_uid,
            sop_instance_uid=item.instance.sop_instance_uid,
        )
        self._log.error("instance.damaged_replaced", file=damaged.name)

    def _quarantine_one(self, item: _Pending, recorded: Recorded) -> None:
        final = item.instance.path
        ours = final.exists() and final.samefile(item.entry.path)
        if recorded.status is RecordStatus.CONFLICT_IDENTITY and ours:
            # The link made a moment ago must not stand among the study's own files.
            self._spool.forget(final)
        if self._has_its_file(recorded):
            # Sent again: a sender that repeats itself for ever must not fill the disk.
            self._spool.forget(item.entry.path)
            return
        path = self._spool.set_aside(item.entry.path, str(recorded.status).lower())
        if recorded.quarantine_id is not None:
            self._quarantine.moved(recorded.quarantine_id, path.relative_to(self._data_dir))
        self._log.error(
            "instance.quarantined",
            study_uid=item.instance.study_uid,
            sop_instance_uid=item.instance.sop_instance_uid,
            reason=recorded.reason,
        )

    def _has_its_file(self, recorded: Recorded) -> bool:
        """Whether the same bytes lie in quarantine already, entered in the same row."""
        if recorded.quarantine_id is None:
            return False
        entry = self._quarantine.get(recorded.quarantine_id)
        return self._spool.is_aside(self._data_dir / entry.path)


def source_aet(path: Path) -> str:
    """Source Application Entity Title (0002,0016), which the receiver wrote; empty if absent."""
    return str(read_file_meta_info(path).get("SourceApplicationEntityTitle", ""))
