"""Stage 1: encoders that turn a unit, one slice or a window of slices, into an embedding.

Axes: ``n`` units of a batch, ``c`` channels, ``t`` slices of a window, ``h w`` rows and columns,
``d`` features. An encoder has two parts: `maps` gives the last feature map, (n, d, h, w) or
(n, d, t, h, w), and `embed_maps` makes the embedding (n, d) of it. All but the plain CNN take
exactly the mean over the grid and nothing after it: the closed form of Grad-CAM
(`pe_triage.infer.gradcam`) stands on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import timm
import torch
from torch import Tensor, nn

from pe_triage.errors import BundleError
from pe_triage.model.specification import PLAIN, R3D18, ModelSpec

WHOLE_STRIDE: Final = 32
_R3D18_FEATURES: Final = 512
_R3D18_STEP_T: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where the cells of a last feature map look: cell i is centred at ``origin + i * step``.

    Pixels of the network's input, whose centres lie at whole numbers; `origin_t`, `step_t` in
    slices of the window. A convolution of stride 2 with symmetric padding looks around pixel 2i,
    not between 2i and 2i + 1, and the shift doubles with each level: half a cell in the end.
    """

    origin: float
    step: float
    origin_t: float = 0.0
    step_t: float = 1.0


class Encoder(nn.Module):
    """What every encoder does; input values lie in [0, 1]."""

    mean: Tensor
    std: Tensor
    dim: int
    """Features of an embedding."""
    is_pooled = True
    """Whether the embedding is the mean of the last feature map."""
    grid: Grid
    unit_bytes: int
    """Rough memory of one unit's activations at the peak, float32."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)

    def maps(self, images: Tensor) -> Tensor:
        """Return the last feature maps of units."""
        raise NotImplementedError

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return the embeddings (n, d) of last feature maps."""
        return pooled(maps)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (n, d)."""
        return self.embed_maps(self.maps(images))

    def normal(self, images: Tensor) -> Tensor:
        """Return images [0, 1] as the backbone takes them."""
        return (images - self.mean) / self.std


class SliceEncoder(Encoder):
    """A timm backbone over one slice, or a slice and its neighbours as channels."""

    backbone: Any

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._whole = spec.stride == WHOLE_STRIDE
        try:
            make = _joined if spec.join_stride else _whole if self._whole else _cut
            self.backbone, self.dim = make(spec)
        except (RuntimeError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BundleError(f"model spec: backbone {spec.backbone!r}: {line}") from None
        # TensorFlow's padding stands on the right only, which shifts the other way.
        origin = float(spec.stride - 1) if spec.backbone.startswith("tf_") else 0.0
        self.grid = Grid(origin=origin, step=float(spec.stride))
        self.unit_bytes = 4 * 64 * spec.size**2

    def maps(self, images: Tensor) -> Tensor:
        """Return the last feature map (n, d, h, w) of images (n, c, rows, columns)."""
        x = self.normal(images)
        cut = not self._whole
        maps: Tensor = self.backbone(x)[0] if cut else self.backbone.forward_features(x)
        return maps


def _whole(spec: ModelSpec) -> tuple[Any, int]:
    """Build the whole backbone, its final convolution included, and say its channels."""
    backbone: Any = timm.create_model(
        spec.backbone, pretrained=False, num_classes=0, global_pool="", in_chans=spec.channels
    )
    return backbone, int(backbone.num_features)


def _cut(spec: ModelSpec) -> tuple[Any, int]:
    """Build the backbone up to its last stage of the spec's stride, and say its channels."""

    def create(**more: Any) -> Any:
        return timm.create_model(
            spec.backbone, pretrained=False, features_only=True, in_chans=spec.channels, **more
        )

    level = list(create().feature_info.reduction()).index(spec.stride)
    backbone = create(out_indices=(level,))
    return backbone, int(backbone.feature_info.channels()[0])


def _joined(spec: ModelSpec) -> tuple[Any, int]:
    """Build the backbone with two of its maps joined, and say the channels of the joint map."""
    return JoinedBackbone(spec), spec.join_dim + spec.evidence


EVIDENCE_GAIN: Final = 64.0
"""Probabilities are stored in the map times this: their means over a thousand cells stay numbers of
the size that heads and sequence models expect."""


