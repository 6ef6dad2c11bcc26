from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_triage.domain import CtVolume
from pe_triage.imaging.lungs import Box
from pe_triage.infer import keyslices
from pe_triage.infer.keyslices import (
    choose_slices,
    key_slices,
    peak_in_voxels,
    place_on_slice,
)
from pe_triage.infer.predictor import Predictor
from pe_triage.model.encoders import Grid


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=80),
    st.floats(0.3, 10),
    st.integers(-2, 20),
)
def test_chosen_slices_keep_their_distance_and_order(
    worth: list[float], spacing: float, count: int
) -> None:
    p = np.array(worth, np.float32)
    chosen = choose_slices(p, np.full(len(p), 1 / len(p), np.float32), spacing, count)
    assert list(chosen) == sorted(set(chosen))
    assert 1 <= len(chosen) <= min(max(count, 3), 8)
    assert all((b - a) * spacing >= 8 - 1e-6 for a, b in pairwise(chosen))
    assert float(p.max()) == max(float(p[k]) for k in chosen)


def test_probability_times_attention_ranks_and_neighbours_are_suppressed() -> None:
    p, a = np.zeros(60, np.float32), np.full(60, 1 / 60, np.float32)
    p[[10, 11, 12, 30, 50]] = 0.9, 0.95, 0.9, 0.8, 0.85
    a[50] = 0.5  # attention lifts it
    p[40] = 0.99
    a[40] = 0.0  # nobody looked at it
    assert choose_slices(p, a, 1.25, 3) == (11, 30, 50)
    assert choose_slices(p, a, 8.0, 4) == (10, 11, 12, 50)


def test_a_short_volume_gives_fewer() -> None:
    one = np.array([0.1], np.float32)
    assert choose_slices(one, one, 1.0, 5) == (0,)
    p = np.linspace(0, 1, 10, dtype=np.float32)
    assert choose_slices(p, p, 1.0, 5) == (1, 9)


def test_the_peak_is_the_centre_of_its_cell_in_voxels() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[2, 7] = 1
    assert peak_in_voxels(heat, 512, 512) == (2.5 * 64 - 0.5, 7.5 * 64 - 0.5)
    assert peak_in_voxels(np.zeros((8, 8), np.float32), 512, 256) == (255.5, 127.5)


def test_a_slice_that_is_not_square_gets_its_own_part_of_the_map() -> None:
    """The network's square of 512 x 512 holds 256 rows of slice between 128 and 384."""
    box = Box(top=0, bottom=256, left=0, right=512)
    heat = np.zeros((8, 8), np.float32)
    heat[3, 5] = 1  # row 192 of the square is row 64 of the slice
    cut, peak = place_on_slice(heat, 256, 512, box=box, size=256, grid=Grid(origin=0, step=32))
    assert cut.shape == (8, 16)
    assert peak == (64.5, 320.5)
    in_the_air = np.zeros((8, 8), np.float32)
    in_the_air[0] = 1
    dark, middle = place_on_slice(
        in_the_air, 256, 512, box=box, size=256, grid=Grid(origin=0, step=32)
    )
    assert not dark.any()
    assert middle == (127.5, 255.5)


def test_key_slices_of_a_volume(predictor: Predictor, make_volume: Callable[..., CtVolume]) -> None:
    volume = make_volume((9, 128, 96))
    inference = predictor.predict(volume)
    keys = key_slices(volume, inference, predictor, 4)
    assert 3 <= len(keys) <= 4
    assert [k.z for k in keys] == sorted(k.z for k in keys)
    for key in keys:
        assert key.sop_instance_uid == volume.sop_instance_uids[key.z]
        assert key.probability == inference.prediction.slice_probability_z[key.z]
        assert key.attention == inference.prediction.attention_z[key.z]
        assert key.heatmap_yx.dtype == np.float32
        assert key.heatmap_yx.shape == (8, 6), "twice the network's grid, the slice's part of it"
        assert key.heatmap_yx.min() >= 0
        assert key.heatmap_yx.max() == 1
        assert key.heatmap_yx.std() > 0
        assert 0 <= key.peak_yx[0] <= 127
        assert 0 <= key.peak_yx[1] <= 95
        assert not key.heatmap_yx.flags.writeable


