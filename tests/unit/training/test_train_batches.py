"""What a batch holds: balance, determinism, shares of processes, augmentation, windows."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from pe_triage.model.outputs import to_slices
from pe_triage.model.schedule import Schedule
from pe_triage.model.spec import ATTENTION_BILSTM, SPECS
from pe_triage.model.units import plan_units
from pe_triage.training.augment import COLUMNS, Augmentation, augment
from pe_triage.training.batches import (
    UnitDataset,
    UnitPlan,
    _draw_units,
    _importance,
    collate_bags,
)
from pe_triage.training.cache import ShardCache, build_cache
from pe_triage.training.inputs import BEYOND_HU, planes_of, truth_of_units, windowed
from pe_triage.training.rspect import read_rspect
from pe_triage.training.seeding import numpy_at, seed_of
from tests.support.rspect import small_tree

SPEC = ATTENTION_BILSTM.reduced(32, hidden=8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ShardCache:
    folder = tmp_path_factory.mktemp("batches")
    return build_cache(read_rspect(small_tree(folder, 4)).exams, folder / "c", SPEC)


def dataset(cache: ShardCache, **more: object) -> UnitDataset:
    schedule = Schedule(batch=2, sampling="balanced")
    plan = UnitPlan.of(schedule, cache.exams, SPEC, units_per_exam=4)
    values: dict[str, object] = {"seed": 3, "epoch": 0, "augmentation": Augmentation()}
    return UnitDataset(cache.exams, SPEC, plan, **(values | more))  # type: ignore[arg-type]


def test_a_batch_follows_from_its_place_alone(cache: ShardCache) -> None:
    first, again = dataset(cache), dataset(cache)
    again[1]  # whatever was prepared before
    for a, b in zip(first[0], again[0], strict=True):
        assert torch.equal(a, b)
    for other in (dataset(cache, epoch=1), dataset(cache, seed=4)):
        assert not torch.equal(first[0].hu, other[0].hu)


def test_processes_share_a_batch_out(cache: ShardCache) -> None:
    whole = dataset(cache)[0]
    halves = [dataset(cache, rank=r, world=2)[0] for r in (0, 1)]
    for name in ("hu", "numbers", "image_bo", "exam_bl", "importance_bo", "share_b"):
        parts = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(parts, getattr(whole, name)), name


def test_an_epoch_takes_each_exam_once(cache: ShardCache) -> None:
    data = dataset(cache)
    seen = torch.cat([data[k].exam_bl for k in range(len(data))])
    truth = torch.from_numpy(np.stack([e.exam_l for e in cache.exams]))
    assert sorted(seen.tolist()) == sorted(truth.tolist())
    with pytest.raises(IndexError):
        data[len(data)]


def test_half_of_what_is_drawn_is_positive_and_weights_undo_it() -> None:
    positive = np.arange(100) < 6
    rng = numpy_at("test", 1)
    u = _draw_units(rng, positive, 20, balanced=True)
    assert positive[u].sum() == 10
    assert len(set(u[~positive[u]].tolist())) == 10
    weights = _importance(positive, positive[u])
    assert weights.mean() == pytest.approx(1)
    assert weights[positive[u]].mean() == pytest.approx(0.06 / 0.5)
    plain = _draw_units(rng, positive, 20, balanced=False)
    assert len(set(plain.tolist())) == 20
    assert (np.diff(u) >= 0).all()
    assert len(_draw_units(rng, positive[:3], 8, balanced=False)) == 8


def test_units_of_any_exam_are_balanced_over_the_epoch(cache: ShardCache) -> None:
    schedule = Schedule(batch=4, batch_of="units", sampling="balanced")
    plan = UnitPlan.of(schedule, cache.exams, SPEC, units_per_exam=99)
    assert (plan.exams_per_batch, plan.units_per_exam, plan.steps) == (4, 1, 10)
    plan = UnitPlan(exams_per_batch=400, units_per_exam=1, balanced=True, steps=1)
    data = UnitDataset(cache.exams, SPEC, plan, seed=0, epoch=0)
    share = float(data[0].image_bo.mean())
    # Half of the exams drawn have PE, and a coin decides within them.
    assert 0.15 < share < 0.35


def test_no_change_leaves_images_alone() -> None:
    hu = torch.randn(2, 3, 16, 16) * 300
    numbers = torch.zeros(2, len(COLUMNS))
    numbers[:, [1, 5]] = 1
    torch.testing.assert_close(augment(hu, numbers), hu, atol=1e-3, rtol=1e-5)


def test_augmentation_moves_and_brightens_as_drawn() -> None:
    hu = torch.full((1, 1, 32, 32), -1024.0)
    hu[0, 0, 4:8, 14:18] = 300.0
    numbers = torch.tensor([[0.0, 1.0, -0.5, 0.0, 10.0, 1.0, 0.0]])
    out = augment(hu, numbers)  # a grid shifted by a quarter up shows things a quarter lower
    assert float(out[0, 0, 12:16, 14:18].mean()) == pytest.approx(310, abs=1)
    assert float(out[0, 0, 4:8].mean()) == pytest.approx(-1014, abs=1)


def test_drawn_numbers_stay_in_range_and_nothing_is_mirrored() -> None:
    drawn = Augmentation().draw(numpy_at("aug"), 5000)
    assert np.abs(np.rad2deg(drawn[:, 0])).max() <= 10
    assert 1 / 1.1 - 1e-6 <= drawn[:, 1].min() < drawn[:, 1].max() <= 1.1 + 1e-6
    assert (drawn[:, 6] >= 0).all()
    assert (drawn[:, 1] > 0).all()


def test_windows_of_slices_cover_the_exam() -> None:
    spec = SPECS["r3d18-lstm"].reduced(32, hidden=8, window=4)
    plan = plan_units(spec, 11, 2.0)
    planes = planes_of(spec, plan)
    assert planes.shape == (plan.units, 4)
    assert set(planes.ravel().tolist()) - {-1} == set(range(11))
    pe = np.zeros(11, dtype=np.uint8)
    pe[5] = 1
    truth = truth_of_units(spec, plan, pe)
    assert truth.shape == (plan.units, spec.outputs_per_unit)
    assert truth.any(axis=1).tolist() == [5 in u for u in planes.tolist()]
    assert not windowed(spec, torch.full((1, 4, 8, 8), float(BEYOND_HU))).any()


def test_neighbours_are_channels() -> None:
    spec = SPECS["rsna-first"]
    planes = planes_of(spec, plan_units(spec, 5, 2.0))
    assert planes.tolist()[0] == [0, 0, 1]
    assert planes.tolist()[4] == [3, 4, 4]
    assert windowed(spec, torch.zeros(1, 3, 8, 8)).shape == (1, spec.channels, 8, 8)


@pytest.mark.parametrize("name", ["r3d18-lstm", "multitask-r3d18-tcn"])
def test_logits_of_windows_reach_the_slices_as_in_serving(cache: ShardCache, name: str) -> None:
    spec = SPECS[name].reduced(32, hidden=8, window=4)
    feats = [torch.randn(exam.plan(spec).units, 5) for exam in cache.exams[:2]]
    bags = collate_bags(feats, cache.exams[:2], spec)
    outputs = torch.randn(2, bags.mask_bu.shape[1] * spec.outputs_per_unit)
    rows = torch.arange(2)[:, None, None]
    ours = (outputs[rows, bags.tap_bzk] * bags.weight_bzk).sum(dim=2)
    for row, exam in enumerate(cache.exams[:2]):
        plan = exam.plan(spec)
        served = to_slices(outputs[row : row + 1, : plan.outputs], plan)
        torch.testing.assert_close(ours[row, : exam.slices], served[0])


def test_seeds_differ_by_place() -> None:
    assert len({seed_of("a", k) for k in range(1000)}) == 1000


def test_a_random_slice_costs_a_slice_and_not_an_exam(tmp_path: Path) -> None:
    """What makes a cache of shards worth having: memory taken to read 1 of 60 slices."""
    root = small_tree(tmp_path, 1, size=64, slices=60, presets=("negative",))
    (exam,) = build_cache(read_rspect(root).exams, tmp_path / "c", SPEC.reduced(96)).exams
    one, whole = 96 * 96 * 2, 60 * 96 * 96 * 2
    peaks = []
    for read in (lambda: exam.read_at([3]), exam.read):
        read()
        tracemalloc.start()
        read()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < one * 4
    assert peaks[1] >= whole, "nor could this test see it"
