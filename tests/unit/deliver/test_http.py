from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from pe_triage.deliver.http import (
    HttpOptions,
    HttpSender,
    fhir_headers,
    signing_key,
    webhook_headers,
)
from pe_triage.deliver.http_statuses import classify_http, retry_after_s
from pe_triage.deliver.outcomes import Sent
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Delivery, DeliveryState, ResultKind
from pe_triage.errors import ConfigurationError
from tests.support.roads import HttpPeer, free_port

SENT, RETRY, PARK = Verdict.SENT, Verdict.RETRY, Verdict.PARK
NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = json.dumps({"id": "0123456789abcdef0123", "data": {"outcome": "POSITIVE"}}).encode()


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *[(status, SENT) for status in (200, 201, 202, 204)],
        *[(status, PARK) for status in (301, 302, 307, 400, 403, 404, 409, 410, 412, 422, 501)],
        *[(status, RETRY) for status in (401, 408, 423, 425, 429, 500, 502, 503, 504, 599, 100)],
    ],
)
def test_what_a_status_means(status: int, verdict: Verdict) -> None:
    assert classify_http(status).verdict is verdict


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("999999999999", 3600.0),
        ("Sun, 01 Mar 2026 08:01:00 GMT", 60.0),
        ("Sun, 01 Mar 2026 07:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def delivery(tmp_path: Path, body: bytes = BODY, number: int = 1) -> Delivery:
    path = tmp_path / f"message-{number}.json"
    path.write_bytes(body)
    return Delivery(
        delivery_id=number,
        study_uid="1.2",
        destination="peer",
        kind=ResultKind.WEBHOOK,
        sop_class_uid=None,
        sop_instance_uid=None,
        path=path,
        state=DeliveryState.PENDING,
        attempts=0,
    )


def post(peer_url: str, tmp_path: Path, *, count: int = 1, **options: object) -> list[Sent]:
    sender = HttpSender(
        HttpOptions(name="peer", url=f"{peer_url}/hook", timeout_s=2.0, **options),  # type: ignore[arg-type]
        headers=webhook_headers(lambda: SECRET, lambda: datetime.now(UTC)),
        clock=lambda: NOW,
    )
    items = [delivery(tmp_path, number=n) for n in range(count)]
    answered = list(sender.send(items))
    assert [delivery_id for delivery_id, _ in answered] == [i.delivery_id for i in items]
    return [sent for _, sent in answered]


def test_the_signature_is_verified_by_an_independent_library(tmp_path: Path) -> None:
    with HttpPeer() as peer:
        assert post(peer.url, tmp_path) == [Sent(verdict=SENT, status=200)]
    (request,) = peer.requests
    assert request.body == BODY
    webhook = Webhook(SECRET)
    assert webhook.verify(request.body, request.headers) == json.loads(BODY)
    assert request.headers["webhook-id"] == "0123456789abcdef0123"
    with pytest.raises(WebhookVerificationError):
        webhook.verify(request.body.replace(b"POSITIVE", b"NEGATIVE"), request.headers)
    with pytest.raises(WebhookVerificationError):
        webhook.verify(request.body, request.headers | {"webhook-id": "another"})
    old = str(int((datetime.now(UTC) - timedelta(hours=1)).timestamp()))
    with pytest.raises(WebhookVerificationError):
        webhook.verify(request.body, request.headers | {"webhook-timestamp": old})


def test_a_replayed_event_is_too_old_for_a_receiver_that_looks(tmp_path: Path) -> None:
    headers = webhook_headers(lambda: SECRET, lambda: datetime.now(UTC) - timedelta(hours=1))(BODY)
    with pytest.raises(WebhookVerificationError, match="old"):
        Webhook(SECRET).verify(BODY, dict(headers))


def test_secrets_of_either_form() -> None:
    assert signing_key("plain text of a site") == b"plain text of a site"
    assert len(signing_key(SECRET)) == 24
    with pytest.raises(ConfigurationError, match="base64"):
        signing_key("whsec_***")


def test_what_the_peer_says_in_its_body_is_not_repeated(tmp_path: Path) -> None:
    with HttpPeer(lambda _r: (422, {}, b"Patient DOE^JANE is unknown")) as peer:
        (sent,) = post(peer.url, tmp_path)
    assert sent == Sent(verdict=PARK, status=422, error="peer: HTTP 422: refused")


def test_retry_after_is_passed_on(tmp_path: Path) -> None:
    with HttpPeer(lambda _r: (503, {"Retry-After": "17"}, b"")) as peer:
        (sent,) = post(peer.url, tmp_path)
    assert (sent.verdict, sent.retry_after_s, sent.unreachable) == (RETRY, 17.0, False)


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with HttpPeer() as elsewhere, HttpPeer() as peer:
        peer.answer = lambda _r: (307, {"Location": elsewhere.url}, b"")
        (sent,) = post(peer.url, tmp_path)
    assert sent.verdict is PARK
    assert elsewhere.requests == []


def test_nobody_there(tmp_path: Path) -> None:
    sent = post(f"http://127.0.0.1:{free_port()}", tmp_path, count=3)
    assert [(s.verdict, s.unreachable) for s in sent] == [(RETRY, True)] * 3
    assert "cannot connect" in str(sent[0].error)


def test_a_secret_that_cannot_be_read_now_is_tried_again(tmp_path: Path) -> None:
    def locked() -> str:
        raise ConfigurationError("destination 'peer': authorization_file cannot be read: locked")

    (sent,) = post("http://127.0.0.1:9", tmp_path, authorization=locked)
    assert (sent.verdict, sent.unreachable) == (RETRY, True)
    assert "authorization_file cannot be read" in str(sent.error)


def test_the_credential_is_sent_and_shown_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = "Bearer secret-of-the-site"
    options = HttpOptions(name="peer", url="http://h", authorization=lambda: token)
    assert "secret-of-the-site" not in repr(options)
    with HttpPeer(lambda _r: (403, {}, b"")) as peer:
        (sent,) = post(peer.url, tmp_path, authorization=lambda: token)
    assert peer.requests[0].headers["authorization"] == token
    assert "secret-of-the-site" not in repr(sent)
    assert "secret-of-the-site" not in caplog.text


def test_a_proxy_of_the_environment_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with HttpPeer() as peer:
        assert [s.verdict for s in post(peer.url, tmp_path)] == [SENT]


def test_a_lost_file_is_parked_and_the_rest_goes(tmp_path: Path) -> None:
    gone = delivery(tmp_path, number=1)
    gone.path.unlink()
    with HttpPeer() as peer:
        sender = HttpSender(
            HttpOptions(name="peer", url=peer.url), headers=fhir_headers, clock=lambda: NOW
        )
        outcomes = [s.verdict for _, s in sender.send([gone, delivery(tmp_path, number=2)])]
    assert outcomes == [PARK, SENT]
    assert peer.requests[0].headers["content-type"].startswith("application/fhir+json")
