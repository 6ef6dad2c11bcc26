from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_triage.assemble.completeness import (
    CompletenessRules,
    SeriesProgress,
    StudyProgress,
    judge_completeness,
)
from pe_triage.assemble.eligibility import EligibilityRules, judge_series
from pe_triage.assemble.geometry import series_geometry

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
RULES = CompletenessRules()


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def series_progress(instances):
    return SeriesProgress(
        verdict=judge_series(instances, EligibilityRules()), geometry=series_geometry(instances)
    )


def progress(instances, **change):
    values = {
        "instances": len(instances),
        "first_instance_at": T0,
        "last_instance_at": at(30),
        "open_associations": 0,
        "all_released": True,
        "series": (series_progress(instances),) if instances else (),
    }
    return StudyProgress(**(values | change))


@pytest.fixture(scope="module")
def whole(ct_series):
    return progress(ct_series())


def test_a_released_contiguous_chest_closes_after_the_grace_time(whole):
    early = judge_completeness(whole, RULES, at(31))
    assert (early.complete, early.sign) == (False, "none")
    assert early.check_again_s == pytest.approx(1)
    closed = judge_completeness(whole, RULES, at(32))
    assert (closed.complete, closed.sign) == (True, "released_and_contiguous")
    assert closed.check_again_s is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"open_associations": 1}, "1 association(s) of the sender are still open"),
        ({"all_released": False}, "ended without release"),
        ({"expected_instances": 300}, "200 of 300 instances have arrived"),
        ({"series": ()}, "no series is eligible yet"),
    ],
)
def test_a_missing_sign_waits_for_quiet(whole, change, words):
    rules = replace(RULES, expected_wait_s=RULES.quiet_s)
    waiting = replace(whole, **change)
    answer = judge_completeness(waiting, rules, at(60))
    assert not answer.complete
    assert words in answer.reason
    assert answer.check_again_s == pytest.approx(30)
    closed = judge_completeness(waiting, rules, at(90))
    assert (closed.complete, closed.sign) == (True, "quiet")
    assert "nothing new for 60 s" in closed.reason


def test_a_gap_waits(ct_series):
    gapped = progress(ct_series(skip=(90,)))
    assert not judge_completeness(gapped, RULES, at(60)).complete
    assert judge_completeness(gapped, RULES, at(90)).sign == "quiet"


def test_half_a_chest_waits(ct_series):
    assert not judge_completeness(progress(ct_series(100)), RULES, at(60)).complete


def test_the_expected_count_closes_whatever_the_geometry(ct_series):
    counted = progress(ct_series(10), expected_instances=10, open_associations=2)
    assert judge_completeness(counted, RULES, at(31)).complete is False
    assert judge_completeness(counted, RULES, at(32)).sign == "expected_count"


def test_a_study_that_never_ends_is_closed_visibly(whole):
    dripping = replace(whole, all_released=False, last_instance_at=at(3599))
    assert not judge_completeness(dripping, RULES, at(3599)).complete
    closed = judge_completeness(dripping, RULES, at(3600))
    assert (closed.complete, closed.sign) == (True, "max_wait")
    assert "closed 3600 s after the first instance" in closed.reason


def test_nothing_is_never_complete(whole):
    empty = replace(whole, instances=0, series=())
    assert not judge_completeness(empty, RULES, at(100_000)).complete


def test_a_clock_set_back_waits_a_little_but_not_for_hours(whole):
    answer = judge_completeness(whole, RULES, at(-25))
    assert not answer.complete
    assert 0 < answer.check_again_s <= RULES.quiet_s
    closed = judge_completeness(whole, RULES, at(-3600))
    assert (closed.complete, closed.sign) == (True, "clock_set_back")


def test_the_best_eligible_series_decides(ct_series):
    lung = series_progress(ct_series(series="1.2.3.2", kernel=("LUNG",), skip=(5,)))
    soft = series_progress(ct_series())
    study = progress(ct_series(), series=(lung, soft))
    assert judge_completeness(study, RULES, at(40)).complete
    thin_but_gapped = series_progress(
        ct_series(series="1.2.3.3", slice_thickness_mm=1.0, skip=(5,))
    )
    # A gapped series is not eligible, so it does not hold up a whole one.
    assert judge_completeness(
        replace(study, series=(soft, thin_but_gapped)), RULES, at(40)
    ).complete


def test_series_geometry_says_what_is_there(ct_series):
    geometry = series_geometry(ct_series(skip=(3, 4)))
    assert not geometry.contiguous
    assert geometry.slices == 198
    assert [(g.from_mm, g.to_mm) for g in geometry.gaps] == [(-297.5, -293.75)]
    assert geometry.spacing_mm == pytest.approx(1.25)
    whole = series_geometry(ct_series())
    assert whole.contiguous
    assert whole.coverage_mm == pytest.approx(250)
    assert series_geometry(ct_series(1)).contiguous is False
    assert series_geometry([]).coverage_mm == 0


states = st.builds(
    dict,
    instances=st.integers(0, 500),
    first=st.floats(-100, 5000),
    gap=st.floats(0, 5000),
    open_associations=st.integers(0, 3),
    all_released=st.booleans(),
    expected_instances=st.none() | st.integers(0, 500),
    with_series=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(state=states, now=st.floats(-1000, 20_000))
def test_every_study_ends_and_asks_again_in_time(whole, state, now):
    study = replace(
        whole,
        instances=state["instances"],
        first_instance_at=at(state["first"]),
        last_instance_at=at(state["first"] + state["gap"]),
        open_associations=state["open_associations"],
        all_released=state["all_released"],
        expected_instances=state["expected_instances"],
        series=whole.series if state["with_series"] else (),
    )
    answer = judge_completeness(study, RULES, at(now))
    assert (answer.sign == "none") is (not answer.complete)
    assert (answer.check_again_s is None) is answer.complete
    if study.instances == 0:
        assert not answer.complete
        return
    # Never within the grace time, unless the study is older than the limit.
    if answer.complete and answer.sign not in ("max_wait", "clock_set_back"):
        assert now - (state["first"] + state["gap"]) >= RULES.grace_s - 1e-5
    # Asking again whenever told ends the study, with nothing else happening.
    moment, asked = now, 0
    while not answer.complete:
        assert answer.check_again_s is not None
        # Where the PACS named a number, what is missing is waited for longer.
        named = study.expected_instances is not None
        longest = RULES.expected_wait_s if named else RULES.quiet_s
        assert 0 < answer.check_again_s <= longest
        moment += answer.check_again_s
        answer = judge_completeness(study, RULES, at(moment))
        asked += 1
        assert asked < 300


def test_what_the_pacs_still_has_is_waited_for_but_not_for_ever(whole):
    short = replace(whole, expected_instances=300)
    rules = replace(RULES, expected_wait_s=120)
    assert not judge_completeness(short, rules, at(30 + 60)).complete
    closed = judge_completeness(short, rules, at(30 + 120))
    assert (closed.complete, closed.sign) == (True, "quiet")
    assert "nothing new for 120 s; 200 of 300 instances have arrived" in closed.reason
    long_open = replace(short, first_instance_at=at(-3600), last_instance_at=at(29))
    assert judge_completeness(long_open, rules, at(31)).sign == "max_wait"
    patient = replace(RULES, quiet_s=600, expected_wait_s=120)
    assert not judge_completeness(short, patient, at(30 + 500)).complete
