"""HL7 over MLLP against an independent listener, message by message."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pe_triage.deliver.mllp import MllpOptions, MllpSender
from pe_triage.deliver.outcomes import Sent
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Delivery, DeliveryState, ResultKind
from tests.support.peers import require_program
from tests.support.roads import MllpListener, free_port

SENT, WARNING, RETRY, PARK = Verdict.SENT, Verdict.WARNING, Verdict.RETRY, Verdict.PARK


def message(control_id: str) -> bytes:
    name = "Müller^Jürgen"
    return (
        f"MSH|^~\\&|PE-TRIAGE||RIS||20260301||ORU^R01^ORU_R01|{control_id}|P|2.5.1"
        "||||||UNICODE UTF-8"
        f"\rPID|1||4711||{name}\r"
    ).encode()


@pytest.fixture
def deliveries(tmp_path: Path) -> list[Delivery]:
    made = []
    for number in range(1, 5):
        path = tmp_path / f"{number}.hl7"
        path.write_bytes(message(f"control-{number}"))
        made.append(
            Delivery(
                delivery_id=number,
                study_uid="1.2",
                destination="ris",
                kind=ResultKind.HL7,
                sop_class_uid=None,
                sop_instance_uid=None,
                path=path,
                state=DeliveryState.PENDING,
                attempts=0,
            )
        )
    return made


def send(port: int, items: list[Delivery], **options: object) -> list[Sent]:
    options = {"name": "ris", "host": "127.0.0.1", "port": port, "timeout_s": 2.0} | options
    answered = list(MllpSender(MllpOptions(**options)).send(items))  # type: ignore[arg-type]
    assert [delivery_id for delivery_id, _ in answered] == [i.delivery_id for i in items]
    return [sent for _, sent in answered]


def test_a_batch_goes_over_one_connection_in_its_order(deliveries: list[Delivery]) -> None:
    with MllpListener() as ris:
        assert send(ris.port, deliveries) == [Sent(verdict=SENT)] * 4
    assert ris.received == [item.path.read_bytes() for item in deliveries]
    assert str(ris.messages[0].segment("PID")[5]) == "Müller^Jürgen"


def test_each_answer_judges_its_own_message(deliveries: list[Delivery]) -> None:
    answers = {"1": ("AE", "207"), "2": ("AR", ""), "3": ("AE", "205"), "4": ("CA", "")}
    with MllpListener(answer=lambda m, _n: answers[str(m.segment("MSH")[10])[-1]]) as ris:
        outcomes = send(ris.port, deliveries)
    assert [sent.verdict for sent in outcomes] == [RETRY, PARK, WARNING, SENT]
    assert not any(sent.unreachable for sent in outcomes)
    assert outcomes[0].error == "ris: AE: application error, 207 application internal error"
    # The listener named a patient in ERR-8.
    assert "DOE" not in repr(outcomes)


def test_a_lost_acknowledgement_leaves_the_rest_for_later(deliveries: list[Delivery]) -> None:
    lost = "control-2"
    with MllpListener(
        answer=lambda m, n: None if str(m.segment("MSH")[10]) == lost and n == 1 else ("AA", "")
    ) as ris:
        outcomes = send(ris.port, deliveries)
        assert [(s.verdict, s.unreachable) for s in outcomes] == [
            (SENT, False),
            (RETRY, True),
            (RETRY, True),
            (RETRY, True),
        ]
        assert [s.verdict for s in send(ris.port, deliveries[1:])] == [SENT] * 3
    ids = [str(m.segment("MSH")[10]) for m in ris.messages]
    # A repetition is the same bytes under the same control id, by which the RIS knows it.
    assert ids == ["control-1", lost, lost, "control-3", "control-4"]
    assert ris.received[1] == ris.received[2]


@pytest.fixture
def raw_peer() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server, server.getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "timed out"),
        (b"\x0bMSH|^~\\&|RIS\rMSA|AA|someone-else\x1c\r", "timed out"),
        (b"\x0bMSH|^~\\&|RIS\rMSA|AA|control-1", "timed out"),
        (b"\x0bHTTP/1.1 400 Bad Request\x1c\r", "no hl7 acknowledgement"),
        (b"x" * 70000, "does not end"),
    ],
)
def test_what_is_no_acknowledgement_counts_for_nothing(
    answer: bytes, why: str, raw_peer: tuple[socket.socket, int], deliveries: list[Delivery]
) -> None:
    server, port = raw_peer

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
            time.sleep(1.0)

    thread = threading.Thread(target=serve)
    thread.start()
    outcomes = send(port, deliveries[:2], timeout_s=0.5)
    thread.join()
    assert [(s.verdict, s.unreachable) for s in outcomes] == [(RETRY, True)] * 2
    assert why in str(outcomes[0].error)


def test_nobody_there(deliveries: list[Delivery]) -> None:
    outcomes = send(free_port(), deliveries)
    assert [s.unreachable for s in outcomes] == [True] * 4
    assert outcomes[0].error == "ris: connection refused"
    (unknown,) = send(2575, deliveries[:1], host="ris.invalid")
    assert (unknown.verdict, unknown.error) == (RETRY, "ris: unknown host")


def test_a_file_that_is_no_message_is_parked(deliveries: list[Delivery]) -> None:
    deliveries[0].path.unlink()
    deliveries[1].path.write_bytes(b"MSH|")
    deliveries[2].path.write_bytes(message("x") + b"\x1c\r\x0b")
    with MllpListener() as ris:
        outcomes = send(ris.port, deliveries)
    assert [s.verdict for s in outcomes] == [PARK, PARK, PARK, SENT]
    assert len(ris.received) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, made by openssl."""
    directory = tmp_path_factory.mktemp("tls")
    key, pem = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        [
            *(require_program("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048"),
            *("-nodes", "-days", "2", "-subj", "/CN=ris", "-keyout", str(key), "-out", str(pem)),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return pem, key


def test_tls_is_verified(
    certificate: tuple[Path, Path],
    raw_peer: tuple[socket.socket, int],
    deliveries: list[Delivery],
) -> None:
    pem, key = certificate
    server, port = raw_peer
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)

    def serve(times: int) -> None:
        for _ in range(times):
            connection, _address = server.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    while secure.recv(65536):
                        secure.sendall(b"\x0bMSH|^~\\&|R\rMSA|AA|control-1\x1c\r")
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve, args=(2,))
    thread.start()
    (trusted,) = send(port, deliveries[:1], tls=True, ca_file=pem)
    (untrusted,) = send(port, deliveries[:1], tls=True)
    thread.join()
    assert trusted == Sent(verdict=SENT)
    assert (untrusted.verdict, untrusted.unreachable) == (RETRY, True)
    assert "certificate is not trusted" in str(untrusted.error)
