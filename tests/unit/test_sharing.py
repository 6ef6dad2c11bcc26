"""Hosts on one database have one store, and say so before they take anything in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import Engine

from pe_triage import sharing
from pe_triage.config import Settings, load_settings
from pe_triage.errors import ConfigurationError, InputError
from pe_triage.node.store_clock import StoreClock
from pe_triage.receive.lives import receiver_name
from pe_triage.receive.spool import Spool
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import upgrade

POSTGRES = "postgresql://nobody@127.0.0.1:1/none"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Any database: which one is not the matter here."""
    url = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    upgrade(url)
    return open_engine(url)


def host(tmp_path: Path, name: str, store: str) -> Settings:
    return Settings(data_dir=tmp_path / name, database=POSTGRES, shared_dir=tmp_path / store)


def test_paths(tmp_path: Path) -> None:
    alone, shared = Settings(data_dir=tmp_path / "a"), host(tmp_path, "a", "s")
    assert (alone.store_dir, alone.spool_dir) == (tmp_path / "a", tmp_path / "a" / "spool")
    assert (shared.store_dir, shared.results_dir) == (tmp_path / "s", tmp_path / "s" / "results")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shared_dir": "/mnt/x"}, "PostgreSQL"),
        ({"shared_dir": "mnt", "database": POSTGRES}, "absolute"),
    ],
)
def test_what_cannot_be_shared(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_settings(values, environ={})


def test_the_first_host_makes_the_store_and_the_second_finds_it(
    tmp_path: Path, engine: Engine
) -> None:
    with pytest.raises(InputError, match="no node has used"):
        sharing.find_store(host(tmp_path, "w", "s"), engine)
    made = sharing.enter_store(host(tmp_path, "a", "s"), engine)
    assert made == sharing.enter_store(host(tmp_path, "b", "s"), engine)
    sharing.find_store(host(tmp_path, "w", "s"), engine)
    sharing.check_store(host(tmp_path, "a", "s"), made)
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["store-id"]


def test_a_host_without_the_mount_does_not_start(tmp_path: Path, engine: Engine) -> None:
    made = sharing.enter_store(host(tmp_path, "a", "s"), engine)
    (tmp_path / "empty").mkdir()
    for look in (
        lambda s: sharing.enter_store(s, engine),
        lambda s: sharing.find_store(s, engine),
        lambda s: sharing.check_store(s, made),
    ):
        with pytest.raises(InputError, match="is it mounted"):
            look(host(tmp_path, "b", "empty"))
    assert list((tmp_path / "empty").iterdir()) == []
    other = tmp_path / "other.sqlite3"
    upgrade(f"sqlite:///{other}")
    foreign = open_engine(f"sqlite:///{other}")
    sharing.enter_store(host(tmp_path, "c", "foreign"), foreign)
    with pytest.raises(InputError, match="another store"):
        sharing.enter_store(host(tmp_path, "c", "foreign"), engine)
    foreign.dispose()


def test_restored_files_belong_to_the_restored_database(tmp_path: Path, engine: Engine) -> None:
    made = sharing.enter_store(host(tmp_path, "a", "s"), engine)
    restored = host(tmp_path, "b", "restored")
    sharing.restore_store(restored, engine)
    assert sharing.enter_store(restored, engine) == made


def test_receivers_of_a_host_that_is_gone_do_not_live(tmp_path: Path) -> None:
    boots = {}
    for number, name in enumerate(("node-a", "node-b", None)):
        spool = Spool(tmp_path, boot_id=f"{number:013d}00000000")
        spool.lives.announce(receiver_name(name, "receiver-1"))
        boots[name] = spool.boot_id
    assert spool.lives.boots() == set(boots.values())
    assert spool.lives.boots(["node-a"]) == {boots["node-a"], boots[None]}
    spool.lives.forget(["node-a"], older_than_s=3600)
    assert len(spool.lives.boots()) == 3
    for path in (tmp_path / "receivers").iterdir():
        os.utime(path, (1e9, 1e9))
    spool.lives.forget(["node-a"], older_than_s=3600)
    assert spool.lives.boots() == {boots["node-a"], boots[None]}


def test_files_are_aged_by_the_clock_that_dated_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    (spool.incoming / "x.dcm.part").write_bytes(b"")
    # This host's clock is a day ahead of the file server's.
    monkeypatch.setattr("pe_triage.receive.lives.time.time", lambda: 4e9)
    assert spool.clean_temporary(older_than_s=3600) == 0
    assert spool.clean_temporary() == 1


def test_silence_is_told_by_the_store(fresh_logs: None) -> None:
    wall, store, elapsed = [1000.0], [940.0], [0.0]
    clock = StoreClock(lambda: store[0], wall_s=lambda: wall[0], monotonic=lambda: elapsed[0])
    assert clock().timestamp() == 940.0
    wall[0] += 10
    assert clock().timestamp() == 950.0
    # Asked again after a while.
    store[0], elapsed[0] = 1010.0, 31.0
    assert clock().timestamp() == 1010.0
