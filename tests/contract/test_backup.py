"""A backup that is made while the node works, and the node that goes on from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pe_triage.domain import DeliveryState, StudyState
from pe_triage.errors import InputError
from pe_triage.node.backup import copy_files, settle
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
    copy_database(house.store.url, target)
    meanwhile()
    copy_files(house.store.data_dir, target)


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
    settled = settle(again.kept, again.spool, again.store.data_dir)
    assert (settled.incoming, settled.lost) == (2, 0)
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
    second = settle(again.kept, again.spool, again.store.data_dir)
    assert (second.incoming, second.lost) == (0, 0)


def test_what_was_removed_meanwhile_is_said(
    house: House, restored: Callable[[], House], tmp_path: Path
) -> None:
    house.answered()
    house.images("1.2.3")
    house.store.clock.forward(40 * 86_400)
    save(house, tmp_path / "backup", lambda: house.retention().tick())
    again = restored()
    settled = settle(again.kept, again.spool, again.store.data_dir)
    assert (settled.incoming, settled.lost, settled.studies) == (0, 2, 1)
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


def test_lost_images_end_a_study_visibly(house: House) -> None:
    """What was not analysed yet when the disk died is not analysed in part."""
    house.images(count=3)
    RetentionStore(house.store.engine, clock=house.store.clock).lost(STUDY, [f"{STUDY}.1"])
    assert house.doc()["images_removed_why"] == Why.LOST
    assert house.store.enqueue() is None
    assert house.doc()["state"] == "FAILED"
    assert house.store.outbox.due(PACS, 1) == []
    assert DeliveryState.PENDING not in {d["state"] for r in house.doc()["results"] for d in r}
