"""From the journal to the queue, without processes: a lagging indexer, growth, odd files."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pe_triage.assemble.completeness import CompletenessRules
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import StudyState
from pe_triage.node import indexer as indexer_module
from pe_triage.node.assembler import Assembler
from pe_triage.node.indexer import Indexer
from pe_triage.phantom import generate_study, to_datasets
from pe_triage.receive.spool import AssociationEvent, EventRecord, Spool
from pe_triage.store.engine import StoreUnavailableError, open_engine
from pe_triage.store.jobs import JobQueue
from pe_triage.store.migrate import upgrade
from pe_triage.store.quarantine import Quarantine
from pe_triage.store.studies import StudyStore

QUIET_S = 60.0


@dataclass
class Journal:
    """A spool with its indexer and assembler on a SQLite file; the wall clock is ours."""

    root: Path
    ahead_s: float = 0.0
    sequence: int = 0
    spool: Spool = field(init=False)

    def __post_init__(self) -> None:
        url = f"sqlite:///{self.root / 'db.sqlite3'}"
        upgrade(url)
        engine = open_engine(url)
        self.spool = Spool(self.root / "spool")
        self.studies = StudyStore(engine, self.root)
        self.queue = JobQueue(engine)
        self.quarantine = Quarantine(engine)
        self.assembler = Assembler(
            studies=self.studies,
            queue=self.queue,
            data_dir=self.root,
            completeness=CompletenessRules(quiet_s=QUIET_S, max_wait_s=3600.0),
            eligibility=EligibilityRules(),
            clock=lambda: datetime.now(UTC) + timedelta(seconds=self.ahead_s),
            living_boots=lambda: frozenset({self.spool.boot_id}),
        )
        self.indexer = Indexer(
            spool=self.spool,
            studies=self.studies,
            quarantine=self.quarantine,
            assembler=self.assembler,
            data_dir=self.root,
        )

    def receive(self, ds: Dataset, *, age_s: float = 0.0, association: int = 1) -> Path:
        """As a receiver stores an instance, `age_s` seconds ago."""
        buffer = BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        self.sequence += 1
        path = self.spool.store(
            [buffer.getvalue()], association=association, sequence=self.sequence
        )
        then = time.time() - age_s
        os.utime(path, (then, then))
        return path

    def drain(self) -> None:
        while self.indexer.step():
            pass


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


@pytest.fixture(scope="module")
def slices() -> list[Dataset]:
    study = generate_study(2, "negative", size=64, n_slices=6)
    return list(to_datasets(study))


def test_a_study_whose_images_wait_in_the_journal_is_not_complete(
    journal: Journal, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was acknowledged two minutes ago, while the indexer was away; it works in batches."""
    monkeypatch.setattr(indexer_module, "BATCH", 2)
    for ds in slices:
        journal.receive(ds, age_s=2 * QUIET_S)
    study_uid = str(slices[0].StudyInstanceUID)
    assert journal.assembler.tick() == 0  # nothing is known yet of the journal
    assert journal.indexer.step() == 2
    assert journal.assembler.tick() == 0  # indexed images look silent; four still wait
    assert journal.indexer.step() == 2
    assert journal.assembler.tick() == 0
    assert journal.indexer.step() == 2
    assert journal.assembler.tick() == 1
    assert journal.studies.get(study_uid).run == 1
    assert len(journal.studies.instances(study_uid, run=1)) == len(slices)


