"""UPS-RS (PS3.18 Section 11): carries out the steps of a workitem, each of them once.

A step that was done before a connection broke is answered 409 when it is repeated. Since the
workitem's UID and its Transaction UID are derived from the run, whatever stands under them is
ours: its state says how far it got.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pe_triage.deliver.connect import read_body
from pe_triage.deliver.http import HttpOptions, failure_words, judge, open_client
from pe_triage.deliver.outcomes import Sent, all_unreachable
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Delivery
from pe_triage.errors import PermanentDeliveryError, RetryableDeliveryError

if TYPE_CHECKING:
    import httpx

DICOM_JSON = "application/dicom+json"
PROCEDURE_STEP_STATE = "00741000"

DONE_IN: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        # Whatever has become of it since, it was created.
        "create": frozenset({"SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"}),
        "IN PROGRESS": frozenset({"IN PROGRESS", "COMPLETED"}),
        "update": frozenset({"COMPLETED"}),
        "COMPLETED": frozenset({"COMPLETED"}),
    }
)
"""Step to the states (0074,1000) in which a conflict means that it was done before."""

CONFLICT = 409
BAD_REQUEST = 400
"""Some servers say so of a change to a state that the workitem is in already."""


class UpsSender:
    """Carries out workitems at one origin server."""

    def __init__(self, options: HttpOptions, *, clock: Callable[[], datetime]) -> None:
        self._options = options
        self._clock = clock

    def send(self, deliveries: Sequence[Delivery]) -> Iterator[tuple[int, Sent]]:
        """See `outcomes.Sender`."""
        import httpx

        name, done = self._options.name, 0
        try:
            with open_client(self._options) as client:
                for delivery in deliveries:
                    outcome = self._send_one(client, delivery)
                    done += 1
                    yield delivery.delivery_id, outcome
        except httpx.HTTPError as error:
            yield from all_unreachable(deliveries[done:], f"{name}: {failure_words(error)}")
        except RetryableDeliveryError as error:
            yield from all_unreachable(deliveries[done:], f"{name}: {error.message}")

    def _send_one(self, client: httpx.Client, delivery: Delivery) -> Sent:
        try:
            document = json.loads(read_body(delivery))
            uid, steps = document["workitem_uid"], document["steps"]
        except PermanentDeliveryError as error:
            return Sent(verdict=Verdict.PARK, error=error.message)
        except (ValueError, KeyError, TypeError):
            return Sent(verdict=Verdict.PARK, error=f"{delivery.path} is no list of steps")
        for step in steps:
            outcome = self._step(client, uid, step)
            if outcome.verdict is not Verdict.SENT:
                return outcome
        return Sent(verdict=Verdict.SENT)

    def _step(self, client: httpx.Client, uid: str, step: Mapping[str, Any]) -> Sent:
        query = f"?{step['query']}" if step["query"] else ""
        response = client.request(
            step["method"],
            f"{self._options.url}{step['path']}{query}",
            content=json.dumps(step["content"], ensure_ascii=False).encode(),
            headers={"Content-Type": DICOM_JSON, "Accept": DICOM_JSON},
        )
        outcome = judge(response, f"{self._options.name}: {step['name']}", self._clock())
        if response.status_code not in (CONFLICT, BAD_REQUEST):
            return outcome
        state = self._state(client, uid)
        if state in DONE_IN.get(step["name"], frozenset()):
            return Sent(verdict=Verdict.SENT, status=response.status_code)
        return outcome

    def _state(self, client: httpx.Client, uid: str) -> str | None:
        response = client.get(
            f"{self._options.url}/workitems/{uid}", headers={"Accept": DICOM_JSON}
        )
        try:
            found = response.json()
            item = found[0] if isinstance(found, list) else found
            return str(item[PROCEDURE_STEP_STATE]["Value"][0])
        except (ValueError, KeyError, IndexError, TypeError):
            return None
