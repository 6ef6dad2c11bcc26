"""What is worth reading before a study is complete: never more than a run would choose."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pe_triage.assemble.early import LEAST_SLICES, worth_reading
from pe_triage.assemble.eligibility import PROVISIONAL, SERIES_RULES, judge_series
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.assemble.series_rules import Rule
from pe_triage.stack import GAP_RATIO
from tests.unit.assemble.conftest import make_series

RULES = EligibilityRules()


def test_a_good_series_is_worth_it_from_its_first_slices_on_in_any_order() -> None:
    images = make_series(200)
    random.Random(1).shuffle(images)
    for count in (1, LEAST_SLICES - 1):
        assert worth_reading({"1.2.3.1": images[:count]}, RULES) == ()
    for count in (LEAST_SLICES, 20, 60, 150, 199):
        part = images[:count]
        assert not judge_series(part, RULES).eligible or count > 150
        assert worth_reading({"1.2.3.1": part}, RULES) == ("1.2.3.1",)
    assert judge_series(images, RULES).eligible


@pytest.mark.parametrize(
    "change",
    [
        {"image_type": ("DERIVED", "SECONDARY", "AXIAL")},
        {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")},
        {"slice_thickness_mm": 5.0},
        {"kernel": ("B70f",)},
        {"patient_age_years": 9.0},
        {"rescale_slope": None},
        {"image_orientation": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)},
        {"series_description": "BOLUS TRACKING"},
    ],
)
def test_what_no_further_image_can_mend_is_not(change: dict[str, Any]) -> None:
    images = make_series(30, **change)
    assert not judge_series(images, RULES, so_far=True).eligible
    assert worth_reading({"1.2.3.1": images}, RULES) == ()


def test_the_best_of_what_has_come_or_all_that_cannot_be_told_apart() -> None:
    thick = make_series(60, series="1.1", slice_thickness_mm=3.0, step_mm=3.0, acquisition_number=1)
    thin = make_series(90, series="1.2", acquisition_number=1)
    assert worth_reading({"1.1": thick}, RULES) == ("1.1",)
    assert worth_reading({"1.1": thick, "1.2": thin}, RULES) == ("1.2",)
    other = make_series(90, series="1.3", acquisition_number=2, frame_of_reference_uid="1.2.8")
    assert set(worth_reading({"1.2": thin, "1.3": other}, RULES)) == {"1.2", "1.3"}
    assert worth_reading({}, RULES) == ()


def test_every_rule_that_is_left_out_exists() -> None:
    rows: tuple[Rule, ...] = SERIES_RULES
    of_the_stack = {"gap", "unequal_spacing"}
    assert {rule.name for rule in rows} >= PROVISIONAL - of_the_stack
    gapped = make_series(40, skip=(20, 21, 22))
    assert GAP_RATIO < 3
    assert judge_series(gapped, EligibilityRules(min_slices=8, min_coverage_mm=10)).rule == "gap"
