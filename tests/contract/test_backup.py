"""A backup that is made while the node works, and the node that goes on from it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pe_triage.commitment import CommitmentRequest, Reference
from pe_triage.domain import DeliveryState, StudyState
from pe_triage.errors import InputError, RetryableError
from pe_triage.node.backup import Settled, check_target, copy_files, settle
from pe_triage.receive.commitments import CommitmentJournal, Said
from pe_triage.retention import RetentionTable
from pe_triage.store.backup import copy_database, restore_database
from pe_triage.store.documents import show
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import check_schema
from pe_triage.store.retention import RetentionStore, Why
from tests.contract.test_migrations import empty_url  # noqa: F401 - a fixture
from tests.contract.test_retention import House
from tests.support.postgres import server_binaries
from tests.support.store import PACS, STUDY, StoreUnderTest

LATE = "1.2.826.0.7"


@pytest.fixture
def clients(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's own programs of the server's version on the PATH."""
    if backend == "postgresql" and (binaries := server_binaries()) is not None:
        monkeypatch.setenv("PATH", str(binaries), prepend=":")


@pytest.fixture
def house(store: StoreUnderTest) -> House:
    return House(store, RetentionTable())


@pytest.fixture
def restored(
    house: House,
    clients: None,
    tmp_path: Path,
    empty_url: str,  # noqa: F811
) -> Iterator[Callable[[], House]]:
    """Bring the backup back beside the node: another data directory, another database."""
    engines = []

    def bring_back() -> House:
        data_dir = tmp_path / "restored"
        copy_files(tmp_path / "backup", data_dir)
        restore_database(empty_url, tmp_path / "backup")
        engine = open_engine(empty_url)
        engines.append(engine)
        check_schema(engine)
        store = StoreUnderTest(engine=engine, url=empty_url, data_dir=data_dir)
        store.clock.now = house.store.clock.now
        return House(store, RetentionTable())

    yield bring_back
    for engine in engines:
        engine.dispose()