def test_a_map_of_zeros_is_kept_as_zeros(
    predictor: Predictor, make_volume: Callable[..., CtVolume], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = make_volume()
    inference = predictor.predict(volume)
    monkeypatch.setattr(
        keyslices, "gradcam", lambda n, f, maps, *_: np.zeros_like(np.asarray(maps)[:, 0])
    )
    for key in key_slices(volume, inference, predictor, 3):
        assert not key.heatmap_yx.any()
        assert key.peak_yx == (63.5, 63.5)


WHOLE = Box(top=0, bottom=512, left=0, right=512)


def test_a_cell_is_placed_where_it_looks() -> None:
    """Size 256 and stride 32 on 512 voxels: cell i looks at pixel 32i, voxels 64i and 64i + 1."""
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 1
    placed, peak = place_on_slice(heat, 512, 512, box=WHOLE, size=256, grid=Grid(origin=0, step=32))
    assert peak == (128.5, 320.5)
    assert placed.shape == (16, 16)
    # the four tiles around that place, and no other as high
    assert np.argwhere(placed > 0.8).tolist() == [[3, 9], [3, 10], [4, 9], [4, 10]]
    centre = np.average((np.arange(16) + 0.5) * 32 - 0.5, weights=placed.sum(axis=1))
    assert centre == pytest.approx(128.5, abs=1)


def test_a_box_is_placed_back_into_its_slice() -> None:
    """The box's 160 rows and 200 columns fill a square of 200, of 100 pixels: 2 voxels a pixel."""
    box = Box(top=100, bottom=260, left=50, right=250)
    heat = np.zeros((10, 10), np.float32)
    heat[6, 3] = 1  # pixel (60, 30), voxel (120.5, 60.5) of the square, 20 rows of it are air
    placed, peak = place_on_slice(heat, 400, 300, box=box, size=100, grid=Grid(origin=0, step=10))
    assert peak == (100 - 20 + 120.5, 50 + 60.5)
    assert placed.shape == (40, 30)
    assert not placed[:10].any()
    assert not placed[26:].any()
    assert not placed[:, :5].any()
    assert not placed[:, 25:].any()
    assert np.unravel_index(placed.argmax(), placed.shape) == (20, 11)


@given(
    st.integers(30, 600), st.integers(30, 600), st.integers(0, 7), st.integers(0, 7),
    st.sampled_from([0.0, 15.5, 31.0]),
)  # fmt: skip
def test_peak_and_heatmap_agree(rows: int, columns: int, i: int, j: int, origin: float) -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[i, j] = 1
    box = Box(top=0, bottom=rows, left=0, right=columns)
    placed, peak = place_on_slice(
        heat, rows, columns, box=box, size=256, grid=Grid(origin=origin, step=32)
    )
    assert 0 <= peak[0] <= rows - 1
    assert 0 <= peak[1] <= columns - 1
    if not placed.any():
        return  # the cell looks at the padding
    assert placed.max() == 1
    found = peak_in_voxels(placed, rows, columns)
    cell = max(rows, columns) / 8
    assert abs(found[0] - peak[0]) <= cell
    assert abs(found[1] - peak[1]) <= cell


def test_thin_and_thick_series_keep_the_same_distance(
    predictor: Predictor, make_volume: Callable[..., CtVolume]
) -> None:
    thin = make_volume((20, 128, 128), z_mm=1.0)
    inference = predictor.predict(thin)
    keys = key_slices(thin, inference, predictor, 8)
    assert len(keys) <= 3
    thick = replace(thin, spacing_mm=(10.0, 0.7, 0.7))
    assert len(key_slices(thick, inference, predictor, 8)) == 8
