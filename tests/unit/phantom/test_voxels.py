"""Voxels: determinism, Hounsfield units, geometry."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from pe_triage.errors import InputError
from pe_triage.phantom import PRESETS, PhantomStudy, generate_study
from pe_triage.phantom.geometry import Capsule, Ellipsoid, Grid


def _digest(study: PhantomStudy) -> str:
    return hashlib.sha256(study.hu_zyx.tobytes() + study.clot_index_zyx.tobytes()).hexdigest()


def test_same_arguments_give_the_same_bytes() -> None:
    one = generate_study(3, "hard", size=96, n_slices=24)
    two = generate_study(3, "hard", size=96, n_slices=24)
    other = generate_study(4, "hard", size=96, n_slices=24)
    assert _digest(one) == _digest(two)
    assert one.drawn == two.drawn
    assert one.key == two.key
    assert _digest(one) != _digest(other)
    assert one.key != other.key


def test_vector_units_do_not_change_a_bit() -> None:
    """The committed samples must come out alike on another processor."""
    code = (
        "import hashlib; from pe_triage.phantom import generate_study as g;"
        "s = g(5, 'pe-chronic', size=96, n_slices=20);"
        "print(hashlib.sha256(s.hu_zyx.tobytes() + s.clot_index_zyx.tobytes()).hexdigest())"
    )
    # Old and new names of the same sets; numpy warns of those it does not know.
    features = "AVX2 FMA3 AVX512F AVX512_SKX X86_V3 X86_V4 AVX512_ICL AVX512_SPR"
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == _digest(generate_study(5, "pe-chronic", size=96, n_slices=20))


def test_key_tells_every_argument_apart() -> None:
    def key(**changes: object) -> str:
        arguments: dict[str, object] = {"size": 32, "n_slices": 3, **changes}
        preset = str(arguments.pop("preset", "negative"))
        return generate_study(1, preset, **arguments).key  # type: ignore[arg-type]

    keys = {
        key(),
        key(size=33),
        key(n_slices=4),
        key(slice_thickness_mm=2.0),
        key(preset="poor-contrast"),
        key(coverage_mm=(-100.0, 80.0)),
    }
    assert len(keys) == 6


def test_seed_keeps_the_body_across_presets() -> None:
    sick = generate_study(9, "pe-acute", size=32, n_slices=3)
    well = generate_study(9, "negative", size=32, n_slices=3)
    assert sick.anatomy.pose == well.anatomy.pose
    assert sick.anatomy.age_years == well.anatomy.age_years


def test_hounsfield_units_are_plausible(acute: PhantomStudy) -> None:
    hu = acute.hu_zyx
    assert hu.dtype == np.int16
    assert hu.min() >= -1024
    assert hu.max() <= 3071
    corner = hu[:, :4, :4]
    assert abs(float(np.median(corner)) + 1000) < 5
    assert 1 < float(corner.std()) < 25
    lung = hu[(hu > -950) & (hu < -750)]
    assert 0.08 < lung.size / hu.size < 0.4
    assert -890 < float(np.median(lung)) < -810
    # Pulmonary arteries and right heart are what is brightest inside, next to bone and SVC.
    contrast = acute.anatomy.contrast
    assert contrast.svc_hu > contrast.right_heart_hu > contrast.aorta_hu
    assert 150 <= contrast.artery_hu <= 450


def test_filling_defects_are_darker_than_the_blood_around(acute: PhantomStudy) -> None:
    inside = acute.hu_zyx[acute.clot_mask_zyx].astype(float)
    clots = [t.clot.hu for t in acute.clots]
    # Partial volume lifts the rim of a clot towards the contrast, noise averages out.
    assert min(clots) - 25 < np.median(inside) < max(clots) + 60
    assert acute.anatomy.contrast.artery_hu - np.median(inside) > 60


def test_lungs_lie_left_and_right_of_a_denser_middle(acute: PhantomStudy) -> None:
    middle = acute.hu_zyx[len(acute.hu_zyx) // 2]
    n = middle.shape[1]
    row = middle[n // 2 - 3 : n // 2 + 3]
    assert np.median(row[:, int(0.25 * n) : int(0.33 * n)]) < -700
    assert np.median(row[:, int(0.70 * n) : int(0.78 * n)]) < -700
    assert np.median(row[:, int(0.47 * n) : int(0.53 * n)]) > -150


def test_liver_is_at_the_foot_end_and_on_the_right() -> None:
    study = generate_study(2, "negative", size=96, n_slices=24)
    foot = study.hu_zyx[0]
    n = foot.shape[0]
    right = foot[n // 2 - 8 : n // 2 + 8, int(0.24 * n) : int(0.40 * n)]
    assert 40 < float(np.median(right)) < 110


def test_slices_asked_for_are_slices_made() -> None:
    study = generate_study(1, "negative", size=48, n_slices=37)
    assert study.hu_zyx.shape == (37, 48, 48)
    assert 37 * study.spacing_mm[0] == pytest.approx(240, abs=0.01)
    assert study.slice_thickness_mm == 5.0
    thin = generate_study(1, "negative", size=32, slice_spacing_mm=2.5, coverage_mm=(-20, 30))
    assert thin.hu_zyx.shape[0] == 20
    assert thin.slice_thickness_mm == 2.5
    assert thin.origin_lps_mm[2] == -18.75
    assert thin.origin_lps_mm[0] == pytest.approx(-thin.spacing_mm[2] * 31 / 2)


def test_arrays_are_read_only(small: PhantomStudy) -> None:
    for array in (small.hu_zyx, small.clot_index_zyx, small.slice_pe_z):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "nice"}, "unknown preset 'nice': choose from standard, easy"),
        ({"seed": -1}, "seed must be 0"),
        ({"size": 8}, "size must be 32"),
        ({"slice_spacing_mm": 0.1}, "spacing and thickness"),
        ({"n_slices": 0}, "at least 1"),
        ({"coverage_mm": (10.0, 10.0)}, "coverage"),
    ],
)
def test_bad_arguments_say_which(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        generate_study(**{"seed": 1, "size": 32, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["standard", "easy", "hard"])
def test_mixed_presets_draw_every_status(preset: str) -> None:
    rng = np.random.default_rng(0)
    drawn = {PRESETS[preset].status.draw(rng) for _ in range(200)}
    assert drawn == {"positive", "negative", "indeterminate"}


def _cube(thickness_mm: float = 1.0) -> Grid:
    return Grid.of(
        size=64, field_of_view_mm=64, coverage_mm=(-32, 32), slice_spacing_mm=1.0,
        slice_thickness_mm=thickness_mm, kernel_blur_mm=0.0,
    )  # fmt: skip


def test_coverage_integrates_to_the_volume() -> None:
    slab = _cube().slab(0, 64)
    ball = Ellipsoid(
        centre=(1.3, -2.1, 0.4),
        axes=((0.6, 0.8, 0.0), (-0.8, 0.6, 0.0), (0.0, 0.0, 1.0)),
        semi_mm=(20.0, 12.0, 9.0),
    )
    found = ball.coverage(slab)
    assert found is not None
    assert float(found[1].sum()) == pytest.approx(4 / 3 * np.pi * 20 * 12 * 9, rel=0.01)
    tube = Capsule(start=(-10, 0, -12), end=(10, 5, 12), start_radius_mm=6.0, end_radius_mm=6.0)
    found = tube.coverage(slab)
    assert found is not None
    length = float(np.linalg.norm([20, 5, 24]))
    expected = np.pi * 36 * length + 4 / 3 * np.pi * 216
    assert float(found[1].sum()) == pytest.approx(expected, rel=0.02)


def test_thick_slices_blur_along_z_only() -> None:
    flat = Ellipsoid(
        centre=(0, 0, 0), axes=((1, 0, 0), (0, 1, 0), (0, 0, 1)), semi_mm=(28.0, 28.0, 10.0)
    )

    def edge_slices(thickness_mm: float) -> int:
        found = flat.coverage(_cube(thickness_mm).slab(0, 64))
        assert found is not None
        box, share = found
        column = share[:, 32 - box[1].start, 32 - box[2].start]
        return int(((column > 0.02) & (column < 0.98)).sum())

    assert edge_slices(6.0) > edge_slices(1.0) + 4


def test_slabs_join_without_a_seam() -> None:
    grid = _cube()
    tube = Capsule(start=(-9, 3, -25), end=(8, -4, 27), start_radius_mm=5, end_radius_mm=2)
    whole = np.zeros((64, 64, 64), dtype=np.float32)
    found = tube.coverage(grid.slab(0, 64))
    assert found is not None
    whole[found[0]] = found[1]
    pieces = np.zeros_like(whole)
    for slab in grid.slabs(voxels=64 * 64 * 7):
        part = tube.coverage(slab)
        if part is not None:
            pieces[slab.first : slab.first + slab.shape[0]][part[0]] = part[1]
    np.testing.assert_array_equal(whole, pieces)
