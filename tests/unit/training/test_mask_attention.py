"""The attention loss: what it is worth, where it pulls, and that it is nothing without masks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_triage.cli import cli
from pe_triage.errors import InputError
from pe_triage.model.bundle import load_bundle
from pe_triage.model.encoders import Grid
from pe_triage.model.network import ExamNetwork
from pe_triage.model.schedule import Schedule
from pe_triage.model.spec import SPECS, ModelSpec
from pe_triage.phantom import generate_study, write_study
from pe_triage.training.attention import attention_loss, clot_cells
from pe_triage.training.augment import AIR_HU, Augmentation, augment, move_masks
from pe_triage.training.batches import UnitBatch, UnitDataset, UnitPlan
from pe_triage.training.cache import ShardCache, build_cache, verify_cache
from pe_triage.training.checkpoint import same_weights
from pe_triage.training.distributed import World
from pe_triage.training.evaluate_localisation import load_mask
from pe_triage.training.fit import CardWords, Run, fit
from pe_triage.training.make_tree import make_tree
from pe_triage.training.reporting import Reporter
from pe_triage.training.rspect import read_rspect
from pe_triage.training.settings import TrainSettings
from pe_triage.training.splits import split_by_patient
from pe_triage.training.stages import StageOne
from pe_triage.training.volumes import load_exam

SPEC = replace(
    SPECS["attention-guided-resnet"].reduced(64, hidden=8), backbone="tinynet_e", dropout=0.3
)
FP32 = torch.float32


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    for k, preset in enumerate(("pe-acute", "negative", "pe-chronic", "negative", "pe-acute")):
        study = generate_study(k + 1, preset, size=64, n_slices=8)
        write_study(study, folder / "phantoms", mask=k != 3)
    make_tree(folder / "phantoms", folder / "tree")
    return folder / "tree"


@pytest.fixture(scope="module")
def cache(tree: Path) -> ShardCache:
    return build_cache(read_rspect(tree).exams, tree / "cache", SPEC)


def a_batch(cache: ShardCache, spec: ModelSpec, *, masks: bool) -> UnitBatch:
    schedule = Schedule(loss="image", batch=len(cache.exams), sampling="balanced")
    plan = UnitPlan.of(schedule, cache.exams, spec, units_per_exam=4)
    return UnitDataset(cache.exams, spec, plan, seed=1, epoch=0, masks=masks)[0]


# -- the loss itself -------------------------------------------------------------------------


def test_an_even_map_costs_one_and_the_right_one_nothing() -> None:
    cells = torch.zeros(3, 6, 6)
    cells[0, 2, 3] = 0.07  # however little of the cell is clot: proportions count
    cells[1, 1, 1:3] = torch.tensor([0.75, 0.25])
    even = attention_loss(torch.full((3, 6, 6), 3.0), cells)
    # By hand: KL of (3/4, 1/4) to 36 even cells, over log 36.
    half = (0.75 * math.log(0.75 * 36) + 0.25 * math.log(0.25 * 36)) / math.log(36)
    torch.testing.assert_close(even, torch.tensor([1.0, half, 0.0]))
    right = attention_loss(
        (cells / cells.sum((1, 2), keepdim=True).clamp(min=1e-9) + 1e-20).log(), cells
    )
    torch.testing.assert_close(right[:2], torch.zeros(2), atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_it_is_never_negative_and_blind_to_how_much(seed: int, constant: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64) * 5
    cells = torch.rand(4, 5, 7, generator=generator, dtype=torch.float64)
    cells[cells < 0.8] = 0
    loss = attention_loss(maps, cells)
    assert (loss >= -1e-12).all()
    torch.testing.assert_close(attention_loss(maps + constant, cells * 0.1), loss)


def test_cells_are_those_that_the_network_looks_with() -> None:
    """A dot moves the map of a network most where `clot_cells` says the dot is."""
    share = torch.zeros(1, 64, 64)
    share[0, 36, 20] = 1
    cells = clot_cells(share, Grid(origin=0.0, step=16.0), (4, 4))
    assert cells.argmax().item() == 2 * 4 + 1
    torch.testing.assert_close(cells.sum(), torch.tensor(1 / 256))
    right = clot_cells(share, Grid(origin=15.0, step=16.0), (4, 4))
    assert right.argmax().item() == 1 * 4 + 0
    full = clot_cells(torch.ones(1, 64, 64), Grid(origin=0.0, step=16.0), (4, 4))
    assert full[0, 1:, 1:].eq(1).all()  # the first row and column look half beyond the edge
    assert full[0, 0, 0] == 0.25


def test_only_encoders_with_a_map_over_one_slice_take_it() -> None:
    for name in ("plain-cnn", "r3d18-lstm"):
        network = ExamNetwork(SPECS[name].reduced(32, hidden=8, window=4))
        with pytest.raises(InputError, match="encoder of single slices"):
            StageOne(network, "image+attention", FP32)
        StageOne(network, "image", FP32)


# -- masks on their way ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attention-guided-resnet", "multitask-r3d18-tcn", "effnet-lstm"])
def test_the_mask_goes_the_way_of_the_image(tree: Path, tmp_path: Path, name: str) -> None:
    """Clot drawn into the image itself: what the cache holds of both must coincide."""
    spec = SPECS[name].reduced(32 if "effnet" in name else 48, window=4)
    source = next(e for e in read_rspect(tree).exams if e.positive)
    exam = build_cache([source], tmp_path, spec).exams[0]
    assert exam.masked
    assert 0 < exam.clot_planes <= exam.planes
    clots = exam.read_clots_at(range(exam.planes))
    volume = load_exam(source).volume
    assert source.mask_path is not None
    mask_zyx = load_mask(source.mask_path, volume)
    if exam.planes == exam.slices and spec.lung != "box":
        # 64 pixels to fewer: area is kept.
        area = clots.sum(axis=(1, 2)) / 255 * (64 / spec.size) ** 2
        np.testing.assert_allclose(area, mask_zyx.sum(axis=(1, 2)), rtol=0.02, atol=1)
        z, y, x = (int(v) for v in np.unravel_index(clots.argmax(), clots.shape))
        y, x = y * 64 // spec.size, x * 64 // spec.size
        assert mask_zyx[z, y : y + 2, x : x + 2].any()
    np.testing.assert_array_equal(exam.read_clots_at([3, 0, 3]), clots[[3, 0, 3]])


def test_old_shards_are_kept_and_those_that_get_a_mask_are_built_anew(
    tree: Path, tmp_path: Path
) -> None:
    exams = read_rspect(tree).exams
    bare = [replace(exam, mask_path=None) for exam in exams]
    old = build_cache(bare, tmp_path, SPEC)
    assert not old.masked
    times = {e.path: e.path.stat().st_mtime_ns for e in old.exams}
    new = build_cache(exams, tmp_path, SPEC)
    assert new.masked == 4
    assert verify_cache(new) == []
    for exam in new.exams:
        assert (exam.path.stat().st_mtime_ns == times[exam.path]) == (not exam.masked)
        assert not exam.read_clots_at([0, 1]).any() or exam.masked
    again = build_cache(exams, tmp_path, SPEC)
    assert [e.clot_sha256 for e in again.exams] == [e.clot_sha256 for e in new.exams]


@pytest.mark.parametrize("what", ["not an image", "elsewhere"])
def test_a_bad_mask_is_named_and_costs_its_exam(tree: Path, tmp_path: Path, what: str) -> None:
    exams = list(read_rspect(tree).exams)
    k = next(k for k, e in enumerate(exams) if e.positive)
    bad = tmp_path / "bad.nii.gz"
    if what == "elsewhere":
        image = nib.load(exams[k].mask_path)
        far = image.affine.copy()
        far[2, 3] += 5000
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), far), bad)
    else:
        bad.write_bytes(b"nothing")
    exams[k] = replace(exams[k], mask_path=bad)
    problems = build_cache(exams, tmp_path / "c", SPEC).problems
    assert [(p.code, p.study_uid) for p in problems] == [("bad-mask", exams[k].study_uid)]


def test_augmentation_moves_image_and_mask_alike() -> None:
    share = torch.zeros(6, 64, 64)
    share[:, 20:30, 34:50] = 1
    plain = Augmentation(offset_hu=0, gain=0, noise_hu=0)
    numbers = torch.from_numpy(plain.draw(np.random.default_rng(0), 6))
    image = (share * 1000 + AIR_HU)[:, None]
    moved = (augment(image, numbers)[:, 0] - AIR_HU) / 1000
    torch.testing.assert_close(move_masks(share, numbers), moved, atol=1e-4, rtol=0)
    assert not torch.allclose(moved, share)


# -- what it does to a network ---------------------------------------------------------------


def test_the_gradient_reaches_the_encoder_and_only_slices_with_clot_count(
    cache: ShardCache,
) -> None:
    torch.manual_seed(0)
    network = ExamNetwork(SPEC)
    batch = a_batch(cache, SPEC, masks=True)
    assert batch.clot.any()
    image, pulled = (StageOne(network, kind, FP32).eval() for kind in ("image", "image+attention"))
    lost = pulled(batch)[0] - image(batch)[0]
    assert lost.item() > 0.01
    lost.backward()
    first = next(p for p in network.encoder.parameters() if p.requires_grad)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    none_positive = batch._replace(image_bo=torch.zeros_like(batch.image_bo))
    assert torch.equal(pulled(none_positive), image(none_positive))


def test_without_masks_it_is_the_image_loss_to_the_last_bit(cache: ShardCache) -> None:
    torch.manual_seed(0)
    network = ExamNetwork(SPEC)
    image, pulled = (StageOne(network, kind, FP32).eval() for kind in ("image", "image+attention"))
    bare = replace(
        cache, exams=tuple(replace(e, clot_sha256="", clot_planes=0) for e in cache.exams)
    )
    for masks in (False, True):
        batch = a_batch(bare, SPEC, masks=masks)
        assert torch.equal(image(batch), pulled(batch))
        gradients = []
        for stage in (image, pulled):
            network.zero_grad()
            stage(batch)[0].backward()
            gradients.append({n: p.grad for n, p in stage.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.equal(g, gradients[1][name]) for name, g in gradients[0].items())


def test_after_some_steps_the_map_lies_on_the_mask() -> None:
    """Two squares of one brightness in each image; the mask alone says which of them is meant.

    The label says the same of all, so what moves the map is the attention loss and nothing else.
    """
    torch.manual_seed(3)
    spec = replace(SPEC, planes=1)
    network = ExamNetwork(spec)
    rng = np.random.default_rng(0)
    hu = np.full((16, 1, 64, 64), -50, dtype=np.int16)
    clot = np.zeros((16, 64, 64), dtype=np.uint8)
    for k in range(16):
        y, x = rng.integers(4, 20), rng.integers(4, 48)
        hu[k, 0, y : y + 12, x : x + 12] = 400  # upper half: a square that is not meant
        y, x = rng.integers(34, 50), rng.integers(4, 48)
        hu[k, 0, y : y + 12 : 2, x : x + 12] = 400  # lower half: a striped one that is
        clot[k, y : y + 12, x : x + 12] = 255
    batch = UnitBatch(
        torch.from_numpy(hu), torch.zeros(0, 7), torch.ones(16, 1), torch.zeros(16, 9),
        torch.ones(16, 1), torch.ones(16), torch.ones(16), torch.from_numpy(clot),
    )  # fmt: skip

    def on_clot(stage: StageOne) -> float:
        from pe_triage.training.inputs import windowed

        stage.eval()
        with torch.no_grad():
            maps = network.encoder.maps(windowed(spec, batch.hu.float()))
            a = network.slice_heads.image_map(maps)[:, 0].flatten(1).softmax(dim=1)
            cells = clot_cells(batch.clot / 255, network.encoder.grid, maps.shape[-2:])
        return float((a * (cells.flatten(1) > 0)).sum(dim=1).mean())

    held: dict[str, float] = {}
    begun = {k: v.clone() for k, v in network.state_dict().items()}
    for kind in ("image", "image+attention"):
        network.load_state_dict(begun)
        stage = StageOne(network, kind, FP32)
        before = on_clot(stage)
        optimiser = torch.optim.Adam(
            [*stage.encoder.parameters(), *stage.slice_heads.parameters()], lr=3e-3
        )
        stage.train()
        for _ in range(40):
            optimiser.zero_grad()
            stage(batch)[0].backward()
            optimiser.step()
            for module in stage.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 0.5
        held[kind] = on_clot(stage)
        assert before < 0.5
    assert held["image+attention"] > 0.8, held
    assert held["image+attention"] > held["image"] + 0.3, held


# -- whole runs ------------------------------------------------------------------------------


def a_run(tree: Path, out: Path, loss: str = "image+attention", *, masks: bool = True) -> Run:
    exams = read_rspect(tree).exams
    if not masks:
        exams = tuple(replace(exam, mask_path=None) for exam in exams)
    cache = build_cache(exams, out.parent / f"cache-{masks}", SPEC)
    settings = TrainSettings(
        stage1=Schedule(
            batch=2, epochs=2, lr=1e-3, sampling="balanced", loss=loss, attention_weight=1.0
        ),
        stage2=Schedule(batch=2, epochs=1, loss="exam"),
        loss1=loss, units_per_exam=4, checkpoint_steps=1, validation=0.34, seed=7,
    )  # fmt: skip
    split = split_by_patient(cache.exams, seed=7, validation=0.34, test=0.0)
    return Run(
        spec=SPEC, cache=cache, split=split, settings=settings, words=CardWords(name="t"), out=out
    )


def go(run: Run, kill_after: int | None = None, *, resume: bool = False) -> Path:
    left = [kill_after if kill_after is not None else 10**6]

    def stop() -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return False

    with Reporter(speaks=False) as reporter:
        return fit(run, World(), reporter, now=lambda: datetime.now(UTC), resume=resume, stop=stop)


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    return load_bundle(bundle).network.state_dict()


def test_killed_and_resumed_the_weights_are_the_same(tree: Path, tmp_path: Path) -> None:
    whole = weights(go(a_run(tree, tmp_path / "whole")))
    run = a_run(tree, tmp_path / "killed")
    for kills, after in enumerate((1, 0, 1)):
        with pytest.raises(KeyboardInterrupt):
            go(run, after, resume=kills > 0)
    assert same_weights(weights(go(run, resume=True)), whole)
    image = weights(go(a_run(tree, tmp_path / "image", "image")))
    assert not same_weights(image, whole)


def test_a_run_without_masks_trains_as_image_alone(tree: Path, tmp_path: Path) -> None:
    a = weights(go(a_run(tree, tmp_path / "a", "image", masks=False)))
    b = weights(go(a_run(tree, tmp_path / "b", masks=False)))
    assert same_weights(a, b)


def test_masks_are_part_of_what_a_resumed_run_must_agree_on(tree: Path, tmp_path: Path) -> None:
    run = a_run(tree, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        go(run, 1)
    with pytest.raises(InputError, match="begun with another"):
        go(a_run(tree, tmp_path / "run", masks=False), resume=True)


def test_the_command_says_how_many_masks_it_has(tree: Path, tmp_path: Path) -> None:
    args = [
        "train", "attention-guided-resnet", "--data", str(tree), "--out", str(tmp_path / "run"),
        "--cache", str(tmp_path / "cache"), "--size", "64", "--epochs1", "1", "--epochs2", "1",
        "--batch1", "4", "--max-steps1", "1", "--validation", "0.34", "--device", "cpu",
        "--no-tensorboard", "--attention-weight", "0.5",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    assert "attention loss: clot masks of" in done.output
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["settings"]["stage1"]["attention_weight"] == 0.5
    assert document["settings"]["loss1"] == "image+attention"
