"""Stage 2's parts, away from any encoder: small, and each held against a plain reading of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pe_triage.domain import EXAM_LABELS
from pe_triage.model.network import SequenceStage
from pe_triage.model.pooling import LabelAttentionMaxPooling, make_pooling
from pe_triage.model.sequences import (
    SequenceModel,
    TemporalBlock,
    resize_matrix,
    restore_matrix,
    with_neighbours,
)
from pe_triage.model.spec import SPECS, ModelSpec
from pe_triage.model.specification import POOLINGS, SEQUENCES

DIM = 6
BASE = ModelSpec(name="s", sequence_hidden=5, dense_dim=7, attention_dim=4)
WITH_STAGE_2 = sorted(name for name, spec in SPECS.items() if spec.head == "sequence")
VARIANTS = [
    *(replace(BASE, name=s, sequence=s, kernel=3) for s in SEQUENCES),
    *(replace(BASE, name=p, pooling=p) for p in POOLINGS),
    *(SPECS[name].reduced(96, hidden=8) for name in WITH_STAGE_2),
    replace(BASE, name="causal", sequence="tcn", causal=True, sequence_layers=2, kernel=2),
    replace(BASE, name="deep", sequence="bigru", sequence_layers=2, dense=False),
    *(
        replace(BASE, name=f"{fit} {near}", sequence_fit=fit, sequence_length=4, neighbours=near)
        for fit in ("resize", "chunks")
        for near in ("concatenate", "differences")
    ),
]


def _stage(spec: ModelSpec) -> SequenceStage:
    torch.manual_seed(1)
    return SequenceStage(spec, DIM).eval().double().requires_grad_(False)


@pytest.mark.parametrize("spec", VARIANTS, ids=lambda s: s.name)
def test_padding_changes_nothing_and_is_never_read(spec: ModelSpec) -> None:
    stage = _stage(spec)
    feat = torch.randn(3, 9, DIM, dtype=torch.float64)
    lengths = (9, 5, 1)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    padded = stage(feat, mask)
    other = stage(feat.masked_fill(~mask[..., None], 1e6), mask)
    o = spec.outputs_per_unit
    assert padded.image_bz.shape == (3, 9 * o)
    for i, n in enumerate(lengths):
        alone = stage(feat[i : i + 1, :n])
        for got in (padded, other):
            torch.testing.assert_close(got.exam_bl[i : i + 1], alone.exam_bl)
            torch.testing.assert_close(got.image_bz[i : i + 1, : n * o], alone.image_bz)
            torch.testing.assert_close(got.attention_bz[i : i + 1, :n], alone.attention_bz)
            torch.testing.assert_close(got.bag_bd[i : i + 1], alone.bag_bd)
        assert (padded.attention_bz[i, n:] == 0).all()
    torch.testing.assert_close(padded.attention_bz.sum(dim=1), torch.ones(3).double())
    assert (padded.attention_bz >= 0).all()


@pytest.mark.parametrize("spec", VARIANTS, ids=lambda s: s.name)
def test_every_parameter_learns(spec: ModelSpec) -> None:
    stage = _stage(spec).requires_grad_(True)
    out = stage(torch.randn(2, 9, DIM, dtype=torch.float64))
    (out.image_bz.square().sum() + out.exam_bl.square().sum()).backward()
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().max() > 0), name


def test_neighbours_by_hand() -> None:
    x = torch.tensor([[[1.0], [3.0], [7.0], [99.0]]])
    mask = torch.tensor([[True, True, True, False]])
    assert with_neighbours(x, "none") is x
    together = with_neighbours(x, "concatenate", mask)[0, :3].tolist()
    assert together == [[0, 1, 3], [1, 3, 7], [3, 7, 0]]
    differences = with_neighbours(x, "differences", mask)[0, :3].tolist()
    assert differences == [[1, 0, -2], [3, 2, -4], [7, 4, 0]]
    whole = with_neighbours(x[:, :3], "differences")[0].tolist()
    assert whole == differences


def test_three_times_512_is_1536() -> None:
    """The source's 1516 is a slip."""
    with torch.device("meta"):
        stage = SequenceStage(SPECS["r3d18-lstm"], 512)
    assert stage.sequence.recurrent.input_size == 1536


