"""Stage 1 of the demonstration model as modules: what its encoder is taught, and by which losses.

Axes: ``n`` patches or slices, ``k`` kinds (`KINDS`), ``h w`` cells of the last feature map.

The voxel truth of phantoms teaches three things that slice labels alone teach slowly: where clots
are (a loss on the coarse grid of cells), what kind they are, and how wide the ventricles are. All
of it is read from the same features by linear heads. The loss on cells teaches the encoder's own
evidence; the other heads are dropped in the end, but for those of `model.network.SliceHeads`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from pe_triage.model.encoders import JoinedBackbone
from pe_triage.model.network import ExamNetwork
from pe_triage.training.attention import clot_cells
from pe_triage.training.demonstration.batches import PatchBatch, SliceBatch
from pe_triage.training.demonstration.specimens import BITS, FACTS
from pe_triage.training.inputs import windowed
from pe_triage.training.losses import SampledSlices, stage_one_loss

KINDS: Final = ("clot", "acute", "chronic", "central", "left", "right")
PATCH_KINDS: Final = 4
"""A patch does not show on which side it lies: the first four only."""
CELL_PIXELS: Final = 3.0
"""A cell shows a clot that fills at least so many of its pixels; with less, it is not asked."""
_GAMMA: Final = 2.0
_PRIOR: Final = -4.0
_FACT_SCALE: Final = (0.2, 100.0, 3.0)


def cell_truth(what_nyx: Tensor, network: ExamNetwork, cells_hw: tuple[int, int]) -> Tensor:
    """Truth of each cell (n, k, h, w): 1, 0, or not a number where it is not asked."""
    grid = network.encoder.grid
    area = round(grid.step) ** 2

    def pixels(name: str) -> Tensor:
        held = (what_nyx >> BITS.index(name)) & 1
        return clot_cells(held.float(), grid, cells_hw) * area

    unsure = pixels("unsure") > 0
    truth = []
    for name in KINDS:
        count = pixels(name)
        shown = count >= CELL_PIXELS
        asked = shown | ((count == 0) & ~unsure)
        truth.append(torch.where(asked, shown.float(), torch.nan))
    return torch.stack(truth, dim=1)


def dense_loss(logits_nkhw: Tensor, truth_nkhw: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017, γ = 2) over the cells that are asked, by shown cell.

    Positive cells are one in hundreds; the division by their number keeps their weight whatever
    the size of the image.
    """
    asked = ~truth_nkhw.isnan()
    truth = truth_nkhw.nan_to_num(0.0)
    plain = functional.binary_cross_entropy_with_logits(logits_nkhw, truth, reduction="none")
    p = torch.sigmoid(logits_nkhw)
    missed = torch.where(truth > 0, 1 - p, p)
    return (plain * missed**_GAMMA * asked).sum() / (truth.sum() + 4.0)


