"""The recipe of the demonstration model: its seeds, its specimens, its losses, and a tiny run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from pe_triage.domain import EXAM_LABELS, IntendedUse
from pe_triage.errors import InputError
from pe_triage.model.bundle import load_bundle
from pe_triage.model.network import ExamNetwork
from pe_triage.training.demonstration import seeds as seeds_module
from pe_triage.training.demonstration.batches import (
    PATCH,
    SLICES_PER_EXAM,
    PatchDataset,
    SliceDataset,
)
from pe_triage.training.demonstration.calibrate import calibrate_all
from pe_triage.training.demonstration.drawing import draw_all
from pe_triage.training.demonstration.recipe import SPEC, Amounts, Recipe, make_demonstration
from pe_triage.training.demonstration.seeds import SeedPart, Seeds, read_seeds
from pe_triage.training.demonstration.specimens import BITS, make_specimen, specimen_preset
from pe_triage.training.demonstration.stages import (
    KINDS,
    SliceStage,
    cell_truth,
    dense_loss,
)
from pe_triage.training.evaluate_calibrate import METRICS_KEY
from pe_triage.training.loop import TrainingStoppedError
from pe_triage.training.reporting import Reporter

TINY = replace(
    SPEC, backbone="resnet10t", size=128, join_dim=8, sequence_hidden=4, dense_dim=4,
    attention_dim=4,
)  # fmt: skip
POSITIVE_SEED = 20000003


@pytest.fixture(scope="module")
def specimen() -> dict[str, NDArray[Any]]:
    return make_specimen(POSITIVE_SEED, 160)


@pytest.fixture(scope="module")
def network() -> ExamNetwork:
    torch.manual_seed(0)
    return ExamNetwork(replace(TINY, head="cnn-max")).eval()


def test_no_seed_stands_in_two_parts_and_the_test_parts_are_large_enough() -> None:
    parts = read_seeds().parts
    every = [seed for part in parts.values() for seed in part.seeds]
    assert len(every) == len(set(every))
    assert parts["test-standard"].count >= 1000
    assert parts["test-standard"].preset == "standard"
    assert parts["test-hard"].preset == "hard"


def test_a_shared_seed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seeds.json").write_text(
        '{"size": 64, "slice_spacing_mm": 3, "parts": {"a": {"first": 1, "count": 3},'
        ' "b": {"first": 3, "count": 1}}}'
    )
    monkeypatch.setattr(seeds_module, "files", lambda _package: tmp_path)
    with pytest.raises(InputError, match="b shares seeds"):
        read_seeds()


def test_a_specimen_shows_what_its_bits_say(specimen: dict[str, NDArray[Any]]) -> None:
    what, pe = specimen["what_nyx"], specimen["pe_n"]
    bit = {name: (what >> k) & 1 for k, name in enumerate(BITS)}
    assert pe.any()
    assert not pe.all()
    assert specimen["heart_n"].any()
    np.testing.assert_array_equal(bit["clot"].any(axis=(1, 2)), pe.astype(bool))
    np.testing.assert_array_equal(bit["clot"], bit["acute"] | bit["chronic"])
    assert not (bit["clot"] & (bit["left"] == 0) & (bit["right"] == 0)).any()
    assert not (bit["unsure"] & bit["clot"]).any()
    said = dict(zip(EXAM_LABELS, specimen["exam_l"].tolist(), strict=True))
    assert bool(said["leftsided_pe"]) >= bool(bit["left"].any())
    assert bool(said["rightsided_pe"]) >= bool(bit["right"].any())


def test_a_specimen_is_the_same_each_time_it_is_drawn(
    specimen: dict[str, NDArray[Any]],
) -> None:
    again = make_specimen(POSITIVE_SEED, 160)
    assert all(np.array_equal(again[key], value) for key, value in specimen.items())


def test_specimens_keep_the_presets_physics() -> None:
    for seed in range(20):
        preset, matrix, thickness_mm = specimen_preset(seed)
        assert preset.name in ("standard", "hard", "easy")
        assert preset.effects is not None
        assert matrix in (256, 512)
        assert thickness_mm <= 3.0


def test_cells_are_true_where_a_clot_fills_enough_and_not_asked_where_it_fills_little(
    network: ExamNetwork,
) -> None:
    bit = {name: 1 << k for k, name in enumerate(BITS)}
    what = torch.zeros(1, 32, 32, dtype=torch.uint8)
    what[0, 7:10, 7:10] = bit["clot"] | bit["acute"] | bit["left"]  # 9 pixels of cell (1, 1)
    what[0, 23, 15:17] = bit["clot"] | bit["chronic"] | bit["right"]  # 2 pixels of cell (3, 2)
    what[0, 0, 24] = bit["unsure"]  # of cell (0, 3)
    truth = cell_truth(what, network, (4, 4))
    by_kind = dict(zip(KINDS, truth[0], strict=True))
    assert by_kind["clot"][1, 1] == by_kind["acute"][1, 1] == by_kind["left"][1, 1] == 1
    assert by_kind["chronic"][1, 1] == by_kind["right"][1, 1] == 0
    assert by_kind["clot"][3, 2].isnan()
    assert by_kind["chronic"][3, 2].isnan()
    assert by_kind["acute"][3, 2] == 0
    assert all(cells[0, 3].isnan() for cells in by_kind.values())
    assert int((by_kind["clot"] == 1).sum()) == 1
    assert int(by_kind["clot"].isnan().sum()) == 2


def test_the_dense_loss_reads_only_what_is_asked_and_falls_as_cells_come_right() -> None:
    truth = torch.zeros(1, 1, 2, 2)
    truth[0, 0, 0, 0], truth[0, 0, 1, 1] = 1, torch.nan
    right = torch.tensor([[[[6.0, -6.0], [-6.0, 50.0]]]])
    wrong = -right
    assert float(dense_loss(right, truth)) < 1e-4
    assert float(dense_loss(wrong, truth)) > 3
    changed = right.clone()
    changed[0, 0, 1, 1] = -50.0
    assert dense_loss(changed, truth) == dense_loss(right, truth)


def test_folded_heads_read_plain_embeddings_as_before(network: ExamNetwork) -> None:
    stage = SliceStage(network, torch.float32).eval()
    assert stage.normal.running_mean is not None
    assert stage.normal.running_var is not None
    with torch.no_grad():
        stage.normal.running_mean.copy_(torch.linspace(0, 1, network.encoder.dim))
        stage.normal.running_var.copy_(torch.linspace(0.01, 2, network.encoder.dim))
        feat = torch.rand(5, network.encoder.dim)
        before = stage.slice_heads(stage.normal(feat))
        stage.fold()
        after = stage.slice_heads(feat)
    torch.testing.assert_close(before, after)


def _number(seed: int) -> dict[str, NDArray[Any]]:
    if seed == 13:
        raise ValueError("thirteen")
    return {"seed": np.array([seed])}


def test_drawing_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        draw_all(tmp_path, [11, 12, 13], _number)
    kept = (tmp_path / "11.safetensors").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    draw_all(
        tmp_path, [11, 12, 14], _number, progress=lambda done, total: seen.append((done, total))
    )
    assert (tmp_path / "11.safetensors").stat().st_mtime_ns == kept
    assert load_file(tmp_path / "14.safetensors")["seed"].tolist() == [14]
    assert seen[-1] == (3, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{k}.safetensors" for k in (11, 12, 14)]


TINY_AMOUNTS = Amounts(
    patch_steps=3,
    chest_steps=2,
    slice_steps=2,
    patch_epochs=2,
    chest_epochs=2,
    slice_epochs=2,
    exam_epochs=2,
)


def _tiny(out: Path) -> Recipe:
    def part(name: str, first: int, count: int) -> SeedPart:
        return SeedPart(name=name, first=first, count=count, preset="standard")

    parts = (part("specimens", POSITIVE_SEED, 6), part("specimens-validation", 21000000, 4),
             part("exams", 22000000, 4), part("validation", 23000000, 8))  # fmt: skip
    return Recipe(
        seeds=Seeds(size=64, slice_spacing_mm=8.0, parts={p.name: p for p in parts}),
        out=out, amounts=TINY_AMOUNTS, workers=1, precision=torch.float32, spec=TINY,
    )  # fmt: skip


def _weights(bundle: Path) -> dict[str, Tensor]:
    return load_bundle(bundle).network.state_dict()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_stopped_again_and_again_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    def now() -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    reporter = Reporter(speaks=False)
    whole = make_demonstration(_tiny(tmp_path / "whole"), reporter, now=now)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 == 0

    for _ in range(40):
        try:
            pieces = make_demonstration(_tiny(tmp_path / "pieces"), reporter, now=now, stop=stop)
            break
        except TrainingStoppedError:
            continue
    else:
        pytest.fail("it never came to its end")
    assert asked > 6
    assert set(whole) == {"attention", "mean", "cnn-max"}
    for name, bundle in whole.items():
        expected, found = _weights(bundle), _weights(pieces[name])
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        card = load_bundle(bundle).card
        assert card.intended_use is IntendedUse.DEMONSTRATION
        assert "phantoms only" in card.training_data
    one, other = (_weights(whole[name]) for name in ("attention", "mean"))
    assert all(torch.equal(one[k], other[k]) for k in one if k.startswith("encoder."))
    batch = SliceDataset(
        tmp_path / "whole" / "specimens-128", list(range(POSITIVE_SEED, POSITIVE_SEED + 6)), 1, 0
    )[0]
    assert batch.hu.shape == (4 * SLICES_PER_EXAM, 128, 128)
    patches = PatchDataset(
        tmp_path / "whole" / "specimens-128", list(range(POSITIVE_SEED, POSITIVE_SEED + 6)), 1, 0
    )[0]
    assert patches.hu.shape[1:] == (PATCH, PATCH)
    assert (patches.what & 1).any()
    finished = calibrate_all(_tiny(tmp_path / "whole"), whole, reporter, now=now)
    for name, path in finished.items():
        made = load_bundle(path)
        assert made.card.version == "1+cal"
        assert METRICS_KEY in made.card.metrics
        same = _weights(whole[name])
        assert all(torch.equal(made.network.state_dict()[k], t) for k, t in same.items())
        assert (tmp_path / "whole" / "calibration" / f"{name}.html").is_file()
    with pytest.raises(InputError, match="other settings"):
        make_demonstration(replace(_tiny(tmp_path / "whole"), amounts=Amounts()), reporter, now=now)
