"""Batches of stage 1: patches around vessels first, then whole slices.

Axes: ``n`` patches or slices, ``y x`` rows and columns, ``b`` exams, ``l`` the nine exam labels.

Clots lie where vessels lie, at some heights more than at others: a network shown clots and random
other places learns the place. So each patch without a clot is taken where other phantoms' clots
were found, at about the same height, on a vessel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from pe_triage.training.demonstration.specimens import BITS, specimen_path
from pe_triage.training.seeding import numpy_at

PATCH: Final = 96
PATCHES_PER_SPECIMEN: Final = 16
SPECIMENS_PER_STEP: Final = 4
SLICES_PER_EXAM: Final = 8
CHEST: Final = (0.55, 0.8)
"""Rows and columns of a crop of the chest, as shares of the slice: half its pixels."""
EXAMS_PER_STEP: Final = 4
_JITTER: Final = 32
_NEAR_MM: Final = 15.0
_VESSEL_HU: Final = (100, 700)
_SNAP: Final = 12
_POSITIONS_OF_ONE: Final = 12
_CLOT: Final = 1 << BITS.index("clot")


class PatchBatch(NamedTuple):
    """Hounsfield units int16 and bits uint8, both (n, y, x)."""

    hu: Tensor
    what: Tensor


class SliceBatch(NamedTuple):
    """Slices of b exams, `SLICES_PER_EXAM` of each in turn.

    Attributes
    ----------
    hu, what
        (n, y, x), int16 and uint8.
    pe_n, heart_n
        float32: the image label; whether the slice cuts the middle of both ventricles.
    exam_bl, facts_bf
        float32: exam labels; `specimens.FACTS`.
    """

    hu: Tensor
    what: Tensor
    pe_n: Tensor
    heart_n: Tensor
    exam_bl: Tensor
    facts_bf: Tensor


def clot_positions(directory: Path, seeds: Sequence[int]) -> NDArray[np.float32]:
    """Where clots were found, (k, 3): mm above the carina, row, column; kept beside the specimens.

    Some voxels of each specimen, so that one large clot does not outweigh all others.
    """
    path = directory / f"positions-{seeds[0]}-{len(seeds)}.npy"
    if path.exists():
        known: NDArray[np.float32] = np.load(path)
        return known
    rows = []
    for seed in seeds:
        with safe_open(specimen_path(directory, seed), framework="numpy") as file:
            n, y, x = np.nonzero(file.get_tensor("what_nyx") & _CLOT)
            z_n = file.get_tensor("z_n")
        if len(n):
            rng = numpy_at("positions", seed)
            some = rng.choice(len(n), min(len(n), _POSITIONS_OF_ONE), replace=False)
            rows.append(np.stack([z_n[n[some]], y[some], x[some]], axis=1).astype(np.float32))
    found = np.concatenate(rows)
    scratch = path.with_suffix(".partial.npy")
    np.save(scratch, found)
    scratch.replace(path)
    return found


class PatchDataset(Dataset[PatchBatch]):
    """Batches of patches; half of a specimen's hold its clots where it has any."""

    def __init__(self, directory: Path, seeds: Sequence[int], steps: int, epoch: int) -> None:
        self._directory, self._seeds, self._steps, self._epoch = directory, seeds, steps, epoch
        self._positions = clot_positions(directory, seeds)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> PatchBatch:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        rng = numpy_at("patches", self._epoch, step)
        hu, what = [], []
        for at in rng.choice(len(self._seeds), SPECIMENS_PER_STEP, replace=False):
            with safe_open(
                specimen_path(self._directory, self._seeds[at]), framework="numpy"
            ) as file:
                hu_nyx, what_nyx = file.get_tensor("hu_nyx"), file.get_tensor("what_nyx")
                z_n = file.get_tensor("z_n")
            clots = np.argwhere(what_nyx & _CLOT)
            for k in range(PATCHES_PER_SPECIMEN):
                n, y, x = (
                    clots[rng.integers(len(clots))].tolist()
                    if len(clots) and k % 2
                    else self._without(rng, hu_nyx, what_nyx, z_n)
                )
                cut = _cut(rng, y, x, hu_nyx.shape[1])
                turn = int(rng.integers(8))
                hu.append(_turned(hu_nyx[n][cut], turn))
                what.append(_turned(what_nyx[n][cut], turn))
        return PatchBatch(torch.from_numpy(np.stack(hu)), torch.from_numpy(np.stack(what)))

    def _without(
        self,
        rng: np.random.Generator,
        hu_nyx: NDArray[np.int16],
        what_nyx: NDArray[np.uint8],
        z_n: NDArray[np.float32],
    ) -> tuple[int, int, int]:
        """Choose slice, row and column on a vessel where another phantom had a clot."""
        z, y, x = self._positions[rng.integers(len(self._positions))].tolist()
        near = np.flatnonzero(np.abs(z_n - z) <= _NEAR_MM)
        n = int(rng.choice(near)) if len(near) else int(rng.integers(len(z_n)))
        size = hu_nyx.shape[1]
        top, left = (int(np.clip(v - _SNAP, 0, size - 2 * _SNAP)) for v in (y, x))
        part = (slice(top, top + 2 * _SNAP), slice(left, left + 2 * _SNAP))
        bright = (hu_nyx[n][part] > _VESSEL_HU[0]) & (hu_nyx[n][part] < _VESSEL_HU[1])
        on = np.argwhere(bright & (what_nyx[n][part] == 0))
        if not len(on):
            return n, int(y), int(x)
        dy, dx = on[rng.integers(len(on))].tolist()
        return n, top + dy, left + dx


