"""What a spec is: a network, its input and its training recipe as plain data.

A spec says everything that is needed to build the network and to prepare its input; weights are
found in a bundle. It goes to JSON and back unchanged, and a key that this version does not know is
refused, because ignoring it would build another network than the one that was trained.

**Identity.** A bundle's identity covers its spec's JSON, so keys that were added to this format
later are written only where they differ from their default: bundles made before keep both their
meaning and their identity.

**Units.** Stage 1 turns *units* into embeddings: a unit is one slice (``encoder: slice``), perhaps
with its neighbours as further channels, or a window of consecutive slices (``encoder: window``).
`pe_triage.model.units` says which units a volume has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from pe_triage.errors import BundleError
from pe_triage.model.schedule import Schedule

LUNG_WINDOW: Final = (-600.0, 1500.0)
PE_WINDOW: Final = (100.0, 700.0)
MEDIASTINAL_WINDOW: Final = (40.0, 400.0)

ENCODERS: Final = ("slice", "window")
HEADS: Final = ("sequence", "cnn-max")
SEQUENCES: Final = ("bilstm", "lstm", "bigru", "gru", "tcn")
POOLINGS: Final = ("attention", "mean", "max", "attention+max", "label-attention+max")
STRIDES: Final = (8, 16, 32)
JOIN_STRIDES: Final = (0, 16, 32)
LUNGS: Final = ("none", "mask", "box")
OUTPUTS: Final = ("unit", "slices")
NEIGHBOURS: Final = ("none", "concatenate", "differences")
FITS: Final = ("whole", "resize", "chunks")
OPERATING_POINTS: Final = ("half", "youden")
PLAIN: Final = "plain"
"""Backbone that is built from `ModelSpec.conv_channels` and not by a library."""
R3D18: Final = "r3d_18"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One network as data.

    Attributes
    ----------
    name
        Name of the spec in `SPECS`, or any other for a variation of one.
    backbone
        timm's name of the slice encoder, ``r3d_18`` (torchvision) where the encoder is a window's,
        or ``plain`` for `conv_channels`.
    stride
        Pixels of input for one cell of the last feature map. For timm's, 32 is the whole backbone
        with its final convolution, 16 and 8 cut it earlier, for finer heatmaps.
    windows
        One input channel each: (level, width) in Hounsfield units.
    size
        Rows and columns of the network's input.
    mean, std
        Normalisation of the channels' [0, 1] values, done inside the network, so that every
        runtime exported from it includes it.
    head
        ``sequence``: stage 2 answers. ``cnn-max``: no stage 2; the unit of maximum confidence
        answers for the exam (the seed paper's first baseline).
    sequence, sequence_hidden, sequence_layers
        Model over the embeddings; units in each direction (channels of a TCN), and its depth
        (levels of a TCN).
    dense_dim, dense
        Length of ĥ after the dense layer, and whether there is one: without, ĥ is the sequence
        model's output.
    pooling
        How ĥ of all units become the exam's features z.
    attention_dim
        Rows of V in the attention module.
    dropout
        On the dense layer's output and within a TCN, in training only.
    encoder, window_slices, window_step
        ``slice`` or ``window``; slices of a window, and from one window's start to the next.
    planes
        Neighbouring slices as channels, an odd number: 3 is [z-1, z, z+1]; beyond the ends the
        last slice is repeated.
    slice_mm
        Slices are resampled to this distance first; 0 leaves the volume's own.
    lung
        ``none``; ``mask``: air outside the lungs; ``box``: the lungs' bounding box is enlarged to
        the whole input.
    join_stride, join_dim
        Where `join_stride` is not 0, the map of that coarser stage of the backbone is enlarged to
        the grid of `stride`, and both become `join_dim` channels by a 1 x 1 convolution with batch
        normalisation and ReLU: fine cells that know their surroundings (after Lin et al. 2017,
        Feature Pyramid Networks).
    evidence
        Further channels of a joined map: probabilities, cell by cell, of as many findings that
        training taught on masks. Their mean over the cells is a count of finding, which the mean
        of unbounded features drowns. 0: none.
    conv_channels
        Of the plain CNN's layers; empty for other backbones.
    embedding_dim
        Of the dense layer on the plain CNN's flattened map; 0 for other backbones.
    image_outputs
        ``unit``: one image logit for a unit; ``slices``: one for each slice of a window.
    neighbours
        What stage 2 gets beside a unit's own embedding x_i: nothing; x_{i-1} and x_{i+1} (zero
        beyond the ends); or x_i - x_{i-1} and x_i - x_{i+1} (zero at the ends).
    sequence_fit, sequence_length
        ``whole``: the exam as it is; ``resize``: interpolated to `sequence_length`; ``chunks``:
        cut into pieces of at most `sequence_length` that do not see each other until pooling.
    kernel, causal
        Of a TCN: taps of its convolutions, and whether they look towards the feet only.
    standardise
        Whether stage 2 begins by bringing each feature to mean 0 and deviation 1, by figures that
        training measured and the bundle's weights hold.
    stage1, stage2
        How the source trained it.
    operating_point
        Rule by which thresholds are chosen on validation data.
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
    # Keys above are always written to JSON; those below where they differ from their default.
    encoder: str = "slice"
    window_slices: int = 1
    window_step: int = 1
    planes: int = 1
    slice_mm: float = 0.0
    lung: str = "none"
    join_stride: int = 0
    join_dim: int = 0
    evidence: int = 0
    conv_channels: tuple[int, ...] = ()
    embedding_dim: int = 0
    image_outputs: str = "unit"
    neighbours: str = "none"
    sequence_fit: str = "whole"
    sequence_length: int = 0
    dense: bool = True
    kernel: int = 3
    causal: bool = False
    standardise: bool = False
    stage1: Schedule = field(default_factory=Schedule)
    stage2: Schedule = field(default_factory=Schedule)
    operating_point: str = "half"

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                words = ", ".join(str(value) for value in allowed)
                raise BundleError(f"model spec: {key} must be one of {words}")
        for key, least in _COUNTS.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                kind = "a positive integer" if least else "an integer of at least 0"
                raise BundleError(f"model spec: {key} must be {kind}")
        for key in ("dense", "causal", "standardise"):
            if not isinstance(getattr(self, key), bool):
                raise BundleError(f"model spec: {key} must be true or false")
        if self.size % self.stride:
            raise BundleError(f"model spec: size must be a multiple of the stride {self.stride}")
        for key in ("name", "backbone"):
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
        for holds, said in _RULES:
            if not holds(self):
                raise BundleError(f"model spec: {said}")

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.windows) * self.planes

    @property
    def is_plain_slices(self) -> bool:
        """Whether each slice of the volume is one unit on its own, whole and unmasked."""
        return self.encoder == "slice" and self.planes == 1 and not self.slice_mm and (
            self.lung == "none"
        )  # fmt: skip

    @property
    def outputs_per_unit(self) -> int:
        """Image logits that one unit gives."""
        return self.window_slices if self.image_outputs == "slices" else 1

    def reduced(
        self, size: int, *, hidden: int | None = None, window: int | None = None
    ) -> ModelSpec:
        """Return the same structure on a smaller input.

        Parameters
        ----------
        size
            Rows and columns, a multiple of the stride; the name gets it as a suffix.
        hidden
            Upper bound of the sequence model's, dense layer's and attention's widths and of the
            plain CNN's channels, for quick tests; None leaves the widths.
        window
            Upper bound of a window's slices and step.
        """
        changes: dict[str, Any] = {"name": f"{self.name}-{size}", "size": size}
        if window is not None:
            changes |= {
                "window_slices": min(self.window_slices, window),
                "window_step": min(self.window_step, window),
            }
        if hidden is not None:
            for key in ("sequence_hidden", "dense_dim", "attention_dim", "embedding_dim"):
                changes[key] = min(getattr(self, key), hidden)
            changes["conv_channels"] = tuple(min(c, hidden) for c in self.conv_channels)
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values; see the module's head for which keys are written."""
        document = asdict(self)
        for f in fields(self):
            if f.name not in _FIRST_KEYS and getattr(self, f.name) == getattr(_DEFAULT, f.name):
                del document[f.name]
        document["windows"] = [list(window) for window in self.windows]
        if "conv_channels" in document:
            document["conv_channels"] = list(self.conv_channels)
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
            if "conv_channels" in values:
                values["conv_channels"] = tuple(values["conv_channels"])
            for key in ("mean", "std", "dropout", "slice_mm"):
                if key in values:
                    values[key] = float(values[key])
            for key in ("stage1", "stage2"):
                if key in values:
                    values[key] = Schedule.from_json(values[key])
            return ModelSpec(**values)
        except (TypeError, ValueError) as error:
            raise BundleError(f"model spec: a value of the wrong kind ({error})") from None