def save(house: House, target: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    target.mkdir(exist_ok=True)
    copy = copy_database(house.store.url, target)
    meanwhile()
    copy_files(house.store.data_dir, target, publish=copy.publish)


def settled(house: House) -> Settled:
    return settle(house.kept, house.store.quarantine, house.spool, house.store.data_dir)


def test_a_restored_node_goes_on(
    house: House, restored: Callable[[], House], tmp_path: Path
) -> None:
    """One answered and not sent, one queued, and what comes between the two copies."""
    house.answered(delivered=False)
    house.images("1.2.3")
    house.store.enqueue("1.2.3")
    incoming = house.spool.incoming / f"{'2' * 21}-00000001-000000001.dcm"
    incoming.write_bytes(b"acknowledged, not indexed")

    def meanwhile() -> None:
        house.images(LATE)
        house.deliver()

    save(house, tmp_path / "backup", meanwhile)
    again = restored()
    found = settled(again)
    assert (found.incoming, found.lost) == (2, 0)
    names = [entry.path.read_bytes() for entry in again.spool.incoming_entries()]
    assert sorted(names) == sorted(
        [f"{LATE}.1".encode(), f"{LATE}.2".encode(), incoming.read_bytes()]
    )
    # Sent after the copy of the database was made: sent again, under the same UIDs.
    due = again.store.outbox.due(PACS, 10)
    assert [item.sop_instance_uid for item in due] == [
        result["sop_instance_uid"] for result in house.doc()["results"]
    ]
    assert all(item.path.is_file() for item in due)
    again.deliver()
    assert again.doc()["delivered_at"] is not None
    # The queue goes on.
    assert again.store.claimed().study_uid == "1.2.3"
    # Done again, it changes nothing.
    second = settled(again)
    assert (second.incoming, second.lost) == (0, 0)


def test_what_was_removed_meanwhile_is_said(
    house: House, restored: Callable[[], House], tmp_path: Path
) -> None:
    house.answered()
    house.images("1.2.3")
    house.store.clock.forward(40 * 86_400)
    save(house, tmp_path / "backup", lambda: house.retention().tick())
    again = restored()
    found = settled(again)
    assert (found.incoming, found.lost, found.studies) == (0, 2, 1)
    again.agree()
    doc = show(again.store.engine, STUDY, again.store.data_dir)
    assert (doc["state"], doc["instances_held"], doc["images_removed_why"]) == ("DONE", 0, "LOST")
    assert again.store.state("1.2.3") is StudyState.RECEIVING


def test_a_second_backup_copies_what_is_new(house: House, clients: None, tmp_path: Path) -> None:
    house.answered()
    target = tmp_path / "backup"
    save(house, target)
    house.images(LATE)
    first = copy_files(house.store.data_dir, target)
    assert (first.copied, first.unchanged, first.pruned) == (2, 4, 0)
    house.store.clock.forward(40 * 86_400)
    house.retention().tick()
    assert copy_files(house.store.data_dir, target).pruned == 2
    # Half a file of an interrupted copying is no file.
    (target / "spool" / "studies" / "x.dcm.tmp").write_bytes(b"")
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    assert copy_files(target, tmp_path / "elsewhere").copied == 4


def test_never_over_a_database_that_is_there(house: House, clients: None, tmp_path: Path) -> None:
    save(house, tmp_path / "backup")
    with pytest.raises(InputError, match=r"there already|not empty"):
        restore_database(house.store.url, tmp_path / "backup")
    with pytest.raises(InputError, match="no copy of such a database"):
        restore_database(house.store.url, tmp_path)


def test_a_backup_that_is_cut_short_leaves_the_earlier_one_whole(
    house: House,
    restored: Callable[[], House],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its database does not name files that never came, and nothing that it names has gone."""
    house.answered()
    target = tmp_path / "backup"
    save(house, target)
    house.store.clock.forward(40 * 86_400)
    house.retention().tick()
    house.images(LATE)

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(RetryableError, match="No space left"):
        save(house, target)
    monkeypatch.undo()
    again = restored()
    assert (settled(again).lost, settled(again).incoming) == (0, 0)
    again.agree()
    doc = show(again.store.engine, STUDY, again.store.data_dir)
    assert (doc["state"], doc["instances_held"]) == ("DONE", 2)


def test_a_folder_that_cannot_be_read_is_not_one_that_is_empty(
    house: House, clients: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that dies must not take the backup's files with it."""
    paths = house.answered()
    target = tmp_path / "backup"
    save(house, target)
    real = os.scandir

    def dying(path: Any) -> Any:
        if Path(path) == paths[0].parent:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "scandir", dying)
    with pytest.raises(RetryableError, match="Input/output error"):
        save(house, target)
    monkeypatch.undo()
    assert (target / paths[0].relative_to(house.store.data_dir)).is_file()


def test_never_over_the_backup_of_another_node(tmp_path: Path) -> None:
    """Nor of a data directory whose file system is not mounted: all would be gone from it."""
    ours, theirs, target = tmp_path / "ours", tmp_path / "theirs", tmp_path / "backup"
    for folder, name in ((ours, "node-1"), (theirs, "node-2"), (target, "node-1")):
        folder.mkdir()
        (folder / "node-id").write_text(f"{name}\n")
    check_target(ours, target)
    check_target(ours, tmp_path / "new")
    with pytest.raises(InputError, match="backup of node-1"):
        check_target(theirs, target)
    (ours / "node-id").unlink()
    with pytest.raises(InputError, match="no node that ever ran"):
        check_target(ours, target)


def test_what_was_set_aside_between_the_copies_is_looked_at_again(
    house: House, restored: Callable[[], House], tmp_path: Path
) -> None:
    """Acknowledged, in the quarantine of the backup, and in no row of its database."""
    incoming = house.spool.incoming / f"{'2' * 21}-00000001-000000001.dcm"
    incoming.write_bytes(b"odd")
    known = house.spool.incoming / f"{'2' * 21}-00000001-000000002.dcm"
    known.write_bytes(b"odd, and known")

    def aside(path: Path) -> None:
        path = house.spool.set_aside(path, "unreadable")
        house.store.quarantine.add(path=path.relative_to(house.store.data_dir), reason="odd")

    aside(known)
    save(house, tmp_path / "backup", lambda: aside(incoming))
    again = restored()
    assert settled(again).incoming == 1
    (entry,) = again.spool.incoming_entries()
    assert entry.path.read_bytes() == b"odd"
    (row,) = again.store.quarantine.list()
    assert (again.store.data_dir / row.path).read_bytes() == b"odd, and known"


def test_results_that_are_not_there_are_said_to_be(
    house: House, restored: Callable[[], House], tmp_path: Path
) -> None:
    """A later run would otherwise fail for ever at the report that it replaces."""
    house.answered(delivered=False)
    save(house, tmp_path / "backup")
    shutil.rmtree(tmp_path / "backup" / "results")
    again = restored()
    assert settled(again).results == 2
    assert settled(again).results == 0
    again.store.enqueue(forced=True)
    assert {row.path for row in again.store.queue.earlier_results(again.store.claimed())} == {None}
    assert not any(item.path.exists() for item in again.store.outbox.due(PACS, 10))


def test_what_scanners_asked_and_nobody_read_yet_comes_back(
    house: House, restored: Callable[[], House], tmp_path: Path
) -> None:
    journal = CommitmentJournal(house.spool.root)
    reference = Reference(sop_class_uid="1.2.3", sop_instance_uid="1.2.3.4")
    request = CommitmentRequest(transaction_uid="2.25.1", references=(reference,))
    journal.write("CT1", request, at_ns=1)
    save(house, tmp_path / "backup")
    (said,) = CommitmentJournal(restored().spool.root).entries()
    assert isinstance(said, Said)
    assert said.message == request


def test_lost_images_end_a_study_visibly(house: House) -> None:
    """What was not analysed yet when the disk died is not analysed in part."""
    house.images(count=3)
    RetentionStore(house.store.engine, clock=house.store.clock).lost(STUDY, [f"{STUDY}.1"])
    assert house.doc()["images_removed_why"] == Why.LOST
    assert house.store.enqueue() is None
    assert house.doc()["state"] == "FAILED"
    assert house.store.outbox.due(PACS, 1) == []
    assert DeliveryState.PENDING not in {d["state"] for r in house.doc()["results"] for d in r}
