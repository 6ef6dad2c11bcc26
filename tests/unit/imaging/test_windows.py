from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_triage.imaging.windows import (
    LUNG,
    MEDIASTINAL,
    PE,
    RSPECT_WINDOWS,
    resampling_weights,
    resize_slices,
    square_offset_yx,
    window_channels,
)


def volume(shape=(3, 64, 64), seed=0):
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


def test_windows_are_those_of_the_reference():
    assert [(w.level_hu, w.width_hu) for w in RSPECT_WINDOWS] == [
        (-600, 1500),
        (100, 700),
        (40, 400),
    ]
    hu = np.array([-1350, -600, 150, -250, 100, 450, -160, 40, 240], np.float32)
    np.testing.assert_allclose(LUNG.apply(hu)[:3], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(PE.apply(hu)[3:6], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(MEDIASTINAL.apply(hu)[6:], [0, 0.5, 1], atol=1e-6)


def test_a_window_is_its_formula_to_the_last_bit_also_in_place():
    """Training and serving, and bundles made before, rest on these very numbers."""
    hu = (np.random.default_rng(1).random((2, 33, 65)) * 4000 - 1100).astype(np.float32)
    for window in RSPECT_WINDOWS:
        low, scale = window.level_hu - window.width_hu / 2, 1 / window.width_hu
        expected = ((hu - np.float32(low)) * np.float32(scale)).clip(0.0, 1.0)
        kept = hu.copy()
        np.testing.assert_array_equal(window.apply(hu), expected)
        out = np.full((2, 3, 33, 65), -1, np.float32)
        window.apply(hu, out=out[:, 1])
        np.testing.assert_array_equal(out[:, 1], expected)
        assert (out[:, [0, 2]] == -1).all()
        np.testing.assert_array_equal(hu, kept)


def test_shape_type_range_and_the_slices_own_answer():
    hu = volume((70, 64, 64))
    out = window_channels(hu, RSPECT_WINDOWS, 32)
    assert out.shape == (70, 3, 32, 32)
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 1
    np.testing.assert_array_equal(window_channels(hu[40:41], RSPECT_WINDOWS, 32)[0], out[40])


def test_halving_is_the_exact_mean_and_equals_the_general_path():
    hu = volume((2, 512, 512))
    want = hu.reshape(2, 256, 2, 256, 2).astype(np.float64).mean(axis=(2, 4))
    np.testing.assert_allclose(resize_slices(hu, 256), want, atol=1e-3)
    weights = resampling_weights(512, 256)
    np.testing.assert_allclose(weights @ hu.astype(np.float32) @ weights.T, want, atol=1e-2)


@pytest.mark.parametrize("size", [224, 288, 320, 384, 480])
def test_the_sparse_product_has_the_bits_of_the_dense_one(size):
    """What bundles were trained with stays what they are served with."""
    hu = volume((3, 512, 512))
    weights = resampling_weights(512, size)
    dense = weights @ hu.astype(np.float32) @ weights.T
    np.testing.assert_array_equal(resize_slices(hu, size), dense)
    np.testing.assert_array_equal(resize_slices(hu[1:2], size)[0], dense[1])


@pytest.mark.parametrize(("source", "size"), [(512, 300), (512, 576), (400, 320), (7, 5), (5, 1)])
def test_at_other_sizes_only_rounding_differs(source, size):
    hu = volume((2, source, source))
    weights = resampling_weights(source, size).astype(np.float64)
    exact = weights @ hu.astype(np.float64) @ weights.T
    np.testing.assert_allclose(resize_slices(hu, size), exact, rtol=0, atol=2e-3)


@settings(max_examples=60, deadline=None)
@given(source=st.integers(1, 80), target=st.integers(1, 80))
def test_resampling_keeps_constants_means_and_symmetry(source, target):
    weights = resampling_weights(source, target).astype(np.float64)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-5)
    if target <= source:
        # Area resampling keeps the mean: no pixel of the source is lost or counted twice.
        np.testing.assert_allclose(weights.sum(axis=0), target / source, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(4, 40),
    columns=st.integers(4, 40),
    size=st.integers(2, 40),
    seed=st.integers(0),
)
def test_any_shape_resizes_within_the_range_of_values(rows, columns, size, seed):
    hu = volume((2, rows, columns), seed)
    out = resize_slices(hu, size)
    assert out.shape == (2, size, size)
    assert out.min() >= min(hu.min(), -1024) - 0.1
    assert out.max() <= hu.max() + 0.1
    mirrored = resize_slices(np.ascontiguousarray(hu[:, :, ::-1]), size)
    if rows == columns or (max(rows, columns) - columns) % 2 == 0:
        np.testing.assert_allclose(mirrored[:, :, ::-1], out, atol=0.05)


def test_not_square_is_padded_with_air_around_the_centre():
    hu = np.full((1, 4, 8), 100, np.int16)
    out = resize_slices(hu, 8)
    assert square_offset_yx(4, 8) == (2, 0)
    assert (out[0, :2] == -1024).all()
    assert (out[0, 2:6] == 100).all()
    assert (out[0, 6:] == -1024).all()


def test_sharp_edges_are_averaged_before_windowing():
    hu = np.zeros((1, 2, 2), np.int16)
    hu[0, 0, 0] = 3000
    # The mean, 750 HU, saturates; the mean of windowed pixels would be a quarter and a bit.
    assert window_channels(hu, (PE,), 1)[0, 0, 0, 0] == 1.0


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (1, 0, 4)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected slices"):
        window_channels(np.zeros(shape, np.int16), RSPECT_WINDOWS, 4)


def test_a_whole_series_takes_seconds_at_most():
    hu = volume((60, 512, 512))
    started = time.perf_counter()
    window_channels(hu, RSPECT_WINDOWS, 256)
    assert time.perf_counter() - started < 3
