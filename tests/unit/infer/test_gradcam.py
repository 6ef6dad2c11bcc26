"""The closed form against autograd through the whole network, slices coupled by the sequence."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from pe_triage.infer.gradcam import Score, channel_gradients, combine, gradcam, normalise
from pe_triage.model.builtin import untrained_network
from pe_triage.model.labels import pe_logits
from pe_triage.model.network import ExamNetwork
from pe_triage.model.spec import ATTENTION_BILSTM, SPECS


@cache
def _network(name: str, stride: int = 32) -> ExamNetwork:
    small = {"size": 96, "sequence_hidden": 8, "dense_dim": 12, "attention_dim": 6}
    return untrained_network(replace(SPECS[name], stride=stride, **small)).double()  # type: ignore[arg-type]


def _whole(
    network: ExamNetwork, images: torch.Tensor, k: int, score: Score
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM as published: gradients at the last feature maps of all slices, by autograd."""
    maps = network.encoder.maps(images).detach().requires_grad_(True)
    logits = network.exam_logits(maps.mean(dim=(2, 3))[None])
    u = pe_logits(logits.image_bz, logits.exam_bl)[0]
    (u.max() if score is Score.EXAM else u[k]).backward()
    assert maps.grad is not None
    weight_c = maps.grad[k].mean(dim=(1, 2))  # Selvaraju et al. 2017, equation 1
    cam = torch.relu((weight_c[:, None, None] * maps.detach()[k]).sum(dim=0))
    return cam, maps.grad[k]


@pytest.mark.parametrize("score", list(Score))
@pytest.mark.parametrize(
    ("name", "stride"),
    [("attention-bilstm", 32), ("attention-bilstm", 16), ("mean-bilstm", 32), ("max-bilstm", 32)],
)
def test_the_closed_form_is_grad_cam(name: str, stride: int, score: Score) -> None:
    network = _network(name, stride)
    torch.manual_seed(2)
    images = torch.rand(5, 3, 96, 96, dtype=torch.float64)
    maps = network.encoder.maps(images)
    asked = [0, 2, 4]
    gradient = channel_gradients(network, maps.mean(dim=(2, 3)), asked, score)
    ours = combine(gradient, maps[asked])
    for i, k in enumerate(asked):
        published, at_cells = _whole(network, images, k, score)
        scale = float(published.max())
        assert scale > 0
        torch.testing.assert_close(ours[i] / scale, published / scale, rtol=0, atol=1e-12)
        # constant over the map, as the derivation says
        assert float((at_cells - at_cells[:, :1, :1]).abs().max()) < 1e-15


def test_it_is_grad_cam_through_the_whole_cnn_too() -> None:
    """A backward pass that really runs from the images through the CNN, by a hook on its map."""
    network = _network("attention-bilstm")
    torch.manual_seed(3)
    images = torch.rand(4, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    caught: list[torch.Tensor] = []

    def keep(_m: object, _i: object, output: torch.Tensor) -> None:
        output.retain_grad()
        caught.append(output)

    hook = network.encoder.backbone.bn2.register_forward_hook(keep)
    logits = network(images)
    hook.remove()
    pe_logits(logits.image_bz, logits.exam_bl)[0, 1].backward()
    (a,) = caught
    assert a.grad is not None
    assert images.grad is not None
    assert float(images.grad.abs().max()) > 0
    published = torch.relu((a.grad.mean(dim=(2, 3))[1, :, None, None] * a[1]).sum(dim=0)).detach()
    maps = network.encoder.maps(images.detach())
    ours = combine(channel_gradients(network, maps.mean((2, 3)), [1]), maps[1:2])[0]
    torch.testing.assert_close(ours, published, rtol=1e-9, atol=1e-12 * float(published.max()))


def test_the_sequences_coupling_is_in_the_gradient() -> None:
    """Without its neighbours a slice has another gradient: the BiLSTM is not skipped."""
    network = _network("attention-bilstm")
    torch.manual_seed(4)
    feat = torch.randn(5, network.embedding_dim, dtype=torch.float64)
    together = channel_gradients(network, feat, [2])
    alone = channel_gradients(network, feat[2:3], [0])
    assert float((together - alone).abs().max()) > 1e-3 * float(together.abs().max())
    # asked for in any company, a slice's gradient is its own
    several = channel_gradients(network, feat, [4, 2, 0])
    torch.testing.assert_close(several[1:2], together)


def test_float32_is_close_to_float64() -> None:
    network = untrained_network(replace(ATTENTION_BILSTM, size=96))
    torch.manual_seed(5)
    images = torch.rand(6, 3, 96, 96)
    with torch.no_grad():
        maps = network.encoder.maps(images)
    feat = maps.mean(dim=(2, 3))
    single = gradcam(network, feat.numpy(), maps[[1, 3]].numpy(), [1, 3])
    double = gradcam(network.double(), feat.double().numpy(), maps[[1, 3]].double().numpy(), [1, 3])
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=3e-4)


def test_maps_are_scaled_each_by_itself_and_empty_ones_stay_empty() -> None:
    maps = np.zeros((4, 2, 2), np.float32)
    maps[0, 0, 1] = 4.0
    maps[1, 1, 1] = 1e-20
    maps[2, 0, 0] = 1e-42  # subnormal
    out = normalise(maps)
    assert out[:2].max(axis=(1, 2)).tolist() == [1, 1]
    assert not out[2:].any()
    assert np.isfinite(out).all()
