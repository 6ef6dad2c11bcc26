"""Storage commitment over real associations, with Orthanc both ways and peers that misbehave."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from sqlalchemy import select

from pe_triage.commitment import (
    CLASS_CONFLICT,
    NO_SUCH_INSTANCE,
    CommitmentReport,
    CommitmentRequest,
    Reference,
)
from pe_triage.deliver.commitment import COMMITMENT_RULES, CommitmentPeer
from pe_triage.deliver.requestor import RequestorOptions
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Destination, Outcome, ResultKind, StudyState
from pe_triage.routing import Route
from pe_triage.store import schema
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue, ResultRow
from pe_triage.store.studies import StudyStore
from tests.support.committing import Scanner, archive, report_on, report_soon
from tests.support.finding import tiny_ct
from tests.support.node import RunningNode, wait_for
from tests.support.orthanc import Orthanc
from tests.support.peers import dcmtk_environment, require_program
from tests.support.store import CT

STUDY = "2.25.31337001"
OURS = Reference(sop_class_uid=CT, sop_instance_uid="1.2.3.4")
REQUEST = CommitmentRequest(transaction_uid="2.25.1", references=(OURS,))
REPORT = CommitmentReport(transaction_uid="2.25.1", committed=(OURS,))
WITHOUT_TRANSACTION = Dataset()
WITHOUT_TRANSACTION.StudyInstanceUID = "1.2"
QUICK = RequestorOptions(connect_timeout_s=5.0, acse_timeout_s=5.0, dimse_timeout_s=20.0)


def references(files: list[Path]) -> list[Reference]:
    return [Reference(sop_class_uid=CT, sop_instance_uid=path.stem) for path in files]


def store_to(aet: str, port: int, files: list[Path]) -> None:
    done = subprocess.run(
        [
            *(require_program("storescu", "dcmtk"), "-aet", "CT1", "-aec", aet),
            *("127.0.0.1", str(port), *map(str, files)),
        ],
        env=dcmtk_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc") / "home") as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def scanner() -> Iterator[Scanner]:
    peer = Scanner()
    yield peer
    peer.stop()


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc, scanner: Scanner
) -> Iterator[RunningNode]:
    """A node without a worker: what it analyses is written by hand."""
    home = tmp_path_factory.mktemp("node")
    config = home / "node.toml"
    config.write_text(
        f'workers = 0\nmin_free_mb = 1\nquiet_s = 3600\nsend_to = ["{pacs.address}"]\n'
        f'[commitment]\nof = ["{pacs.address}"]\ndelay_s = 0.2\nask_again_s = 3600\n'
        f'requesters = ["{scanner.address}", "{pacs.address}"]\narchive = "{pacs.address}"\n'
        "settle_s = 4\ncheck_every_s = 0.5\n"
    )
    with RunningNode(home / "data", "--config", config) as running:
        pacs.know("PETRIAGE", running.port)
        yield running


def deliver_a_result(node: RunningNode, folder: Path, study_uid: str) -> Path:
    """End a run by hand with one object as its result; its file."""
    (image,) = tiny_ct(folder, study_uid, 1, PatientID="COMMIT", PatientName="COMMIT")
    store_to("PETRIAGE", node.port, [image])
    engine = open_engine(node.database_url)
    studies, queue = StudyStore(engine, node.data_dir), JobQueue(engine)
    wait_for(lambda: node.show(study_uid), 20, "indexed")
    queue.enqueue(study_uid, studies.manifest(study_uid).digest)
    job = queue.claim("test/1/", 60.0)
    assert job is not None
    assert job.study_uid == study_uid
    results = node.data_dir / "results"
    results.mkdir(exist_ok=True)
    (result,) = tiny_ct(results, study_uid, 1, series=9, PatientID="COMMIT", PatientName="COMMIT")
    queue.finish(
        job,
        state=StudyState.DONE,
        outcome=Outcome.NEGATIVE,
        reason=None,
        priority=None,
        document={"slices": []},
        model_sha256="ab" * 32,
        results=[
            ResultRow(
                kind=ResultKind.SUMMARY,
                sop_class_uid=CT,
                sop_instance_uid=result.stem,
                sha256=None,
                path=result.relative_to(node.data_dir),
            )
        ],
        routes=[Route(name=json.loads(json.dumps(name))) for name in destinations(node)],
    )
    engine.dispose()
    return result


def destinations(node: RunningNode) -> list[str]:
    config = Path(node.arguments[node.arguments.index("--config") + 1]).read_text()
    line = next(line for line in config.splitlines() if line.startswith("send_to"))
    return list(json.loads(line.partition("=")[2]))


def delivery(node: RunningNode, study_uid: str) -> dict[str, Any]:
    doc = node.show(study_uid)
    assert doc is not None
    return dict(doc["results"][0]["deliveries"][0])


def test_a_real_archive_commits_to_a_result_and_to_one_it_had_lost(
    node: RunningNode, pacs: Orthanc, tmp_path: Path
) -> None:
    study = f"{STUDY}.1"
    result = deliver_a_result(node, tmp_path, study)
    wait_for(lambda: delivery(node, study)["state"] == "COMMITTED", 40, "committed")
    assert result.stem in pacs.instances(study)
    wait_for(lambda: node.events("commitment.asked"), 20, "said so")
    # A report on a transaction of nobody's is acknowledged, logged, and changes nothing.
    unknown = CommitmentReport(transaction_uid="2.25.404", committed=(OURS,))
    assert Scanner().report_to(node.port, unknown, aet="ORTHANC") == 0x0000
    wait_for(lambda: node.events("commitment.unknown_transaction"), 20, "said so")


def test_what_the_archive_lacks_is_sent_again(
    node: RunningNode, pacs: Orthanc, tmp_path: Path
) -> None:
    study = f"{STUDY}.2"
    result = deliver_a_result(node, tmp_path, study)
    wait_for(lambda: delivery(node, study)["state"] == "COMMITTED", 40, "committed")
    # As if it had been lost there before it was asked.
    engine = open_engine(node.database_url)
    with engine.begin() as connection:
        table = schema.deliveries
        (row,) = connection.execute(
            select(table.c.delivery_id)
            .join(schema.results, table.c.result_id == schema.results.c.result_id)
            .where(schema.results.c.sop_instance_uid == result.stem)
        ).all()
        pacs_id = pacs.instances(study)[result.stem]["id"]
        pacs.send_json("POST", "/tools/bulk-delete", {"Resources": [pacs_id]})
        connection.execute(
            table.update()
            .where(table.c.delivery_id == row.delivery_id)
            .values(state="SENT", commit_since=1e9, commit_next_at=1.0)
        )
        connection.execute(
            table.update().where(table.c.delivery_id == row.delivery_id).values(commit_since=4e9)
        )
    engine.dispose()
    wait_for(lambda: result.stem in pacs.instances(study), 40, "sent again")
    wait_for(lambda: delivery(node, study)["state"] == "COMMITTED", 40, "committed")
    assert any(e["redelivered"] == 1 for e in node.events("commitment.settled"))


def test_scanners_hear_only_what_the_archive_holds(
    node: RunningNode, pacs: Orthanc, scanner: Scanner, tmp_path: Path
) -> None:
    study = f"{STUDY}.3"
    files = tiny_ct(tmp_path, study, 3, PatientID="SCAN", PatientName="SCAN")
    store_to("PETRIAGE", node.port, files)
    store_to("ORTHANC", pacs.dicom_port, files[:1])
    asked = references(files)
    wrong = Reference(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4", sop_instance_uid=asked[0].sop_instance_uid
    )
    assert scanner.ask(node.port, "2.25.11", asked) == 0x0000
    # Both answers find nobody at first, and the node is killed while they wait.
    assert scanner.ask(node.port, "2.25.12", [wrong]) == 0x0000
    wait_for(
        lambda: (
            {e["transaction_uid"] for e in node.events("commitment.answer_retry")}
            & {"2.25.11", "2.25.12"}
        ),
        40,
        "tried",
    )
    node.kill()
    node.start()
    pacs.know("PETRIAGE", node.port)
    scanner.listen()
    wait_for(lambda: len(scanner.reports) >= 2, 60, "reported after the restart")
    by_uid = {report.transaction_uid: report for report in scanner.reports}
    first = by_uid["2.25.11"]
    assert first.committed == (asked[0],)
    assert {(r.sop_instance_uid, why) for r, why in first.failed} == {
        (r.sop_instance_uid, NO_SUCH_INSTANCE) for r in asked[1:]
    }
    assert [why for _, why in by_uid["2.25.12"].failed] == [CLASS_CONFLICT]
    # The rest reaches the archive while the answer waits for it.
    assert scanner.ask(node.port, "2.25.13", asked) == 0x0000
    store_to("ORTHANC", pacs.dicom_port, files[1:])
    wait_for(lambda: any(r.transaction_uid == "2.25.13" for r in scanner.reports), 60, "reported")
    last = next(r for r in scanner.reports if r.transaction_uid == "2.25.13")
    assert (set(last.committed), last.failed) == (set(asked), ())
    # Orthanc as the one who asks.
    answer = pacs.send_json(
        "POST",
        "/modalities/PETRIAGE/storage-commitment",
        {"DicomInstances": [[CT, files[0].stem]]},
    )
    found = wait_for(
        lambda: (doc := pacs.get(answer["Path"]))["Status"] != "Pending" and doc, 60, "Orthanc"
    )
    assert found["Status"] == "Success"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"action": 2}, 0x0123),
        ({"instance": "1.2.3"}, 0x0112),
        ({"ds": WITHOUT_TRANSACTION}, 0x0115),
        ({"aet": "STRANGER"}, None),
    ],
)
def test_requests_that_are_refused(
    node: RunningNode, scanner: Scanner, change: dict[str, Any], status: int | None
) -> None:
    assert scanner.ask(node.port, "2.25.21", [OURS], **change) == status


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"event_type": 3}, 0x0113),
        ({"instance": "1.2.3"}, 0x0112),
        ({"ds": WITHOUT_TRANSACTION}, 0x0115),
        ({"aet": "CT1"}, 0x0124),
    ],
)
def test_reports_that_are_refused(node: RunningNode, change: dict[str, Any], status: int) -> None:
    assert Scanner().report_to(node.port, REPORT, **{"aet": "ORTHANC", **change}) == status


# ------------------------------------------------------------------ archives that misbehave


def talk(peer: Destination, linger_s: float = 2.0) -> tuple[Any, list[CommitmentReport]]:
    heard: list[CommitmentReport] = []

    def take(report: CommitmentReport) -> bool:
        heard.append(report)
        return True

    said = CommitmentPeer(peer, "PETRIAGE", options=QUICK, linger_s=linger_s).request(REQUEST, take)
    return said, heard


def test_a_report_on_our_own_association() -> None:
    def act(_request: CommitmentRequest, event: Any) -> int:
        report_soon(event, REPORT)
        return 0x0000

    with archive(act) as peer:
        said, heard = talk(peer)
    assert said.accepted
    assert heard == [REPORT]


def test_a_report_that_overtakes_the_answer() -> None:
    def act(_request: CommitmentRequest, event: Any) -> int:
        report_on(event, REPORT)
        return 0x0000

    with archive(act) as peer:
        said, heard = talk(peer)
    assert said.accepted
    assert heard == [REPORT]


@pytest.mark.parametrize("rule", COMMITMENT_RULES, ids=lambda r: f"{r.first:04X}")
def test_each_status_of_a_request(rule: Any) -> None:
    with archive(lambda _request, _event: int(rule.first)) as peer:
        said, heard = talk(peer, linger_s=0.0)
    assert (said.verdict, heard) == (rule.verdict, [])
    assert (said.error is None) is said.accepted


def test_an_archive_that_aborts_or_is_silent_or_away() -> None:
    def abort(_request: CommitmentRequest, event: Any) -> int:
        event.assoc.abort()
        return 0x0000

    with archive(abort) as peer:
        said, _ = talk(peer)
    assert said.verdict is Verdict.RETRY
    gone, _ = talk(peer)
    assert (gone.verdict, gone.unreachable) == (Verdict.RETRY, True)


def test_a_scanner_that_knows_no_roles_is_told_all_the_same(scanner: Scanner) -> None:
    peer = Scanner("CT2")
    peer.listen(roles=False)
    try:
        address = Destination(aet="CT2", host="127.0.0.1", port=peer.port)
        said = CommitmentPeer(address, "PETRIAGE", options=QUICK).report(REPORT)
        assert said.accepted
        assert peer.reports == [REPORT]
        peer.status = 0x0110
        refused = CommitmentPeer(address, "PETRIAGE", options=QUICK).report(REPORT)
        assert refused.verdict is Verdict.RETRY
    finally:
        peer.stop()
