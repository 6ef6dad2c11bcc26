from __future__ import annotations

import time

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import CtVolume
from pe_triage.imaging.measure import measure_volume
from pe_triage.imaging.quality import alternation
from pe_triage.imaging.volume import load_volume
from pe_triage.phantom import generate_study


def as_volume(hu_zyx, spacing_mm):
    hu = np.ascontiguousarray(hu_zyx, dtype=np.int16)
    return CtVolume(
        hu_zyx=hu,
        spacing_mm=spacing_mm,
        affine_lps=np.eye(4),
        sop_instance_uids=tuple(f"1.{z}" for z in range(hu.shape[0])),
        series_uid="1.2",
    )


def chest(vessel_hu=300, *, bone_hu=600, size=160, slices=60, noise=15, lung_hu=-850, seed=0):
    """An elliptic body with two lungs, a heart between them, spine and sternum (2.4 mm, 4 mm)."""
    y, x = np.mgrid[:size, :size] * (384 / size)
    hu = np.full((size, size), -1000.0)
    hu[((x - 192) / 160) ** 2 + ((y - 192) / 115) ** 2 < 1] = 50
    for side in (-1, 1):
        hu[((x - 192 - side * 85) / 55) ** 2 + ((y - 195) / 85) ** 2 < 1] = lung_hu
    hu[((x - 192) / 50) ** 2 + ((y - 170) / 45) ** 2 < 1] = vessel_hu
    hu[(x - 192) ** 2 + (y - 265) ** 2 < 20**2] = bone_hu
    hu[((x - 192) / 20) ** 2 + ((y - 95) / 8) ** 2 < 1] = bone_hu
    volume = np.repeat(hu[None], slices, axis=0)
    volume[:8][volume[:8] == lung_hu] = 60
    rng = np.random.default_rng(seed)
    spacing = (4.0, 384 / size, 384 / size)
    return as_volume(np.rint(volume + rng.normal(0, noise, volume.shape)), spacing)


@pytest.mark.parametrize("vessel_hu", [45, 80, 150, 300, 500])
def test_the_vessel_level_follows_the_contrast_and_not_bone(vessel_hu):
    measures = measure_volume(chest(vessel_hu))
    assert measures.air_hu == pytest.approx(-1000, abs=5)
    assert measures.vessel_hu == pytest.approx(vessel_hu, abs=20)
    assert measures.lung_extent_mm == pytest.approx(208, abs=4)
    assert 0.3 < measures.lung_fraction < 0.6


def test_scattered_calcium_does_not_look_like_contrast():
    volume = chest(40)
    hu = volume.hu_zyx.copy()
    rng = np.random.default_rng(1)
    for z, y, x in rng.integers((10, 55, 60), (58, 85, 100), (40, 3)):
        hu[z, y : y + 2, x : x + 2] = 1200
    measures = measure_volume(as_volume(hu, volume.spacing_mm))
    assert measures.vessel_hu is not None
    assert measures.vessel_hu < 80


@pytest.mark.parametrize(
    ("change", "air"),
    [
        (lambda h: h + 1024, 24),
        (lambda h: h - 1024, -2024),
        (lambda h: h * 2, -2000),
        (lambda h: np.maximum(h, -1024), -1000),
    ],
)
def test_a_wrong_calibration_shows_in_the_air(change, air):
    volume = chest()
    hu = change(volume.hu_zyx.astype(np.int32))
    measures = measure_volume(as_volume(hu, volume.spacing_mm))
    assert measures.air_hu == pytest.approx(air, abs=12)


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_padding_outside_the_circle_is_not_air(padding):
    volume = chest()
    hu = volume.hu_zyx.copy()
    y, x = np.mgrid[:160, :160]
    hu[:, (x - 80) ** 2 + (y - 80) ** 2 > 80**2] = padding
    measures = measure_volume(as_volume(hu, volume.spacing_mm))
    assert measures.air_hu == pytest.approx(-1000, abs=20)


def test_what_is_no_chest_has_no_lung():
    box = np.full((40, 100, 100), -1000, np.int16)
    box[:, 20:80, 20:80] = 40
    measures = measure_volume(as_volume(box, (4.0, 3.0, 3.0)))
    assert measures.lung_extent_mm == 0
    assert measures.vessel_hu is None
    flat = measure_volume(as_volume(np.zeros((40, 64, 64)), (4.0, 3.0, 3.0)))
    assert flat.vessel_hu is None
    tiny = measure_volume(as_volume(np.zeros((2, 4, 4)), (4.0, 3.0, 3.0)))
    assert tiny.lung_extent_mm == 0


def test_the_matrix_does_not_matter():
    coarse, fine = measure_volume(chest(size=160)), measure_volume(chest(size=512, slices=60))
    assert fine.vessel_hu == pytest.approx(coarse.vessel_hu, abs=15)
    assert fine.lung_fraction == pytest.approx(coarse.lung_fraction, abs=0.03)


@pytest.mark.parametrize("name", ["chest_siemens_b40f", "chest_siemens_b70f", "chest_philips_b"])
def test_real_chests_without_contrast_measure_blood(real_ct, receive_file, name):
    volume = load_volume([receive_file(p) for p in sorted((real_ct / name).glob("*.dcm"))])
    measures = measure_volume(volume)
    assert measures.vessel_hu is not None
    assert 30 < measures.vessel_hu < 70
    assert measures.air_hu == pytest.approx(-1000, abs=25)
    assert measures.lung_extent_mm > 180
    assert 0.15 < measures.lung_fraction < 0.6


