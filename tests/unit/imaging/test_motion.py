"""Signs of motion, on a chest with vessels that is at rest, that breathes, and that is doubled."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest

from pe_triage.assemble.eligibility import cautions_of
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import CtVolume
from pe_triage.imaging.measure import measure_volume
from pe_triage.imaging.motion import motion_signs
from pe_triage.phantom import generate_study

SPACING_MM = 3.0


def as_volume(hu_zyx: np.ndarray, spacing_mm: tuple[float, float, float]) -> CtVolume:
    return CtVolume(
        hu_zyx=np.ascontiguousarray(hu_zyx),
        spacing_mm=spacing_mm,
        affine_lps=np.eye(4),
        sop_instance_uids=tuple(f"1.{z}" for z in range(len(hu_zyx))),
        series_uid="1.2",
    )


@cache
def at_rest() -> CtVolume:
    study = generate_study(5, "negative", size=128, slice_spacing_mm=SPACING_MM)
    return as_volume(study.hu_zyx, study.spacing_mm)


def breathing(volume: CtVolume, amplitude_mm: float, period_mm: float = 30.0) -> CtVolume:
    """Show at each height what a sine along z has moved there."""
    z_mm = np.arange(len(volume.hu_zyx)) * SPACING_MM
    shown = (z_mm + amplitude_mm * np.sin(2 * np.pi * z_mm / period_mm)) / SPACING_MM
    shown = np.clip(shown, 0, len(z_mm) - 1.001)
    whole = shown.astype(int)
    part = (shown - whole)[:, None, None]
    hu = volume.hu_zyx[whole] * (1 - part) + volume.hu_zyx[whole + 1] * part
    return as_volume(np.rint(hu).astype(np.int16), volume.spacing_mm)


def doubled(volume: CtVolume, shift: int) -> CtVolume:
    hu = 0.6 * volume.hu_zyx + 0.4 * np.roll(volume.hu_zyx, shift, axis=1)
    return as_volume(np.rint(hu).astype(np.int16), volume.spacing_mm)


def test_breathing_shows_in_the_steps_between_slices() -> None:
    rules = EligibilityRules()
    still = motion_signs(at_rest())[1]
    assert still < rules.max_unevenness
    found = [motion_signs(breathing(at_rest(), mm))[1] for mm in (2.0, 4.0)]
    assert rules.max_unevenness < found[0] < found[1]


def test_breathing_ends_as_a_caution_that_names_the_motion() -> None:
    (words,) = (
        w
        for w in cautions_of(measure_volume(breathing(at_rest(), 4.0)), EligibilityRules())
        if "motion" in w
    )
    assert words.startswith("motion along the body: the slices advance unevenly, by 0.")
    assert not [
        w for w in cautions_of(measure_volume(at_rest()), EligibilityRules()) if "motion" in w
    ]


@pytest.mark.parametrize("shift", [2, 3])
def test_a_second_outline_shows_in_the_lungs(shift: int) -> None:
    still, twice = motion_signs(at_rest())[0], motion_signs(doubled(at_rest(), shift))[0]
    assert twice > 1.5 * still
    # Asked only where a site has set a limit.
    measures = measure_volume(doubled(at_rest(), shift))
    assert not [w for w in cautions_of(measures, EligibilityRules()) if "repeated" in w]
    asked = EligibilityRules(max_doubling=1.2 * still)
    assert [w for w in cautions_of(measures, asked) if "outlines in the lungs are repeated" in w]


def test_the_matrix_matters_little() -> None:
    coarse = at_rest()
    fine = as_volume(
        coarse.hu_zyx.repeat(3, axis=1).repeat(3, axis=2),
        (SPACING_MM, *(mm / 3 for mm in coarse.spacing_mm[1:])),
    )
    first, second = motion_signs(coarse), motion_signs(fine)
    assert second[1] == pytest.approx(first[1], rel=0.15)


def test_too_little_to_see_is_not_measured() -> None:
    assert motion_signs(as_volume(np.zeros((3, 32, 32), np.int16), (3.0, 3.0, 3.0))) == (None, None)
    still = motion_signs(as_volume(np.zeros((60, 32, 32), np.int16), (3.0, 3.0, 3.0)))
    assert still == (None, 0.0)


def test_a_whole_series_takes_less_than_two_seconds() -> None:
    wide = np.tile(at_rest().hu_zyx, (4, 4, 4))[:300]
    volume = as_volume(wide, (1.0, 0.75, 0.75))
    assert volume.hu_zyx.shape == (300, 512, 512)
    started = time.process_time()
    motion_signs(volume)
    assert time.process_time() - started < 2
