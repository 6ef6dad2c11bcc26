"""The two-stage network: units to embeddings, embeddings of one exam to logits.

Axes: ``b`` exams, ``z`` units (slices, or windows of them: see `specification`), ``o`` image
outputs, one for each unit or one for each slice of its window; ``l`` the nine exam labels in the
order of `EXAM_LABELS`. Logits leave here raw: `outputs.to_slices` brings them to the volume's
slices, and `labels.consistent_probabilities` makes probabilities of them, in training and in
serving.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pe_triage.domain import EXAM_LABELS
from pe_triage.model.encoders import make_encoder
from pe_triage.model.pooling import make_pooling
from pe_triage.model.sequences import (
    SequenceModel,
    resize_matrix,
    restore_matrix,
    with_neighbours,
)
from pe_triage.model.specification import ModelSpec


class ExamLogits(NamedTuple):
    """What stage 2 says of a batch of exams.

    Attributes
    ----------
    image_bz
        Raw logits of the image label: one for each unit, or, where the spec's `image_outputs` are
        ``slices``, all of a unit's in turn: (b, units * window_slices).
    exam_bl
        Raw logits of the exam labels.
    attention_bz
        Of units; non-negative, sums to 1 over an exam.
    bag_bd
        The exam's features z, for looking at (t-SNE).
    """

    image_bz: Tensor
    exam_bl: Tensor
    attention_bz: Tensor
    bag_bd: Tensor


class SliceHeads(nn.Module):
    """Stage 1's linear heads on a unit's embedding: the image label and the nine of the exam."""

    def __init__(self, dim: int, outputs: int = 1) -> None:
        super().__init__()
        self.image = nn.Linear(dim, outputs)
        self.exam = nn.Linear(dim, len(EXAM_LABELS))

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the image label and (..., 9) of the exam labels.

        The image label's are (...,), or (..., window_slices) where a window has as many outputs.
        """
        image = self.image(feat)
        return image.squeeze(-1) if self.image.out_features == 1 else image, self.exam(feat)

    def image_map(self, maps: Tensor) -> Tensor:
        """Class-activation map of the image label: its logit at each cell of the last map.

        For encoders that pool, the mean over the grid is exactly the image logit (Zhou et al.
        2016); this is the map that an attention loss pulls to the clots. Differentiable.

        Parameters
        ----------
        maps
            (n, d, h, w) or (n, d, t, h, w).

        Returns
        -------
        Tensor
            (n, outputs, h, w) or (n, outputs, t, h, w).
        """
        cells = maps.movedim(1, -1)
        logits: Tensor = self.image(cells).movedim(-1, 1)
        return logits


