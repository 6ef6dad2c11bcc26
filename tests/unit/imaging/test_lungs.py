from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pe_triage.imaging.lungs import (
    CLOSING_MM,
    DILATION_MM,
    Box,
    has_lungs,
    lung_box,
    lung_mask,
    outside_is_air,
)

Volume = NDArray[np.int16]


def _chest(slices: int = 12, side: int = 200, field_mm: float = 360.0) -> Volume:
    """A body 150 mm high and 280 wide; lungs of 45 x 35 mm half axes, 65 mm beside the middle."""
    at = (np.arange(side) + 0.5) * field_mm / side - field_mm / 2
    y, x = np.meshgrid(at, at, indexing="ij")
    hu = np.full((slices, side, side), -1000, np.int16)
    hu[:, (y / 75) ** 2 + (x / 140) ** 2 < 1] = 40
    hu[:, (y / 45) ** 2 + ((np.abs(x) - 65) / 35) ** 2 < 1] = -850
    return hu


def test_the_mask_is_the_lungs_and_a_rim() -> None:
    hu, mm = _chest(3), 360 / 200
    air = lung_mask(hu, (mm, mm), spread=False)
    true = hu == -850
    assert abs(air.sum() / true.sum() - 1) < 0.03
    mask = lung_mask(hu, (mm, mm))
    assert mask[true].mean() > 0.99
    rows = np.flatnonzero(mask[0].any(axis=1)) * mm
    assert rows[-1] - rows[0] == pytest.approx(2 * (45 + DILATION_MM), abs=5)
    assert not mask[:, :20].any(), "the air around the patient is no lung"
    # 60 mm lie between the lungs: more than closing bridges
    assert not mask[:, 100, 100].any()


def test_vessels_and_the_notch_of_the_hilum_are_inside() -> None:
    hu, mm = _chest(1), 360 / 200
    hu[0, 95:106, 60:70] = 300  # a vessel 20 mm wide within the lung
    hu[0, 98:104, 44:56] = 300  # and one that ends at its border
    mask = lung_mask(hu, (mm, mm))
    assert mask[0, 100, 65]
    assert CLOSING_MM > 10
    assert mask[0, 100, 50]


def test_a_part_of_the_volume_gives_the_same_masks() -> None:
    hu = _chest(6)
    hu[2:4] += np.random.default_rng(1).integers(-80, 80, hu[2:4].shape).astype(np.int16)
    whole = lung_mask(hu, (1.8, 1.8))
    np.testing.assert_array_equal(whole[2:5], lung_mask(hu[2:5], (1.8, 1.8)))


def test_outside_the_mask_is_air_and_inside_nothing_changed() -> None:
    hu = _chest(2)
    out = outside_is_air(hu, (1.8, 1.8))
    mask = lung_mask(hu, (1.8, 1.8))
    assert (out[~mask] == -1024).all()
    np.testing.assert_array_equal(out[mask], hu[mask])
    assert out.dtype == np.int16


@pytest.mark.parametrize("side", [120, 200, 331])
def test_the_box_is_the_same_place_at_any_matrix(side: int) -> None:
    mm = 360 / side
    box = lung_box(_chest(side=side), (5.0, mm, mm), margin_mm=0)
    assert box is not None
    for edge, expected in zip(
        (box.top, box.bottom, box.left, box.right), (-45, 45, -100, 100), strict=True
    ):
        assert edge * mm - 180 == pytest.approx(expected, abs=7)
    wide = lung_box(_chest(side=side), (5.0, mm, mm), margin_mm=500)
    assert wide == Box(top=0, bottom=side, left=0, right=side), "held within the image"


def test_gas_elsewhere_does_not_widen_the_box() -> None:
    hu = _chest()
    before = lung_box(hu, (5.0, 1.8, 1.8))
    hu[:, 128:134, 95:105] = -900  # oesophagus
    hu[0:2, 160:170, 60:130] = -900  # bubble of air beneath the patient
    assert lung_box(hu, (5.0, 1.8, 1.8)) == before


def test_no_lungs_no_box() -> None:
    body = np.full((8, 100, 100), 40, np.int16)
    assert lung_box(body, (5.0, 2.0, 2.0)) is None
    assert not lung_mask(body, (2.0, 2.0)).any()
    cut = _chest()[:, 80:120, 40:160]  # the lungs run out of the field of view
    assert lung_box(cut, (5.0, 1.8, 1.8)) is None
    assert not has_lungs(cut, (5.0, 1.8, 1.8))
    assert has_lungs(_chest(), (5.0, 1.8, 1.8))
    assert lung_box(_chest(1), (1.0, 1.8, 1.8)) is None, "one thin slice holds too little"
