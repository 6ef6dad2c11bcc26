"""Destinations that are away, processes that are killed: nothing is lost, nothing doubled."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread
from pynetdicom import AE

from tests.node.conftest import QUICK, NewStudy, storescu
from tests.support.dcmtk import QrScp, StoreScp
from tests.support.node import RunningNode, wait_for
from tests.support.orthanc import Orthanc


def result_uids(doc: dict[str, Any]) -> set[str]:
    return {r["sop_instance_uid"] for r in doc["results"]}


@contextmanager
def open_association(node: RunningNode, files: list[Path], calling_aet: str) -> Iterator[Any]:
    """An association that the test drives instance by instance."""
    ds = dcmread(files[0], stop_before_pixels=True)
    ae = AE(ae_title=calling_aet)
    ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", node.port, ae_title="PETRIAGE")
    assert association.is_established
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def deliveries(doc: dict[str, Any], destination: str | None = None) -> list[dict[str, Any]]:
    return [
        d
        for r in doc["results"]
        for d in r["deliveries"]
        if destination is None or d["destination"] == destination
    ]


def assert_delivered(doc: dict[str, Any]) -> None:
    assert deliveries(doc)
    assert {d["state"] for d in deliveries(doc)} == {"SENT"}
    assert doc["delivered_at"] is not None
    assert doc["latency_s"] > 0


def test_pacs_down_when_the_result_is_ready(
    new_study: NewStudy,
    tiny_bundle: Path,
    orthanc: Orthanc,
    store_scp: StoreScp,
    tmp_path: Path,
) -> None:
    """Everything arrives once, by itself, when the PACS is back; others do not wait for it."""
    study_uid, files = new_study()
    flags = ("--model", tiny_bundle, "--quiet-s", 20)
    both = ("--send-to", orthanc.address, "--send-to", store_scp.address)
    with RunningNode(tmp_path / "node", *flags, *both, settings=QUICK) as node:
        orthanc.stop()
        storescu(node, files)
        doc = node.wait_ended(study_uid, delivered=False)

        def waiting() -> dict[str, Any] | None:
            now = node.show(study_uid)
            assert now is not None
            tried = all(d["attempts"] for d in deliveries(now, orthanc.address))
            there = {d["state"] for d in deliveries(now, store_scp.address)} == {"SENT"}
            return now if tried and there else None

        doc = wait_for(waiting, 30, "one attempt to the PACS, and delivery to the other")
        assert doc["state"] == "DONE"
        assert {d["state"] for d in deliveries(doc, orthanc.address)} == {"PENDING"}
        assert all(d["last_error"] for d in deliveries(doc, orthanc.address))
        assert (doc["delivered_at"], doc["latency_s"]) == (None, None)

        orthanc.start()
        doc = node.wait_ended(study_uid, timeout_s=60)
        assert_delivered(doc)
        assert all(d["attempts"] >= 2 for d in deliveries(doc, orthanc.address))
        assert orthanc.instances(study_uid).keys() == result_uids(doc)
        assert orthanc.get("/statistics")["CountInstances"] == len(doc["results"])
        assert all(n == 1 for n in store_scp.stored(study_uid).values())
        assert len(node.events("delivery.ended")) == 2 * len(doc["results"])


def test_kill_9_between_the_last_answer_and_the_result(
    new_study: NewStudy, tiny_bundle: Path, store_scp: StoreScp, qr_scp: QrScp, tmp_path: Path
) -> None:
    """Killed with everything still in the journal, then while analysing: one run, sent once."""
    flags = (
        *("--model", tiny_bundle, "--quiet-s", 3, "--log-level", "DEBUG"),
        *("--send-to", store_scp.address, "--send-to", qr_scp.address),
    )
    with RunningNode(tmp_path / "node", *flags, settings=QUICK) as node:
        first, files = new_study()
        # Held still, so that the kill surely comes before anything was indexed.
        stop_between_transactions(node, "coordinator")
        storescu(node, files)
        assert len(node.incoming()) == len(files)
        node.kill()
        assert node.show(first) is None

        node.start()
        wait_for(lambda: node.events("job.claimed"), 60, "the first study is claimed")
        node.kill()
        assert node.show(first)["state"] == "RUNNING"  # type: ignore[index]

        node.start()
        second, more = new_study()
        storescu(node, more)
        for study_uid in (first, second):
            doc = node.wait_ended(study_uid)
            assert (doc["state"], doc["run"], doc["instances"]) == ("DONE", 1, len(files))
            assert_delivered(doc)
            assert store_scp.stored(study_uid) == dict.fromkeys(result_uids(doc), 1)
            assert qr_scp.found(study_uid) == result_uids(doc)
        assert not node.incoming()
        finished = [e["study_uid"] for e in node.events("job.finished")]
        assert sorted(finished) == sorted([first, second])
        assert node.stop() == 0


def stop_between_transactions(node: RunningNode, name: str) -> None:
    """SIGSTOP a process while it does not hold SQLite's lock: the others are to go on."""
    pid = node.pid_of(name)
    for _ in range(200):
        os.kill(pid, signal.SIGSTOP)
        connection = sqlite3.connect(
            node.data_dir / "pe-triage.sqlite3", timeout=3, isolation_level=None
        )
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)
        else:
            return
        finally:
            connection.close()
    pytest.fail(f"{name} always holds the lock")