class SequenceStage(nn.Module):
    """Stage 2: neighbours, sequence model, image head on ĥ, pooling, exam head on z."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, spec: ModelSpec, embedding_dim: int) -> None:
        super().__init__()
        self._neighbours = spec.neighbours
        self._fit, self._length = spec.sequence_fit, spec.sequence_length
        width = embedding_dim if spec.neighbours == "none" else 3 * embedding_dim
        self._standardises = spec.standardise
        if spec.standardise:
            self.register_buffer("feature_mean", torch.zeros(embedding_dim))
            self.register_buffer("feature_std", torch.ones(embedding_dim))
        self.sequence = SequenceModel(spec, width)
        self.pooling = make_pooling(spec, self.sequence.dim)
        self.image_head = nn.Linear(self.sequence.dim, spec.outputs_per_unit)
        self.exam_head = nn.Linear(self.pooling.dim, len(EXAM_LABELS))

    def forward(self, feat_bzd: Tensor, mask_bz: Tensor | None = None) -> ExamLogits:
        """Return the logits of exams from the embeddings of their units."""
        if self._standardises:
            feat_bzd = (feat_bzd - self.feature_mean) / self.feature_std
        feat_bzd = with_neighbours(feat_bzd, self._neighbours, mask_bz)
        if self._fit == "resize":
            return self._resized(feat_bzd, mask_bz)
        if self._fit == "chunks":
            h_bzd = self._chunked(feat_bzd, mask_bz)
        else:
            h_bzd = self.sequence(feat_bzd, mask_bz)
        z, a_bz = self.pooling(h_bzd, mask_bz)
        image_bz = self.image_head(h_bzd).flatten(1)
        return ExamLogits(image_bz, self._exam(z), a_bz, _bag(z))

    def _exam(self, z: Tensor) -> Tensor:
        if z.dim() == 2:
            shared: Tensor = self.exam_head(z)
            return shared
        # each label reads its own features with its own row
        return torch.einsum("bld,ld->bl", z, self.exam_head.weight) + self.exam_head.bias

    def _resized(self, feat_bzd: Tensor, mask_bz: Tensor | None) -> ExamLogits:
        b, z = feat_bzd.shape[:2]
        lengths_b = (
            torch.full((b,), z, device=feat_bzd.device) if mask_bz is None else mask_bz.sum(dim=1)
        )
        there_bnz = resize_matrix(lengths_b, z, self._length, feat_bzd.dtype)
        back_bzn = restore_matrix(lengths_b, z, self._length, feat_bzd.dtype)
        if mask_bz is not None:
            feat_bzd = feat_bzd.masked_fill(~mask_bz[..., None], 0.0)
        h_bnd = self.sequence(there_bnz @ feat_bzd)
        pooled, a_bn = self.pooling(h_bnd, None)
        image_bz = (back_bzn @ self.image_head(h_bnd)).squeeze(-1)
        # a step's attention goes to the units it was interpolated from
        a_bz = torch.einsum("bn,bnz->bz", a_bn, there_bnz)
        return ExamLogits(image_bz, self._exam(pooled), a_bz, _bag(pooled))

    def _chunked(self, feat_bzd: Tensor, mask_bz: Tensor | None) -> Tensor:
        b, z = feat_bzd.shape[:2]
        if z <= self._length:
            whole: Tensor = self.sequence(feat_bzd, mask_bz)
            return whole
        present_bz = feat_bzd.new_ones((b, z), dtype=torch.bool) if mask_bz is None else mask_bz
        missing = -z % self._length
        feat_bzd = nn.functional.pad(feat_bzd, (0, 0, 0, missing))
        present_bz = nn.functional.pad(present_bz, (0, missing))
        chunks = feat_bzd.reshape(-1, self._length, feat_bzd.shape[2])
        present = present_bz.reshape(-1, self._length)
        kept = present.any(dim=1)
        h = chunks.new_zeros((len(chunks), self._length, self.sequence.dim))
        h[kept] = self.sequence(chunks[kept], present[kept])
        return h.reshape(b, -1, self.sequence.dim)[:, :z]


def _bag(z: Tensor) -> Tensor:
    return z if z.dim() == 2 else z.mean(dim=1)


class ExamNetwork(nn.Module):
    """Both stages of a spec, with random weights until a bundle's are loaded."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = make_encoder(spec)
        self.slice_heads = SliceHeads(self.encoder.dim, spec.outputs_per_unit)
        self.stage2 = SequenceStage(spec, self.encoder.dim) if spec.head == "sequence" else None

    @property
    def embedding_dim(self) -> int:
        """Features of one unit."""
        return self.encoder.dim

    def output_mask(self, mask_bz: Tensor) -> Tensor:
        """Spread a mask of units over their image outputs: the shape of `ExamLogits.image_bz`."""
        return mask_bz.repeat_interleave(self.spec.outputs_per_unit, dim=1)

    def exam_logits(self, feat_bzd: Tensor, mask_bz: Tensor | None = None) -> ExamLogits:
        """Stage 2: logits of exams given the embeddings of their units.

        Parameters
        ----------
        feat_bzd
            (b, z, d), foot to head, padded at the end.
        mask_bz
            True where a unit exists; None where all do.
        """
        if self.stage2 is not None:
            logits: ExamLogits = self.stage2(feat_bzd, mask_bz)
            return logits
        image, exam_bzl = self.slice_heads(feat_bzd)
        ranked = image.amax(dim=2) if image.dim() == 3 else image
        if mask_bz is not None:
            ranked = ranked.masked_fill(~mask_bz, -torch.inf)
        surest_b = ranked.argmax(dim=1)
        rows = torch.arange(feat_bzd.shape[0], device=feat_bzd.device)
        attention_bz = torch.nn.functional.one_hot(surest_b, feat_bzd.shape[1]).to(feat_bzd.dtype)
        return ExamLogits(
            image.flatten(1), exam_bzl[rows, surest_b], attention_bz, feat_bzd[rows, surest_b]
        )

    def forward(self, images: Tensor) -> ExamLogits:
        """One exam from its units' images in [0, 1]: both stages.

        Parameters
        ----------
        images
            (z, c, size, size), or (z, c, slices, size, size) for windows.
        """
        return self.exam_logits(self.encoder(images)[None])