class _Stage(nn.Module):
    def __init__(self, network: ExamNetwork, precision: torch.dtype) -> None:
        super().__init__()
        self.encoder = network.encoder
        backbone = network.encoder.backbone
        assert isinstance(backbone, JoinedBackbone)
        self._backbone = [backbone]  # in a list: it is registered once, with the encoder
        self._network = [network]  # and stage 2 not at all
        self._precision = precision

    def _see(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last feature maps, and the logits of their evidence (n, k, h, w)."""
        images = windowed(self._network[0].spec, hu.float()[:, None])
        images = images.contiguous(memory_format=torch.channels_last)
        backbone = self._backbone[0]
        with torch.autocast(
            images.device.type, self._precision, enabled=self._precision != torch.float32
        ):
            joint = backbone.joint(self.encoder.normal(images))
        joint = joint.float()
        assert backbone.cells is not None
        logits = backbone.cells(joint)
        return backbone.with_evidence(joint, logits), logits

    def _dense(self, logits: Tensor, what: Tensor, kinds: int) -> Tensor:
        truth = cell_truth(what, self._network[0], (logits.shape[-2], logits.shape[-1]))
        return dense_loss(logits[:, :kinds], truth[:, :kinds])


class PatchStage(_Stage):
    """Takes a `PatchBatch`, returns (weighted loss, weight)."""

    def __init__(self, network: ExamNetwork, precision: torch.dtype) -> None:
        super().__init__(network, precision)
        cells = self._backbone[0].cells
        assert cells is not None
        assert cells.bias is not None
        # Clots are rare: began at one half, the first steps would teach nothing but that.
        nn.init.constant_(cells.bias, _PRIOR)

    def forward(self, batch: PatchBatch) -> Tensor:
        """Return (weighted loss, weight)."""
        _, logits = self._see(batch.hu)
        loss = self._dense(logits, batch.what, PATCH_KINDS)
        weight = loss.new_tensor(float(len(batch.hu)))
        return torch.stack([loss * weight, weight])


class SliceStage(_Stage):
    """Takes a `SliceBatch`, returns (weighted loss, weight).

    The linear heads read the embedding through a batch normalisation without parameters: a clot
    moves the mean over a thousand cells by very little. `fold` moves it into the heads' weights.
    """

    def __init__(self, network: ExamNetwork, precision: torch.dtype) -> None:
        super().__init__(network, precision)
        self.slice_heads = network.slice_heads
        self.normal = nn.BatchNorm1d(network.encoder.dim, affine=False, momentum=0.02, eps=1e-6)
        self.kinds = nn.Linear(network.encoder.dim, len(KINDS))
        self.facts = nn.Linear(network.encoder.dim, len(FACTS) + 1)

    def forward(self, batch: SliceBatch) -> Tensor:
        """Return (weighted loss, weight)."""
        maps, logits = self._see(batch.hu)
        dense = self._dense(logits, batch.what, len(KINDS))
        feat = self.normal(self.encoder.embed_maps(maps))
        image, exam = self.slice_heads(feat)
        b = len(batch.exam_bl)
        truth = SampledSlices(
            batch.pe_n.reshape(b, -1), batch.exam_bl, torch.ones_like(batch.pe_n).reshape(b, -1),
            batch.pe_n.reshape(b, -1).mean(dim=1), batch.pe_n.new_full((b,), 1.0),
        )  # fmt: skip
        slices = stage_one_loss(image.reshape(b, -1), exam.reshape(b, -1, 9), truth, "mixed")
        kinds = self._kinds(feat, batch)
        facts = self._facts(feat, batch)
        loss = dense + 2 * slices.lost / slices.weight + kinds + 0.5 * facts
        weight = loss.new_tensor(float(len(batch.hu)))
        return torch.stack([loss * weight, weight])

    def _kinds(self, feat: Tensor, batch: SliceBatch) -> Tensor:
        bits = torch.tensor([1 << BITS.index(name) for name in KINDS], dtype=torch.uint8)
        held = torch.stack([(batch.what & bit).flatten(1).any(dim=1) for bit in bits], dim=1)
        return functional.binary_cross_entropy_with_logits(self.kinds(feat), held.float())

    def _facts(self, feat: Tensor, batch: SliceBatch) -> Tensor:
        """Read RV/LV from slices through the ventricles, and contrast and breathing from all."""
        said = self.facts(feat)
        truth = batch.facts_bf.repeat_interleave(len(said) // len(batch.facts_bf), dim=0)
        scaled = (truth - truth.new_tensor((1.0, 250.0, 0.0))) / truth.new_tensor(_FACT_SCALE)
        lost = functional.smooth_l1_loss(said[:, :-1], scaled, reduction="none")
        wide = functional.binary_cross_entropy_with_logits(
            said[:, -1], (truth[:, 0] >= 1).float(), reduction="none"
        )
        heart = batch.heart_n
        of_heart = ((lost[:, 0] + 2 * wide) * heart).sum() / heart.sum().clamp(min=1)
        return of_heart + lost[:, 1:].mean(dim=0).sum()

    @torch.no_grad()
    def fold(self) -> None:
        """Give the slice heads what the normalisation did, so that they read plain embeddings."""
        mean, var = self.normal.running_mean, self.normal.running_var
        assert mean is not None
        assert var is not None
        std = torch.sqrt(var + self.normal.eps)
        for head in (self.slice_heads.image, self.slice_heads.exam):
            head.weight.div_(std)
            head.bias.sub_(head.weight @ mean)
        self.normal.reset_running_stats()
