"""Truth: labels follow the voxels and obey RSPECT's rules."""

from __future__ import annotations

import numpy as np
import pytest

from pe_triage.domain import EXAM_LABELS, POSITIVE_LABELS
from pe_triage.phantom import PRESETS, SLICE_POSITIVE_MIN_AREA_MM2, PhantomStudy, generate_study
from pe_triage.phantom.anatomy import IDENTITY, draw_anatomy
from pe_triage.phantom.geometry import Ellipsoid
from pe_triage.phantom.organs import heart
from pe_triage.phantom.thorax import in_lung
from pe_triage.phantom.tree import LEVELS, grow_arteries


def _obeys(exam: dict[str, int], any_slice: bool) -> None:
    assert tuple(exam) == EXAM_LABELS
    assert set(exam.values()) <= {0, 1}
    if any_slice:
        assert exam["rv_lv_ratio_gte_1"] + exam["rv_lv_ratio_lt_1"] == 1
        assert exam["leftsided_pe"] + exam["rightsided_pe"] + exam["central_pe"] >= 1
        assert exam["chronic_pe"] + exam["acute_and_chronic_pe"] <= 1
        assert exam["negative_exam_for_pe"] == exam["indeterminate"] == 0
    else:
        assert exam["negative_exam_for_pe"] + exam["indeterminate"] == 1
        assert not any(exam[label] for label in POSITIVE_LABELS)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_labels_obey_the_rules(preset: str) -> None:
    for seed in range(6 if preset == "standard" else 3):
        study = generate_study(seed, preset, size=64, n_slices=40)
        _obeys(dict(study.exam), bool(study.slice_pe_z.any()))
        if preset in ("pe-acute", "pe-chronic"):
            assert study.slice_pe_z.any()
            assert study.exam["chronic_pe"] == int(preset == "pe-chronic")
            assert study.exam["acute_and_chronic_pe"] == 0
        if preset == "negative":
            assert study.exam["negative_exam_for_pe"] == 1
        if preset == "poor-contrast":
            assert study.exam["indeterminate"] == 1
            assert study.anatomy.contrast.artery_hu < 170


def test_both_stages_are_labelled_as_such() -> None:
    from dataclasses import replace

    from pe_triage.phantom import Choice

    preset = replace(PRESETS["pe-acute"], stage=Choice(weights=(("both", 1.0),)), central=1.0)
    study = generate_study(8, preset, size=96, n_slices=50)
    assert study.exam["acute_and_chronic_pe"] == 1
    assert study.exam["chronic_pe"] == 0
    assert study.exam["central_pe"] == 1
    assert {t.clot.stage for t in study.clots if t.visible} == {"acute", "chronic"}


def test_slice_labels_follow_the_mask(acute: PhantomStudy) -> None:
    pixel_mm2 = acute.spacing_mm[1] * acute.spacing_mm[2]
    index = acute.clot_index_zyx
    for z in range(index.shape[0]):
        counts = np.bincount(index[z].ravel(), minlength=len(acute.clots) + 1)[1:]
        expected = bool((counts * pixel_mm2 >= SLICE_POSITIVE_MIN_AREA_MM2).any())
        assert bool(acute.slice_pe_z[z]) == expected
    assert 0 < acute.slice_pe_z.sum() < len(acute.slice_pe_z)


