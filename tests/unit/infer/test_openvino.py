"""OpenVINO behind the port: PyTorch's numbers, whatever comes together; and never in silence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from structlog.testing import capture_logs

from pe_triage.domain import CtVolume
from pe_triage.errors import ConfigurationError
from pe_triage.infer import choice, openvino_runtime
from pe_triage.infer.choice import choose_runtime, make_runtime, unit_shape
from pe_triage.infer.keyslices import key_slices
from pe_triage.infer.openvino_runtime import (
    TOLERANCE,
    OpenVinoRuntime,
    largest_difference,
    probe_units,
)
from pe_triage.infer.predictor import Predictor
from pe_triage.infer.runtime import TorchRuntime
from pe_triage.model.encoders import Encoder
from pe_triage.model.network import ExamNetwork
from pe_triage.model.spec import SPECS

Make = Callable[..., CtVolume]
MakePredictor = Callable[..., Predictor]
pytestmark = pytest.mark.usefixtures("fresh_logs")

CPU = torch.device("cpu")

STRUCTURES = (
    "attention-bilstm",  # a whole EfficientNet
    "attention-guided-resnet",  # one cut at stride 16, with neighbours as channels
    "plain-cnn",  # flattened, not pooled
    "r3d18",  # windows of slices
    "rsna-first",  # the largest backbone, for the long run
)
"""One spec for each encoder that is built differently."""


def test_every_encoder_has_its_structure_tried() -> None:
    kinds = {(s.backbone, s.stride, s.encoder) for s in SPECS.values()}
    assert kinds == {
        (s.backbone, s.stride, s.encoder) for s in (SPECS[name] for name in STRUCTURES)
    }


def _units(network: ExamNetwork, count: int, seed: int = 3) -> NDArray[np.float32]:
    shape = (count, *unit_shape(network.spec))
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def _fresh(network: ExamNetwork, **more: Any) -> OpenVinoRuntime:
    return OpenVinoRuntime(network.encoder, unit_shape(network.spec), **more)


@pytest.mark.parametrize(
    "name", [*STRUCTURES[:-1], pytest.param(STRUCTURES[-1], marks=pytest.mark.long)]
)
def test_it_gives_pytorchs_embeddings_and_maps(
    name: str, network_of: Callable[[str], ExamNetwork]
) -> None:
    network = network_of(name)
    with capture_logs() as events:
        runtime = make_runtime(network.encoder, network.spec, device="cpu", threads=2)
    assert events == []
    assert runtime.info.name == "openvino"
    assert runtime.info.precision == "float32"
    assert runtime.info.difference is not None
    assert runtime.info.difference <= TOLERANCE
    plain = TorchRuntime(network.encoder, CPU)
    images = _units(network, 3)
    for ours, theirs in (
        (runtime.embed(images), plain.embed(images)),
        (runtime.maps(images), plain.maps(images)),
    ):
        assert ours.shape == theirs.shape
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
        assert ours.std() > 0


@pytest.mark.parametrize(
    "name", ["attention-guided-resnet", pytest.param("attention-bilstm", marks=pytest.mark.long)]
)
def test_an_images_numbers_depend_on_nothing_else(
    name: str, network_of: Callable[[str], ExamNetwork]
) -> None:
    """Bit for bit: neither on what comes with it, nor on the order, nor on threads."""
    network = network_of(name)
    images = _units(network, 11)
    runtime = _fresh(network, threads=2)
    whole, maps = runtime.both(images)
    np.testing.assert_array_equal(runtime.embed(images), whole)
    np.testing.assert_array_equal(runtime.maps(images), maps)
    order = np.random.default_rng(5).permutation(11)
    np.testing.assert_array_equal(runtime.embed(images[order]), whole[order])
    for size in (1, 4):
        parts = [runtime.embed(images[at : at + size]) for at in range(0, 11, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    for threads in (1, 3):
        np.testing.assert_array_equal(_fresh(network, threads=threads).embed(images), whole)


@pytest.mark.parametrize("name", ["attention-bilstm", "plain-cnn"])
def test_predictions_and_decisions_are_pytorchs(
    name: str, predictor_of: MakePredictor, make_volume: Make
) -> None:
    volume = make_volume((19, 64, 56), z_mm=2.5, mm=5.6)
    plain, fast = predictor_of(name), predictor_of(name, runtime="openvino", threads=2)
    assert (plain.runtime.info.name, fast.runtime.info.name) == ("pytorch", "openvino")
    a, b = plain.predict(volume), fast.predict(volume)
    np.testing.assert_allclose(
        b.prediction.slice_probability_z, a.prediction.slice_probability_z, rtol=0, atol=1e-3
    )
    np.testing.assert_allclose(
        b.prediction.attention_z, a.prediction.attention_z, rtol=0, atol=1e-3
    )
    for label, p in a.prediction.exam_probability.items():
        assert b.prediction.exam_probability[label] == pytest.approx(p, abs=1e-3)
    assert b.prediction.pe_probability == pytest.approx(a.prediction.pe_probability, abs=1e-3)
    assert b.prediction.findings == a.prediction.findings
    for ours, theirs in zip(
        key_slices(volume, b, fast, 3), key_slices(volume, a, plain, 3), strict=True
    ):
        assert ours.sop_instance_uid == theirs.sop_instance_uid
        np.testing.assert_allclose(ours.heatmap_yx, theirs.heatmap_yx, atol=1e-2)
    again = fast.predict(volume)
    np.testing.assert_array_equal(again.feat_zd, b.feat_zd)
    assert again.prediction.exam_probability == b.prediction.exam_probability


def _fallback(encoder: Encoder, network: ExamNetwork) -> dict[str, Any]:
    with capture_logs() as events:
        runtime = make_runtime(encoder, network.spec, runtime="openvino", threads=1)
    assert isinstance(runtime, TorchRuntime)
    assert runtime.info.name == "pytorch"
    images = _units(network, 2)
    assert np.isfinite(runtime.embed(images)).all()
    (event,) = events
    assert event["event"] == "runtime.fallback"
    assert event["log_level"] == "warning"
    return dict(event)


def test_what_cannot_be_converted_is_served_by_pytorch_and_said(
    network_of: Callable[[str], ExamNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("No conversion rule found\nfor operations: aten::thing")

    network = network_of("attention-guided-resnet")
    monkeypatch.setattr(openvino_runtime, "_convert", refuse)
    event = _fallback(network.encoder, network)
    assert event["reason"].startswith("RuntimeError: No conversion rule found for operations")


def test_a_broken_installation_is_served_by_pytorch_and_said(
    network_of: Callable[[str], ExamNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ImportError("libtbb.so.12: cannot open shared object file")

    network = network_of("attention-guided-resnet")
    monkeypatch.setattr(openvino_runtime, "_import_openvino", broken)
    assert "libtbb" in _fallback(network.encoder, network)["reason"]


@pytest.mark.parametrize("wrong", [1.01, np.nan])
def test_an_output_that_is_not_pytorchs_is_not_served(
    wrong: float, network_of: Callable[[str], ExamNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bfloat16 would do: features of the built-in network then differ by 1.7 %."""
    network = network_of("attention-guided-resnet")
    truthful = OpenVinoRuntime.both

    def lie(self: OpenVinoRuntime, images: NDArray[np.float32]) -> Any:
        embeddings, maps = truthful(self, images)
        maps[-1, 0, 0, 0] = maps.max() * wrong
        return embeddings, maps

    monkeypatch.setattr(OpenVinoRuntime, "both", lie)
    assert "differs from PyTorch's" in _fallback(network.encoder, network)["reason"]


