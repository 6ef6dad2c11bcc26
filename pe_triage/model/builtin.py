"""The bundle that stands in until a trained one is given: random weights that say so.

Its weights are the same on every machine and in every process. Each is drawn by a counter-based
generator keyed with its name, from uniform numbers alone (no library's normal distribution). Batch
normalisation gets the statistics of a forward pass over made-up images, computed in float64 and
then rounded to seven bits of mantissa, so that neither threads nor a library's order of summation
can show. With those statistics activations neither die nor explode: answers differ between slices
and heatmaps have shape. They mean nothing all the same.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pe_triage.domain import IntendedUse
from pe_triage.errors import BundleError
from pe_triage.model.bundle import save_bundle, verify_weights
from pe_triage.model.card import BundleCard, read_card
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.network import ExamNetwork
from pe_triage.model.sequences import NormedConv1d, TemporalBlock
from pe_triage.model.spec import ATTENTION_BILSTM, ModelSpec

UNTRAINED_VERSION: Final = "1"
SEED: Final = 20_260_101
_CALIBRATION_SIZE: Final = 128
_WINDOW_CALIBRATION: Final = (4, 8, 64)
"""Windows, their slices and their size: a 3-D encoder's statistics need no more."""
_GATE_DAMPING: Final = 1e-4
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Written as the time of making: the content is the same whenever it is made."""


def materialize_untrained(directory: Path, spec: ModelSpec = ATTENTION_BILSTM) -> Path:
    """Make sure that the built-in untrained bundle lies under `directory`; return its path.

    Written whole or not at all, so any number of processes may call it at once. A bundle that is
    already there is kept if it is sound and written anew if it is not.

    Raises
    ------
    BundleError
        The directory cannot be written.
    """
    path = directory / f"untrained-{spec.name}-{UNTRAINED_VERSION}"
    if _is_sound(path, spec):
        return path
    network = untrained_network(spec)
    card = BundleCard(
        name=f"untrained-{spec.name}",
        version=UNTRAINED_VERSION,
        spec=spec,
        thresholds=dict.fromkeys(THRESHOLD_KEYS, 0.5),
        intended_use=IntendedUse.UNTRAINED,
        training_data="none: seeded random weights",
        weights_sha256="0" * 64,
    )
    state = network.state_dict()
    try:
        save_bundle(path, state, card, created_at=_EPOCH)
    except BundleError:
        if _is_sound(path, spec):  # another process was first
            return path
        if not path.is_dir():
            raise
        save_bundle(path, state, card, created_at=_EPOCH, replace_existing=True)
    return path


def _is_sound(path: Path, spec: ModelSpec) -> bool:
    with suppress(BundleError):
        card = read_card(path)
        verify_weights(path, card)
        return card.spec == spec and card.intended_use is IntendedUse.UNTRAINED
    return False


def untrained_network(spec: ModelSpec = ATTENTION_BILSTM, seed: int = SEED) -> ExamNetwork:
    """Build a network with sane random weights that depend on `spec` and `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        network = ExamNetwork(spec).eval().requires_grad_(False)
    for name, module in network.named_modules():
        _initialise(module, name, seed)
    network.double()
    embeddings = _settle_batch_norms(network, _calibration_units(spec, seed))
    _settle_heads(network, embeddings)
    return network.float().eval()


def _uniform(shape: tuple[int, ...], bound: float, name: str, seed: int) -> torch.Tensor:
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16])
    generator = np.random.Generator(np.random.Philox(key=key))
    values = (generator.random(shape, dtype=np.float64) * 2 - 1) * bound
    return torch.from_numpy(values.astype(np.float32))


def _initialise(module: nn.Module, name: str, seed: int) -> None:
    """Draw this module's own parameters: uniform, He's variance for convolutions."""
    convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
    if isinstance(module, NormedConv1d):
        bound = (6.0 / module.direction[0].numel()) ** 0.5
        shape = tuple(module.direction.shape)
        module.direction.copy_(_uniform(shape, bound, f"{name}.direction", seed))
        module.length.fill_(2**0.5)  # what He's variance comes to
        module.bias.zero_()
        return
    if isinstance(module, nn.BatchNorm2d) and not bool(module.weight.any()):
        module.weight.fill_(1.0)  # timm starts residual branches at nothing
    is_weighted = isinstance(module, convolutions | nn.Linear | nn.RNNBase)
    for key, parameter in module.named_parameters(recurse=False):
        if is_weighted and parameter.dim() > 1:
            fan_in = parameter[0].numel()
            gain = 6.0 if isinstance(module, convolutions) else 3.0
            if ".se." in name:  # random gates multiply: through the depth they would run away
                gain *= _GATE_DAMPING
            bound = (gain / fan_in) ** 0.5
            parameter.copy_(_uniform(tuple(parameter.shape), bound, f"{name}.{key}", seed))
        elif is_weighted:
            parameter.zero_()


def _calibration_units(spec: ModelSpec, seed: int) -> torch.Tensor:
    """Make units of the calibration's images, as the spec's encoder takes them."""
    if spec.encoder == "window":
        units, planes, size = _WINDOW_CALIBRATION
        images = _calibration_images(spec, seed, min(spec.size, size))
        order = (torch.arange(units)[:, None] * 2 + torch.arange(planes)) % len(images)
        return images[order].transpose(1, 2).contiguous()
    flattens = bool(spec.conv_channels)  # and so has one size only
    images = _calibration_images(
        spec, seed, spec.size if flattens else min(spec.size, _CALIBRATION_SIZE)
    )
    if flattens:
        images = images[1:4]  # at full size, so few
    if spec.planes > 1:
        order = (torch.arange(len(images))[:, None] + torch.arange(spec.planes)) % len(images)
        images = images[order].transpose(1, 2).flatten(1, 2)
    return images


def _calibration_images(spec: ModelSpec, seed: int, size: int) -> torch.Tensor:
    """Make things like bodies in air under the spec's windows: (n, windows, size, size) float64.

    An ellipse of soft tissue around two dark ones and a few bright discs, with noise from none to
    much: roughly the grey values and edges of a chest, so that what is served later lies within
    what the statistics were taken from.
    """
    n = 8
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    draws = _uniform((n, 8, 4), 1.0, "calibration images", seed).double().numpy()
    noise = _uniform((n, size, size), 1.0, "calibration noise", seed).double().numpy()
    hu_nyx = np.full((n, size, size), -1000.0)
    for i, d in enumerate(draws):

        def inside(cy: float, cx: float, ry: float, rx: float) -> NDArray[np.bool_]:
            return np.asarray(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)

        hu_nyx[i][inside(0, 0, 0.65 + 0.15 * d[0, 0], 0.85 + 0.1 * d[0, 1])] = 40.0
        if i % 4:  # the others are below the lungs
            for side, k in ((-1, 1), (1, 2)):
                place = inside(0.1 * d[k, 0], 0.42 * side, 0.42 + 0.1 * d[k, 1], 0.28)
                hu_nyx[i][place] = -800.0 + 60.0 * d[k, 2]
        for k in range(3, 8):
            radius = 0.09 + 0.07 * d[k, 2]
            bright = 300.0 + 250.0 * d[k, 3]
            hu_nyx[i][inside(0.5 * d[k, 0], 0.6 * d[k, 1], radius, radius)] = bright
        hu_nyx[i] += noise[i] * 25.0 * i
    channels = [np.clip((hu_nyx - level) / width + 0.5, 0, 1) for level, width in spec.windows]
    return torch.from_numpy(np.stack(channels, axis=1))


def _settle_batch_norms(network: ExamNetwork, images_nchw: torch.Tensor) -> torch.Tensor:
    """Give every batch normalisation the statistics of what reaches it, in order of passage."""

    def settle(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)
        assert module.running_mean is not None
        assert module.running_var is not None
        x = inputs[0]
        axes = (0, *range(2, x.dim()))
        module.running_mean.copy_(_round(x.mean(dim=axes)))
        module.running_var.copy_(_round(x.var(dim=axes, unbiased=False).clamp(min=1e-3)))

    hooks = [
        module.register_forward_pre_hook(settle)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    try:
        with torch.no_grad():
            embeddings: torch.Tensor = network.encoder(images_nchw)
    finally:
        for hook in hooks:
            hook.remove()
    return embeddings


def _settle_heads(network: ExamNetwork, feat_nd: torch.Tensor) -> None:
    """Scale and centre what reads the embeddings, so that they spread rather than saturate.

    Pooling leaves embeddings whose mean is far larger than their spread between slices. Weights
    are divided by that spread, and biases take the mean away.
    """
    mean_d = _round(feat_nd.mean(dim=0))
    gain = 2.0 / float(_round(feat_nd.std(dim=0).mean()).clamp(min=1e-3))
    for head in (network.slice_heads.image, network.slice_heads.exam):
        head.weight.mul_(gain)
        head.bias.copy_(_round(-(head.weight @ mean_d)))
    if network.stage2 is None:
        return
    # what neighbours put beside a unit's own features: as much again, or differences around zero
    beside = {"none": [], "concatenate": [mean_d] * 2, "differences": [mean_d * 0] * 2}
    mean_d = torch.cat([mean_d, *beside[network.spec.neighbours]])
    sequence = network.stage2.sequence
    if network.spec.sequence == "tcn":
        block = sequence.tcn.levels[0]
        assert isinstance(block, TemporalBlock)
        block.first.length.mul_(gain)
        block.first.bias.copy_(_round(-(block.first.weight.sum(dim=2) @ mean_d)))
        if block.side is not None:
            block.side.weight.mul_(gain)
            assert block.side.bias is not None
            block.side.bias.copy_(_round(-(block.side.weight[:, :, 0] @ mean_d)))
        return
    for key in ("l0", "l0_reverse"):
        if not hasattr(sequence.recurrent, f"weight_ih_{key}"):
            continue  # one direction only
        weight = getattr(sequence.recurrent, f"weight_ih_{key}")
        bias = getattr(sequence.recurrent, f"bias_ih_{key}")
        weight.mul_(gain)
        bias.copy_(_round(-(weight @ mean_d)))


def _round(values: torch.Tensor) -> torch.Tensor:
    """Keep eight significant bits: far coarser than any rounding error, fine enough to serve."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(mantissa * 256) / 256, exponent)
