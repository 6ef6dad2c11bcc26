"""Every road through the real outbox: its peer away, then each message once, most urgent first."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from pe_triage.destinations import AnyDestination
from pe_triage.domain import Outcome, Priority, ResultKind, StudyState
from pe_triage.node.deliverer import Deliverer
from pe_triage.node.roads import road_to, unprotected
from pe_triage.store.documents import show
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import ResultRow
from pe_triage.store.migrate import upgrade
from tests.support.roads import HttpPeer, MllpListener, Request, UpsServer, free_port
from tests.support.store import PATIENT, StoreUnderTest, result_rows

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreUnderTest]:
    url = f"sqlite:///{tmp_path / 'node.sqlite3'}"
    upgrade(url)
    engine = open_engine(url)
    yield StoreUnderTest(engine, url, tmp_path)
    engine.dispose()


def utc_now() -> datetime:
    return datetime.now(UTC)


def table(**values: Any) -> Any:
    return TypeAdapter(AnyDestination).validate_python({"timeout_s": 2.0, **values})


# ------------------------------------------------------------------ one way to say what came


@dataclass
class Road:
    """A road, how its peer is started on a port, and what the peer says that it got."""

    kind: ResultKind
    table: Callable[[int], Any]
    peer: Callable[[int], AbstractContextManager[Callable[[], list[str]]]]
    body: Callable[[str], bytes]


def hl7_body(name: str) -> bytes:
    return f"MSH|^~\\&|PE||RIS||2026||ORU^R01|{name}|P|2.5.1||||||UNICODE UTF-8\r".encode()


@contextmanager
def hl7_peer(port: int) -> Iterator[Callable[[], list[str]]]:
    with MllpListener(port) as ris:
        yield lambda: [str(m.segment("MSH")[10]) for m in ris.messages]


@contextmanager
def http_peer(port: int) -> Iterator[Callable[[], list[str]]]:
    with HttpPeer(port=port) as peer:
        yield lambda: [r.json["id"] for r in peer.requests]


@contextmanager
def ups_peer(port: int) -> Iterator[Callable[[], list[str]]]:
    server = UpsServer()
    with HttpPeer(server, port=port):
        yield lambda: server.order


def ups_body(name: str) -> bytes:
    def item(vr: str, *values: str) -> dict[str, Any]:
        return {"vr": vr, "Value": list(values)} if values else {"vr": vr}

    content = {
        "00741200": item("CS", "HIGH"),
        "00741204": item("LO", "PE SUSPECTED"),
        "00404041": item("CS", "READY"),
        "00404005": item("DT", "20260301"),
        "00741000": item("CS", "SCHEDULED"),
        "00741202": item("LO", "PE"),
        **{tag: item("SQ") for tag in ("00741216", "00741002")},
        "00081195": item("UI"),
    }
    step = {"name": "create", "method": "POST", "path": "/workitems", "query": name}
    return json.dumps({"workitem_uid": name, "steps": [step | {"content": [content]}]}).encode()


def json_body(name: str) -> bytes:
    return json.dumps({"id": name}).encode()


ROADS = {
    "hl7": Road(
        kind=ResultKind.HL7,
        table=lambda port: table(type="hl7", name="peer", address=f"127.0.0.1:{port}"),
        peer=hl7_peer,
        body=hl7_body,
    ),
    "fhir": Road(
        kind=ResultKind.FHIR,
        table=lambda port: table(type="fhir", name="peer", url=f"http://127.0.0.1:{port}/fhir"),
        peer=http_peer,
        body=json_body,
    ),
    "webhook": Road(
        kind=ResultKind.WEBHOOK,
        table=lambda port: table(
            type="webhook", name="peer", url=f"http://127.0.0.1:{port}/", secret_env="HOOK_SECRET"
        ),
        peer=http_peer,
        body=json_body,
    ),
    "ups": Road(
        kind=ResultKind.UPS,
        table=lambda port: table(type="ups", name="peer", url=f"http://127.0.0.1:{port}"),
        peer=ups_peer,
        body=ups_body,
    ),
}


@pytest.fixture(params=sorted(ROADS))
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Road:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    return ROADS[request.param]


def message_row(
    store: StoreUnderTest, kind: ResultKind, name: str, body: bytes, addressee: str = "peer"
) -> ResultRow:
    path = Path(f"message-{name}")
    (store.data_dir / path).write_bytes(body)
    return ResultRow(
        kind=kind,
        sop_class_uid=None,
        sop_instance_uid=None,
        sha256=hashlib.sha256(body).hexdigest(),
        path=path,
        addressee=addressee,
    )


def finish_with_message(
    store: StoreUnderTest,
    road: Road,
    destination: Any,
    name: str,
    priority: Priority | None,
    study_uid: str | None = None,
) -> None:
    study_uid = study_uid or f"1.2.826.0.1.{name}"
    store.queued(study_uid, forced=True)
    store.finish(
        store.claimed(),
        outcome=Outcome.POSITIVE if priority else Outcome.NEGATIVE,
        priority=priority,
        results=[message_row(store, road.kind, name, road.body(name))],
        destinations=[destination.route],
    )


def deliverer(store: StoreUnderTest, destination: Any) -> Deliverer:
    return Deliverer(
        destination.name,
        outbox=store.outbox,
        studies=store.studies,
        send=road_to(destination, aet="PETRIAGE", clock=utc_now),
        jitter=lambda: 0.5,
        poll_s=0.02,
    )


@contextmanager
def running(one: Deliverer) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=one.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def until(what: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


ARRIVALS = [("5", None), ("3", Priority.LOW), ("1", Priority.HIGH), ("2", Priority.MEDIUM)]


def test_a_peer_that_was_away_gets_each_message_once_most_urgent_first(
    store: StoreUnderTest, road: Road
) -> None:
    port = free_port()
    destination = road.table(port)
    with running(deliverer(store, destination)):
        # Each is tried while nobody is there, so each waits for a time of its own; the most
        # urgent has waited longest and comes due last.
        for name, priority in ARRIVALS:
            finish_with_message(store, road, destination, name, priority)
            until(lambda: not store.outbox.due("peer", 10))
        assert store.outbox.waiting() == {"peer": 4}
        finish_with_message(store, road, destination, "4", Priority.LOW)
        with road.peer(port) as received:
            until(lambda: not store.outbox.waiting())
            assert received() == ["1", "2", "3", "4", "5"]
            time.sleep(0.1)
            assert len(received()) == 5
    document = show(store.engine, "1.2.826.0.1.1", store.data_dir)
    (result,) = document["results"]
    (sent,) = result["deliveries"]
    assert (result["kind"], result["sop_instance_uid"]) == (road.kind, None)
    assert Path(result["path"]).read_bytes() == road.body("1")
    assert (sent["destination"], sent["state"]) == ("peer", "SENT")
    assert sent["attempts"] >= 2
    assert document["delivered_at"] is not None


def test_while_it_is_away_show_says_why(store: StoreUnderTest, road: Road) -> None:
    destination = road.table(free_port())
    finish_with_message(store, road, destination, "1", Priority.HIGH)
    assert deliverer(store, destination).step()
    document = show(store.engine, "1.2.826.0.1.1", store.data_dir)
    (sent,) = document["results"][0]["deliveries"]
    assert (sent["state"], sent["attempts"]) == ("PENDING", 1)
    assert "connect" in sent["last_error"]
    assert document["delivered_at"] is None


def test_a_refusal_parks_one_message_and_the_rest_goes(
    store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the peer says of the patient is nowhere."""
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    road = ROADS["webhook"]

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        refused = request.json["id"] == "1"
        return (422 if refused else 200), {}, PATIENT.patient_id.encode()

    with HttpPeer(answer) as peer:
        destination = road.table(peer.port)
        finish_with_message(store, road, destination, "1", Priority.HIGH)
        finish_with_message(store, road, destination, "2", Priority.LOW)
        assert deliverer(store, destination).step()
    states = {}
    for name in ("1", "2"):
        document = show(store.engine, f"1.2.826.0.1.{name}", store.data_dir)
        (states[name],) = document["results"][0]["deliveries"]
        assert PATIENT.patient_id not in json.dumps(document)
    assert states["1"]["state"] == "PARKED"
    assert states["1"]["last_error"] == "peer: HTTP 422: refused"
    assert states["2"]["state"] == "SENT"


