"""Every named spec through the predictor: answers for each slice, heatmaps that are Grad-CAM."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pe_triage.domain import CtVolume
from pe_triage.errors import PermanentError
from pe_triage.infer.gradcam import Score, at_planes, channel_gradients, combine, normalise
from pe_triage.infer.keyslices import explain_slices, key_slices, place_on_slice
from pe_triage.infer.predictor import Predictor
from pe_triage.model.builtin import materialize_untrained
from pe_triage.model.consistency import RULES, count_violations
from pe_triage.model.labels import pe_logits
from pe_triage.model.network import ExamNetwork
from pe_triage.model.outputs import to_slices
from pe_triage.model.spec import SPECS
from pe_triage.model.units import plan_units

Make = Callable[..., CtVolume]
MakePredictor = Callable[..., Predictor]

OWN_WAY = sorted(set(SPECS) - {"mean-bilstm", "max-bilstm"})  # those are the default's but one word


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_spec_answers_for_every_slice(
    name: str, predictor_of: MakePredictor, make_volume: Make
) -> None:
    volume = make_volume((19, 64, 56), z_mm=2.5, mm=5.6)
    predictor = predictor_of(name)
    inference = predictor.predict(volume)
    p = inference.prediction
    assert p.slice_probability_z.shape == p.attention_z.shape == (19,)
    assert p.slice_probability_z.dtype == p.attention_z.dtype == np.float32
    assert (p.attention_z >= 0).all()
    assert float(p.attention_z.sum()) == pytest.approx(1, abs=1e-4)
    exam = list(p.exam_probability.values())
    assert count_violations(p.slice_probability_z, exam) == dict.fromkeys(RULES, 0)
    assert p.slice_probability_z.std() > 0, "slices differ"
    exam_input = predictor.input(volume)
    assert len(inference.feat_zd) == exam_input.plan.units
    assert exam_input.lungs_found is not False
    # the same again, and the same in smaller batches
    again = predictor.predict(volume)
    np.testing.assert_array_equal(again.feat_zd, inference.feat_zd)
    assert again.prediction.exam_probability == p.exam_probability
    other = predictor_of(name, batch_size=1).predict(volume)
    np.testing.assert_allclose(
        other.prediction.slice_probability_z, p.slice_probability_z, atol=1e-4
    )
    keys = key_slices(volume, inference, predictor, 3)
    assert len(keys) >= 3
    for key in keys:
        assert key.sop_instance_uid == volume.sop_instance_uids[key.z]
        assert key.probability == p.slice_probability_z[key.z]
        assert np.isfinite(key.heatmap_yx).all()
        assert key.heatmap_yx.min() >= 0
        assert key.heatmap_yx.max() in (0, 1)
        ratio = key.heatmap_yx.shape[0] / key.heatmap_yx.shape[1]
        assert ratio == pytest.approx(64 / 56, rel=0.25)
        assert 0 <= key.peak_yx[0] <= 63
        assert 0 <= key.peak_yx[1] <= 55
    assert any(key.heatmap_yx.any() for key in keys)


def _published(network: ExamNetwork, maps: Tensor, plan: Any, z: int, score: Score) -> Tensor:
    """Grad-CAM as published, by autograd from the last maps of all units to the slice's score."""
    leaf = maps.detach().requires_grad_(True)
    logits = network.exam_logits(network.encoder.embed_maps(leaf)[None])
    u = pe_logits(to_slices(logits.image_bz, plan), logits.exam_bl)[0]
    (u.max() if score is Score.EXAM else u[z]).backward()
    assert leaf.grad is not None
    unit = plan.place_of(z)[0]
    weight = leaf.grad[unit].mean(dim=tuple(range(1, leaf.dim() - 1)))
    cam = (weight.reshape(-1, *[1] * (leaf.dim() - 2)) * maps[unit]).sum(dim=0)
    return torch.relu(cam.detach())


