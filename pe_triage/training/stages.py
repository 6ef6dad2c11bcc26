"""The two stages as modules that take a batch and give (weighted loss, weight): what is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pe_triage.errors import InputError
from pe_triage.model.labels import consistent_probabilities
from pe_triage.model.network import ExamNetwork
from pe_triage.training.attention import attention_loss, clot_cells, needs_cells
from pe_triage.training.augment import augment, move_masks
from pe_triage.training.batches import BagBatch, UnitBatch
from pe_triage.training.inputs import windowed
from pe_triage.training.losses import (
    SampledSlices,
    WeightedLoss,
    challenge_loss,
    stage_one_loss,
)


class StageOne(nn.Module):
    """Slice encoder and its linear heads; registers nothing of stage 2.

    Parameters
    ----------
    kind
        One of `losses.SLICE_LOSSES`.
    precision
        Type of autocast; float32 for none.
    attention_weight
        Factor of the attention loss where `kind` is ``image+attention``.

    Raises
    ------
    InputError
        ``image+attention`` for an encoder that has no map of the image label over one slice.
    """

    def __init__(
        self,
        network: ExamNetwork,
        kind: str,
        precision: torch.dtype,
        attention_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self._attention_weight = attention_weight if kind == "image+attention" else 0.0
        if kind == "image+attention":
            needs_cells(network)
        self.encoder = network.encoder
        self.slice_heads = network.slice_heads
        self._spec, self._kind, self._precision = network.spec, kind, precision

    def forward(self, batch: UnitBatch) -> Tensor:
        """Return (weighted loss, weight)."""
        hu = batch.hu.float()
        if len(batch.numbers):
            hu = augment(hu, batch.numbers)
        images = windowed(self._spec, hu)
        with torch.autocast(
            images.device.type, self._precision, enabled=self._precision != torch.float32
        ):
            maps = self.encoder.maps(images)
            feat = self.encoder.embed_maps(maps)
        image, exam = self.slice_heads(feat.float())
        shape = batch.image_bo.shape
        # Every output of a window answers for the exam with its window's logits.
        exam = exam.repeat_interleave(self._spec.outputs_per_unit, dim=0)
        truth = SampledSlices(
            batch.image_bo, batch.exam_bl, batch.importance_bo, batch.share_b, batch.slices_b
        )
        loss = stage_one_loss(image.reshape(shape), exam.reshape(*shape, -1), truth, self._kind)
        # A batch without clot takes the image loss' own path: adding a zero would change the layout
        # of gradients, and with it their rounding.
        if self._attention_weight and batch.clot.any():
            share = batch.clot.float() / 255
            if len(batch.numbers):
                share = move_masks(share, batch.numbers)
            cells = clot_cells(share, self.encoder.grid, maps.shape[-2:])
            cells = cells * batch.image_bo.reshape(-1, 1, 1)
            pulled_n = attention_loss(self.slice_heads.image_map(maps.float())[:, 0], cells)
            # Slices without clot add nothing, and the weight stays the image loss' own.
            more = self._attention_weight * pulled_n.mean() * loss.weight
            loss = WeightedLoss(loss.lost + more, loss.weight)
        return torch.stack(loss)


class StageTwo(nn.Module):
    """Sequence model, pooling and heads on embeddings, through the consistent outputs."""

    def __init__(self, network: ExamNetwork, kind: str, precision: torch.dtype) -> None:
        super().__init__()
        if kind not in ("challenge", "exam"):
            raise InputError(f"the loss of stage 2 must be challenge or exam, not {kind!r}")
        if network.stage2 is None:
            raise InputError(f"spec {network.spec.name} has no stage 2")
        self.stage2 = network.stage2
        self._kind, self._precision = kind, precision

    def forward(self, batch: BagBatch) -> Tensor:
        """Return (weighted loss, weight)."""
        if not len(batch.feat_bud):
            # A process without an exam in the last batch: its parameters join in with nothing.
            nothing = sum(p.sum() * 0 for p in self.parameters())
            assert isinstance(nothing, Tensor)
            return torch.stack([nothing, nothing.detach()])
        with torch.autocast(
            batch.feat_bud.device.type, self._precision, enabled=self._precision != torch.float32
        ):
            logits = self.stage2(batch.feat_bud, batch.mask_bu)
        image_bo = logits.image_bz.float()
        rows = torch.arange(len(image_bo), device=image_bo.device)[:, None, None]
        image_bz = (image_bo[rows, batch.tap_bzk] * batch.weight_bzk).sum(dim=2)
        said = consistent_probabilities(image_bz, logits.exam_bl.float(), mask_bz=batch.mask_bz)
        truth_bz, p_bz = batch.image_bz, said.image_bz
        if self._kind == "exam":  # no image weighs where none is positive
            truth_bz, p_bz = torch.zeros_like(truth_bz), p_bz.detach()
        loss = challenge_loss(p_bz, said.exam_bl, truth_bz, batch.exam_bl, batch.mask_bz)
        return torch.stack(loss)


def as_loss(lost_weight: Tensor) -> WeightedLoss:
    """Read back what a stage returns."""
    return WeightedLoss(lost_weight[0], lost_weight[1])
