"""Weights from a local file for the encoder, in timm's or torchvision's form.

Nothing is ever downloaded. Files are ``.safetensors``, or ``.pth``/``.pt`` read with torch's
restricted unpickler (``weights_only=True``), which builds tensors and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pe_triage.errors import InputError

PREFIXES: Final = ("module.", "model.", "encoder.", "backbone.")
CLASSIFIERS: Final = ("classifier.", "fc.", "head.", "last_linear.")
LEAST_SHARE: Final = 0.9
"""A file that fits less of the encoder than this is taken for the wrong file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What of a file went into the encoder.

    Attributes
    ----------
    tensors
        How many were taken.
    adapted
        Names of those whose input channels were adapted.
    without
        Names of the encoder's tensors that the file lacks.
    unused
        Names of the file's tensors that the encoder has no use for, classifiers left aside.
    """

    tensors: int
    adapted: tuple[str, ...]
    without: tuple[str, ...]
    unused: tuple[str, ...]


def load_pretrained(encoder: nn.Module, path: Path) -> Loaded:
    """Load the encoder's backbone from a file.

    Raises
    ------
    InputError
        Not readable, or weights of another network.
    """
    backbone = encoder.get_submodule("backbone")
    own = backbone.state_dict()
    found = {_plain_name(name, own): tensor for name, tensor in _read(path).items()}
    taken: dict[str, Tensor] = {}
    adapted = []
    for name, tensor in own.items():
        other = found.pop(name, None)
        if other is not None and other.shape == tensor.shape:
            taken[name] = other
        elif other is not None and _same_but_channels(other, tensor):
            taken[name] = adapt_channels(other, tensor.shape[1])
            adapted.append(name)
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    without = tuple(name for name in wanted if name not in taken)
    if len(without) > (1 - LEAST_SHARE) * len(wanted):
        raise InputError(
            f"{path}: weights of another network: {len(without)} of {len(wanted)} tensors of the "
            f"encoder are missing or of another shape, {without[0]} among them"
        )
    backbone.load_state_dict(taken, strict=False)
    unused = tuple(name for name in found if not name.startswith(CLASSIFIERS))
    return Loaded(tensors=len(taken), adapted=tuple(adapted), without=without, unused=unused)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Repeat a first convolution's input channels in turn, and scale so that sums stay."""
    source = weight.shape[1]
    repeated = weight[:, [k % source for k in range(channels)]]
    return repeated * (source / channels)


def _same_but_channels(found: Tensor, own: Tensor) -> bool:
    return (
        own.dim() >= 4
        and found.dim() == own.dim()
        and found.shape[0] == own.shape[0]
        and found.shape[2:] == own.shape[2:]
    )


def _plain_name(name: str, own: Mapping[str, Tensor]) -> str:
    while name not in own:
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name = name[len(prefix) :]
                break
        else:
            return name
    return name


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise InputError(f"{path}: not a file of weights that can be read safely") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(
        content, Mapping
    ) else {}  # fmt: skip
    if not tensors:
        raise InputError(f"{path}: holds no tensors")
    return tensors
