"""UPS-RS (PS3.18 Section 11): carries out the steps of a workitem, each of them once.

A step that was done before a connection broke is answered 409 when it is repeated. Since the
workitem's UID and its Transaction UID are derived from the run, whatever stands under them is
ours: its state says how far it got.

Where the message asks for it, the study's reading task that the RIS has already is looked for first
(`ups_existing`): its priority is raised, and ours is not made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pe_triage.deliver.connect import read_body
from pe_triage.deliver.http import HttpOptions, judge, send_in_turn
from pe_triage.deliver.outcomes import Sent
from pe_triage.deliver.statuses import Verdict
from pe_triage.deliver.ups_existing import (
    Action,
    Sought,
    action_for,
    raising,
    state_of,
    uid_of,
    uids_of,
)
from pe_triage.domain import Delivery
from pe_triage.errors import PermanentDeliveryError

if TYPE_CHECKING:
    import httpx

DICOM_JSON = "application/dicom+json"

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

MAX_FOUND = 20
"""Workitems of one study that are looked at; there should be one or two."""

BEING_READ = "the study's reading is in progress: its priority was left as it is"


class _LaterError(Exception):
    """A question that the server cannot answer now: nothing may be concluded from that."""

    def __init__(self, sent: Sent) -> None:
        super().__init__(sent.error)
        self.sent = sent


class UpsSender:
    """Carries out workitems at one origin server."""

    def __init__(self, options: HttpOptions, *, clock: Callable[[], datetime]) -> None:
        self._options = options
        self._clock = clock

    def send(self, deliveries: Sequence[Delivery]) -> Iterator[tuple[int, Sent]]:
        """See `outcomes.Sender`."""
        return send_in_turn(self._options, deliveries, self._send_one)

    def _send_one(self, client: httpx.Client, delivery: Delivery) -> Sent:
        try:
            document = json.loads(read_body(delivery))
            uid, steps = str(document["workitem_uid"]), document["steps"]
            sought = Sought.from_document(document["existing"]) if "existing" in document else None
        except PermanentDeliveryError as error:
            return Sent(verdict=Verdict.PARK, error=error.message)
        except (ValueError, KeyError, TypeError):
            return Sent(verdict=Verdict.PARK, error=f"{delivery.path} is no list of steps")
        try:
            done = None if sought is None else self._raise_existing(client, uid, sought)
            return done or self._carry_out(client, uid, steps)
        except _LaterError as later:
            return later.sent

    def _carry_out(
        self, client: httpx.Client, uid: str, steps: Sequence[Mapping[str, Any]]
    ) -> Sent:
        for step in steps:
            outcome = self._step(client, uid, step)
            if outcome.verdict is not Verdict.SENT:
                return outcome
        return Sent(verdict=Verdict.SENT)

    def _raise_existing(self, client: httpx.Client, ours: str, sought: Sought) -> Sent | None:
        """Raise the RIS's own reading tasks; None where ours is to be made."""
        found = self._search(client, sought)
        if ours in found:  # made before its answer was lost
            return None
        being_read = scheduled = False
        for uid in found:
            item = self._item(client, uid)
            action = action_for(item, sought)
            if action is Action.RAISE:
                outcome = self._request(
                    client, "POST", f"/workitems/{uid}", "raise", raising(sought)
                )
                if outcome.verdict is not Verdict.SENT:
                    # Taken by somebody between the two requests, or refused.
                    item = self._item(client, uid)
                    action = action_for(item, sought)
                    if action is Action.RAISE:
                        return outcome
            being_read |= action is Action.IN_PROGRESS
            scheduled |= action in (Action.RAISE, Action.LEAVE)
        if being_read:
            return Sent(verdict=Verdict.WARNING, error=f"{self._options.name}: {BEING_READ}")
        return Sent(verdict=Verdict.SENT) if scheduled else None

    def _search(self, client: httpx.Client, sought: Sought) -> list[str]:
        """UIDs of workitems that may be the study's.

        A key that the server does not match, or a server without a search, is no failure: then
        there is nothing that we could know of.
        """
        found: dict[str, None] = {}
        for query in sought.queries:
            answer = self._ask(client, f"/workitems?{query}", "search")
            found.update(dict.fromkeys(uids_of(answer)))
        return list(found)[:MAX_FOUND]

    def _step(self, client: httpx.Client, uid: str, step: Mapping[str, Any]) -> Sent:
        query = f"?{step['query']}" if step["query"] else ""
        outcome = self._request(
            client, step["method"], f"{step['path']}{query}", step["name"], step["content"]
        )
        if outcome.status not in (CONFLICT, BAD_REQUEST):
            return outcome
        if state_of(self._item(client, uid)) in DONE_IN.get(step["name"], frozenset()):
            return Sent(verdict=Verdict.SENT, status=outcome.status)
        return outcome

    def _request(
        self, client: httpx.Client, method: str, path: str, name: str, content: Any
    ) -> Sent:
        response = client.request(
            method,
            f"{self._options.url}{path}",
            content=json.dumps(content, ensure_ascii=False).encode(),
            headers={"Content-Type": DICOM_JSON, "Accept": DICOM_JSON},
        )
        return judge(response, f"{self._options.name}: {name}", self._clock())

    def _item(self, client: httpx.Client, uid: str) -> Any:
        """Retrieve one workitem; None where there is none that can be read."""
        found = self._ask(client, f"/workitems/{uid}", "retrieve")
        item = found[0] if isinstance(found, list) and found else found
        # A server that answers with another workitem is not believed.
        return item if uid_of(item) in ("", uid) else None

    def _ask(self, client: httpx.Client, path: str, name: str) -> Any:
        """Answer to a GET; None where it is refused or cannot be read."""
        response = client.get(f"{self._options.url}{path}", headers={"Accept": DICOM_JSON})
        outcome = judge(response, f"{self._options.name}: {name}", self._clock())
        if outcome.verdict is Verdict.RETRY:
            raise _LaterError(outcome)
        if outcome.verdict is not Verdict.SENT:
            return None
        try:
            return response.json()
        except ValueError:
            return None
