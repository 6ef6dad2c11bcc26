"""Places on key slices: peak, outline and values in the pixel grid of the source image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pe_triage.report.places import (
    heat_in_source,
    source_outline,
    source_point,
    strongest,
)

TURNS = [(y, x, t) for y in (False, True) for x in (False, True) for t in (False, True)]


@pytest.mark.parametrize("turn", TURNS)
def test_point_outline_and_values_agree_in_every_orientation(scene, turn):
    volume = replace(scene.volume, source_flip_yx=turn[:2], source_transpose=turn[2])
    (key,) = scene.keys(1)
    x, y = source_point(key, volume)
    values = heat_in_source(key, volume)
    rows, columns = volume.hu_zyx.shape[1:]
    assert values.shape == ((columns, rows) if turn[2] else (rows, columns))
    top_row, top_column = np.unravel_index(int(values.argmax()), values.shape)
    cell = max(rows, columns) / 16
    assert abs(top_row + 0.5 - y) < cell
    assert abs(top_column + 0.5 - x) < cell
    outline = source_outline(key, volume)
    assert np.array_equal(outline[0], outline[-1])
    assert (outline >= 0).all()
    assert (outline <= (values.shape[1], values.shape[0])).all()
    low, high = outline.min(axis=0), outline.max(axis=0)
    assert (low < (x, y)).all()
    assert (high > (x, y)).all()
    # On its way the map stands at half of what it has at the peak.
    at = values[np.minimum(outline[:, 1].astype(int), values.shape[0] - 1),
                np.minimum(outline[:, 0].astype(int), values.shape[1] - 1)]  # fmt: skip
    peak = values[int(y), int(x)]
    assert np.abs(at / peak - 0.5).max() < 0.2


def test_an_outline_ends_at_the_slices_edge(scene):
    (key,) = scene.keys(1)
    flat = replace(key, heatmap_yx=np.ones((4, 4), np.float32))
    rows, columns = scene.volume.hu_zyx.shape[1:]
    outline = source_outline(flat, scene.volume)
    on_edge = (
        np.isclose(outline, 0) | np.isclose(outline, (columns, rows))
    ).any(axis=1)  # fmt: skip
    assert on_edge.all()


def test_the_strongest_has_a_place(scene):
    keys = scene.keys(3)
    assert strongest(keys) == 0
    blank = replace(keys[0], heatmap_yx=np.zeros((4, 4), np.float32))
    assert strongest((blank, *keys[1:])) == 1
    assert strongest((blank,)) is None
