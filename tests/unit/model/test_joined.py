"""The encoder that joins a coarse map to a fine one, and features brought to one scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pe_triage.errors import BundleError
from pe_triage.model.encoders import EVIDENCE_GAIN
from pe_triage.model.network import ExamNetwork
from pe_triage.model.specification import ModelSpec

JOINED = ModelSpec(
    name="joined", backbone="resnet10t", stride=8, join_stride=16, join_dim=12, size=64,
    sequence_hidden=4, dense_dim=4, attention_dim=4, standardise=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> ExamNetwork:
    torch.manual_seed(0)
    return ExamNetwork(JOINED).eval()


@torch.inference_mode()
def test_the_map_has_the_fine_grid_and_the_embedding_is_its_mean(network: ExamNetwork) -> None:
    images = torch.rand(2, 3, 64, 64)
    maps = network.encoder.maps(images)
    assert maps.shape == (2, 12, 8, 8)
    assert float(maps.min()) >= 0
    torch.testing.assert_close(network.encoder(images), maps.mean(dim=(2, 3)))


@torch.inference_mode()
def test_what_stands_at_a_fine_cell_moves_the_cell_that_is_centred_on_it(
    network: ExamNetwork,
) -> None:
    plain = torch.zeros(1, 3, 64, 64)
    dotted = plain.clone()
    dotted[..., 31:34, 47:50] = 1.0  # centre of fine cell (4, 6): pixels 32, 48
    change = (network.encoder.maps(dotted) - network.encoder.maps(plain)).abs().sum(dim=1)[0]
    assert divmod(int(change.argmax()), 8) == (4, 6)


@torch.inference_mode()
def test_evidence_stands_beside_the_features_as_probabilities() -> None:
    torch.manual_seed(1)
    shown = ExamNetwork(replace(JOINED, evidence=2)).eval()
    images = torch.rand(2, 3, 64, 64)
    maps = shown.encoder.maps(images)
    assert shown.embedding_dim == 14
    assert maps.shape == (2, 14, 8, 8)
    backbone = shown.encoder.backbone
    joint = backbone.joint(shown.encoder.normal(images))
    torch.testing.assert_close(maps[:, :12], joint)
    torch.testing.assert_close(maps[:, 12:] / EVIDENCE_GAIN, torch.sigmoid(backbone.cells(joint)))


def test_a_size_that_only_the_fine_stride_divides_still_joins() -> None:
    odd = ExamNetwork(replace(JOINED, size=72)).eval()
    assert odd.encoder.maps(torch.rand(1, 3, 72, 72)).shape == (1, 12, 9, 9)


@torch.inference_mode()
def test_standardised_features_are_what_stage_two_reads(network: ExamNetwork) -> None:
    plain = ExamNetwork(replace(JOINED, standardise=False)).eval()
    known = {k: v for k, v in network.state_dict().items() if "feature_" not in k}
    plain.load_state_dict(known)
    stage = network.stage2
    assert stage is not None
    assert plain.stage2 is not None
    stage.feature_mean.fill_(3.0)
    stage.feature_std.fill_(0.5)
    feat = torch.rand(1, 5, 12)
    torch.testing.assert_close(stage(feat).exam_bl, plain.stage2((feat - 3) / 0.5).exam_bl)


def test_the_spec_goes_to_json_and_back_and_old_specs_keep_their_identity() -> None:
    assert ModelSpec.from_json(JOINED.to_json()) == JOINED
    assert not {"join_stride", "join_dim", "standardise"} & set(ModelSpec(name="old").to_json())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"join_dim": 0}, "go together"),
        ({"join_stride": 0}, "go together"),
        ({"join_stride": 0, "join_dim": 0, "evidence": 2}, "evidence needs"),
        ({"stride": 16}, "coarser than stride"),
        ({"join_stride": 24}, "join_stride must be one of"),
        ({"standardise": 1}, "standardise must be true or false"),
    ],
)
def test_a_join_that_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        replace(JOINED, **changes)  # type: ignore[arg-type]