def test_kill_9_between_the_result_and_its_delivery(
    new_study: NewStudy, tiny_bundle: Path, store_scp: StoreScp, tmp_path: Path
) -> None:
    """What was persisted is what is sent; the study is not analysed again."""
    flags = ("--model", tiny_bundle, "--quiet-s", 3, "--send-to", store_scp.address)
    with RunningNode(tmp_path / "node", *flags, "--log-level", "DEBUG", settings=QUICK) as node:
        study_uid, files = new_study()
        storescu(node, files)
        wait_for(lambda: node.events("job.claimed"), 60, "claimed")
        stop_between_transactions(node, "coordinator")
        wait_for(lambda: node.events("job.finished"), 60, "finished")
        before = node.show(study_uid)
        node.kill()
        assert before is not None
        assert {d["state"] for d in deliveries(before)} == {"PENDING"}
        node.start()
        doc = node.wait_ended(study_uid)
        assert_delivered(doc)
        assert doc["run"] == 1
        assert result_uids(doc) == result_uids(before)
        assert store_scp.stored(study_uid) == dict.fromkeys(result_uids(doc), 1)
        assert len(node.events("job.finished")) == 1


@pytest.fixture(scope="module")
def sturdy_node(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, store_scp: StoreScp
) -> Any:
    """A node that several tests rob of its processes; long quiet time, so that haste shows."""
    flags = ("--model", tiny_bundle, "--send-to", store_scp.address, "--log-level", "DEBUG")
    data_dir = tmp_path_factory.mktemp("sturdy") / "data"
    with RunningNode(data_dir, *flags, "--quiet-s", 5, settings=QUICK) as node:
        yield node


def test_kill_9_of_a_worker(
    new_study: NewStudy, sturdy_node: RunningNode, store_scp: StoreScp
) -> None:
    node = sturdy_node
    study_uid, files = new_study()
    storescu(node, files)
    wait_for(lambda: study_uid in str(node.events("job.claimed")), 60, "claimed")
    node.kill_one("worker-1")
    doc = node.wait_ended(study_uid)
    assert (doc["state"], doc["run"]) == ("DONE", 1)
    assert_delivered(doc)
    assert store_scp.stored(study_uid) == dict.fromkeys(result_uids(doc), 1)
    assert [e["process"] for e in node.events("process.died")].count("worker-1") == 1
    attempts = [e["attempt"] for e in node.events("job.claimed") if e["study_uid"] == study_uid]
    assert attempts == [1, 2]


