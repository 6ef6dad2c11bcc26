from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pe_triage.model.outputs import attention_to_slices, to_slices
from pe_triage.model.spec import SPECS, ModelSpec
from pe_triage.model.units import plan_units

WINDOWS = SPECS["r3d18"]
CHUNKS = SPECS["multitask-r3d18-tcn"]


def _windows(length: int, step: int, outputs: str, mm: float) -> ModelSpec:
    return replace(
        WINDOWS, window_slices=length, window_step=step, image_outputs=outputs, slice_mm=mm
    )


@given(
    st.integers(1, 90),
    st.sampled_from([0.4, 0.625, 1.0, 2.5, 5.0]),
    st.integers(1, 12),
    st.data(),
    st.sampled_from(["unit", "slices"]),
    st.sampled_from([0.0, 1.0]),
)
def test_every_slice_is_seen_and_nothing_is_lost_or_made(
    slices: int, spacing: float, length: int, data: st.DataObject, outputs: str, mm: float
) -> None:
    step = data.draw(st.integers(1, length))
    plan = plan_units(_windows(length, step, outputs, mm), slices, spacing)
    assert plan.tap_zk.shape == plan.weight_zk.shape
    assert len(plan.tap_zk) == slices
    np.testing.assert_allclose(plan.weight_zk.sum(axis=1), 1, atol=1e-5)
    assert plan.output_exists()[plan.tap_zk[plan.weight_zk > 0]].all(), "padding is never read"
    attention = torch.softmax(torch.randn(1, plan.units), dim=1)
    spread = attention_to_slices(attention, plan)
    assert spread.shape == (1, slices)
    assert float(spread.sum()) == pytest.approx(1, abs=1e-4)
    assert (spread >= 0).all()
    for z in {0, slices // 2, slices - 1}:
        unit, position = plan.place_of(z)
        assert 0 <= unit < plan.units
        assert 0 <= position <= plan.length - 1
        plane = float(plan.start_u[unit]) + position
        if plan.planes == slices:
            assert plane == z
        if outputs == "unit":
            assert unit in plan.tap_zk[z][plan.weight_zk[z] > 0]
    # a constant stays one, and labels are monotone
    assert torch.allclose(to_slices(torch.full((1, plan.outputs), 2.5), plan), torch.tensor(2.5))
    truth = np.zeros(slices, bool)
    assert not plan.truth_of_outputs(truth).any()
    truth[data.draw(st.integers(0, slices - 1))] = True
    assert plan.truth_of_outputs(truth).any()
    assert plan.truth_of_outputs(~np.zeros(slices, bool))[plan.output_exists()].all()


def test_windows_of_the_paper_by_hand() -> None:
    """70 slices in windows of 32 that do not overlap: 0-31, 32-63, 64-69 and zeros."""
    plan = plan_units(WINDOWS, 70, 1.0)
    assert plan.start_u.tolist() == [0, 32, 64]
    assert (plan.units, plan.outputs) == (3, 96)
    image = torch.arange(96.0)[None]
    torch.testing.assert_close(to_slices(image, plan)[0], torch.arange(70.0))
    assert plan.place_of(69) == (2, 5.0)
    spread = attention_to_slices(torch.tensor([[0.5, 0.2, 0.3]]), plan)[0]
    torch.testing.assert_close(spread[[0, 40, 66]], torch.tensor([0.5 / 32, 0.2 / 32, 0.05]))
    truth = np.arange(70) == 65
    assert np.flatnonzero(plan.truth_of_outputs(truth)).tolist() == [65]
    assert plan.output_exists().sum() == 70


def test_chunks_at_one_millimetre_by_hand() -> None:
    """10 slices of 2.5 mm are 25 planes of 1 mm: chunks of 0-9, 10-19 and 20-24."""
    plan = plan_units(CHUNKS, 10, 2.5)
    assert (plan.planes, plan.units, plan.outputs) == (25, 3, 3)
    logits = to_slices(torch.tensor([[1.0, 2.0, 4.0]]), plan)[0]
    # slice 3 is centred at plane 8.25, slice 4 at 10.75, slice 8 at 20.75
    assert logits[[0, 3, 4, 8, 9]].tolist() == [1, 1, 2, 4, 4]
    # slice 7 is centred at 18.25: the second chunk, but its far edge is plane 19.5
    assert plan.place_of(7) == (1, 8.25)
    assert plan.truth_of_outputs(np.arange(10) == 0).tolist() == [True, False, False]
    assert plan.truth_of_outputs(np.arange(10) == 9).tolist() == [False, False, True]
    # slice 3 spans planes 7.5 to 10: only the first; slice 4 spans 10 to 12.5
    assert plan.truth_of_outputs(np.arange(10) == 3).tolist() == [True, False, False]


def test_overlapping_windows_are_averaged_and_the_most_central_one_explains() -> None:
    plan = plan_units(_windows(4, 2, "unit", 0.0), 8, 1.0)
    assert plan.start_u.tolist() == [0, 2, 4]
    logits = to_slices(torch.tensor([[0.0, 3.0, 9.0]]), plan)[0]
    assert logits.tolist() == [0, 0, 1.5, 1.5, 6, 6, 9, 9]
    assert plan.place_of(2) == (0, 2.0)
    assert plan.place_of(3) == (1, 1.0)


@pytest.mark.parametrize("name", ["attention-bilstm", "rsna-first", "effnet-tcn", "plain-cnn"])
def test_slices_as_units_need_no_tables(name: str) -> None:
    plan = plan_units(SPECS[name], 17, 0.7)
    assert plan.is_identity
    image = torch.randn(2, 17)
    assert to_slices(image, plan) is image
    assert plan.place_of(16) == (16, 0.0)


def test_a_thousand_slices_are_quick_and_small() -> None:
    plan = plan_units(CHUNKS, 1000, 0.5)
    assert plan.share_us is not None
    assert plan.share_us.nbytes + plan.tap_zk.nbytes + plan.weight_zk.nbytes < 1e6


@pytest.mark.parametrize(("slices", "mm"), [(0, 1.0), (3, 0.0), (3, float("nan"))])
def test_no_volume_is_refused(slices: int, mm: float) -> None:
    with pytest.raises(ValueError, match="positive slice distance"):
        plan_units(WINDOWS, slices, mm)


def test_labels_of_another_volume_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 70 labels"):
        plan_units(WINDOWS, 70, 1.0).truth_of_outputs(np.zeros(69))
