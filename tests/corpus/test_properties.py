"""Order and orientation, for any arrival and any axial orientation, by headers alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_triage.assemble.eligibility import EligibilityRules, choose_series, judge_series
from pe_triage.imaging.geometry import affine_lps, in_plane
from pe_triage.stack import analyse_stack
from tests.unit.assemble.conftest import make_series

RULES = EligibilityRules(min_slices=8, min_coverage_mm=5.0)


@settings(max_examples=150, deadline=None)
@given(
    order=st.permutations(range(12)),
    missing=st.sets(st.integers(0, 11), max_size=3),
    copies=st.sets(st.integers(0, 11), max_size=3),
)
def test_the_order_of_arrival_never_matters(order, missing, copies):
    series = make_series(12)
    extra = [replace(series[z], sop_instance_uid=f"9.{z}") for z in copies]
    held = [series[z] for z in range(12) if z not in missing] + extra
    position = {z: n for n, z in enumerate(order)}
    shuffled = sorted(held, key=lambda i: position[int(i.path.stem)])
    random.Random(sum(order[:3])).shuffle(shuffled)
    assert analyse_stack(shuffled) == analyse_stack(held)
    verdict = judge_series(held, RULES)
    assert judge_series(shuffled, RULES) == verdict
    inner = {z for z in missing if any(h < z for h in _heights(held)) and z < max(_heights(held))}
    assert (verdict.rule == "gap") is bool(inner & ({*range(12)} - copies)) or len(held) < 8
    heights = analyse_stack(held).positions_mm
    assert list(heights) == sorted(heights)


def _heights(held):
    return [int(i.path.stem) for i in held]


@settings(max_examples=300, deadline=None)
@given(
    transpose=st.booleans(),
    flips=st.tuples(st.booleans(), st.booleans()),
    tilt_deg=st.floats(-8, 8),
    turn_deg=st.floats(-8, 8),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    spacing=st.tuples(st.floats(0.3, 1.5), st.floats(0.3, 1.5)),
    size=st.tuples(st.integers(3, 40), st.integers(3, 40)),
    pixel=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 5)),
)
def test_every_voxel_lies_where_its_header_says(
    transpose, flips, tilt_deg, turn_deg, origin, spacing, size, pixel
):
    """The position of a stored pixel (PS3.3 C.7.6.2.1.1) is that of the voxel it became."""
    row, column = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    if transpose:
        row, column = column, row
    row, column = row * (-1 if flips[0] else 1), column * (-1 if flips[1] else 1)
    rotation = _about_x(tilt_deg / 2) @ _about_z(turn_deg)
    row, column = rotation @ row, rotation @ column
    normal = np.cross(row, column)
    rows, columns = size
    series = make_series(
        6,
        rows=rows,
        columns=columns,
        pixel_spacing_mm=spacing,
        image_orientation=tuple(float(v) for v in (*row, *column)),
        each=lambda z: {"image_position_mm": tuple(np.array(origin) + 1.25 * z * normal)},
    )
    stack = analyse_stack(series)
    assert stack.problem is None, stack.problem
    plane = in_plane(stack)
    affine = affine_lps(stack, plane)
    # Every index grows towards the patient's left, back and head.
    assert np.all(np.diag(affine[:3, :3]) > 0)
    source = np.zeros((rows, columns), dtype=bool)
    r, c, k = pixel[0] % rows, pixel[1] % columns, pixel[2]
    source[r, c] = True
    (y,), (x,) = np.nonzero(plane.apply(source))
    facts = stack.groups[k][0].facts
    said = np.array(facts.image_position_mm) + row * spacing[1] * c + column * spacing[0] * r
    np.testing.assert_allclose((affine @ [x, y, k, 1])[:3], said, atol=1e-6)


def _about_x(degrees):
    a = np.radians(degrees)
    return np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])


def _about_z(degrees):
    a = np.radians(degrees)
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])


WORDS = st.sampled_from(["CTPA", "Thorax", "venous", "native", "Angio PE", ""])


@settings(max_examples=100, deadline=None)
@given(
    series=st.lists(
        st.fixed_dictionaries(
            {
                "series_description": WORDS,
                "kernel": st.sampled_from([("B30f",), ("B70f",), ()]),
                "slice_thickness_mm": st.sampled_from([1.0, 1.25, 8.0]),
                "acquisition_number": st.sampled_from([None, 1, 2]),
                "acquisition_time_s": st.sampled_from([None, 100.0, 200.0]),
            }
        ),
        min_size=1,
        max_size=4,
    ),
    shuffle=st.integers(0, 1000),
)
def test_the_choice_does_not_depend_on_order_and_never_takes_a_refused_series(series, shuffle):
    verdicts = [
        judge_series(make_series(9, series=f"1.{n}", **change), RULES)
        for n, change in enumerate(series)
    ]
    choice = choose_series(verdicts)
    random.Random(shuffle).shuffle(verdicts)
    assert choose_series(verdicts) == choice
    eligible = {v.series_uid for v in verdicts if v.eligible}
    assert choice.series_uid is None or choice.series_uid in eligible
    assert set(choice.contenders) <= eligible
    assert choice.reason
    if len(eligible) == 1:
        assert {choice.series_uid} == eligible
    if choice.contenders:
        # Contrast of equal height cannot tell; one clearly brighter does.
        alike = choice.by_contrast(dict.fromkeys(choice.contenders, 300.0), 100.0)
        assert alike.series_uid is None
        levels = {uid: 150.0 + 200.0 * (uid == choice.contenders[-1]) for uid in choice.contenders}
        assert choice.by_contrast(levels, 100.0).series_uid == choice.contenders[-1]
