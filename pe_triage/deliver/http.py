"""FHIR Bundles and webhooks over HTTP: one POST each, judged by its status alone.

The peer's answer is never shown or logged: an OperationOutcome may name the patient. No proxy is
taken from the environment, and no redirect followed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pe_triage.deliver.connect import read_body, tls_context
from pe_triage.deliver.http_statuses import classify_http, retry_after_s
from pe_triage.deliver.outcomes import Sent, all_unreachable
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Delivery
from pe_triage.errors import ConfigurationError, PermanentDeliveryError, RetryableDeliveryError

if TYPE_CHECKING:
    import httpx

Headers = Callable[[bytes], Mapping[str, str]]
"""Makes the headers of one request from its body, at the moment of sending."""

JSON = "application/json"
FHIR_JSON = "application/fhir+json; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Where to, and how."""

    name: str
    """Of the destination, for what people read."""
    url: str
    timeout_s: float = 30.0
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    authorization: Callable[[], str] | None = field(default=None, repr=False)
    """Reads the Authorization header's value anew for each batch."""


@contextmanager
def open_client(options: HttpOptions) -> Iterator[httpx.Client]:
    """Open a client of one batch.

    Raises
    ------
    RetryableDeliveryError
        A TLS file or a secret cannot be read at the moment.
    """
    import httpx

    headers = {"User-Agent": "pe-triage"}
    try:
        if options.authorization is not None:
            headers["Authorization"] = options.authorization()
    except ConfigurationError as error:
        raise RetryableDeliveryError(error.message) from None
    verify = (
        tls_context(options.ca_file, options.client_cert_file, options.client_key_file)
        if options.url.startswith("https:")
        else True
    )
    with httpx.Client(
        headers=headers,
        timeout=options.timeout_s,
        verify=verify,
        trust_env=False,
        follow_redirects=False,
    ) as client:
        yield client


def judge(response: httpx.Response, name: str, now: datetime) -> Sent:
    """Turn a response into an outcome."""
    rule = classify_http(response.status_code)
    if rule.verdict is Verdict.SENT:
        return Sent(verdict=rule.verdict, status=response.status_code)
    return Sent(
        verdict=rule.verdict,
        error=f"{name}: HTTP {response.status_code}: {rule.words}",
        status=response.status_code,
        retry_after_s=retry_after_s(response.headers.get("Retry-After"), now),
    )


def failure_words(error: httpx.HTTPError) -> str:
    """Say how a request failed; the library's words hold addresses, not what was sent."""
    import httpx

    if isinstance(error, httpx.ConnectTimeout):
        return "connection timed out"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ConnectError):
        return f"cannot connect: {error}"[:200]
    return f"connection failed ({type(error).__name__})"


def send_in_turn(
    options: HttpOptions,
    deliveries: Sequence[Delivery],
    send_one: Callable[[httpx.Client, Delivery], Sent],
) -> Iterator[tuple[int, Sent]]:
    """Send a batch by one client; where the peer is away, so it is for all that are left."""
    import httpx

    name, done = options.name, 0
    try:
        with open_client(options) as client:
            for delivery in deliveries:
                outcome = send_one(client, delivery)
                done += 1
                yield delivery.delivery_id, outcome
    except httpx.HTTPError as error:
        yield from all_unreachable(deliveries[done:], f"{name}: {failure_words(error)}")
    except (RetryableDeliveryError, ConfigurationError) as error:
        yield from all_unreachable(deliveries[done:], f"{name}: {error.message}")


class HttpSender:
    """POSTs each message's body to one URL.

    Parameters
    ----------
    headers
        See `Headers`.
    clock
        Aware time, to read a Retry-After that is a date.
    """

    def __init__(
        self, options: HttpOptions, *, headers: Headers, clock: Callable[[], datetime]
    ) -> None:
        self._options = options
        self._headers = headers
        self._clock = clock

    def send(self, deliveries: Sequence[Delivery]) -> Iterator[tuple[int, Sent]]:
        """See `outcomes.Sender`."""
        return send_in_turn(self._options, deliveries, self._send_one)

    def post(self, body: bytes) -> Sent:
        """POST one body that lies in no file; nothing is raised for what the peer does."""
        import httpx

        name = self._options.name
        try:
            with open_client(self._options) as client:
                return self._post(client, body)
        except httpx.HTTPError as error:
            words = f"{name}: {failure_words(error)}"
        except (RetryableDeliveryError, ConfigurationError) as error:
            words = f"{name}: {error.message}"
        return Sent(verdict=Verdict.RETRY, error=words, unreachable=True)

    def _send_one(self, client: httpx.Client, delivery: Delivery) -> Sent:
        try:
            body = read_body(delivery)
        except PermanentDeliveryError as error:
            return Sent(verdict=Verdict.PARK, error=error.message)
        return self._post(client, body)

    def _post(self, client: httpx.Client, body: bytes) -> Sent:
        response = client.post(self._options.url, content=body, headers=dict(self._headers(body)))
        return judge(response, self._options.name, self._clock())


def fhir_headers(_body: bytes) -> Mapping[str, str]:
    """Headers of a FHIR transaction."""
    return {"Content-Type": FHIR_JSON, "Accept": "application/fhir+json"}


def webhook_headers(secret: Callable[[], str], clock: Callable[[], datetime]) -> Headers:
    """Signed headers as the Standard Webhooks specification has them.

    ``webhook-id`` is the event's own, the same in every repetition, so that a receiver acts once;
    ``webhook-timestamp`` is the moment of sending, so that it may refuse what is replayed later;
    ``webhook-signature`` is ``v1,`` and the base64 HMAC-SHA256 of ``id.timestamp.body``. The key is
    the secret's UTF-8 bytes, or, after the prefix ``whsec_``, what its base64 stands for.
    """

    def headers(body: bytes) -> Mapping[str, str]:
        event_id = str(json.loads(body)["id"])
        timestamp = str(int(clock().timestamp()))
        signed = f"{event_id}.{timestamp}.".encode() + body
        digest = hmac.new(signing_key(secret()), signed, hashlib.sha256).digest()
        return {
            "Content-Type": JSON,
            "webhook-id": event_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }

    return headers


def signing_key(secret: str) -> bytes:
    """Bytes of a webhook secret.

    Raises
    ------
    ConfigurationError
        It starts with ``whsec_`` and goes on as no base64.
    """
    prefix = "whsec_"
    if not secret.startswith(prefix):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(prefix), validate=True)
    except ValueError:
        raise ConfigurationError("the webhook secret is no base64 after whsec_") from None