@pytest.mark.parametrize("name", OWN_WAY)
def test_heatmaps_of_every_spec_are_grad_cam(
    name: str, network_of: Callable[[str], ExamNetwork], predictor_of: MakePredictor,
    make_volume: Make,
) -> None:  # fmt: skip
    volume = make_volume((13, 64, 64), z_mm=3.0, mm=5.0)
    exam = predictor_of(name).input(volume)
    single = network_of(name)
    with torch.no_grad():
        images = torch.from_numpy(exam.images(0, exam.plan.units).copy())
        maps = single.encoder.maps(images).double()
    network = deepcopy(single) if single.spec.conv_channels else _doubled_stage_2(single)
    network.double()
    feat = network.encoder.embed_maps(maps)
    asked = [0, 5, 12]
    units = [exam.plan.place_of(z)[0] for z in asked]
    for score in Score:
        gradient = channel_gradients(network, feat, asked, score, exam.plan)
        ours = combine(gradient, maps[units], network.encoder)
        for i, z in enumerate(asked):
            published = _published(network, maps, exam.plan, z, score)
            torch.testing.assert_close(
                ours[i], published, rtol=1e-8, atol=1e-10 * (1e-30 + float(published.max()))
            )


def _doubled_stage_2(network: ExamNetwork) -> ExamNetwork:
    """Copy all but the encoder, whose pooling has no parameters."""
    encoder, network.encoder = network.encoder, torch.nn.Identity()  # type: ignore[assignment]
    try:
        copy = deepcopy(network)
    finally:
        network.encoder = encoder
    copy.encoder = _Pools()  # type: ignore[assignment]
    return copy


class _Pools(torch.nn.Module):
    is_pooled = True

    def embed_maps(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=tuple(range(2, maps.dim())))


def test_it_is_grad_cam_through_the_whole_3d_network(
    network_of: Callable[[str], ExamNetwork],
) -> None:
    """A backward pass that really runs through R3D-18, caught by a hook on its last layer."""
    network = network_of("r3d18-lstm")
    torch.manual_seed(2)
    images = torch.rand(3, 3, 8, 32, 32, requires_grad=True)
    caught: list[Tensor] = []

    def keep(_m: object, _i: object, output: Tensor) -> None:
        output.retain_grad()
        caught.append(output)

    backbone: Any = network.encoder.backbone
    hook = backbone.layer4.register_forward_hook(keep)
    logits = network(images)
    hook.remove()
    u = pe_logits(logits.image_bz, logits.exam_bl)[0]
    u[8 + 3].backward()  # slice 3 of the window in the middle
    (a,) = caught
    assert a.grad is not None
    assert images.grad is not None
    assert float(images.grad[1].abs().max()) > 0
    weight = a.grad[1].mean(dim=(1, 2, 3))
    published = torch.relu((weight[:, None, None, None] * a[1]).sum(dim=0)).detach()
    assert published.shape == (1, 2, 2)
    # constant over t·h·w, as the derivation says
    spread = (a.grad[1] - a.grad[1][:, :1, :1, :1]).abs().max()
    assert float(spread) <= 1e-6 * float(a.grad[1].abs().max())
    plan = plan_units(network.spec, 24, 1.0)
    maps = network.encoder.maps(images.detach())
    feat = network.encoder.embed_maps(maps)
    gradient = channel_gradients(network, feat, [11], plan=plan)
    ours = combine(gradient, maps[1:2], network.encoder)[0]
    torch.testing.assert_close(ours, published, rtol=1e-3, atol=1e-3 * float(published.max()))


def test_a_slices_map_is_read_between_a_windows_cells(
    network_of: Callable[[str], ExamNetwork],
) -> None:
    """R3D-18's cells along z are centred at slices 0, 8, 16, 24 of a window."""
    encoder = network_of("r3d18").encoder
    raw = torch.arange(4.0)[None, :, None, None].expand(5, 4, 2, 2)
    got = at_planes(raw, [0, 4, 8, 18, 31], encoder)
    assert got[:, 0, 0].tolist() == [0, 0.5, 1, 2.25, 3]