def test_clots_are_measured_in_the_voxels(acute: PhantomStudy) -> None:
    assert len(acute.clots) == len(acute.drawn["clots"])
    voxel_mm3 = float(np.prod(acute.spacing_mm))
    x0, y0, z0 = acute.origin_lps_mm
    for number, truth in enumerate(acute.clots, start=1):
        z, y, x = np.nonzero(acute.clot_index_zyx == number)
        assert truth.volume_mm3 == pytest.approx(len(z) * voxel_mm3, abs=0.1)
        if not len(z):
            continue
        assert (truth.first_slice, truth.last_slice) == (z.min(), z.max())
        assert truth.centre_lps_mm == pytest.approx(
            (
                x0 + x.mean() * acute.spacing_mm[2],
                y0 + y.mean() * acute.spacing_mm[1],
                z0 + z.mean() * acute.spacing_mm[0],
            ),
            abs=0.02,
        )
        # LPS: a left-sided clot lies at positive x, seen from the turned and shifted midline.
        if truth.clot.side in ("left", "right") and truth.clot.level != "main":
            sign = 1 if truth.clot.side == "left" else -1
            assert truth.centre_lps_mm is not None
            assert sign * truth.centre_lps_mm[0] > 5


def test_clots_sit_in_arteries_only(acute: PhantomStudy) -> None:
    """What a clot replaced was blood, at the rim of thin vessels half lung."""
    well = generate_study(27, "negative", size=128, n_slices=60)
    before = well.hu_zyx[acute.clot_mask_zyx].astype(float)
    half = (acute.anatomy.lung_hu + acute.anatomy.contrast.artery_hu) / 2
    assert before.min() > half - 6 * float(acute.drawn["noise_hu"])
    assert np.median(before) > 100


def test_negative_when_the_clot_lies_outside_the_scan() -> None:
    study = generate_study(27, "pe-acute", size=64, slice_spacing_mm=5, coverage_mm=(94, 104))
    assert study.exam["negative_exam_for_pe"] == 1
    assert not study.slice_pe_z.any()
    assert study.clots


@pytest.mark.parametrize("dilated", [False, True])
def test_drawn_ratio_of_the_ventricles_is_what_the_shapes_show(dilated: bool) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        anatomy = draw_anatomy(rng, artery_hu=300.0, rv_dilated=dilated)
        assert (anatomy.rv_lv_ratio >= 1) == dilated
        parts, _ = heart(anatomy)
        contrast = anatomy.contrast
        left = next(
            p.shape for p in parts
            if isinstance(p.shape, Ellipsoid) and p.shape.axes != IDENTITY
            and p.hu == contrast.left_heart_hu
        )  # fmt: skip
        # Walk along the short axis through both centres; the last shape painted wins.
        side, step = left.axes[1], 0.1
        seen = {contrast.left_heart_hu: 0.0, contrast.right_heart_hu: 0.0}
        for t in np.arange(-60, 140, step):
            point = tuple(c + a * float(t) for c, a in zip(left.centre, side, strict=True))
            inside = [
                p.hu for p in parts
                if isinstance(p.shape, Ellipsoid) and p.shape.contains(point)  # type: ignore[arg-type]
            ]  # fmt: skip
            if inside and inside[-1] in seen:
                seen[inside[-1]] += step
        measured = seen[contrast.right_heart_hu] / seen[contrast.left_heart_hu]
        assert measured == pytest.approx(anatomy.rv_lv_ratio, rel=0.03)


def test_arteries_branch_and_taper_within_the_lungs() -> None:
    rng = np.random.default_rng(5)
    anatomy = draw_anatomy(rng, artery_hu=300.0, rv_dilated=False)
    _, sac = heart(anatomy)
    tree = grow_arteries(rng, anatomy, sac)
    assert {v.level for v in tree} == set(LEVELS)
    assert len({v.name for v in tree if v.level == "segmental"}) >= 16
    for index, vessel in enumerate(tree):
        assert vessel.parent < index
        assert vessel.shape.end_radius_mm <= vessel.shape.start_radius_mm * 1.06
        if vessel.level == "subsegmental":
            assert vessel.shape.start_radius_mm <= tree[vessel.parent].shape.start_radius_mm
            assert in_lung(anatomy, vessel.shape.end, rim_mm=0.5)
            assert (vessel.shape.end[0] > 0) == (vessel.side == "left")
    for side in ("left", "right"):
        assert sum(v.side == side and v.level == "subsegmental" for v in tree) > 60
