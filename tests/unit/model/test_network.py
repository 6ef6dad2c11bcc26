from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import BundleError
from pe_triage.model.network import ExamNetwork
from pe_triage.model.spec import ATTENTION_BILSTM, SPECS

SMALL = replace(ATTENTION_BILSTM, size=64, sequence_hidden=8, dense_dim=8, attention_dim=4)


@pytest.fixture(scope="module", params=sorted(SPECS))
def network(request: pytest.FixtureRequest) -> ExamNetwork:
    torch.manual_seed(0)
    spec = replace(SPECS[request.param], size=64, sequence_hidden=8, dense_dim=8)
    return ExamNetwork(spec).eval().requires_grad_(False)


def test_every_spec_answers_for_an_exam(network: ExamNetwork) -> None:
    out = network(torch.rand(3, 3, 64, 64))
    assert out.image_bz.shape == out.attention_bz.shape == (1, 3)
    assert out.exam_bl.shape == (1, len(EXAM_LABELS))
    assert (out.attention_bz >= 0).all()
    torch.testing.assert_close(out.attention_bz.sum(dim=1), torch.ones(1))


def test_the_embedding_is_exactly_the_mean_of_the_map(network: ExamNetwork) -> None:
    images = torch.rand(2, 3, 64, 64)
    maps = network.encoder.maps(images)
    assert maps.shape == (2, network.embedding_dim, 2, 2)
    torch.testing.assert_close(network.encoder(images), maps.mean((2, 3)), rtol=0, atol=0)


def test_padding_changes_nothing(network: ExamNetwork) -> None:
    feat = torch.randn(2, 5, network.embedding_dim)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    padded = network.exam_logits(feat, mask)
    alone = network.exam_logits(feat[1:, :3])
    torch.testing.assert_close(padded.exam_bl[1:], alone.exam_bl)
    torch.testing.assert_close(padded.image_bz[1:, :3], alone.image_bz)
    torch.testing.assert_close(padded.attention_bz[1:, :3], alone.attention_bz)
    assert (padded.attention_bz[1, 3:] == 0).all()


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


def test_an_unknown_backbone_is_one_line() -> None:
    with pytest.raises(BundleError, match="backbone 'resnet_of_dreams'"):
        ExamNetwork(replace(SMALL, backbone="resnet_of_dreams"))
