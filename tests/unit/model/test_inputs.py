from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pe_triage.imaging.windows import PE, RSPECT_WINDOWS, window_channels
from pe_triage.model.inputs import ExamInput, unit_images
from pe_triage.model.spec import SPECS


def _volume(slices: int = 9, side: int = 96) -> NDArray[np.int16]:
    at = np.linspace(-1, 1, side)
    y, x = np.meshgrid(at, at, indexing="ij")
    hu = np.full((slices, side, side), -1000, np.int16)
    hu[:, y**2 + (x / 0.9) ** 2 < 0.6] = 40
    hu[:, (y / 0.5) ** 2 + ((np.abs(x) - 0.4) / 0.2) ** 2 < 1] = -850
    hu += np.arange(slices, dtype=np.int16)[:, None, None] * 7
    return hu


MM = (4.0, 3.6, 3.6)


def test_plain_slices_are_exactly_the_windows() -> None:
    exam = ExamInput(SPECS["attention-bilstm"].reduced(64), _volume(), MM)
    np.testing.assert_array_equal(
        exam.images(2, 5), window_channels(_volume()[2:5], RSPECT_WINDOWS, 64)
    )
    assert exam.lungs_found is None


def test_neighbours_stand_beside_a_slice_and_repeat_at_the_ends() -> None:
    exam = ExamInput(SPECS["rsna-first"].reduced(96), _volume(), MM)
    images = exam.images(0, 9)
    single = np.stack([PE.apply(s.astype(np.float32)) for s in _volume()])
    assert images.shape == (9, 3, 96, 96)
    for z in range(9):
        for k, other in enumerate((max(z - 1, 0), z, min(z + 1, 8))):
            np.testing.assert_array_equal(images[z, k], single[other])


def test_channels_run_over_windows_then_planes() -> None:
    spec = replace(SPECS["attention-bilstm"], size=96, planes=3)
    images = ExamInput(spec, _volume(), MM).images(4, 5)
    assert images.shape == (1, 9, 96, 96)
    for w, window in enumerate(RSPECT_WINDOWS):
        for k in range(3):
            expected = window.apply(_volume()[3 + k].astype(np.float32))
            np.testing.assert_array_equal(images[0, 3 * w + k], expected)


def test_windows_are_consecutive_slices_and_zeros_beyond_the_end() -> None:
    spec = replace(SPECS["r3d18"].reduced(96, window=4), lung="none")
    exam = ExamInput(spec, _volume(), MM)
    images = exam.images(0, 3)
    assert images.shape == (3, 3, 4, 96, 96)
    single = window_channels(_volume(), RSPECT_WINDOWS, 96)
    np.testing.assert_array_equal(images[1, :, 2], single[6])
    np.testing.assert_array_equal(images[2, :, 0], single[8])
    assert not images[2, :, 1:].any()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_any_part_gives_the_same_units(name: str) -> None:
    spec = SPECS[name].reduced(64, window=4)
    exam = ExamInput(spec, _volume(), MM)
    whole = exam.images(0, exam.plan.units + 5)
    assert len(whole) == exam.plan.units
    assert whole.shape[1] == spec.channels
    assert 0 <= whole.min() < whole.max() <= 1
    parts = [exam.images(i, i + 2) for i in range(0, exam.plan.units, 2)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    # and from planes that were stored
    if not spec.is_plain_slices:
        stored = exam.planes_hu(0, exam.plan.planes)
        again = unit_images(spec, exam.plan, lambda a, b: stored[a:b], 0, exam.plan.units)
        np.testing.assert_allclose(again, whole, atol=1e-6)


def test_planes_of_one_millimetre_lie_between_the_slices() -> None:
    spec = replace(SPECS["multitask-r3d18-tcn"].reduced(96), lung="none")
    planes = ExamInput(spec, _volume(), MM).planes_hu(0, 36)
    # a ramp along z of 7 HU for each 4 mm slice, held at the ends; plane p lies at slice p/4 - 3/8
    expected = -1000 + 7 * np.clip((np.arange(36) + 0.5) / 4 - 0.5, 0, 8)
    np.testing.assert_allclose(planes[:, 0, 0], expected, atol=1e-3)
    thin = ExamInput(spec, _volume(8), (0.5, 3.6, 3.6)).planes_hu(0, 4)
    np.testing.assert_allclose(thin[:, 0, 0], -1000 + 7 * np.array([0.5, 2.5, 4.5, 6.5]), atol=1e-3)


def test_outside_the_lungs_is_air() -> None:
    exam = ExamInput(SPECS["effnet"].reduced(96), _volume(), MM)
    assert exam.lungs_found
    images = exam.images(4, 5)[0]
    mediastinal = images[2]
    assert not mediastinal[48, :4].any()
    assert not mediastinal[20, 48], "soft tissue in front is masked"
    whole = window_channels(_volume()[4:5], RSPECT_WINDOWS, 96)[0]
    np.testing.assert_array_equal(images[:, 48, 29], whole[:, 48, 29])


def test_the_box_fills_the_input() -> None:
    exam = ExamInput(SPECS["multitask-r3d18-tcn"].reduced(96), _volume(), MM)
    box = exam.box
    assert 0 < box.top < 30 < 66 < box.bottom < 96
    assert 0 < box.left < 25 < 71 < box.right < 96
    hu = exam.planes_hu(0, 1)[0]
    dark = (hu < -500) & (hu > -900)
    side = max(box.bottom - box.top, box.right - box.left)
    original = (_volume() == -850 + 7 * np.arange(9)[:, None, None])[0].sum()
    assert dark.sum() == pytest.approx(original * (96 / side) ** 2, rel=0.15)


@pytest.mark.parametrize("name", ["effnet", "multitask-r3d18-gru"])
def test_without_lungs_the_whole_slice_is_seen(name: str) -> None:
    hu = np.full((8, 64, 64), 40, np.int16)
    hu[:, 20:40, 20:40] = 400
    exam = ExamInput(SPECS[name].reduced(64, window=4), hu, MM)
    assert exam.lungs_found is False
    assert (exam.box.top, exam.box.bottom, exam.box.left, exam.box.right) == (0, 64, 0, 64)
    assert float(exam.planes_hu(0, 1).min()) == 40
