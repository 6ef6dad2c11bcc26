"""Pretrained encoder weights from a local file; nothing here ever goes to a network.

Files are timm's or torchvision's own: ``.safetensors``, or ``.pth``/``.pt``/``.bin`` read with
torch's restricted unpickler, so that a file of weights cannot run code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pe_triage.errors import BundleError
from pe_triage.model.encoders import Encoder

_WRAPPERS: Final = ("state_dict", "model", "state_dict_ema", "model_state_dict")
_PREFIXES: Final = ("module.", "model.", "encoder.", "backbone.")
_CLASSIFIERS: Final = ("fc.", "classifier.", "head.", "last_linear.")
_OPTIONAL: Final = ".num_batches_tracked"
_PICKLED: Final = (".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedReport:
    """What was taken from a file.

    Attributes
    ----------
    loaded
        Tensors that were loaded.
    adapted
        First convolutions that were fitted to another number of input channels.
    ignored
        Tensors of the file that the encoder has no use for: its classifier, and stages beyond a
        backbone that was cut.
    """

    loaded: int
    adapted: tuple[str, ...]
    ignored: tuple[str, ...]


def load_pretrained(encoder: Encoder, path: Path) -> PretrainedReport:
    """Load an encoder's backbone from a local file.

    A first convolution made for another number of channels is repeated over ours and scaled, so
    that an image with the same value in all channels gives the same answer as before.

    Parameters
    ----------
    encoder
        Changed in place; whole or not at all.
    path
        A file in timm's form for a timm backbone, in torchvision's for R3D-18.

    Raises
    ------
    BundleError
        The file cannot be read, lacks tensors, or has others in their place: one line that names
        the first of them and says how many there are.
    """
    if not encoder.is_pooled:
        raise BundleError("pretrained weights: the plain CNN has none")
    found = _stripped(_read(path))
    backbone = encoder.backbone
    assert isinstance(backbone, nn.Module)
    wanted = backbone.state_dict()
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    wrong: list[str] = []
    adapted: list[str] = []
    for name, ours in wanted.items():
        theirs = found.get(name)
        if theirs is None:
            if name.endswith(_OPTIONAL):
                state[name] = ours
            else:
                missing.append(name)
        elif theirs.shape == ours.shape:
            state[name] = theirs.to(ours.dtype)
        elif _is_other_input(theirs, ours) and not adapted:
            state[name] = _fitted(theirs, ours.shape[1]).to(ours.dtype)
            adapted.append(name)
        else:
            wrong.append(f"{name} ({tuple(theirs.shape)} for {tuple(ours.shape)})")
    for words, names in (("lacks", missing), ("does not fit at", wrong)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            near = _hint(found) if words == "lacks" else ""
            raise BundleError(f"pretrained weights {path}: the file {words} {names[0]}{more}{near}")
    bad = [name for name, t in state.items() if not bool(torch.isfinite(t).all())]
    if bad:
        raise BundleError(f"pretrained weights {path}: {bad[0]} holds values that are no numbers")
    backbone.load_state_dict(state)
    return PretrainedReport(
        loaded=len(state),
        adapted=tuple(adapted),
        ignored=tuple(sorted(set(found) - set(wanted))),
    )


def _read(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in _PICKLED:
            raise BundleError(
                f"pretrained weights {path}: expected .safetensors or {', '.join(_PICKLED)}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that it goes on to refuse anyway
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except BundleError:
        raise
    except Exception as error:  # noqa: BLE001 - the unpickler raises anything at all of rubbish
        if isinstance(error, OSError) and error.strerror:
            line = error.strerror
        else:
            line = (str(error) or type(error).__name__).splitlines()[0]
        raise BundleError(f"pretrained weights {path}: cannot be read ({line})") from None
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        raise BundleError(f"pretrained weights {path}: not a dictionary of tensors")
    return loaded


def _stripped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take tensors alone, without the prefixes that wrappers put before every name."""
    tensors = {str(name): t for name, t in state.items() if isinstance(t, Tensor)}
    again = True
    while again:
        again = False
        for prefix in _PREFIXES:
            inner = {n: t for n, t in tensors.items() if n.startswith(prefix)}
            others = [n for n in tensors if not n.startswith((prefix, *_CLASSIFIERS))]
            if inner and not others:
                tensors = {n.removeprefix(prefix): t for n, t in inner.items()}
                again = True
    return tensors


def _is_other_input(theirs: Tensor, ours: Tensor) -> bool:
    """Whether both are kernels that differ in their input channels alone."""
    return (
        theirs.dim() == ours.dim() >= 4
        and theirs.shape[0] == ours.shape[0]
        and theirs.shape[2:] == ours.shape[2:]
        and theirs.shape[1] in (1, 3)
    )


def _fitted(kernel: Tensor, channels: int) -> Tensor:
    before = kernel.shape[1]
    repeated = kernel.float()[:, [i % before for i in range(channels)]]
    # each output's sum over the input is kept
    total = kernel.float().sum(dim=1, keepdim=True)
    now = repeated.sum(dim=1, keepdim=True)
    return repeated + (total - now) / channels


def _hint(found: Mapping[str, Tensor]) -> str:
    return f" (it holds {', '.join(sorted(found)[:2])}, …)" if found else " (it holds no tensors)"
