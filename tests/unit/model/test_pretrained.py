from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.video import r3d_18

from pe_triage.errors import BundleError
from pe_triage.model.encoders import make_encoder
from pe_triage.model.pretrained import load_pretrained
from pe_triage.model.spec import SPECS, ModelSpec

RESNET = ModelSpec(name="r", backbone="resnet18", size=64)


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    torch.manual_seed(3)
    model: Any = timm.create_model("resnet18", pretrained=False)
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def file(resnet: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("w") / "resnet18.safetensors"
    save_file(resnet, path)
    return path


def test_timms_file_gives_timms_features(file: Path, resnet: dict[str, Tensor]) -> None:
    encoder = make_encoder(RESNET).eval()
    report = load_pretrained(encoder, file)
    assert report.ignored == ("fc.bias", "fc.weight")
    assert report.adapted == ()
    model: Any = timm.create_model("resnet18", pretrained=False)
    model.load_state_dict(resnet)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval().forward_features((x - 0.5) / 0.25).mean((2, 3))
        torch.testing.assert_close(encoder(x), expected)


def test_a_cut_backbone_takes_the_stages_it_has(file: Path, resnet: dict[str, Tensor]) -> None:
    encoder = make_encoder(replace(RESNET, stride=16))
    report = load_pretrained(encoder, file)
    assert "layer4.0.conv1.weight" in report.ignored
    backbone: Any = encoder.backbone
    assert torch.equal(backbone.state_dict()["layer3.1.conv2.weight"],
                       resnet["layer3.1.conv2.weight"])  # fmt: skip


def test_torchvisions_r3d18(tmp_path: Path) -> None:
    torch.manual_seed(4)
    theirs = r3d_18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "r3d_18.pth")
    encoder = make_encoder(SPECS["r3d18"].reduced(32, window=4)).eval()
    report = load_pretrained(encoder, tmp_path / "r3d_18.pth")
    assert report.ignored == ("fc.bias", "fc.weight")
    x = torch.rand(1, 3, 4, 32, 32)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), theirs((x - 0.5) / 0.25))


@pytest.mark.parametrize("channels", [1, 2, 5, 9])
def test_other_input_channels_are_fitted(file: Path, channels: int) -> None:
    """An image with one value in all channels gives the answer it gave before."""
    windows = tuple((40.0, 400.0) for _ in range(channels))
    encoder = make_encoder(replace(RESNET, windows=windows)).eval()
    assert load_pretrained(encoder, file).adapted == ("conv1.weight",)
    reference = make_encoder(RESNET).eval()
    load_pretrained(reference, file)
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(grey.expand(-1, channels, -1, -1)),
            reference(grey.expand(-1, 3, -1, -1)),
            rtol=1e-3,
            atol=1e-4,
        )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module.backbone.{k}": v for k, v in s.items()}},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
        lambda s: {k: v.half() for k, v in s.items()},
    ],
)
def test_wrappers_and_prefixes_are_seen_through(
    resnet: dict[str, Tensor], wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    torch.save(wrap(resnet), tmp_path / "w.pth")
    encoder = make_encoder(RESNET)
    load_pretrained(encoder, tmp_path / "w.pth")
    backbone: Any = encoder.backbone
    torch.testing.assert_close(backbone.conv1.weight, resnet["conv1.weight"], atol=1e-3, rtol=0)
    assert backbone.conv1.weight.dtype == torch.float32


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("w.pth", lambda s, p: torch.save({}, p), "lacks .* and [0-9]+ more .it holds no tensors"),
        ("w.pth", lambda s, p: torch.save({"a": s["fc.bias"]}, p), r"lacks .* more .it holds a"),
        (
            "w.pth",
            lambda s, p: torch.save({k: v for k, v in s.items() if k != "bn1.weight"}, p),
            "the file lacks bn1.weight .it holds",
        ),
        (
            "w.pth",
            lambda s, p: torch.save({**s, "bn1.weight": torch.ones(3)}, p),
            r"does not fit at bn1.weight \(\(3,\) for \(64,\)\)",
        ),
        (
            "w.pth",
            lambda s, p: torch.save({**s, "bn1.weight": torch.full((64,), torch.nan)}, p),
            "bn1.weight holds values that are no numbers",
        ),
        ("w.pth", lambda s, p: torch.save([1], p), "not a dictionary"),
        ("w.pth", lambda s, p: p.write_bytes(b"rubbish"), "cannot be read"),
        ("w.pth", lambda s, p: p.write_bytes(b""), "cannot be read"),
        ("w.pth", lambda s, p: p.write_bytes(pickle.dumps({"a": _Harm()})), "cannot be read"),
        ("w.pth", lambda s, p: torch.save({"a": _Harm()}, p), "cannot be read"),
        ("w.safetensors", lambda s, p: p.write_bytes(b"rubbish"), "cannot be read"),
        ("w.safetensors", lambda s, p: None, "cannot be read"),
        ("w.pth", lambda s, p: None, "No such file"),
        ("w.h5", lambda s, p: p.write_bytes(b""), r"expected .safetensors or .pth"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_and_changes_nothing(
    resnet: dict[str, Tensor],
    name: str,
    make: Callable[[dict[str, Tensor], Path], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(resnet, tmp_path / name)
    encoder = make_encoder(RESNET)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(BundleError, match=said) as caught:
        load_pretrained(encoder, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists(), "nothing in a file is executed"
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_the_plain_cnn_has_no_pretrained_weights(file: Path) -> None:
    with pytest.raises(BundleError, match="plain CNN has none"):
        load_pretrained(make_encoder(SPECS["plain-cnn"].reduced(64, hidden=4)), file)
