"""The network's parts: slice encoder, sequence model, poolings, heads.

Axes: ``b`` exams, ``z`` slices foot to head, ``n`` images of a batch, ``c`` channels of the last
feature map, ``h w`` its grid, ``d`` features. Source: the attention-based CNN-LSTM of the seed
paper (seeds: attention_cnn_lstm); attention pooling after Ilse, Tomczak and Welling (2018).
"""

from __future__ import annotations

from typing import Any, Final

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pe_triage.errors import BundleError
from pe_triage.model.spec import ModelSpec

WHOLE_STRIDE: Final = 32


class SliceEncoder(nn.Module):
    """One slice to its last feature map, and to that map's mean.

    The embedding is exactly the mean over the map's grid and nothing comes after it: the closed
    form of Grad-CAM (`pe_triage.infer.gradcam`) stands on that.
    """

    backbone: Any
    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self._whole = spec.stride == WHOLE_STRIDE
        try:
            self.backbone, self.dim = (_whole if self._whole else _cut)(spec)
        except (RuntimeError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BundleError(f"model spec: backbone {spec.backbone!r}: {line}") from None
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)

    def maps(self, images_nchw: Tensor) -> Tensor:
        """Return the last feature map (n, c, h, w) of images in [0, 1]."""
        x = (images_nchw - self.mean) / self.std
        maps: Tensor = self.backbone.forward_features(x) if self._whole else self.backbone(x)[0]
        return maps

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return the embeddings (n, c): means of the last feature map."""
        return pooled(self.maps(images_nchw))


def _whole(spec: ModelSpec) -> tuple[Any, int]:
    """Build the whole backbone, its final convolution included, and say its channels."""
    backbone: Any = timm.create_model(
        spec.backbone,
        pretrained=False,
        num_classes=0,
        global_pool="",
        in_chans=len(spec.windows),
    )
    return backbone, int(backbone.num_features)


def _cut(spec: ModelSpec) -> tuple[Any, int]:
    """Build the backbone up to its last stage of the spec's stride, and say its channels."""

    def create(**more: Any) -> Any:
        return timm.create_model(
            spec.backbone,
            pretrained=False,
            features_only=True,
            in_chans=len(spec.windows),
            **more,
        )

    level = list(create().feature_info.reduction()).index(spec.stride)
    backbone = create(out_indices=(level,))
    return backbone, int(backbone.feature_info.channels()[0])


def pooled(maps_nchw: Tensor) -> Tensor:
    """Global average pooling, in the one place that serving and Grad-CAM share."""
    return maps_nchw.mean(dim=(2, 3))


class SequenceModel(nn.Module):
    """Embeddings in anatomical order to ĥ: bidirectional LSTM, then a dense layer."""

    def __init__(self, spec: ModelSpec, embedding_dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            embedding_dim,
            spec.sequence_hidden,
            num_layers=spec.sequence_layers,
            batch_first=True,
            bidirectional=True,
        )
        self.dense = nn.Linear(2 * spec.sequence_hidden, spec.dense_dim)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, feat_bzd: Tensor, mask_bz: Tensor | None = None) -> Tensor:
        """Return ĥ (b, z, dense_dim); padded slices are not read in either direction."""
        if mask_bz is None:
            hidden_bzd, _ = self.lstm(feat_bzd)
        else:
            lengths = mask_bz.sum(dim=1).cpu()
            packed = pack_padded_sequence(feat_bzd, lengths, batch_first=True, enforce_sorted=False)
            hidden_bzd, _ = pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=feat_bzd.shape[1]
            )
        out: Tensor = self.dropout(torch.relu(self.dense(hidden_bzd)))
        return out


class AttentionPooling(nn.Module):
    """z = Σ a_k ĥ_k with a = softmax_k(wᵀ tanh(V ĥ_kᵀ))."""

    def __init__(self, dim: int, attention_dim: int) -> None:
        super().__init__()
        self.v = nn.Linear(dim, attention_dim, bias=False)
        self.w = nn.Linear(attention_dim, 1, bias=False)

    def forward(self, h_bzd: Tensor, mask_bz: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (b, d) and the attention (b, z), which sums to 1."""
        score_bz = self.w(torch.tanh(self.v(h_bzd))).squeeze(-1)
        if mask_bz is not None:
            score_bz = score_bz.masked_fill(~mask_bz, -torch.inf)
        a_bz = torch.softmax(score_bz, dim=1)
        return torch.einsum("bz,bzd->bd", a_bz, h_bzd), a_bz


class MeanPooling(nn.Module):
    """z = mean ĥ_k; every slice's attention is the same."""

    def forward(self, h_bzd: Tensor, mask_bz: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (b, d) and the attention (b, z), which sums to 1."""
        weight_bz = h_bzd.new_ones(h_bzd.shape[:2]) if mask_bz is None else mask_bz.to(h_bzd.dtype)
        a_bz = weight_bz / weight_bz.sum(dim=1, keepdim=True)
        return torch.einsum("bz,bzd->bd", a_bz, h_bzd), a_bz


class MaxPooling(nn.Module):
    """z = max over slices of each feature; a slice's attention is its share of the maxima."""

    def forward(self, h_bzd: Tensor, mask_bz: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (b, d) and the attention (b, z), which sums to 1."""
        if mask_bz is not None:
            h_bzd = h_bzd.masked_fill(~mask_bz[..., None], -torch.inf)
        z_bd, winner_bd = h_bzd.max(dim=1)
        ones = torch.ones_like(z_bd) / z_bd.shape[1]
        a_bz = h_bzd.new_zeros(h_bzd.shape[:2]).scatter_add(1, winner_bd, ones.detach())
        return z_bd, a_bz


def make_pooling(spec: ModelSpec) -> nn.Module:
    """Build the pooling that the spec names."""
    if spec.pooling == "attention":
        return AttentionPooling(spec.dense_dim, spec.attention_dim)
    return {"mean": MeanPooling, "max": MaxPooling}[spec.pooling]()
