"""The deliverer's own judgement: identity and readability of each item, alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pe_triage.deliver.statuses import Verdict
from pe_triage.deliver.store_scu import DicomSender, Sent
from pe_triage.domain import Delivery, DeliveryState, Destination, PatientIdentity, ResultKind
from pe_triage.node.corrections import Remade
from pe_triage.node.deliverer import Deliverer
from pe_triage.node.pacs_identity import Agreement, Person
from pe_triage.phantom import generate_study, to_datasets


class FakeOutbox:
    def __init__(self, items: Sequence[Delivery]) -> None:
        self.items = list(items)
        self.marks: dict[int, tuple[DeliveryState, str | None]] = {}

    def due(self, _name: str, limit: int, **_more: Any) -> list[Delivery]:
        return [i for i in self.items if i.delivery_id not in self.marks][:limit]

    def mark(
        self, delivery_id: int, state: DeliveryState, error: str | None = None, **_: Any
    ) -> bool:
        self.marks[delivery_id] = (state, error)
        return True

    def age_s(self, _delivery_id: int) -> float:
        return 0.0

    def bring_forward(self, *_args: Any, **_more: Any) -> int:
        return 0


@pytest.fixture
def items(tmp_path: Path) -> list[Delivery]:
    study = generate_study(2, "negative", size=64, n_slices=6)
    made = []
    for number, ds in enumerate(to_datasets(study)):
        path = tmp_path / f"{number}.dcm"
        ds.save_as(path, enforce_file_format=True)
        made.append(
            Delivery(
                delivery_id=number,
                study_uid=str(ds.StudyInstanceUID),
                destination="PACS@127.0.0.1:104",
                kind=ResultKind.SUMMARY,
                sop_class_uid=str(ds.SOPClassUID),
                sop_instance_uid=str(ds.SOPInstanceUID),
                path=path,
                state=DeliveryState.PENDING,
                attempts=0,
            )
        )
        patient = PatientIdentity(
            patient_id=str(ds.PatientID), issuer=str(ds.get("IssuerOfPatientID", ""))
        )
    made[0].path.parent.joinpath("patient").write_text(f"{patient.patient_id}\n{patient.issuer}")
    return made


def run(
    items: list[Delivery], patient: PatientIdentity, **more: Any
) -> tuple[FakeOutbox, list[int]]:
    outbox, sent = FakeOutbox(items), []

    def send(batch: Sequence[Delivery]) -> Iterator[tuple[int, Sent]]:
        for item in batch:
            sent.append(item.delivery_id)
            yield item.delivery_id, Sent(verdict=Verdict.SENT)

    studies = SimpleNamespace(get=lambda _uid: SimpleNamespace(identity=patient))
    deliverer = Deliverer(
        "PACS@127.0.0.1:104",
        outbox=outbox,  # type: ignore[arg-type]
        studies=studies,  # type: ignore[arg-type]
        send=send,
        jitter=lambda: 0.5,
        **more,
    )
    assert deliverer.step(threading.Event())
    return outbox, sent


def patient_of(items: list[Delivery]) -> PatientIdentity:
    patient_id, issuer = items[0].path.parent.joinpath("patient").read_text().split("\n")
    return PatientIdentity(patient_id=patient_id, issuer=issuer)


@pytest.mark.parametrize("damage", ["one VR byte", "cut short", "no file", "noise"])
def test_a_damaged_result_is_parked_and_the_others_go(items: list[Delivery], damage: str) -> None:
    path = items[0].path
    content = bytearray(path.read_bytes())
    if damage == "one VR byte":
        at = content.index(b"\x10\x00\x20\x00LO")  # Patient ID
        content[at + 4 : at + 6] = b"\x00\xff"
        path.write_bytes(bytes(content))
    elif damage == "cut short":
        path.write_bytes(bytes(content[:300]))
    elif damage == "no file":
        path.unlink()
    else:
        path.write_bytes(bytes(content[:400]) + bytes(range(256)) * 8)
    outbox, sent = run(items, patient_of(items))
    state, error = outbox.marks[0]
    assert state is DeliveryState.PARKED
    assert error
    assert "\n" not in error
    assert sent == [item.delivery_id for item in items[1:]]


def test_nothing_goes_out_under_another_patient(items: list[Delivery]) -> None:
    other = PatientIdentity(patient_id="SOMEBODY-ELSE", issuer=patient_of(items).issuer)
    outbox, sent = run(items, other)
    assert sent == []
    assert {state for state, _ in outbox.marks.values()} == {DeliveryState.PARKED}
    assert not any("SOMEBODY-ELSE" in (error or "") for _, error in outbox.marks.values())


class FakePacs:
    """Stands for `node.pacs_identity.PacsIdentity`."""

    def __init__(self, agreement: Agreement, *, waits: bool = False) -> None:
        self.agreement = agreement
        self.waits = waits
        self.persons: list[Person] = []

    def judge(self, _study_uid: str, ours: Person) -> tuple[Agreement, str]:
        self.persons.append(ours)
        return self.agreement, "" if self.agreement is Agreement.SAME else "words"


@pytest.mark.parametrize(
    ("pacs", "state"),
    [
        (FakePacs(Agreement.SAME), DeliveryState.SENT),
        (FakePacs(Agreement.OTHER), DeliveryState.PARKED),
        (FakePacs(Agreement.UNKNOWN), DeliveryState.SENT),
        (FakePacs(Agreement.UNKNOWN, waits=True), DeliveryState.PENDING),
    ],
)
def test_the_pacs_has_a_word_before_each_delivery(
    items: list[Delivery], pacs: FakePacs, state: DeliveryState
) -> None:
    outbox, sent = run(items, patient_of(items), pacs_identity=pacs)
    assert {marked for marked, _ in outbox.marks.values()} == {state}
    assert bool(sent) == (state is DeliveryState.SENT)
    assert pacs.persons[0].identity == patient_of(items)
    assert pacs.persons[0].name, "the name that the object itself has"


def test_a_message_is_judged_by_whom_the_images_name(items: list[Delivery]) -> None:
    body = items[0].path.with_suffix(".json")
    body.write_bytes(b"{}")
    message = replace(
        items[0],
        kind=ResultKind.WEBHOOK,
        path=body,
        sha256=hashlib.sha256(b"{}").hexdigest(),
    )
    pacs = FakePacs(Agreement.OTHER)
    person = Person(identity=patient_of(items), name="A^B")
    outbox, sent = run(
        [message], patient_of(items), pacs_identity=pacs, person_of=lambda _uid: person
    )
    assert sent == []
    assert outbox.marks[0] == (DeliveryState.PARKED, "words")
    assert pacs.persons == [person]


def test_the_sender_too_answers_for_each_object(items: list[Delivery]) -> None:
    path = items[0].path
    path.write_bytes(path.read_bytes()[:138] + b"\xff" * 400)
    sender = DicomSender("PETRIAGE")
    outcomes = dict(sender.send(Destination(aet="NOBODY", host="127.0.0.1", port=1), items))
    assert outcomes[0].verdict is Verdict.PARK
    assert {outcomes[i.delivery_id].verdict for i in items[1:]} == {Verdict.RETRY}


@pytest.mark.parametrize(
    ("done", "state", "words"),
    [
        (Remade.DONE, None, None),
        (Remade.REFUSED, DeliveryState.PARKED, "words; why not"),
        (Remade.UNAVAILABLE, DeliveryState.PENDING, "waits: why not"),
    ],
)
def test_a_correction_is_followed_parked_or_waited_for(
    items: list[Delivery], done: Remade, state: DeliveryState | None, words: str | None
) -> None:
    asked: list[str] = []

    def follow(study_uid: str) -> tuple[Remade, str]:
        asked.append(study_uid)
        return done, "why not"

    outbox, sent = run(
        items[:1],
        patient_of(items),
        pacs_identity=FakePacs(Agreement.OTHER),
        follow=follow,
    )
    assert sent == [], "whatever comes of it, this one does not leave now"
    assert asked == [items[0].study_uid]
    assert outbox.marks.get(0) == (None if state is None else (state, words))
