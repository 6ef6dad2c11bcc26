"""Batches of both stages as plain functions of where training stands.

Axes: ``b`` exams, ``n`` units (slices or windows) drawn from each, ``p`` planes of a unit, ``u``
units of a whole exam, ``o`` image outputs (one for each unit, or one for each slice of a window),
``d`` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from pe_triage.model.schedule import Schedule
from pe_triage.model.spec import ModelSpec
from pe_triage.training.augment import Augmentation
from pe_triage.training.cache import CachedExam
from pe_triage.training.inputs import planes_of, read_units, truth_of_units
from pe_triage.training.seeding import numpy_at


class UnitBatch(NamedTuple):
    """n units from each of b exams; the truth as in `losses.SampledSlices`."""

    hu: Tensor
    """int16 (b × n, p, rows, columns)."""
    numbers: Tensor
    """float32 (b × n, 7) of `Augmentation.draw`; no rows without augmentation."""
    image_bo: Tensor
    exam_bl: Tensor
    importance_bo: Tensor
    share_b: Tensor
    slices_b: Tensor
    clot: Tensor = torch.zeros(0, 0, 0, dtype=torch.uint8)
    """uint8 (b × n, rows, columns): share of each pixel that is clot by the mask, of 255; zeros
    where there is no mask. No rows where masks were not asked for."""


class BagBatch(NamedTuple):
    """Whole exams as embeddings, padded at the end."""

    feat_bud: Tensor
    mask_bu: Tensor
    tap_bzk: Tensor
    weight_bzk: Tensor
    """A slice's logit is the weighted sum of these outputs, as in `model.outputs.to_slices`."""
    image_bz: Tensor
    mask_bz: Tensor
    exam_bl: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlan:
    """How stage 1 draws.

    Attributes
    ----------
    exams_per_batch, units_per_exam
        b and n, over all processes together; n is at most the shortest exam's slices, with
        repeats where an exam has fewer.
    balanced
        Half of the units from positive slices where an exam has such, and, where a unit is all
        that is drawn from an exam, half of the exams from positive ones.
    """

    exams_per_batch: int
    units_per_exam: int
    balanced: bool
    steps: int

    @staticmethod
    def of(
        schedule: Schedule,
        exams: Sequence[CachedExam],
        spec: ModelSpec,
        *,
        units_per_exam: int,
        max_steps: int = 0,
    ) -> UnitPlan:
        """Plan an epoch: each exam once, or (``batch_of: units``) as many units as there are."""
        units = sum(exam.plan(spec).units for exam in exams)
        if schedule.batch_of == "units":
            plan = (schedule.batch, 1, max(1, units // schedule.batch))
        else:
            batch = min(schedule.batch, len(exams))
            plan = (batch, units_per_exam, max(1, len(exams) // batch))
        return UnitPlan(
            exams_per_batch=plan[0],
            units_per_exam=plan[1],
            balanced=schedule.sampling == "balanced",
            steps=min(plan[2], max_steps) if max_steps else plan[2],
        )


class _Drawn(NamedTuple):
    """What one exam gives to a batch."""

    hu: NDArray[np.int16]
    numbers: NDArray[np.float32]
    image_o: NDArray[np.float32]
    importance_o: NDArray[np.float32]
    clot: NDArray[np.uint8]


class UnitDataset(Dataset[UnitBatch]):
    """Batches of one epoch of stage 1; item ``step`` is this process' share of that batch.

    Parameters
    ----------
    epoch
        Validation takes one fixed number, so that its units are always the same.
    augmentation
        None for none.
    masks
        Whether to read clot masks too; for encoders of slices.
    """

    def __init__(
        self,
        exams: Sequence[CachedExam],
        spec: ModelSpec,
        plan: UnitPlan,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        augmentation: Augmentation | None = None,
        masks: bool = False,
    ) -> None:
        self._exams = exams
        self._spec = spec
        self._plan = plan
        self._place = ("units", seed, epoch)
        self._rank, self._world = rank, world
        self._augmentation = augmentation
        self._masks = masks
        self._order = self._draw_order()

    def __len__(self) -> int:
        return self._plan.steps

    def _draw_order(self) -> NDArray[np.int64]:
        """Return the exams (steps, b) of the epoch."""
        plan, rng = self._plan, numpy_at(*self._place, "order")
        need = plan.steps * plan.exams_per_batch
        if plan.units_per_exam > 1 or len(self._exams) >= need:
            rounds = -(-need // len(self._exams))
            order = np.concatenate([rng.permutation(len(self._exams)) for _ in range(rounds)])
            return order[:need].reshape(plan.steps, -1)
        weight = np.array([exam.slices for exam in self._exams], dtype=np.float64)
        positive = np.array([exam.image_pe_z.any() for exam in self._exams])
        if plan.balanced and positive.any() and not positive.all():
            weight[positive] *= weight[~positive].sum() / weight[positive].sum()
        drawn: NDArray[np.int64] = rng.choice(
            len(self._exams), (plan.steps, plan.exams_per_batch), p=weight / weight.sum()
        )
        return drawn

    def __getitem__(self, step: int) -> UnitBatch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        slots = range(self._rank, self._plan.exams_per_batch, self._world)
        parts = [self._draw(step, slot) for slot in slots]
        exams = [self._exams[self._order[step, slot]] for slot in slots]
        return UnitBatch(
            hu=torch.from_numpy(np.concatenate([part.hu for part in parts])),
            numbers=torch.from_numpy(np.concatenate([part.numbers for part in parts])),
            image_bo=torch.from_numpy(np.stack([part.image_o for part in parts])),
            exam_bl=torch.from_numpy(np.stack([exam.exam_l for exam in exams])),
            importance_bo=torch.from_numpy(np.stack([part.importance_o for part in parts])),
            share_b=torch.tensor([float(exam.image_pe_z.mean()) for exam in exams]),
            slices_b=torch.tensor([float(exam.slices) for exam in exams]),
            clot=torch.from_numpy(np.concatenate([part.clot for part in parts])),
        )

    def _draw(self, step: int, slot: int) -> _Drawn:
        exam = self._exams[self._order[step, slot]]
        rng = numpy_at(*self._place, step, slot)
        n = self._plan.units_per_exam
        plan = exam.plan(self._spec)
        truth_uo = truth_of_units(self._spec, plan, exam.image_pe_z)
        positive_u: NDArray[np.bool_] = truth_uo.max(axis=1) > 0
        u_n = _draw_units(rng, positive_u, n, balanced=self._plan.balanced)
        hu = read_units(exam, planes_of(self._spec, plan)[u_n])
        numbers = (
            self._augmentation.draw(rng, n)
            if self._augmentation is not None
            else np.zeros((0, 7), dtype=np.float32)
        )
        importance_n = _importance(positive_u, positive_u[u_n])
        importance = np.repeat(importance_n, truth_uo.shape[1])
        clot = (
            exam.read_clots_at(plan.start_u[u_n].tolist())
            if self._masks
            else np.zeros((0, 0, 0), dtype=np.uint8)
        )
        return _Drawn(hu, numbers, truth_uo[u_n].ravel(), importance, clot)


def _draw_units(
    rng: np.random.Generator, positive_u: NDArray[np.bool_], n: int, *, balanced: bool
) -> NDArray[np.int64]:
    """Draw n units, in anatomical order; without repeats as far as there are enough."""

    def some(pool: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        rounds, rest = divmod(count, len(pool)) if len(pool) else (0, 0)
        parts = [pool] * rounds + ([rng.choice(pool, rest, replace=False)] if rest else [])
        return np.concatenate(parts) if parts else pool[:0]

    everything = np.arange(len(positive_u), dtype=np.int64)
    positive, negative = everything[positive_u], everything[~positive_u]
    if not balanced or not len(positive) or not len(negative):
        return np.sort(some(everything, n))
    # One unit: a coin decides; more: half of them, and an odd one by the coin.
    of_positive = n // 2 + int(n % 2 and rng.random() < 0.5)
    return np.sort(np.concatenate([some(positive, of_positive), some(negative, n - of_positive)]))


def _importance(
    positive_u: NDArray[np.bool_], positive_n: NDArray[np.bool_]
) -> NDArray[np.float32]:
    share, sampled = float(positive_u.mean()), float(positive_n.mean())
    if len(positive_n) == 1 or sampled in (0.0, 1.0):
        return np.ones(len(positive_n), dtype=np.float32)
    weights: NDArray[np.float32] = np.where(
        positive_n, share / sampled, (1 - share) / (1 - sampled)
    ).astype(np.float32)
    return weights


class BagDataset(Dataset[BagBatch]):
    """Batches of one epoch of stage 2; item ``step`` is this process' share of that batch.

    Parameters
    ----------
    embeddings
        Directory of ``<Study Instance UID>.safetensors`` with ``feat_zd``.
    epoch
        None keeps the order of `exams` (validation) and drops nothing.
    """

    def __init__(
        self,
        exams: Sequence[CachedExam],
        spec: ModelSpec,
        embeddings: Path,
        batch: int,
        *,
        seed: int = 0,
        epoch: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._exams = exams
        self._spec = spec
        self._embeddings = embeddings
        order = np.arange(len(exams))
        if epoch is not None:
            order = numpy_at("bags", seed, epoch, "order").permutation(len(exams))
        batch = min(batch, len(exams))
        steps = len(exams) // batch if epoch is not None else -(-len(exams) // batch)
        self._batches = [
            order[k * batch : (k + 1) * batch][rank::world].tolist() for k in range(steps)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> BagBatch:
        if not 0 <= step < len(self):
            raise IndexError(step)
        exams = [self._exams[k] for k in self._batches[step]]
        return collate_bags(
            [read_embedding(self._embeddings, exam.study_uid) for exam in exams], exams, self._spec
        )


def read_embedding(directory: Path, study_uid: str) -> Tensor:
    """Return the embeddings (units, d), float32, of one exam."""
    feat: Tensor = load_file(directory / f"{study_uid}.safetensors")["feat_zd"]
    return feat.float()


def collate_bags(feats: Sequence[Tensor], exams: Sequence[CachedExam], spec: ModelSpec) -> BagBatch:
    """Pad exams of unequal length at the end; no exams give an empty batch."""
    if not exams:
        none = torch.zeros(0, 1)
        return BagBatch(
            torch.zeros(0, 1, 1), none.bool(), none[..., None].long(), none[..., None], none,
            none.bool(), torch.zeros(0, 9),
        )  # fmt: skip
    plans = [exam.plan(spec) for exam in exams]
    slices = max(exam.slices for exam in exams)
    taps = max(plan.tap_zk.shape[1] for plan in plans)
    feat_bud = torch.zeros(len(feats), max(len(feat) for feat in feats), feats[0].shape[1])
    mask_bu = torch.zeros(feat_bud.shape[:2], dtype=torch.bool)
    tap_bzk = torch.zeros(len(feats), slices, taps, dtype=torch.int64)
    weight_bzk = torch.zeros(len(feats), slices, taps)
    image_bz = torch.zeros(len(feats), slices)
    mask_bz = torch.zeros(len(feats), slices, dtype=torch.bool)
    for row, (feat, exam, plan) in enumerate(zip(feats, exams, plans, strict=True)):
        feat_bud[row, : len(feat)] = feat
        mask_bu[row, : len(feat)] = True
        width = plan.tap_zk.shape[1]
        tap_bzk[row, : exam.slices, :width] = torch.from_numpy(plan.tap_zk.copy())
        weight_bzk[row, : exam.slices, :width] = torch.from_numpy(plan.weight_zk.copy())
        image_bz[row, : exam.slices] = torch.from_numpy(exam.image_pe_z.astype(np.float32))
        mask_bz[row, : exam.slices] = True
    exam_bl = torch.from_numpy(np.stack([exam.exam_l for exam in exams]))
    return BagBatch(feat_bud, mask_bu, tap_bzk, weight_bzk, image_bz, mask_bz, exam_bl)
