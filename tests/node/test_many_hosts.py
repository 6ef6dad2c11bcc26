"""Two hosts, one PostgreSQL, one shared store: real nodes and workers, killed as a whole."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pe_triage.store.engine import open_engine
from pe_triage.store.leases import COORDINATOR, Leases
from pe_triage.store.migrate import upgrade
from tests.node.conftest import QUICK, NewStudy, storescu
from tests.support.dcmtk import StoreScp
from tests.support.node import RunningNode, clean_environment, send, wait_for
from tests.support.peers import dcmtk_environment, require_program

pytestmark = pytest.mark.long

LEASE = {"lease_s": 15}
"""Longer than a busy machine keeps a heartbeat waiting."""


@pytest.fixture
def shared_database(shared_postgres: str) -> str:
    """URL of a database of its own, migrated."""
    base, _, query = shared_postgres.partition("?")
    name = "many_hosts"
    with psycopg.connect(shared_postgres, autocommit=True) as connection:
        for words in ("DROP DATABASE IF EXISTS {} WITH (FORCE)", "CREATE DATABASE {}"):
            connection.execute(sql.SQL(words).format(sql.Identifier(name)))
    url = base.rpartition("/")[0] + f"/{name}" + (f"?{query}" if query else "")
    upgrade(url)
    return url


Start = Callable[..., RunningNode]


@pytest.fixture
def start(
    shared_database: str, tiny_bundle: Path, store_scp: StoreScp, tmp_path: Path
) -> Iterator[Start]:
    """Start a host by its name, which has a data directory of its own."""
    running: list[RunningNode] = []

    def make(name: str, *, workers: int = 1) -> RunningNode:
        node = RunningNode(
            tmp_path / name,
            *("--model", tiny_bundle, "--send-to", store_scp.address, "--quiet-s", 5),
            *("--workers", workers, "--log-level", "DEBUG"),
            database=shared_database,
            settings={**QUICK, "shared_dir": str(tmp_path / "shared"), "threads": 1} | LEASE,
        )
        running.append(node)
        return node

    yield make
    for node in running:
        node.kill()


def leader(url: str) -> str | None:
    """Node id of the host that coordinates."""
    engine = open_engine(url)
    held = Leases(engine).held(COORDINATOR)
    engine.dispose()
    return held[COORDINATOR].partition("/")[0] if held else None


def node_id(node: RunningNode) -> str:
    return (node.data_dir / "node-id").read_text().strip()


def each_once(node: RunningNode, peer: StoreScp, uids: list[str]) -> None:
    """Every study has one run that was answered, and the archive each of its results once."""
    for uid in uids:
        doc = node.wait_ended(uid, timeout_s=120)
        assert (doc["state"], doc["run"]) == ("DONE", 1), doc
        sent = {r["sop_instance_uid"] for r in doc["results"]}
        assert sent == set(peer.stored(uid))


def test_the_other_goes_on_where_a_host_dies(
    start: Start, shared_database: str, store_scp: StoreScp, new_study: NewStudy, tmp_path: Path
) -> None:
    first = start("a")
    second = start("b")
    wait_for(lambda: leader(shared_database), 60, "a leader")
    assert leader(shared_database) == node_id(first)
    # What comes to the host that does not lead is indexed, analysed and delivered all the same.
    uids = []
    for node in (first, second):
        uid, files = new_study()
        storescu(node, files)
        uids.append(uid)
    each_once(second, store_scp, uids)

    # The leader dies while both receive; what it had not acknowledged goes to the other.
    studies = [new_study() for _ in range(4)]
    storescu(second, studies[0][1])
    storescu(first, studies[1][1])
    dying = threading.Timer(0.3, first.kill)
    dying.start()
    program = require_program("storescu", "dcmtk")
    for _uid, files in studies[2:]:
        cut = send(program, first, files, environment=dcmtk_environment())
        if cut.returncode != 0:
            storescu(second, files)
    dying.join()
    each_once(second, store_scp, [uid for uid, _ in studies])
    assert leader(shared_database) == node_id(second)

    # It comes back, does not lead, and takes images in.
    first.start()
    uid, files = new_study()
    storescu(first, files)
    each_once(second, store_scp, [uid])
    assert leader(shared_database) == node_id(second)
    assert first.stop() == second.stop() == 0
    assert leader(shared_database) is None
    incoming = tmp_path / "shared" / "spool" / "incoming"
    assert list(incoming.iterdir()) == []


@contextmanager
def worker(
    name: str, url: str, bundle: Path, peer: StoreScp, tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """``pe-triage worker`` on a host of its own: nothing but database and store are common."""
    config = tmp_path / f"{name}.toml"
    config.write_text(f'shared_dir = "{tmp_path / "shared"}"\nlease_s = 15\nthreads = 1\n')
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pe_triage", "worker", "--data-dir", str(tmp_path / name)),
            *("--database", url, "--config", str(config), "--model", str(bundle)),
            *("--send-to", peer.address),
        ],
        env=clean_environment(),
        stderr=(tmp_path / f"{name}.log").open("w"),
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def claims(tmp_path: Path, *names: str) -> Counter[str]:
    """How many jobs each worker has claimed."""
    return Counter({n: (tmp_path / f"{n}.log").read_text().count('"job.claimed"') for n in names})


def test_workers_on_other_hosts(
    start: Start,
    shared_database: str,
    tiny_bundle: Path,
    store_scp: StoreScp,
    new_study: NewStudy,
    tmp_path: Path,
) -> None:
    node = start("a", workers=0)
    arguments: Any = (shared_database, tiny_bundle, store_scp, tmp_path)
    with worker("w1", *arguments) as one, worker("w2", *arguments) as two:
        workers = {"w1": one, "w2": two}
        for name in workers:
            log = tmp_path / f"{name}.log"
            wait_for(lambda log=log: '"worker.ready"' in log.read_text(), 120, f"{name} ready")
        studies = [new_study() for _ in range(3)]
        for _uid, files in studies:
            storescu(node, files)
        each_once(node, store_scp, [uid for uid, _ in studies])
        before = claims(tmp_path, *workers)
        assert before.total() == len(studies)

        # One dies with a study in its hands: the other has it after the lease.
        uid, files = new_study()
        storescu(node, files)
        wait_for(lambda: claims(tmp_path, *workers).total() > before.total(), 60, "a claim")
        (busy,) = [n for n in workers if claims(tmp_path, n)[n] > before[n]]
        workers[busy].kill()
        each_once(node, store_scp, [uid])
        heir = next(n for n in workers if n != busy)
        assert claims(tmp_path, heir)[heir] in (before[heir], before[heir] + 1)
    assert node.stop() == 0


def test_a_worker_without_the_store_does_not_start(
    start: Start, shared_database: str, tiny_bundle: Path, store_scp: StoreScp, tmp_path: Path
) -> None:
    node = start("a", workers=0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments: Any = (shared_database, tiny_bundle, store_scp, elsewhere)
    with worker("w", *arguments) as lost:
        assert lost.wait(240) == 2
    assert "is it mounted" in (elsewhere / "w.log").read_text()
    assert node.stop() == 0
