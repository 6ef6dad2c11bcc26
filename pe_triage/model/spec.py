"""Which network: named specs as plain data over one set of modules.

A spec says everything that is needed to build the network and to prepare its input; weights are
found in a bundle. It goes to JSON and back unchanged, and a key that this version does not know is
refused, because ignoring it would build another network than the one that was trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from pe_triage.errors import BundleError

LUNG_WINDOW: Final = (-600.0, 1500.0)
PE_WINDOW: Final = (100.0, 700.0)
MEDIASTINAL_WINDOW: Final = (40.0, 400.0)

HEADS: Final = ("sequence", "cnn-max")
SEQUENCES: Final = ("bilstm",)
POOLINGS: Final = ("attention", "mean", "max")
STRIDES: Final = (16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One network as data.

    Attributes
    ----------
    name
        Name of the spec in `SPECS`, or any other for a variation of one.
    backbone
        timm's name of the slice encoder.
    stride
        Pixels of input for one cell of the last feature map: 32 is the whole backbone with its
        final convolution, 16 cuts it one stage earlier, for finer heatmaps.
    windows
        One input channel each: (level, width) in Hounsfield units.
    size
        Rows and columns of the network's input.
    mean, std
        Normalisation of the channels' [0, 1] values, done inside the network, so that every
        runtime exported from it includes it.
    head
        ``sequence``: stage 2 answers. ``cnn-max``: no stage 2; the slice of maximum confidence
        answers for the exam (the paper's first baseline).
    sequence, sequence_hidden, sequence_layers
        Recurrent network over the embeddings, its units in each direction, and its depth.
    dense_dim
        Length of ĥ, after the dense layer.
    pooling
        How ĥ of all slices become one vector z of the exam.
    attention_dim
        Rows of V in the attention module.
    dropout
        On the dense layer's output, in training only.
    """

    name: str
    backbone: str = "efficientnet_b0"
    stride: int = 32
    windows: tuple[tuple[float, float], ...] = (LUNG_WINDOW, PE_WINDOW, MEDIASTINAL_WINDOW)
    size: int = 256
    mean: float = 0.5
    std: float = 0.25
    head: str = "sequence"
    sequence: str = "bilstm"
    sequence_hidden: int = 128
    sequence_layers: int = 1
    dense_dim: int = 128
    pooling: str = "attention"
    attention_dim: int = 64
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                words = ", ".join(str(value) for value in allowed)
                raise BundleError(f"model spec: {key} must be one of {words}")
        for key in _COUNTS:
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BundleError(f"model spec: {key} must be a positive integer")
        if self.size % self.stride:
            raise BundleError(f"model spec: size must be a multiple of the stride {self.stride}")
        for key in _NAMES:
            if not isinstance(getattr(self, key), str) or not getattr(self, key):
                raise BundleError(f"model spec: {key} must be a non-empty text")
        if not re.fullmatch(r"[A-Za-z0-9_.]+", self.backbone):
            # timm would follow a prefix such as hf-hub: to the network; nothing is fetched here
            raise BundleError("model spec: backbone must be the plain name of a timm model")
        if not self.windows or any(len(w) != 2 or not w[1] > 0 for w in self.windows):
            raise BundleError("model spec: windows must be (level, width) pairs, width positive")
        if not all(map(math.isfinite, (self.mean, self.std, *sum(self.windows, ())))):
            raise BundleError("model spec: windows, mean and std must be finite numbers")
        if not self.std > 0:
            raise BundleError("model spec: std must be positive")
        if not 0 <= self.dropout < 1:
            raise BundleError("model spec: dropout must lie in [0, 1)")

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values, every key written out."""
        document = asdict(self)
        document["windows"] = [list(window) for window in self.windows]
        return document

    @staticmethod
    def from_json(document: object) -> ModelSpec:
        """Read a spec from JSON values.

        Raises
        ------
        BundleError
            Not a mapping, a key unknown to this version, or a value of the wrong kind.
        """
        if not isinstance(document, Mapping):
            raise BundleError("model spec: not a JSON object")
        known = {f.name for f in fields(ModelSpec)}
        unknown = sorted(str(key) for key in document if key not in known)
        if unknown:
            raise BundleError(f"model spec: unknown key {', '.join(unknown)}")
        if "name" not in document:
            raise BundleError("model spec: key name is missing")
        values = dict(document)
        try:
            if "windows" in values:
                values["windows"] = tuple(
                    (float(level), float(width)) for level, width in values["windows"]
                )
            for key in ("mean", "std", "dropout"):
                if key in values:
                    values[key] = float(values[key])
            return ModelSpec(**values)
        except (TypeError, ValueError) as error:
            raise BundleError(f"model spec: a value of the wrong kind ({error})") from None


_CHOICES: Mapping[str, tuple[object, ...]] = {
    "head": HEADS,
    "sequence": SEQUENCES,
    "pooling": POOLINGS,
    "stride": STRIDES,
}
_COUNTS = ("size", "sequence_hidden", "sequence_layers", "dense_dim", "attention_dim")
_NAMES = ("name", "backbone")

ATTENTION_BILSTM: Final = ModelSpec(name="attention-bilstm")
"""The default: the two-stage attention-based CNN-LSTM of the seed paper."""

SPECS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ATTENTION_BILSTM,
        replace(ATTENTION_BILSTM, name="mean-bilstm", pooling="mean"),
        replace(ATTENTION_BILSTM, name="max-bilstm", pooling="max"),
        replace(ATTENTION_BILSTM, name="cnn-max", head="cnn-max"),
    )
}
"""Every named spec; the paper's two baselines stand beside its proposal."""