def test_how_an_association_ended_is_durable_before_its_event_goes(
    journal: Journal, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, the event is found again."""
    uid = str(slices[0].StudyInstanceUID)
    for ds in slices:
        journal.receive(ds)
    for sequence, event in ((0, AssociationEvent.OPENED), (99, AssociationEvent.ABORTED)):
        count = 0 if event is AssociationEvent.OPENED else len(slices)
        record = EventRecord(
            event=event, calling_aet="CT1", host="h", at=datetime.now(UTC), instances={uid: count}
        )
        journal.spool.record_event(record, association=1, sequence=sequence)
    died: list[bool] = []

    def dying(_ends: object) -> None:
        # All that it brought is recorded before.
        died.append(len(journal.studies.instances(uid)) == len(slices))
        raise StoreUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(journal.studies, "note_ends", dying)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                journal.indexer.step()
    assert died == [True, True]
    (left,) = journal.spool.incoming_entries()
    assert left.is_event
    journal.drain()
    assert journal.spool.incoming_entries() == []
    (progress,) = journal.studies.receiving()
    assert [arrival.ended for arrival in progress.arrivals] == ["aborted"]


def test_silence_counts_up_to_the_last_empty_journal(
    journal: Journal, slices: list[Dataset]
) -> None:
    journal.receive(slices[0], age_s=QUIET_S - 5)
    journal.drain()
    # The indexer then hangs for ten seconds: the wall clock alone would call the study complete.
    assert journal.assembler._drained_s is not None
    journal.assembler.note_drained(time.monotonic() - 10)
    journal.ahead_s = 10
    assert journal.assembler.tick() == 0
    journal.drain()
    assert journal.assembler.tick() == 1


def test_a_study_that_grows_a_day_later_is_not_closed_slice_by_slice(
    journal: Journal, slices: list[Dataset]
) -> None:
    study_uid = str(slices[0].StudyInstanceUID)
    for ds in slices[:3]:
        journal.receive(ds, age_s=86400)
    journal.drain()
    assert journal.assembler.tick() == 1
    for number, ds in enumerate(slices[3:]):
        journal.receive(ds, age_s=5 - number)
        journal.drain()
        assert journal.assembler.tick() == 0  # its first image is a day old, its growth is not
    journal.ahead_s = QUIET_S + 10
    journal.drain()
    assert journal.assembler.tick() == 1
    assert journal.studies.get(study_uid).run == 1  # the first was never claimed: one run


def test_one_study_that_cannot_be_judged_does_not_hold_up_the_others(
    journal: Journal, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = generate_study(3, "negative", size=64, n_slices=6)
    for ds in (*slices, *to_datasets(other)):
        journal.receive(ds, age_s=2 * QUIET_S)
    journal.drain()
    poisoned = str(slices[0].StudyInstanceUID)
    original = Assembler._judge

    def judge(self: Assembler, study, *times):  # type: ignore[no-untyped-def]
        if study.study_uid == poisoned:
            raise KeyError("planted")
        return original(self, study, *times)

    monkeypatch.setattr(Assembler, "_judge", judge)
    assert journal.assembler.tick() == 1
    assert journal.studies.get(poisoned).state is StudyState.RECEIVING


def test_an_instance_that_breaks_the_reader_is_set_aside_and_the_rest_goes_on(
    journal: Journal, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = journal.receive(slices[0])
    journal.receive(slices[1])
    original = indexer_module.read_instance

    def read(path: Path):  # type: ignore[no-untyped-def]
        if path == bad:
            raise ZeroDivisionError
        return original(path)

    monkeypatch.setattr(indexer_module, "read_instance", read)
    journal.drain()
    (entry,) = journal.quarantine.list()
    kept = dcmread(journal.root / entry.path)
    assert kept.SOPInstanceUID == slices[0].SOPInstanceUID
    assert len(journal.studies.instances(str(slices[1].StudyInstanceUID))) == 1


def test_a_failing_disk_sets_nothing_aside(
    journal: Journal, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = journal.receive(slices[0])

    def read(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(indexer_module, "read_instance", read)
    with pytest.raises(OSError, match="Input/output"):
        journal.indexer.step()
    assert path.exists()
    assert journal.quarantine.list() == []
    assert journal.assembler.tick() == 0


def test_an_image_that_the_disk_has_spoilt_is_put_right_by_the_same_again(
    journal: Journal, slices: list[Dataset]
) -> None:
    """It was acknowledged twice; the good bytes are not thrown away beside the spoilt ones."""
    journal.receive(slices[0])
    journal.drain()
    (row,) = journal.studies.instances(str(slices[0].StudyInstanceUID))
    held = journal.root / row.path
    spoilt = bytearray(held.read_bytes())
    spoilt[-1] ^= 1
    held.write_bytes(spoilt)
    journal.receive(slices[0])
    journal.drain()
    assert journal.spool.digest(held) == row.sha256
    (entry,) = journal.quarantine.list()
    assert (journal.root / entry.path).read_bytes() == spoilt
    assert "damaged on the disk" in entry.reason
    # Once more, nothing happens.
    journal.receive(slices[0])
    journal.drain()
    assert len(journal.quarantine.list()) == 1


def test_a_conflict_that_is_sent_again_and_again_is_kept_once(
    journal: Journal, slices: list[Dataset]
) -> None:
    changed = dcmread(journal.receive(slices[0]))
    journal.drain()
    changed.PatientComments = "corrected at the console"
    stranger = dcmread(journal.receive(slices[1]))
    stranger.PatientID = "PID-OTHER"
    for _ in range(3):
        for ds in (changed, stranger, changed):
            journal.receive(ds)
        journal.drain()
    aside = [path for path in journal.spool.quarantine.rglob("*") if path.is_file()]
    entries = journal.quarantine.list()
    assert sorted(journal.root / entry.path for entry in entries) == sorted(aside)
    assert len(entries) == 2
    assert journal.spool.incoming_entries() == []
    assert len(journal.studies.instances(str(slices[0].StudyInstanceUID))) == 2