def test_real_contrast_cropped_to_the_heart_measures_contrast(real_ct):
    image = nib.as_closest_canonical(nib.load(real_ct / "cta_nifti" / "ct_cropped.nii.gz"))
    # NIfTI's canonical axes are RAS+; ours run along LPS.
    hu = np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
    x, y, z = (float(v) for v in image.header.get_zooms())
    measures = measure_volume(as_volume(hu, (z, y, x)))
    assert measures.vessel_hu is not None
    assert measures.vessel_hu > 150
    # No air around the patient is in the picture: the airways' air tells the calibration.
    assert measures.air_hu == pytest.approx(-1000, abs=20)
    assert measures.soft_tissue_hu == pytest.approx(60, abs=90)


def quality(volume):
    return measure_volume(as_volume(volume.copy(), (4.0, 2.4, 2.4)))


def test_noise_is_measured_whatever_its_strength():
    for sd in (5, 15, 40, 100):
        assert measure_volume(chest(noise=sd)).noise_hu == pytest.approx(sd, rel=0.3)


def test_a_sharp_kernel_shows_in_the_grain_of_the_noise():
    y, x = np.mgrid[:256, :256]
    hu = np.where((x - 128) ** 2 + (y - 128) ** 2 < 110**2, 50.0, -1000.0)
    white = np.random.default_rng(1).normal(0, 20, (12, 256, 256))
    smooth = ndimage.gaussian_filter(white, (0, 1.5, 1.5))
    smooth *= 20 / smooth.std()
    edges = white - 0.5 * (np.roll(white, 1, 2) + np.roll(white, -1, 2))
    grains = [
        measure_volume(as_volume(np.rint(hu + noise), (4.0, 0.75, 0.75))).grain
        for noise in (smooth, white, edges)
    ]
    assert grains[0] > 0.6
    assert abs(grains[1]) < 0.15
    assert grains[2] < 0
    # Coarse pixels average the grain away, and it is not guessed.
    assert measure_volume(chest()).grain is None


def test_slices_that_do_not_belong_are_noticed():
    hu = chest().hu_zyx
    assert quality(hu).blank_slices == 0
    assert quality(hu).saturated_slices == 0
    assert quality(hu).slice_jump < 1.6
    changed = hu.copy()
    changed[30] = -1000
    assert quality(changed).blank_slices == 1
    changed[31] = 40
    assert quality(changed).blank_slices == 2
    changed = hu.copy()
    changed[30, 40:120] = 3071
    assert quality(changed).saturated_slices == 1
    changed = hu.copy()
    changed[30] = np.roll(hu[30], 9, axis=1)
    assert quality(changed).slice_jump > 2.5
    # A step between two halves, as from breathing, is no foreign slice.
    changed = hu.copy()
    changed[30:] = np.roll(hu[30:], 3, axis=1)
    assert quality(changed).slice_jump < 2


def test_soft_tissue_tells_a_wrong_scale_though_air_is_right():
    hu = chest().hu_zyx.astype(np.int32)
    assert quality(hu).soft_tissue_hu == pytest.approx(50, abs=15)
    assert quality((hu + 1000) * 2 - 1000).soft_tissue_hu > 500
    assert quality((hu + 1000) // 2 - 1000).soft_tissue_hu < -300


def test_air_is_found_where_the_body_fills_the_picture():
    volume = chest()
    # The field of view within the body, lungs whole; the windpipe is the only air.
    hu = volume.hu_zyx[:, 36:124, 20:140].copy()
    hu[hu < -950] = 50
    assert abs((quality(hu).air_hu or 0) + 1000) > 80
    y, x = np.mgrid[: hu.shape[1], : hu.shape[2]]
    hu[20:, (x - 60) ** 2 + (y - 10) ** 2 < 5**2] = -1000
    assert quality(hu).air_hu == pytest.approx(-1000, abs=60)


def test_air_cut_at_its_nominal_value_is_air():
    hu = np.maximum(chest().hu_zyx, -1000)
    assert quality(hu).air_hu == pytest.approx(-1000, abs=1)


def test_a_whole_series_takes_a_second_or_two():
    hu = ndimage.zoom(chest().hu_zyx, (2, 3.2, 3.2), order=0)
    volume = as_volume(hu, (2.0, 0.75, 0.75))
    assert volume.hu_zyx.shape == (120, 512, 512)
    # Of the processor, not of the clock: the machine may be busy.
    started = time.process_time()
    measure_volume(volume)
    assert time.process_time() - started < 3


def test_slices_of_two_acquisitions_between_each_other_alternate():
    study = generate_study(6, "standard", size=96, slice_spacing_mm=3.0)
    hu, limit = study.hu_zyx, EligibilityRules().max_alternation

    def found(values):
        return alternation(as_volume(values, study.spacing_mm))

    assert found(hu) < 0.8
    moved = hu.copy()
    moved[::2] = np.roll(moved[::2], 1, axis=1)
    assert found(moved) > limit
    # Noise alone makes all slices equally different.
    noise = np.random.default_rng(5).normal(0, 200, hu.shape)
    assert found(hu) < found(np.clip(hu + noise, -1024, 3071)) < limit
    assert found(hu[:4]) is None
