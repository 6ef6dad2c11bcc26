from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import BundleError
from pe_triage.model.encoders import make_encoder
from pe_triage.model.network import ExamNetwork, SliceHeads
from pe_triage.model.spec import ATTENTION_BILSTM, SPECS, ModelSpec
from pe_triage.model.units import plan_units

SMALL = replace(ATTENTION_BILSTM, size=64, sequence_hidden=8, dense_dim=8, attention_dim=4)

PARAMETERS = {
    # encoder, and stage 2 (0 where there is none), in thousands
    "attention-bilstm": (4_008, 1_486),
    "mean-bilstm": (4_008, 1_478),
    "max-bilstm": (4_008, 1_478),
    "cnn-max": (4_008, 0),
    "attention-guided-resnet": (2_783, 429),
    "effnet": (4_008, 0),
    "effnet-lstm": (4_008, 1_463),
    "effnet-tcn": (4_008, 1_404),
    "r3d18": (33_166, 0),
    "r3d18-lstm": (33_166, 1_733),
    "r3d18-tcn": (33_166, 1_604),
    "plain-cnn": (30_981, 0),
    "multitask-r3d18-tcn": (33_166, 946),
    "multitask-r3d18-gru": (33_166, 651),
    "rsna-first": (25_511, 20_538),
}
MAPS = {
    # the last feature map of one unit at full published size
    "attention-bilstm": (1280, 8, 8),
    "attention-guided-resnet": (256, 24, 24),
    "effnet-lstm": (1280, 7, 7),
    "r3d18-tcn": (512, 4, 14, 14),
    "plain-cnn": (128, 30, 30),
    "multitask-r3d18-gru": (512, 2, 12, 12),
    "rsna-first": (2048, 18, 18),
}


