"""The two-stage network: slices to embeddings, embeddings of one exam to logits.

Axes as in `modules`; ``l`` the nine exam labels in the order of `EXAM_LABELS`. Logits leave here
raw: `labels.consistent_probabilities` makes probabilities of them, in training and in serving.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pe_triage.domain import EXAM_LABELS
from pe_triage.model.modules import SequenceModel, SliceEncoder, make_pooling
from pe_triage.model.spec import ModelSpec


class ExamLogits(NamedTuple):
    """What stage 2 says of a batch of exams.

    Attributes
    ----------
    image_bz, exam_bl
        Raw logits.
    attention_bz
        Non-negative, sums to 1 over an exam's slices.
    bag_bd
        The exam's features z, for looking at (t-SNE).
    """

    image_bz: Tensor
    exam_bl: Tensor
    attention_bz: Tensor
    bag_bd: Tensor


class SliceHeads(nn.Module):
    """Stage 1's linear heads on a slice's embedding: the image label and the nine of the exam."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.image = nn.Linear(dim, 1)
        self.exam = nn.Linear(dim, len(EXAM_LABELS))

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (...,) of the image label and (..., 9) of the exam labels."""
        return self.image(feat).squeeze(-1), self.exam(feat)


class SequenceStage(nn.Module):
    """Stage 2 of the paper: BiLSTM + dense, image head on ĥ, pooling, exam head on z."""

    def __init__(self, spec: ModelSpec, embedding_dim: int) -> None:
        super().__init__()
        self.sequence = SequenceModel(spec, embedding_dim)
        self.pooling = make_pooling(spec)
        self.image_head = nn.Linear(spec.dense_dim, 1)
        self.exam_head = nn.Linear(spec.dense_dim, len(EXAM_LABELS))

    def forward(self, feat_bzd: Tensor, mask_bz: Tensor | None = None) -> ExamLogits:
        """Return the logits of exams given their embeddings in anatomical order."""
        h_bzd = self.sequence(feat_bzd, mask_bz)
        bag_bd, attention_bz = self.pooling(h_bzd, mask_bz)
        return ExamLogits(
            self.image_head(h_bzd).squeeze(-1), self.exam_head(bag_bd), attention_bz, bag_bd
        )


class ExamNetwork(nn.Module):
    """The whole network of a spec, with random weights until a bundle's are loaded."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = SliceEncoder(spec)
        self.slice_heads = SliceHeads(self.encoder.dim)
        self.stage2 = SequenceStage(spec, self.encoder.dim) if spec.head == "sequence" else None

    @property
    def embedding_dim(self) -> int:
        """Features of one slice: the channels of the last feature map."""
        return self.encoder.dim

    def exam_logits(self, feat_bzd: Tensor, mask_bz: Tensor | None = None) -> ExamLogits:
        """Stage 2: logits of exams given the embeddings of their slices.

        Parameters
        ----------
        feat_bzd
            (b, z, d), foot to head, padded at the end.
        mask_bz
            True where a slice exists; None where all do.
        """
        if self.stage2 is not None:
            logits: ExamLogits = self.stage2(feat_bzd, mask_bz)
            return logits
        image_bz, exam_bzl = self.slice_heads(feat_bzd)
        ranked = image_bz if mask_bz is None else image_bz.masked_fill(~mask_bz, -torch.inf)
        surest_b = ranked.argmax(dim=1)
        rows = torch.arange(feat_bzd.shape[0], device=feat_bzd.device)
        attention_bz = torch.nn.functional.one_hot(surest_b, feat_bzd.shape[1]).to(feat_bzd.dtype)
        return ExamLogits(
            image_bz, exam_bzl[rows, surest_b], attention_bz, feat_bzd[rows, surest_b]
        )

    def forward(self, images_zchw: Tensor) -> ExamLogits:
        """One exam from its images in [0, 1], (z, c, size, size): both stages."""
        return self.exam_logits(self.encoder(images_zchw)[None])
