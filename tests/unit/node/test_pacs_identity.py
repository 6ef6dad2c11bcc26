"""Whose study it is, asked of the PACS just before a result leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pe_triage.deliver.find_scu import PacsStudy
from pe_triage.domain import PatientIdentity
from pe_triage.errors import QueryUnavailableError
from pe_triage.monitoring import IDENTITY_ATTRIBUTES
from pe_triage.node.pacs_identity import Agreement, PacsIdentity, Person, name_key

OURS = Person(
    identity=PatientIdentity(patient_id="7", issuer="HOSP"),
    name="Müller^Änne",
    birth_date="19500102",
)


def entry(**change: Any) -> PacsStudy:
    values: dict[str, Any] = {
        "study_uid": "2.25.1",
        "identity": OURS.identity,
        "name": OURS.name,
        "birth_date": OURS.birth_date,
        "study_date": "",
        "study_time": "",
        "description": "",
        "modalities": (),
        "series": None,
        "instances": None,
    }
    return PacsStudy(**(values | change))


class Pacs:
    def __init__(self, *entries: PacsStudy) -> None:
        self.entries = entries
        self.asked = 0
        self.away = False

    def __call__(self, _uid: str) -> Sequence[PacsStudy]:
        self.asked += 1
        if self.away:
            raise QueryUnavailableError("PACS@h:1: connection refused")
        return self.entries


def identity(pacs: Pacs, **change: Any) -> PacsIdentity:
    values: dict[str, Any] = {
        "attributes": IDENTITY_ATTRIBUTES,
        "fresh_s": 60,
        "pause_s": 60,
        "waits": False,
    }
    return PacsIdentity(pacs, **(values | change))


def who(patient_id: str = "7", issuer: str = "HOSP") -> PatientIdentity:
    return PatientIdentity(patient_id=patient_id, issuer=issuer)


@pytest.mark.parametrize(
    ("change", "agreement", "words"),
    [
        ({}, Agreement.SAME, ""),
        ({"identity": who(issuer="")}, Agreement.SAME, ""),
        ({"name": "MULLER^ANNE^^Dr"}, Agreement.SAME, ""),
        ({"name": ""}, Agreement.SAME, ""),
        ({"birth_date": "1950.01.02"}, Agreement.SAME, ""),
        ({"birth_date": ""}, Agreement.SAME, ""),
        ({"identity": who("8")}, Agreement.OTHER, "Patient ID (0010,0020)"),
        ({"identity": who(issuer="OTHER")}, Agreement.OTHER, "Issuer"),
        ({"name": "Meier^Änne"}, Agreement.OTHER, "Patient's Name"),
        ({"birth_date": "19500201"}, Agreement.OTHER, "Birth Date"),
    ],
)
def test_each_attribute(change: dict[str, Any], agreement: Agreement, words: str) -> None:
    found, said = identity(Pacs(entry(**change))).judge("2.25.1", OURS)
    assert found is agreement
    assert words in said
    assert not any(value in said for value in ("7", "8 ", "Müller", "Meier", "1950"))


def test_only_what_the_site_wants_compared_is_compared() -> None:
    pacs = Pacs(entry(name="Meier^Änne"))
    assert identity(pacs, attributes=("patient_id",)).judge("1", OURS)[0] is Agreement.SAME


def test_a_study_under_two_patients_is_nobodys() -> None:
    both = Pacs(entry(), entry(identity=who("8")))
    assert identity(both).judge("2.25.1", OURS)[0] is Agreement.OTHER


def test_an_answer_is_used_again_for_a_while() -> None:
    now = [0.0]
    pacs = Pacs(entry())
    asking = identity(pacs, monotonic=lambda: now[0])
    for _ in range(5):
        asking.judge("2.25.1", OURS)
    assert pacs.asked == 1
    now[0] = 61
    pacs.entries = (entry(identity=who("8")),)
    assert asking.judge("2.25.1", OURS)[0] is Agreement.OTHER
    assert pacs.asked == 2


def test_a_pacs_that_is_away_is_asked_once_a_while() -> None:
    now = [0.0]
    pacs = Pacs()
    pacs.away = True
    asking = identity(pacs, monotonic=lambda: now[0])
    for _ in range(5):
        found, words = asking.judge("2.25.1", OURS)
        assert found is Agreement.UNKNOWN
        assert "connection refused" in words
    assert pacs.asked == 1
    now[0], pacs.away = 61, False
    assert asking.judge("2.25.1", OURS) == (Agreement.UNKNOWN, "the PACS does not have the study")


def test_names_as_archives_change_them() -> None:
    same = {name_key(n) for n in ("Doe^Jane", "DOE^JANE^^^", " doe ^ jane^M", "Doe^Jane=X^Y")}
    assert len(same) == 1
    assert name_key("Doe^Jane") != name_key("Doe^John")
