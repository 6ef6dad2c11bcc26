"""Which units a volume has, and how what is said of units comes back to the volume's slices.

Three grids along z, foot to head. *Slices* are the volume's own. *Planes* are what the network
sees: the slices, or a resampling of them to the spec's `slice_mm`. *Units* are what stage 1
embeds: a plane, or a window of planes that starts every `window_step`; the last window may run
past the end, and is filled with zeros there. *Outputs* are the image logits: one for each unit, or
one for each plane of it.

No torch here: `outputs` applies these tables to tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pe_triage.imaging.windows import resampling_weights
from pe_triage.model.specification import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlan:
    """The grids of one volume under one spec.

    Attributes
    ----------
    slices, planes, units, outputs
        How many of each.
    length
        Planes of a unit.
    start_u
        int64 (units,), first plane of each unit.
    tap_zk, weight_zk
        A slice's logit is the weighted mean of these outputs, (slices, taps); weights sum to 1.
    share_us
        float32 (units, slices): how a unit spreads over the slices it covers; rows sum to 1. None
        where units are the slices.
    """

    slices: int
    planes: int
    units: int
    outputs: int
    length: int
    start_u: NDArray[np.int64]
    tap_zk: NDArray[np.int64]
    weight_zk: NDArray[np.float32]
    share_us: NDArray[np.float32] | None

    @property
    def is_identity(self) -> bool:
        """Whether units, outputs and slices are the same."""
        return self.share_us is None

    def place_of(self, z: int) -> tuple[int, float]:
        """Return the unit that shows slice z most centrally, and the plane within it."""
        plane = _plane_of(z, self.slices, self.planes)
        centre_u = self.start_u + (self._end_u() - self.start_u - 1) / 2
        # as central as can be among those that hold the plane; the lower one of equals
        unit = int(np.argmin(np.abs(centre_u - plane)))
        holding = (self.start_u - 0.5 <= plane) & (plane <= self._end_u() - 0.5)
        if not holding[unit]:
            unit = int(np.flatnonzero(holding)[0])
        return unit, float(np.clip(plane - self.start_u[unit], 0, self.length - 1))

    def truth_of_outputs(self, truth_z: NDArray[np.generic]) -> NDArray[np.bool_]:
        """Return each output's label, (outputs,): whether a slice that it covers has it."""
        truth = np.asarray(truth_z).astype(bool)
        if truth.shape != (self.slices,):
            raise ValueError(f"expected {self.slices} labels, got shape {truth.shape}")
        if self.is_identity:
            return truth
        edges = np.arange(self.planes + 1) * self.slices / self.planes
        plane_p = np.array(
            [truth[int(a + 1e-6) : max(int(np.ceil(b - 1e-6)), int(a + 1e-6) + 1)].any()
             for a, b in pairwise(edges)]
        )  # fmt: skip
        if self.outputs == self.units:
            return np.array(
                [plane_p[a:b].any() for a, b in zip(self.start_u, self._end_u(), strict=True)]
            )
        at_o = (self.start_u[:, None] + np.arange(self.length)).ravel()
        labels: NDArray[np.bool_] = plane_p[np.minimum(at_o, self.planes - 1)] & (
            at_o < self.planes
        )
        return labels

    def output_exists(self) -> NDArray[np.bool_]:
        """Return which outputs lie within the volume, (outputs,)."""
        if self.outputs == self.units:
            return np.ones(self.outputs, dtype=bool)
        at_o = (self.start_u[:, None] + np.arange(self.length)).ravel()
        exists: NDArray[np.bool_] = at_o < self.planes
        return exists

    def _end_u(self) -> NDArray[np.int64]:
        return np.minimum(self.start_u + self.length, self.planes)


def plan_units(spec: ModelSpec, slices: int, spacing_z_mm: float) -> UnitPlan:
    """Say which units a volume of so many slices has.

    Parameters
    ----------
    spacing_z_mm
        Distance of its slices; only read where the spec resamples.

    Raises
    ------
    ValueError
        No slices, or a distance that is not positive.
    """
    if slices < 1 or not spacing_z_mm > 0:
        raise ValueError("a volume has at least one slice and a positive slice distance")
    planes = slices
    if spec.slice_mm:
        planes = max(1, round(slices * spacing_z_mm / spec.slice_mm))
    length = spec.window_slices
    last = max(0, planes - length)
    units = 1 + -(-last // spec.window_step)
    start_u = np.arange(units, dtype=np.int64) * spec.window_step
    per_unit = spec.outputs_per_unit
    if units == slices == planes and length == 1:
        tap_zk = np.arange(slices, dtype=np.int64)[:, None]
        weight_zk = np.ones((slices, 1), dtype=np.float32)
        share_us = None
    else:
        tap_zk, weight_zk = _taps(slices, planes, start_u, length, per_unit)
        share_us = _shares(slices, planes, start_u, length)
    for array in (start_u, tap_zk, weight_zk, *(() if share_us is None else (share_us,))):
        array.setflags(write=False)
    return UnitPlan(
        slices=slices,
        planes=planes,
        units=units,
        outputs=units * per_unit,
        length=length,
        start_u=start_u,
        tap_zk=tap_zk,
        weight_zk=weight_zk,
        share_us=share_us,
    )


def _plane_of(z: int, slices: int, planes: int) -> float:
    """Position of a slice's centre on the grid of planes."""
    return float(np.clip((z + 0.5) * planes / slices - 0.5, 0, planes - 1))


def _taps(
    slices: int, planes: int, start_u: NDArray[np.int64], length: int, per_unit: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Outputs that a slice reads: of all units that cover its two nearest planes, evenly."""
    rows: list[dict[int, float]] = []
    for z in range(slices):
        position = _plane_of(z, slices, planes)
        low = int(position)
        row: dict[int, float] = {}
        for plane, part in ((low, low + 1 - position), (low + 1, position - low)):
            if part <= 0:
                continue
            covering = np.flatnonzero((start_u <= plane) & (plane < start_u + length))
            for unit in covering.tolist():
                offset = plane - int(start_u[unit]) if per_unit > 1 else 0
                output = unit * per_unit + offset
                row[output] = row.get(output, 0.0) + part / len(covering)
        rows.append(row)
    widest = max(len(row) for row in rows)
    tap_zk = np.zeros((slices, widest), dtype=np.int64)
    weight_zk = np.zeros((slices, widest), dtype=np.float32)
    for z, row in enumerate(rows):
        tap_zk[z, : len(row)] = list(row)
        weight_zk[z, : len(row)] = list(row.values())
    return tap_zk, weight_zk


def _shares(
    slices: int, planes: int, start_u: NDArray[np.int64], length: int
) -> NDArray[np.float32]:
    share_us = np.zeros((len(start_u), slices), dtype=np.float32)
    share_ps = None if planes == slices else resampling_weights(slices, planes)
    for unit, start in enumerate(start_u.tolist()):
        end = min(start + length, planes)
        if share_ps is None:
            share_us[unit, start:end] = 1 / (end - start)
        else:
            share_us[unit] = share_ps[start:end].mean(axis=0)
    return share_us