def test_differences_are_parts_of_the_largest_value() -> None:
    a = np.array([100.0, 1.0], np.float32)
    b = np.array([100.0, 1.5], np.float32)
    assert largest_difference([a, b], [a, a]) == pytest.approx(0.005)
    assert largest_difference([a], [a]) == 0
    assert largest_difference([a * 0], [a * 0]) == 0
    assert largest_difference([a[:1]], [a]) == np.inf
    for odd in (np.nan, np.inf):
        assert largest_difference([b, a * np.float32(odd)], [a, a]) == np.inf
        assert largest_difference([a, b], [a * np.float32(odd), a]) == np.inf


def test_the_probe_is_the_same_everywhere_and_leaves_nothing_out() -> None:
    slices, windows = probe_units((3, 32, 32)), probe_units((1, 4, 32, 32))
    assert slices.shape == (2, 3, 32, 32)
    assert windows.shape == (1, 1, 4, 32, 32)
    np.testing.assert_array_equal(slices, probe_units((3, 32, 32)))
    for units in (slices, windows):
        assert units.dtype == np.float32
        assert units.min() >= 0
        assert units.max() <= 1
    assert len(np.unique(slices[0])) > 3000


def test_what_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_runtime("openvino", "auto") == ("openvino", CPU)
    assert choose_runtime("auto", "cpu") == ("openvino", CPU)
    assert choose_runtime("pytorch", "cpu") == ("pytorch", CPU)
    for wanted, device, said in (
        ("onnx", "cpu", "runtime"),
        ("openvino", "cuda", "runs on the CPU"),
        ("auto", "tpu", "device"),
        ("pytorch", "cuda:99", "device"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            choose_runtime(wanted, device)
    monkeypatch.setattr(choice, "is_installed", lambda: False)
    assert choose_runtime("auto", "cpu") == ("pytorch", CPU)
    with pytest.raises(ConfigurationError, match="not installed"):
        choose_runtime("openvino", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(choice, "is_installed", lambda: True)
    assert choose_runtime("auto", "auto") == ("pytorch", torch.device("cuda"))
    assert choose_runtime("openvino", "auto") == ("openvino", CPU)


def test_odd_input_is_refused_or_welcome(network_of: Callable[[str], ExamNetwork]) -> None:
    network = network_of("attention-guided-resnet")
    for more in ({"batch_size": 0}, {"threads": 0}):
        with pytest.raises(ConfigurationError):
            _fresh(network, **more)
    runtime = _fresh(network, threads=2)
    assert runtime.batch_size >= 16
    images = _units(network, 3)
    expected = runtime.embed(images)
    assert runtime.embed(images[:0]).shape == (0, expected.shape[1])
    images.setflags(write=False)
    np.testing.assert_array_equal(runtime.embed(images), expected)
    np.testing.assert_array_equal(runtime.embed(images[:, ::-1][:, ::-1]), expected)
    with pytest.raises(ValueError, match="units of shape"):
        runtime.embed(images[..., :-1])


def test_large_units_share_threads(network_of: Callable[[str], ExamNetwork]) -> None:
    """A window of 32 slices at its published size is 0.4 GB of activations for each stream."""
    network = network_of("attention-guided-resnet")
    encoder = network.encoder
    kept, encoder.unit_bytes = encoder.unit_bytes, 400_000_000
    try:
        runtime = _fresh(network, threads=8)
    finally:
        encoder.unit_bytes = kept
    assert runtime.batch_size == 2
    assert len(runtime._requests) == 2 * openvino_runtime._AHEAD
    assert runtime.info.threads == 8


def test_it_reports_to_nobody(tmp_path: Path) -> None:
    """Importing and converting neither opens a connection nor leaves an identifier behind."""
    code = """
import socket, sys, torch

def refuse(*_):
    raise AssertionError("a connection was attempted")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from pe_triage.infer import openvino_runtime as o
assert "openvino" not in sys.modules, "imported before it is needed"
class Net(torch.nn.Conv2d):
    unit_bytes = 1
    maps = torch.nn.Conv2d.forward
    def embed_maps(self, maps):
        return maps.mean((2, 3))
o.OpenVinoRuntime(Net(1, 2, 3).requires_grad_(False), (1, 8, 8), threads=1)
assert "openvino" in sys.modules
loaded = [m for m in sys.modules if m.startswith("openvino_telemetry") and sys.modules[m]]
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