@pytest.mark.parametrize(("causal", "kernel"), [(True, 3), (False, 3), (True, 2), (False, 5)])
def test_a_tcn_sees_as_far_as_its_levels_say(causal: bool, kernel: int) -> None:
    spec = replace(BASE, sequence="tcn", sequence_layers=2, kernel=kernel, causal=causal)
    torch.manual_seed(0)
    model = SequenceModel(replace(spec, dense=False), 3).eval().double()
    x = torch.randn(1, 41, 3, dtype=torch.float64)
    changed = x.clone()
    changed[0, 20] += 10
    moved = (model(x) - model(changed)).abs().amax(dim=2)[0] > 1e-12
    reach = 2 * (kernel - 1) * (1 + 2)  # two convolutions at dilations 1 and 2
    seen = torch.nonzero(moved).flatten()
    low, high = (20, 20 + reach) if causal else (20 - reach // 2, 20 + reach // 2)
    assert low <= int(seen.min())
    assert int(seen.max()) <= high
    assert int(seen.max()) > 20
    assert bool(moved[19]) is not causal


def test_a_temporal_block_is_its_published_formula() -> None:
    spec = replace(BASE, sequence="tcn", kernel=3, causal=True)
    block = TemporalBlock(3, spec, dilation=2).eval()
    x = torch.randn(1, 3, 8)
    out = x
    for conv in (block.first, block.second):
        v = conv.direction
        weight = conv.length[:, None, None] * v / v.flatten(1).norm(dim=1)[:, None, None]
        out = functional.conv1d(functional.pad(out, (4, 0)), weight, conv.bias, dilation=2).relu()
    assert block.side is not None
    torch.testing.assert_close(block(x, None), (out + block.side(x)).relu())
    # made with the length of its direction: what torch's own initialisation would give
    torch.testing.assert_close(block.first.weight, block.first.direction)


def test_resizing_by_hand() -> None:
    there = resize_matrix(torch.tensor([4, 2]), 4, 2, torch.float64)
    assert there.tolist() == [
        [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]],
        [[1, 0, 0, 0], [0, 1, 0, 0]],
    ]
    back = restore_matrix(torch.tensor([4]), 4, 2, torch.float64)
    assert back.tolist() == [[[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]]
    one = resize_matrix(torch.tensor([1]), 1, 5, torch.float64)
    assert one.tolist() == [[[1]] * 5]
    for n in (3, 64, 500):
        rows = resize_matrix(torch.tensor([n]), n, 192, torch.float32).sum(dim=2)
        torch.testing.assert_close(rows, torch.ones_like(rows))


def test_a_sequence_of_the_right_length_is_not_changed_by_resizing() -> None:
    spec = replace(BASE, sequence_fit="resize", sequence_length=9)
    feat = torch.randn(1, 9, DIM, dtype=torch.float64)
    resized, whole = _stage(spec)(feat), _stage(replace(spec, sequence_fit="whole"))(feat)
    torch.testing.assert_close(resized.image_bz, whole.image_bz)
    torch.testing.assert_close(resized.attention_bz, whole.attention_bz)


def test_chunks_meet_in_pooling_only() -> None:
    stage = _stage(replace(BASE, sequence_fit="chunks", sequence_length=4))
    feat = torch.randn(1, 10, DIM, dtype=torch.float64)
    out = stage(feat)
    for start in (0, 4, 8):
        alone = stage(feat[:, start : start + 4])
        torch.testing.assert_close(out.image_bz[:, start : start + 4], alone.image_bz)
    changed = feat.clone()
    changed[0, 9] += 1
    assert not torch.equal(stage(changed).exam_bl, out.exam_bl)


def test_attention_and_maximum_by_hand() -> None:
    pooling = make_pooling(replace(BASE, pooling="attention+max"), 3).double()
    h = torch.randn(1, 4, 3, dtype=torch.float64)
    z, shown = pooling(h, None)
    attention = pooling.attention
    scores = attention.w(torch.tanh(attention.v(h)))[0, :, 0]
    a = torch.softmax(scores, dim=0)
    torch.testing.assert_close(z[0], torch.cat([a @ h[0], h[0].amax(dim=0)]))
    share = torch.bincount(h[0].argmax(dim=0), minlength=4) / 3
    torch.testing.assert_close(shown[0], (a + share) / 2)


def test_each_label_attends_by_itself() -> None:
    spec = replace(BASE, pooling="label-attention+max", dense=False)
    stage = _stage(spec)
    feat = torch.randn(1, 6, DIM, dtype=torch.float64)
    out = stage(feat)
    h = stage.sequence(feat)[0]
    pooling = stage.pooling
    assert isinstance(pooling, LabelAttentionMaxPooling)
    for i in range(len(EXAM_LABELS)):
        a = torch.softmax(torch.tanh(h @ pooling.v.weight.T) @ pooling.w.weight[i], dim=0)
        z = torch.cat([a @ h, h.amax(dim=0)])
        expected = stage.exam_head.weight[i] @ z + stage.exam_head.bias[i]
        torch.testing.assert_close(out.exam_bl[0, i], expected)
