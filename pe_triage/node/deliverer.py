"""Empties the outbox: one thread for each destination, so that a dead one delays no other."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from pe_triage.deliver.backoff import next_attempt_s
from pe_triage.deliver.outcomes import Sent
from pe_triage.deliver.statuses import Verdict
from pe_triage.domain import Delivery, DeliveryState
from pe_triage.identity import identity_of, same_patient
from pe_triage.logs import get_logger
from pe_triage.node.corrections import Remade
from pe_triage.node.pacs_identity import (
    PERSON_TAGS,
    Agreement,
    PacsIdentity,
    Person,
    person_in,
)
from pe_triage.routing import MESSAGE_KINDS
from pe_triage.store.engine import StoreUnavailableError
from pe_triage.store.notices import Bell, Looking
from pe_triage.store.outbox import Outbox
from pe_triage.store.studies import StudyStore

BATCH = 32

STATE_OF = {
    Verdict.SENT: DeliveryState.SENT,
    Verdict.WARNING: DeliveryState.WARNING,
    Verdict.PARK: DeliveryState.PARKED,
}


Send = Callable[[Sequence[Delivery]], Iterator[tuple[int, Sent]]]
"""`send` of a `deliver.outcomes.Sender`."""


class Deliverer:
    """Delivers to one destination what the outbox holds for it.

    While a destination is away, what is tried at it is the most urgent of all that waits, not what
    happens to be due; once it is back, everything that waits becomes due. So the first thing that
    it hears is the most urgent, however the waiting times have fallen.

    Parameters
    ----------
    name
        Of the destination, as the outbox has it.
    send
        The road to it.
    pacs_identity
        Asks the PACS under which patient it has a study; None: nobody is asked.
    person_of
        Whom a study's results name; asked for messages, whose own words are not read here.
    follow
        Makes the results of a study again whose patient the PACS has corrected; None: a person
        decides.
    bell
        Rings when something is to be delivered; None: it looks every `poll_s`.
    leading
        Whether it is this process that delivers, and not another host's.
    """

    def __init__(
        self,
        name: str,
        *,
        outbox: Outbox,
        studies: StudyStore,
        send: Send,
        jitter: Callable[[], float],
        poll_s: float = 0.1,
        pacs_identity: PacsIdentity | None = None,
        person_of: Callable[[str], Person] | None = None,
        follow: Callable[[str], tuple[Remade, str]] | None = None,
        bell: Bell | None = None,
        leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._leading = leading
        self._name = name
        self._outbox = outbox
        self._studies = studies
        self._send = send
        self._bell = bell or Looking(poll_s)
        self._jitter = jitter
        self._pacs_identity = pacs_identity
        self._person_of = person_of
        self._follow = follow
        # Unknown at start: as good as away.
        self._away = True
        self._log = get_logger(destination=name)

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop`."""
        while not stop.is_set():
            heard = self._bell.heard()
            try:
                if not self._leading():
                    stop.wait(1.0)
                elif not self.step(stop):
                    self._bell.wait(stop, heard, lambda: self._outbox.next_due_s(self._name))
            except Exception as error:  # noqa: BLE001 - the thread must outlive a bad moment
                self._log.error("delivery.loop_failed", error=f"{type(error).__name__}: {error}")
                stop.wait(2.0)

    def step(self, stop: threading.Event | None = None) -> bool:
        """Send one batch, most urgent first; False where nothing is due."""
        due = self._outbox.due(self._name, BATCH)
        if not due:
            return False
        if self._away:
            first = self._outbox.due(self._name, BATCH, early=True)
            known = {item.delivery_id for item in first}
            due = [*first, *(item for item in due if item.delivery_id not in known)]
        by_id = {item.delivery_id: item for item in due}
        sendable = [item for item in due if self._is_for_its_patient(item)]
        was_away = self._away
        for delivery_id, sent in self._send(sendable):
            self._away = sent.unreachable
            self._record(by_id[delivery_id], sent)
            if stop is not None and stop.is_set():
                break
        if was_away and not self._away and self._outbox.bring_forward(self._name, but=by_id):
            self._log.info("delivery.destination_back")
        return True

    def _record(self, item: Delivery, sent: Sent) -> None:
        log = self._log.bind(
            study_uid=item.study_uid, kind=str(item.kind), sop_instance_uid=item.sop_instance_uid
        )
        if sent.verdict is not Verdict.RETRY:
            state = STATE_OF[sent.verdict]
            self._outbox.mark(item.delivery_id, state, error=sent.error)
            log.info("delivery.ended", state=str(state), error=sent.error)
            return
        age_s = self._outbox.age_s(item.delivery_id)
        wait_s = next_attempt_s(item.attempts + 1, age_s, jitter=self._jitter())
        if wait_s is not None and sent.retry_after_s is not None:
            wait_s = max(wait_s, sent.retry_after_s)
        if wait_s is None:
            self._outbox.mark(item.delivery_id, DeliveryState.PARKED, error=sent.error)
            log.error("delivery.given_up", error=sent.error, age_s=round(age_s))
            return
        self._outbox.mark(
            item.delivery_id, DeliveryState.PENDING, error=sent.error, retry_in_s=wait_s
        )
        log.warning("delivery.retry", error=sent.error, retry_in_s=round(wait_s, 1))

    def _is_for_its_patient(self, item: Delivery) -> bool:
        """Recheck study and patient of the file against what was frozen when it was queued."""
        person: Person | None = None
        try:
            problem, person = self._identity_problem(item)
        except StoreUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - one damaged file must not block all others
            problem = f"the result file cannot be read: {type(error).__name__}"
        if problem is None and person is not None and self._pacs_identity is not None:
            agreement, words = self._pacs_identity.judge(item.study_uid, person)
            if agreement is Agreement.OTHER:
                problem = words
                if self._follow is not None:
                    done, said = self._follow(item.study_uid)
                    if done is Remade.DONE:
                        # All of this study that waited, this item too, is parked with its reason.
                        return False
                    if done is Remade.UNAVAILABLE:
                        self._record(item, Sent(verdict=Verdict.RETRY, error=f"waits: {said}"))
                        return False
                    problem = f"{words}; {said}"
            elif agreement is Agreement.UNKNOWN and self._pacs_identity.waits:
                self._record(item, Sent(verdict=Verdict.RETRY, error=f"waits: {words}"))
                return False
        if problem is None:
            return True
        self._outbox.mark(item.delivery_id, DeliveryState.PARKED, error=problem)
        self._log.error(
            "delivery.refused_here",
            study_uid=item.study_uid,
            sop_instance_uid=item.sop_instance_uid,
            error=problem,
        )
        return False

    def _identity_problem(self, item: Delivery) -> tuple[str | None, Person | None]:
        """Say what is wrong, if anything is, and whom the result names."""
        if item.kind in MESSAGE_KINDS:
            # Written for the study's frozen identity and persisted with it: the same bytes.
            try:
                digest = hashlib.sha256(item.path.read_bytes()).hexdigest()
            except OSError as error:
                return f"the message file cannot be read: {type(error).__name__}", None
            if digest != item.sha256:
                return "the message file is not what was persisted; not sent", None
            return None, None if self._person_of is None else self._person_of(item.study_uid)
        try:
            ds = dcmread(
                item.path,
                specific_tags=[
                    "SpecificCharacterSet",
                    "SOPInstanceUID",
                    "StudyInstanceUID",
                    *PERSON_TAGS,
                ],
                stop_before_pixels=True,
            )
        except (OSError, InvalidDicomError) as error:
            return f"the result file cannot be read: {type(error).__name__}", None
        study = self._studies.get(item.study_uid)
        same = (
            str(ds.get("StudyInstanceUID", "")) == item.study_uid
            and str(ds.get("SOPInstanceUID", "")) == item.sop_instance_uid
            and same_patient(
                identity_of(ds.get("PatientID"), ds.get("IssuerOfPatientID")), study.identity
            )
        )
        if not same:
            return "the result's identity is not that of its study; not sent", None
        return None, person_in(ds)


def start_threads(deliverers: Sequence[Deliverer], stop: threading.Event) -> list[threading.Thread]:
    """Start one thread for each deliverer."""
    threads = [
        threading.Thread(target=d.run, args=(stop,), name=f"deliver-{n}", daemon=True)
        for n, d in enumerate(deliverers)
    ]
    for thread in threads:
        thread.start()
    return threads