def test_retry_after_is_honoured(store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    road = ROADS["webhook"]
    with HttpPeer(lambda _r: (429, {"Retry-After": "120"}, b"")) as peer:
        destination = road.table(peer.port)
        finish_with_message(store, road, destination, "1", Priority.HIGH)
        assert deliverer(store, destination).step()
    wait_s = store.outbox.next_due_s("peer")
    assert wait_s is not None
    assert 115 < wait_s <= 120


def test_a_message_file_that_was_changed_is_not_sent(store: StoreUnderTest, road: Road) -> None:
    port = free_port()
    destination = road.table(port)
    finish_with_message(store, road, destination, "1", Priority.HIGH)
    (store.data_dir / "message-1").write_bytes(road.body("2"))
    with road.peer(port) as received:
        assert deliverer(store, destination).step()
        assert received() == []
    document = show(store.engine, "1.2.826.0.1.1", store.data_dir)
    (sent,) = document["results"][0]["deliveries"]
    assert sent["state"] == "PARKED"
    assert "not what was persisted" in sent["last_error"]


def test_a_newer_answer_withdraws_the_message_of_the_older_one(
    store: StoreUnderTest, road: Road
) -> None:
    """By urgency the older would go last, and be what the RIS believes."""
    port = free_port()
    destination = road.table(port)
    study_uid = "1.2.826.0.1.9"
    finish_with_message(store, road, destination, "1", Priority.LOW, study_uid)
    store.enqueue(study_uid, forced=True)
    store.finish(
        store.claimed(),
        priority=Priority.HIGH,
        results=[message_row(store, road.kind, "2", road.body("2"))],
        destinations=[destination.route],
    )
    # Not even when a person asks for everything that is parked.
    assert store.outbox.requeue_parked("peer") == 0
    with road.peer(port) as received:
        assert deliverer(store, destination).step()
        assert received() == ["2"]


def test_dicom_objects_of_an_older_answer_are_still_sent(store: StoreUnderTest) -> None:
    store.queued()
    first = store.claimed()
    store.finish(first)
    store.enqueue(forced=True)
    store.finish(store.claimed())
    assert len(store.outbox.due("PACS@127.0.0.1:104", 10)) == 4


def test_a_message_that_could_not_be_written_is_seen(store: StoreUnderTest) -> None:
    job = store.queued()
    refused = ResultRow(
        kind=ResultKind.HL7,
        sop_class_uid=None,
        sop_instance_uid=None,
        sha256=None,
        path=None,
        addressee="ris",
        refused="the message could not be written (ValueError)",
    )
    destination = table(type="hl7", name="ris", address="h:1")
    store.finish(
        store.claimed(),
        results=[*result_rows(job), refused],
        destinations=[destination.route],
    )
    (result,) = [
        r
        for r in show(store.engine, job.study_uid, store.data_dir)["results"]
        if r["kind"] == "HL7"
    ]
    assert result["path"] is None
    (delivery,) = result["deliveries"]
    assert (delivery["state"], delivery["attempts"]) == ("PARKED", 0)
    assert delivery["last_error"] == "the message could not be written (ValueError)"
    assert store.outbox.requeue_parked() == 0


def test_an_answer_of_no_interest_makes_no_delivery(store: StoreUnderTest) -> None:
    destination = table(type="hl7", name="ris", address="h:1", outcomes=["POSITIVE"])
    job = store.queued()
    store.finish(
        store.claimed(),
        state=StudyState.NOT_EVALUATED,
        outcome=Outcome.NOT_EVALUATED,
        priority=None,
        results=[message_row(store, ResultKind.HL7, "1", hl7_body("1"), "ris")],
        destinations=[destination.route],
    )
    (result,) = show(store.engine, job.study_uid, store.data_dir)["results"]
    assert result["deliveries"] == []


def test_an_unprotected_road_beyond_loopback_is_named() -> None:
    tables = [
        table(type="hl7", name="near", address="127.0.0.1:2575"),
        table(type="hl7", name="far", address="ris.example:2575"),
        table(type="hl7", name="tls", address="ris.example:2575", tls=True),
        table(type="fhir", name="https", url="https://ehr.example/fhir"),
        table(type="fhir", name="http", url="http://ehr.example/fhir"),
    ]
    assert unprotected(tables) == ["far", "http"]