def _count(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _units(spec: ModelSpec, n: int) -> tuple[int, ...]:
    planes = (spec.window_slices,) if spec.encoder == "window" else ()
    return (n, spec.channels, *planes, spec.size, spec.size)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_spec_at_its_full_published_size(name: str) -> None:
    """On the meta device: every shape and parameter of the real thing, no arithmetic."""
    spec = SPECS[name]
    with torch.device("meta"):
        network = ExamNetwork(spec).eval()
        encoder, stage2 = PARAMETERS[name]
        assert round(_count(network.encoder) / 1000) == encoder
        assert round(_count(network.stage2) / 1000) == stage2
        plan = plan_units(spec, 40, 1.25)
        images = torch.empty(_units(spec, plan.units))
        maps = network.encoder.maps(images[:1])
        if name in MAPS:
            assert maps.shape == (1, *MAPS[name])
        assert network.encoder.embed_maps(maps).shape == (1, network.embedding_dim)
        feat = torch.empty(1, plan.units, network.embedding_dim)
        if spec.sequence_fit == "chunks":
            return  # picks chunks by value, which meta tensors have not; see test_sequences
        out = network.exam_logits(feat)
    assert out.image_bz.shape == (1, plan.outputs)
    assert out.attention_bz.shape == (1, plan.units)
    assert out.exam_bl.shape == (1, len(EXAM_LABELS))


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_spec_takes_a_step_at_its_full_published_size(name: str) -> None:
    torch.manual_seed(0)
    spec = SPECS[name]
    network = ExamNetwork(spec)
    images = torch.rand(_units(spec, 2))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    before = network.slice_heads.image.weight.detach().clone()
    feat = network.encoder(images)  # once for both stages: two graphs of it are gigabytes
    out, stage1 = network.exam_logits(feat[None]), network.slice_heads(feat)
    loss = sum(t.square().mean() for t in (out.image_bz, out.exam_bl, *stage1))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    optimiser.step()
    assert not torch.equal(network.slice_heads.image.weight, before)
    assert all(bool(torch.isfinite(p).all()) for p in network.parameters())


@pytest.fixture(scope="module", params=["attention-bilstm", "cnn-max", "attention-guided-resnet"])
def network(request: pytest.FixtureRequest) -> ExamNetwork:
    torch.manual_seed(0)
    return ExamNetwork(SPECS[request.param].reduced(96, hidden=8)).eval().requires_grad_(False)


def test_the_embedding_is_exactly_the_mean_of_the_map(network: ExamNetwork) -> None:
    images = torch.rand(2, 3, 96, 96)
    maps = network.encoder.maps(images)
    side = 96 // network.spec.stride
    assert maps.shape == (2, network.embedding_dim, side, side)
    torch.testing.assert_close(network.encoder(images), maps.mean((2, 3)), rtol=0, atol=0)


def test_an_exam_of_images_is_both_stages(network: ExamNetwork) -> None:
    images = torch.rand(3, 3, 96, 96)
    out = network(images)
    again = network.exam_logits(network.encoder(images)[None])
    assert out.image_bz.shape == out.attention_bz.shape == (1, 3)
    torch.testing.assert_close(out.exam_bl, again.exam_bl)


def test_the_image_heads_map_has_the_image_logit_as_its_mean(network: ExamNetwork) -> None:
    maps = network.encoder.maps(torch.rand(2, 3, 96, 96))
    cells = network.slice_heads.image_map(maps)
    image, _ = network.slice_heads(network.encoder.embed_maps(maps))
    assert cells.shape == (2, 1, *maps.shape[2:])
    torch.testing.assert_close(cells.mean(dim=(1, 2, 3)), image)


def test_without_stage_2_the_surest_unit_answers() -> None:
    network = ExamNetwork(replace(SMALL, head="cnn-max")).eval()
    feat = torch.randn(2, 5, network.embedding_dim)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    out = network.exam_logits(feat, mask)
    image, exam = network.slice_heads(feat)
    for b, n in ((0, 5), (1, 3)):
        surest = int(image[b, :n].argmax())
        torch.testing.assert_close(out.exam_bl[b], exam[b, surest])
        assert torch.nonzero(out.attention_bz[b]).flatten().tolist() == [surest]


def test_a_window_gives_a_logit_for_each_of_its_slices() -> None:
    spec = SPECS["r3d18"].reduced(64, window=4)
    with torch.device("meta"):
        network = ExamNetwork(spec)
    network.slice_heads = SliceHeads(512, spec.outputs_per_unit)
    feat = torch.randn(2, 3, 512)
    mask = torch.tensor([[True] * 3, [True, True, False]])
    out = network.exam_logits(feat, mask)
    assert out.image_bz.shape == network.output_mask(mask).shape == (2, 12)
    assert network.output_mask(mask)[1].tolist() == [True] * 8 + [False] * 4
    each = network.slice_heads(feat)[0]
    torch.testing.assert_close(out.image_bz[1].reshape(3, 4), each[1])
    assert int(out.attention_bz[1].argmax()) == int(each[1, :2].amax(dim=1).argmax())


def test_attention_is_the_papers_formula() -> None:
    network = ExamNetwork(SMALL).eval()
    assert network.stage2 is not None
    feat = torch.randn(1, 6, network.embedding_dim)
    h = network.stage2.sequence(feat)
    pooling = network.stage2.pooling
    scores = [pooling.w.weight @ torch.tanh(pooling.v.weight @ h[0, k]) for k in range(6)]
    a = torch.softmax(torch.cat(scores), dim=0)
    out = network.exam_logits(feat)
    torch.testing.assert_close(out.attention_bz[0], a)
    torch.testing.assert_close(out.bag_bd[0], (a[:, None] * h[0]).sum(dim=0))


def test_the_sequence_couples_slices_in_both_directions() -> None:
    network = ExamNetwork(SMALL).eval()
    feat = torch.randn(1, 7, network.embedding_dim)
    before = network.exam_logits(feat).image_bz[0]
    feat[0, 3] += 1
    changed = (network.exam_logits(feat).image_bz[0] - before).abs() > 1e-7
    assert changed[0]
    assert changed[6]


def test_a_cut_backbone_has_a_finer_grid() -> None:
    network = ExamNetwork(replace(SMALL, stride=16)).eval()
    maps = network.encoder.maps(torch.rand(1, 3, 64, 64))
    assert maps.shape == (1, 112, 4, 4)
    assert network.embedding_dim == 112


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (replace(SMALL, size=384), (3, 384, 384)),
        (replace(SMALL, size=256, stride=16), (3, 256, 256)),
        (SPECS["attention-guided-resnet"].reduced(256), (3, 256, 256)),
        (SPECS["plain-cnn"].reduced(64, hidden=64), (3, 64, 64)),
        (SPECS["r3d18"].reduced(64, window=32), (3, 32, 64, 64)),
    ],
    ids=["b0", "b0 cut", "resnet18 cut", "plain", "r3d18"],
)
def test_a_cell_looks_where_its_grid_says(spec: ModelSpec, shape: tuple[int, ...]) -> None:
    """The middle of what moves a cell of the map lies at the grid's centre, not half a cell off."""
    torch.manual_seed(0)
    encoder = make_encoder(spec).eval()
    x = torch.rand(8 if spec.conv_channels else 1, *shape, requires_grad=True)
    maps = encoder.maps(x)
    cell = tuple(n // 2 for n in maps.shape[2:])
    maps[(slice(None), slice(None), *cell)].sum().backward()
    assert x.grad is not None
    moved = x.grad.abs().sum(dim=(0, 1))
    grid = encoder.grid
    axes = [(grid.origin_t, grid.step_t)] * (len(shape) - 3) + [(grid.origin, grid.step)] * 2
    for axis, (index, (origin, step)) in enumerate(zip(cell, axes, strict=True)):
        profile = moved.sum(dim=[a for a in range(moved.dim()) if a != axis])
        centre = float((profile * torch.arange(len(profile))).sum() / profile.sum())
        assert abs(centre - (origin + step * index)) < 0.15 * step


def test_an_unknown_backbone_is_one_line() -> None:
    with pytest.raises(BundleError, match="backbone 'resnet_of_dreams'"):
        ExamNetwork(replace(SMALL, backbone="resnet_of_dreams"))
    with pytest.raises(BundleError, match="too small"):
        make_encoder(SPECS["plain-cnn"].reduced(8, hidden=4))
