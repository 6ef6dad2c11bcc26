"""The comparison of two lists, case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pe_triage.deliver.find_scu import PacsStudy
from pe_triage.domain import PatientIdentity, StudyState
from pe_triage.monitoring import ReconcileTable
from pe_triage.watch.reconcile import AtPacs, Here, Verdict, document, is_wanted, reconcile

NOW = datetime(2026, 3, 2, 7, tzinfo=UTC)


def at_pacs(uid: str = "2.25.1", **change: Any) -> AtPacs:
    values: dict[str, Any] = {
        "study_uid": uid,
        "study_date": "20260301",
        "study_time": "081500",
        "description": "CT Pulmonary Angiography",
        "modalities": ("CT",),
    }
    return AtPacs(**(values | change))


def test_of_what_the_pacs_lists_the_words_count_and_no_number() -> None:
    """Its numbers of series and images are of the whole study, and ours of CT series alone."""
    listed = PacsStudy(
        study_uid="2.25.1", identity=PatientIdentity(patient_id="SECRET"), name="SECRET",
        birth_date="19500101", study_date="20260301", study_time="081500",
        description="CT Pulmonary Angiography", modalities=("CT",), series=3, instances=900,
    )  # fmt: skip
    assert AtPacs.of(listed) == at_pacs()
    assert AtPacs.of(listed).series is None


def here(**change: Any) -> Here:
    values: dict[str, Any] = {
        "state": StudyState.DONE,
        "reason": None,
        "series": {"1.1": 200},
        "last_image_at": NOW - timedelta(hours=9),
        "completed_at": NOW - timedelta(hours=9),
        "answered": True,
        "undelivered": 0,
        "parked": 0,
    }
    return Here(**(values | change))


def verdict(study: AtPacs, known: Here | None) -> tuple[Verdict, str]:
    lookup = {} if known is None else {study.study_uid: known}
    (line,) = reconcile([study], lookup, now=NOW, settle_s=3600)
    return line.verdict, line.reason


@pytest.mark.parametrize(
    ("known", "wanted", "words"),
    [
        (None, Verdict.NEVER_CAME, "never saw it"),
        (here(), Verdict.ANSWERED, "DONE"),
        (here(state=StudyState.NOT_EVALUATED), Verdict.ANSWERED, "NOT_EVALUATED"),
        (
            here(state=StudyState.FAILED, answered=False, reason="worker died"),
            Verdict.NO_RESULT,
            "FAILED: worker died",
        ),
        (
            here(state=StudyState.QUARANTINED, answered=False, reason="two patients"),
            Verdict.NO_RESULT,
            "two patients",
        ),
        (here(state=StudyState.QUEUED, answered=False), Verdict.NO_RESULT, "QUEUED for 9.0 h"),
        (
            here(
                state=StudyState.RUNNING, answered=False, last_image_at=NOW - timedelta(minutes=5)
            ),
            Verdict.UNDER_WAY,
            "RUNNING since 300 s",
        ),
        (here(parked=2), Verdict.NOT_DELIVERED, "2 results are parked"),
        (here(undelivered=1), Verdict.NOT_DELIVERED, "1 results still wait"),
        (
            here(undelivered=1, completed_at=NOW - timedelta(minutes=1)),
            Verdict.UNDER_WAY,
            "being delivered",
        ),
        (here(series={"1.1": 150}), Verdict.INCOMPLETE, "150 of 200 images"),
        (here(series={"9.9": 3}), Verdict.ANSWERED, "DONE"),
    ],
)
def test_each_case(known: Here | None, wanted: Verdict, words: str) -> None:
    found, reason = verdict(at_pacs(series={"1.1": 200}), known)
    assert found is wanted
    assert words in reason


def test_the_gravest_comes_first_and_the_report_names_no_patient() -> None:
    studies = [at_pacs("2.25.1"), at_pacs("2.25.2"), at_pacs("2.25.3", study_time="060000")]
    lines = reconcile(studies, {"2.25.1": here()}, now=NOW, settle_s=1)
    assert [line.study_uid for line in lines] == ["2.25.3", "2.25.2", "2.25.1"]
    report = document(lines, first="2026-03-01", last="2026-03-01", pacs="P@h:1", at=NOW)
    assert report["counts"]["NEVER_CAME"] == 2
    assert set(report["studies"][0]) == {
        "study_uid", "study_date", "study_time", "verdict", "reason",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "table", "wanted"),
    [
        ({}, {}, True),
        ({"modalities": ("MR",)}, {}, False),
        ({"modalities": ("SR", "CT")}, {}, True),
        ({"modalities": ()}, {}, True),
        ({}, {"words": ["PULMONARY"]}, True),
        ({}, {"words": ["aorta", "embol"]}, False),
        (
            {"description": "CT Thorax for PE"},
            {"words": ["thorax"], "without_words": ["pe"]},
            False,
        ),
        ({"description": ""}, {"words": ["pulmonary"]}, False),
    ],
)
def test_which_studies_should_have_come(
    change: dict[str, Any], table: dict[str, Any], wanted: bool
) -> None:
    assert is_wanted(at_pacs(**change), ReconcileTable(**table)) is wanted