def test_kill_9_of_the_coordinator(
    new_study: NewStudy, sturdy_node: RunningNode, store_scp: StoreScp
) -> None:
    node = sturdy_node
    study_uid, files = new_study()
    node.kill_one("coordinator")
    storescu(node, files)
    doc = node.wait_ended(study_uid)
    assert (doc["state"], doc["run"], doc["instances"]) == ("DONE", 1, len(files))
    assert store_scp.stored(study_uid) == dict.fromkeys(result_uids(doc), 1)


def test_kill_9_of_a_receiver(
    new_study: NewStudy, sturdy_node: RunningNode, store_scp: StoreScp, tmp_path: Path
) -> None:
    """What was acknowledged is held; the sender repeats the rest; later studies do not wait."""
    node = sturdy_node
    study_uid, files = new_study()
    half = len(files) // 2
    with open_association(node, files, "SCANNER9") as association:
        for path in files[:half]:
            assert association.send_c_store(path).Status == 0x0000
        node.kill_one("receiver-1")
        wait_for(lambda: not association.is_established, 20, "the association is cut")

    def held() -> bool:
        doc = node.show(study_uid)
        return doc is not None and doc["instances"] == half

    wait_for(held, 20, "every acknowledged instance is held")
    storescu(node, files, "-aet", "SCANNER9")
    doc = node.wait_ended(study_uid)
    assert (doc["state"], doc["run"], doc["instances"]) == ("DONE", 1, len(files))
    assert store_scp.stored(study_uid) == dict.fromkeys(result_uids(doc), 1)
    assert "receiver-1" in [e["process"] for e in node.events("process.died")]

    # The association that died with its receiver must not count as open for ever.
    later, more = new_study()
    storescu(node, more, "-aet", "SCANNER9")
    node.wait_ended(later)
    signs = [e["sign"] for e in node.events("study.complete") if e["study_uid"] == later]
    assert signs == ["released_and_contiguous"]


def test_kill_9_of_the_supervisor_leaves_no_orphan(
    new_study: NewStudy, sturdy_node: RunningNode, store_scp: StoreScp
) -> None:
    node = sturdy_node
    assert node.process is not None
    study_uid, files = new_study()
    storescu(node, files)
    children = psutil.Process(node.process.pid).children(recursive=True)
    assert len(children) >= 3
    node.process.kill()
    node.process.wait(20)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    node.start()
    doc = node.wait_ended(study_uid)
    assert (doc["state"], doc["run"]) == ("DONE", 1)
    assert store_scp.stored(study_uid) == dict.fromkeys(result_uids(doc), 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_drain_in_the_middle_of_an_association_and_a_job(
    number: signal.Signals, new_study: NewStudy, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A job that runs is finished, an association that is open is served, then exit code 0."""
    flags = ("--model", tiny_bundle, "--quiet-s", 3, "--log-level", "DEBUG")
    with RunningNode(tmp_path / "node", *flags, settings=QUICK) as node:
        study_uid, files = new_study()
        other, more = new_study()
        storescu(node, files)
        with open_association(node, more, "SCANNER2") as association:
            assert association.send_c_store(more[0]).Status == 0x0000
            wait_for(lambda: node.events("job.claimed"), 60, "claimed")
            assert node.process is not None
            children = psutil.Process(node.process.pid).children(recursive=True)
            # As a terminal does: to the whole foreground process group.
            os.killpg(node.process.pid, number)
            wait_for(lambda: refuses(node.port), 20, "no new association is taken")
            for path in more[1:]:
                assert association.send_c_store(path).Status == 0x0000
        assert node.process.wait(60) == 0
        assert not psutil.wait_procs(children, timeout=5)[1]
        first, second = node.show(study_uid), node.show(other)
        assert first is not None
        assert second is not None
        assert first["state"] == "DONE"
        assert second["instances"] == len(more)
        assert not node.events("process.died")
        assert not node.events("process.killed")
        assert node.events("node.stopped")


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