_CHOICES: Final[Mapping[str, tuple[object, ...]]] = {
    "encoder": ENCODERS,
    "head": HEADS,
    "sequence": SEQUENCES,
    "pooling": POOLINGS,
    "stride": STRIDES,
    "join_stride": JOIN_STRIDES,
    "lung": LUNGS,
    "image_outputs": OUTPUTS,
    "neighbours": NEIGHBOURS,
    "sequence_fit": FITS,
    "operating_point": OPERATING_POINTS,
}
_COUNTS: Final[Mapping[str, int]] = {
    "size": 1,
    "sequence_hidden": 1,
    "sequence_layers": 1,
    "dense_dim": 1,
    "attention_dim": 1,
    "window_slices": 1,
    "window_step": 1,
    "planes": 1,
    "kernel": 1,
    "embedding_dim": 0,
    "sequence_length": 0,
    "join_dim": 0,
    "evidence": 0,
}
"""Whole numbers, each with the least that it may be."""


def _are_counts(values: tuple[int, ...]) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)


_RULES: Final[tuple[tuple[Callable[[ModelSpec], bool], str], ...]] = (
    (
        lambda s: (s.encoder == "window") == (s.backbone == R3D18),
        f"encoder window goes with backbone {R3D18}, and only with it",
    ),
    (
        lambda s: s.encoder == "window" or (s.window_slices == s.window_step == 1),
        "window_slices and window_step need the encoder window",
    ),
    (lambda s: s.window_step <= s.window_slices, "window_step would leave slices out"),
    (
        lambda s: s.planes % 2 == 1 and (s.encoder == "slice" or s.planes == 1),
        "planes must be odd, and 1 where the encoder is a window's",
    ),
    (
        lambda s: s.image_outputs == "unit" or s.encoder == "window",
        "image_outputs slices needs the encoder window",
    ),
    (
        lambda s: (s.sequence_fit == "whole") or s.sequence_length > 1,
        "sequence_fit resize and chunks need a sequence_length above 1",
    ),
    (
        lambda s: s.image_outputs == "unit" or s.sequence_fit != "resize",
        "a resized sequence has one image output for a unit",
    ),
    (
        lambda s: (
            _are_counts(s.conv_channels)
            and (s.backbone == PLAIN) == bool(s.conv_channels) == bool(s.embedding_dim)
        ),
        f"conv_channels and embedding_dim go with backbone {PLAIN}, and only with it",
    ),
    (
        lambda s: s.backbone != PLAIN or 2 ** len(s.conv_channels) == s.stride,
        "the plain CNN halves its map after each layer; stride must say so",
    ),
    (
        lambda s: s.backbone != R3D18 or s.stride == 16,
        f"the stride of {R3D18} is 16",
    ),
    (lambda s: bool(s.join_stride) or not s.evidence, "evidence needs a join_stride"),
    (
        lambda s: bool(s.join_stride) == bool(s.join_dim),
        "join_stride and join_dim go together",
    ),
    (
        lambda s: (
            not s.join_stride or (s.join_stride > s.stride and s.backbone not in (PLAIN, R3D18))
        ),
        "join_stride must be coarser than stride, on a timm backbone",
    ),
    (
        lambda s: math.isfinite(s.slice_mm) and s.slice_mm >= 0,
        "slice_mm must be a number of at least 0",
    ),
    (lambda s: s.causal is False or s.sequence == "tcn", "causal is a TCN's"),
    (lambda s: s.kernel % 2 == 1 or s.causal, "a TCN that is not causal needs an odd kernel"),
)
"""What must hold of several keys together, and the line that says so where it does not."""

_FIRST_KEYS: Final = frozenset(
    [
        "name", "backbone", "stride", "windows", "size", "mean", "std", "head", "sequence",
        "sequence_hidden", "sequence_layers", "dense_dim", "pooling", "attention_dim", "dropout",
    ]
)  # fmt: skip
_DEFAULT: Final = ModelSpec(name="-")