def _turned(patch_yx: NDArray[Any], turn: int) -> NDArray[Any]:
    """Turn by quarters and mirror: a vessel has no up or left, and a patch shows no side."""
    quarter = np.rot90(patch_yx, turn % 4)
    return np.ascontiguousarray(quarter[:, ::-1] if turn >= 4 else quarter)


def _cut(rng: np.random.Generator, y: int, x: int, size: int) -> tuple[slice, slice]:
    dy, dx = rng.integers(-_JITTER, _JITTER + 1, 2).tolist()
    top, left = (int(np.clip(v - PATCH // 2, 0, size - PATCH)) for v in (y + dy, x + dx))
    return slice(top, top + PATCH), slice(left, left + PATCH)


class SliceDataset(Dataset[SliceBatch]):
    """Batches of whole slices; every exam once in turn, epoch after epoch.

    Parameters
    ----------
    epoch
        None takes the exams in order and each once (validation).
    cropped
        Whether only the chest is given, about the middle of the slice; the image label is then
        that of what is left.
    """

    def __init__(
        self,
        directory: Path,
        seeds: Sequence[int],
        steps: int,
        epoch: int | None,
        *,
        cropped: bool = False,
    ) -> None:
        self._directory, self._seeds, self._epoch = directory, seeds, epoch
        self._cropped = cropped
        most = len(seeds) // EXAMS_PER_STEP
        self._steps = most if epoch is None else steps
        place = (epoch or 0) * steps
        self._order = np.concatenate(
            [
                np.arange(len(seeds))
                if epoch is None
                else numpy_at("slices order", round_).permutation(len(seeds))[
                    : most * EXAMS_PER_STEP
                ]
                for round_ in range(place // most, (place + self._steps - 1) // most + 1)
            ]
        )[(place % most) * EXAMS_PER_STEP :]

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> SliceBatch:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        exams = self._order[step * EXAMS_PER_STEP : (step + 1) * EXAMS_PER_STEP]
        drawn = [
            self._draw(self._seeds[at], numpy_at("slices", str(self._epoch), step, k))
            for k, at in enumerate(exams.tolist())
        ]
        parts = [torch.from_numpy(np.concatenate(values)) for values in zip(*drawn, strict=True)]
        return SliceBatch(*parts)

    def _draw(self, seed: int, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        with safe_open(specimen_path(self._directory, seed), framework="numpy") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        count = len(tensors["z_n"])
        some = np.sort(rng.choice(count, SLICES_PER_EXAM, replace=count < SLICES_PER_EXAM))
        hu, what, pe = tensors["hu_nyx"][some], tensors["what_nyx"][some], tensors["pe_n"][some]
        if self._cropped:
            rows, columns = _chest(rng, hu.shape[1])
            hu, what = hu[:, rows, columns], what[:, rows, columns]
            pe = (what & _CLOT).any(axis=(1, 2))
        return (
            np.ascontiguousarray(hu),
            np.ascontiguousarray(what),
            pe.astype(np.float32),
            tensors["heart_n"][some].astype(np.float32),
            tensors["exam_l"][None],
            tensors["facts"][None],
        )


def _chest(rng: np.random.Generator, size: int) -> tuple[slice, slice]:
    """Choose rows and columns about the middle, in whole cells of 16 pixels."""
    cuts = []
    for share in CHEST:
        side = round(share * size / 16) * 16
        reach = (size - side) // 8
        start = (size - side) // 2 + int(rng.integers(-reach, reach + 1))
        cuts.append(slice(start, start + side))
    return cuts[0], cuts[1]