@pytest.mark.parametrize("name", ["r3d18-tcn", "multitask-r3d18-tcn"])
def test_explaining_a_window_is_combining_reading_and_placing(
    name: str, predictor_of: MakePredictor, make_volume: Make
) -> None:
    volume = make_volume((19, 64, 56), z_mm=2.5, mm=5.6)
    predictor = predictor_of(name)
    inference = predictor.predict(volume)
    plan = inference.plan
    assert plan is not None
    exam = predictor.input(volume)
    z = 11
    unit, position = plan.place_of(z)
    (key,) = explain_slices(volume, inference, predictor, [z])
    maps = torch.from_numpy(predictor.runtime.maps(exam.images(unit, unit + 1)))
    feat = torch.from_numpy(inference.feat_zd.copy())
    gradient = channel_gradients(predictor.network, feat, [z], plan=plan)
    raw = at_planes(combine(gradient, maps), [position], predictor.network.encoder)
    heat, peak = place_on_slice(
        normalise(raw.numpy())[0], 64, 56, box=exam.box, size=32,
        grid=predictor.network.encoder.grid,
    )  # fmt: skip
    np.testing.assert_allclose(key.heatmap_yx, heat, atol=1e-5)
    assert key.peak_yx == pytest.approx(peak)


def test_units_that_are_not_slices_need_their_plan(
    predictor_of: MakePredictor, make_volume: Make
) -> None:
    predictor = predictor_of("r3d18")
    feat = np.zeros((2, 512), np.float32)
    with pytest.raises(ValueError, match="give their plan"):
        predictor.conclude(feat)
    with pytest.raises(ValueError, match=r"use Predictor\.input"):
        predictor.images(make_volume((4, 64, 64)).hu_zyx)
    with pytest.raises(PermanentError, match="at least one slice"):
        predictor.predict(replace(make_volume((4, 64, 64)), hu_zyx=np.zeros((0, 64, 64), np.int16)))


@pytest.mark.parametrize("name", ["plain-cnn", "r3d18"])
def test_large_units_come_in_small_batches(name: str, predictor_of: MakePredictor) -> None:
    small = predictor_of(name)
    assert 1 <= small.runtime.batch_size <= 16
    encoder = small.network.encoder
    kept, encoder.unit_bytes = encoder.unit_bytes, 400_000_000
    try:
        assert predictor_of(name).runtime.batch_size == 2
    finally:
        encoder.unit_bytes = kept


@pytest.mark.parametrize("name", ["plain-cnn", "effnet-lstm", "multitask-r3d18-gru", "rsna-first"])
def test_a_thousand_slices_take_bounded_memory(
    name: str, predictor_of: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared at once, 1000 slices would take 1000 x 3 x 64 x 64 x 4 bytes = 49 MB."""
    predictor = predictor_of(name, batch_size=4)
    dim = predictor.network.embedding_dim
    monkeypatch.setattr(
        predictor.runtime, "embed", lambda x: np.full((len(x), dim), x.mean(), np.float32)
    )
    hu = np.full((1000, 64, 64), 40, np.int16)
    hu[:, 12:52, 8:28] = hu[:, 12:52, 36:56] = -850
    volume = CtVolume(
        hu_zyx=hu,
        spacing_mm=(0.5, 5.0, 5.0),
        affine_lps=np.eye(4),
        sop_instance_uids=tuple(str(k) for k in range(1000)),
        series_uid="1.2",
    )
    tracemalloc.start()
    inference = predictor.predict(volume)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert inference.prediction.slice_probability_z.shape == (1000,)
    features = inference.feat_zd.nbytes
    assert peak < 2.5 * features + 24e6


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_spec_serves_a_study_at_its_full_published_size(
    name: str, make_volume: Make, tmp_path: Path
) -> None:
    predictor = Predictor(materialize_untrained(tmp_path, SPECS[name]), "cpu", threads=1)
    volume = make_volume((6, 512, 512), z_mm=1.25, mm=0.7)
    inference = predictor.predict(volume)
    keys = key_slices(volume, inference, predictor, 1)
    assert inference.prediction.slice_probability_z.shape == (6,)
    assert any(key.heatmap_yx.any() for key in keys)