class JoinedBackbone(nn.Module):
    """A timm backbone whose coarser map, enlarged, is joined to a finer one.

    ReLU makes a feature exactly zero where there is nothing to say, so that the mean over hundreds
    of cells is not drowned in small values of the many that show no clot. Where the spec asks for
    evidence, probabilities by cell stand beside the features, as further channels of the map.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        strides = [spec.stride, spec.join_stride]
        whole: Any = timm.create_model(spec.backbone, pretrained=False, features_only=True)
        reduction = list(whole.feature_info.reduction())
        trunk: Any = timm.create_model(
            spec.backbone, pretrained=False, features_only=True, in_chans=spec.channels,
            out_indices=tuple(reduction.index(stride) for stride in strides),
        )  # fmt: skip
        self.trunk = trunk
        self._factor = spec.join_stride // spec.stride
        self.join = nn.Conv2d(sum(trunk.feature_info.channels()), spec.join_dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(spec.join_dim)

        self.cells = nn.Conv2d(spec.join_dim, spec.evidence, 1) if spec.evidence else None

    def joint(self, x: Tensor) -> Tensor:
        """Return the joined features (n, join_dim, h, w)."""
        fine, coarse = self.trunk(x)
        # Cell j of the coarse map and cell j * factor of the fine one are centred on one pixel.
        wide = nn.functional.interpolate(coarse, scale_factor=float(self._factor), mode="nearest")
        wide = wide[..., : fine.shape[-2], : fine.shape[-1]]
        return torch.relu(self.norm(self.join(torch.cat([fine, wide], dim=1))))

    def whole_map(self, joint: Tensor) -> Tensor:
        """Put the evidence beside joined features: (n, join_dim + evidence, h, w)."""
        return joint if self.cells is None else self.with_evidence(joint, self.cells(joint))

    @staticmethod
    def with_evidence(joint: Tensor, logits: Tensor) -> Tensor:
        """Put probabilities of logits (n, evidence, h, w) beside joined features."""
        return torch.cat([joint, EVIDENCE_GAIN * torch.sigmoid(logits)], dim=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a list of the one map, as timm does for one stage."""
        return [self.whole_map(self.joint(x))]


class WindowEncoder(Encoder):
    """torchvision's R3D-18 over a window of slices (Tran et al. 2018), without its classifier."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.backbone = _r3d_18(spec.channels)
        self.dim = _R3D18_FEATURES
        self.grid = Grid(
            origin=0.0, step=float(spec.stride), origin_t=0.0, step_t=float(_R3D18_STEP_T)
        )
        self.unit_bytes = 4 * 64 * spec.window_slices * spec.size**2

    def maps(self, images: Tensor) -> Tensor:
        """Return the last feature map (n, d, t, h, w) of windows (n, c, slices, rows, columns)."""
        maps: Tensor = self.backbone(self.normal(images))
        return maps


def _r3d_18(channels: int) -> nn.Sequential:
    # Imported here: a process that serves a network of slices never pays for torchvision.
    from torchvision.models.video import r3d_18

    whole = r3d_18(weights=None)
    if channels != whole.stem[0].in_channels:
        first = whole.stem[0]
        whole.stem[0] = nn.Conv3d(
            channels, first.out_channels, first.kernel_size, first.stride, first.padding,
            bias=False,
        )  # fmt: skip
    # torchvision's own names, so that its files of weights fit
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    backbone = nn.Sequential()
    for name in names:
        backbone.add_module(name, getattr(whole, name))
    return backbone


class PlainEncoder(Encoder):
    """Convolutions of 3 x 3 without padding, each halved by max pooling; flatten; dense."""

    is_pooled = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.backbone = nn.Sequential()
        before, side, origin, step = spec.channels, spec.size, 0.0, 1.0
        for level, channels in enumerate(spec.conv_channels):
            self.backbone.add_module(f"conv{level}", nn.Conv2d(before, channels, 3))
            self.backbone.add_module(f"relu{level}", nn.ReLU())
            self.backbone.add_module(f"pool{level}", nn.MaxPool2d(2))
            before, side = channels, (side - 2) // 2
            origin, step = origin + 1.5 * step, 2 * step
        if side < 1:
            raise BundleError("model spec: size is too small for this plain CNN")
        self.dense = nn.Linear(before * side * side, spec.embedding_dim)
        self.dim = spec.embedding_dim
        self.grid = Grid(origin=origin, step=step)
        self.unit_bytes = 4 * 3 * spec.conv_channels[0] * spec.size**2

    def maps(self, images: Tensor) -> Tensor:
        """Return the last feature map (n, channels, h, w) of images (n, c, rows, columns)."""
        maps: Tensor = self.backbone(self.normal(images))
        return maps

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return the dense layer's output (n, d) on the flattened map."""
        return torch.relu(self.dense(maps.flatten(1)))


def pooled(maps: Tensor) -> Tensor:
    """Global average pooling, in the one place that serving and Grad-CAM share."""
    return maps.mean(dim=tuple(range(2, maps.dim())))


def make_encoder(spec: ModelSpec) -> Encoder:
    """Build the encoder that the spec names, with random weights.

    Raises
    ------
    BundleError
        A backbone that is not known, or that the spec's size does not fit.
    """
    kinds: dict[str, type[Encoder]] = {R3D18: WindowEncoder, PLAIN: PlainEncoder}
    return kinds.get(spec.backbone, SliceEncoder)(spec)
