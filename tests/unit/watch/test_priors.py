"""Priors are of the same patient, or there are none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pe_triage.domain import PatientIdentity
from pe_triage.watch.priors import Entry, UncertainPatientError, earlier_of, person_of


def entry(uid: str, day: str, *, pid: str = "P1", issuer: str = "HOSP", **values: str) -> Entry:
    return Entry(
        study_uid=uid,
        identity=PatientIdentity(patient_id=pid, issuer=issuer),
        birth_date=values.get("birth_date", "19500101"),
        sex=values.get("sex", "F"),
        study_date=day,
        study_time=values.get("study_time", "120000"),
    )


NOW = entry("now", "20260301")


def uids(found: list[Entry], since: str = "") -> list[str]:
    return [e.study_uid for e in earlier_of(NOW, found, since=since)]


def test_the_newest_first_and_only_earlier_ones() -> None:
    found = [
        entry("old", "20190101"),
        entry("new", "20250101"),
        NOW,
        entry("later", "20260302"),
        entry("morning", "20260301", study_time="080000"),
        entry("evening", "20260301", study_time="180000"),
        entry("undated", ""),
        entry("odd", "20251399"),
    ]
    assert uids(found) == ["morning", "new", "old"]
    assert uids(found, since="20200101") == ["morning", "new"]


@pytest.mark.parametrize(
    "other",
    [
        entry("x", "20250101", pid="p1"),
        entry("x", "20250101", pid="P10"),
        entry("x", "20250101", issuer="OTHER"),
        entry("x", "20250101", issuer=""),
    ],
)
def test_another_patient_has_no_part_in_it(other: Entry) -> None:
    assert uids([other, entry("mine", "20240101")]) == ["mine"]
    # The same study under both is nobody's.
    assert uids([other, entry("x", "20250101")]) == []


@pytest.mark.parametrize("values", [{"birth_date": "19500102"}, {"sex": "M"}])
def test_an_identifier_given_twice_has_no_priors(values: dict[str, str]) -> None:
    with pytest.raises(UncertainPatientError, match="several birth dates or sexes"):
        uids([entry("mine", "20240101"), entry("x", "20250101", **values)])


def test_what_is_left_out_contradicts_nothing() -> None:
    assert uids([entry("x", "20250101", birth_date="", sex="")]) == ["x"]


def test_whose_study_it_is() -> None:
    assert person_of([NOW, NOW]) == NOW
    for entries, words in (
        ([], "does not have"),
        ([NOW, entry("now", "20260301", pid="P2")], "several patients"),
        ([NOW, entry("now", "20260301", issuer="")], "several patients"),
        ([NOW, entry("now", "20260301", sex="M")], "several patients"),
        ([entry("now", "20260301", pid="")], "without a Patient ID"),
        ([replace(NOW, study_date="2026")], "without a date"),
    ):
        with pytest.raises(UncertainPatientError, match=words):
            person_of(entries)


def test_nothing_of_the_patient_is_printed() -> None:
    assert "P1" not in repr(NOW)
    assert "1950" not in repr(NOW)
