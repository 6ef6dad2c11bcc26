"""Ground truth, taken from the rendered voxels and not from what was meant to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS
from pe_triage.phantom.clots import Clot
from pe_triage.phantom.geometry import Grid
from pe_triage.phantom.render import Scene
from pe_triage.phantom.scene import Plan

SLICE_POSITIVE_MIN_AREA_MM2 = 10.0
"""A slice is positive when one clot has at least this area in it: what a reader could point at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClotTruth:
    """What became of one drawn clot in the voxels."""

    clot: Clot
    volume_mm3: float
    max_area_mm2: float
    """Largest area in one slice."""
    max_area_slice: int
    """Index into z of that slice; -1 when no voxel holds it."""
    first_slice: int
    last_slice: int
    """Indices into z, inclusive; both -1 when no voxel holds it."""
    centre_lps_mm: tuple[float, float, float] | None

    @property
    def visible(self) -> bool:
        """Whether it alone makes a slice positive."""
        return self.max_area_mm2 >= SLICE_POSITIVE_MIN_AREA_MM2


def measure(
    clots: Sequence[Clot], index_zyx: NDArray[np.uint8], area_zk: NDArray[np.float64], grid: Grid
) -> tuple[ClotTruth, ...]:
    """Measure each clot in the voxels; ``area_zk`` is the area in mm² of clot k + 1 in slice z."""
    found = []
    for k, clot in enumerate(clots):
        slices = np.flatnonzero(area_zk[:, k])
        centre: tuple[float, float, float] | None = None
        first = last = -1
        if len(slices):
            first, last = int(slices[0]), int(slices[-1])
            z, y, x = np.nonzero(index_zyx[first : last + 1] == k + 1)
            centre = (
                round(grid.x0_mm + grid.pixel_mm * int(x.sum()) / len(x), 2),
                round(grid.y0_mm + grid.pixel_mm * int(y.sum()) / len(y), 2),
                round(grid.z0_mm + grid.slice_spacing_mm * (first + int(z.sum()) / len(z)), 2),
            )
        found.append(
            ClotTruth(
                clot=clot,
                volume_mm3=round(float(area_zk[:, k].sum()) * grid.slice_spacing_mm, 1),
                max_area_mm2=round(float(area_zk[:, k].max(initial=0.0)), 2),
                max_area_slice=int(area_zk[:, k].argmax()) if len(slices) else -1,
                first_slice=first,
                last_slice=last,
                centre_lps_mm=centre,
            )
        )
    return tuple(found)


def exam_labels(status: str, clots: Sequence[ClotTruth], rv_lv_ratio: float) -> dict[str, int]:
    """Return the nine labels of RSPECT; only visible clots count.

    A study meant to be positive whose every clot fell outside the scan, or below the visible size,
    is labelled negative: that is what its voxels show.
    """
    seen = [c.clot for c in clots if c.visible]
    if not seen:
        unclear = status == "indeterminate"
        labels = {"negative_exam_for_pe": not unclear, "indeterminate": unclear}
    else:
        stages = {c.stage for c in seen}
        sides = frozenset().union(*(c.sides() for c in seen))
        labels = {
            "chronic_pe": stages == {"chronic"},
            "acute_and_chronic_pe": stages == {"acute", "chronic"},
            "central_pe": any(c.central for c in seen),
            "leftsided_pe": "left" in sides,
            "rightsided_pe": "right" in sides,
            "rv_lv_ratio_gte_1": rv_lv_ratio >= 1,
            "rv_lv_ratio_lt_1": rv_lv_ratio < 1,
        }
    return {label: int(labels.get(label, False)) for label in EXAM_LABELS}


def _describe_extras(scene: Scene) -> dict[str, Any]:
    """Return what a preset with effects drew; nothing for a plain one."""
    extras, anatomy = scene.extras, scene.anatomy
    if extras is None:
        return {}
    found = extras.findings
    breath = found.breath
    return {
        "effects": {
            "kernel": found.kernel.name,
            "phase": found.phase,
            "noise_level_hu": round(extras.noise_hu, 2),
            "septal_bow_mm": round(anatomy.bow_mm, 2),
            "side_factors_left_right": [round(v, 3) for v in anatomy.side_factors],
            "breathing_mm": round(breath.shift_mm, 2) if breath else 0.0,
            "breathing_extent": [round(breath.low, 3), round(breath.high, 3)] if breath else None,
            "heartbeat_mm": round(found.heartbeat_mm, 2),
            "streak_hu": round(extras.streaks.hu, 1) if extras.streaks else 0.0,
            "emphysema_extent": round(found.emphysema_extent, 3),
            "lungs": [
                {"kind": f.kind, "side": f.side, "size_mm": round(f.size_mm, 1)}
                for f in found.lungs
            ],
        },
        "mimics": list(extras.mimics),
    }


def describe(plan: Plan, scene: Scene, clots: Sequence[ClotTruth]) -> dict[str, Any]:
    """Return what was drawn as values that JSON can hold; lengths in mm after scaling.

    ``mimics`` lists what could be taken for a clot, with a cause and a place (a sphere, or a range
    of heights), so that a false positive can be attributed.
    """
    anatomy = scene.anatomy
    scale = anatomy.pose.scale
    return {
        "status": plan.status,
        "indeterminate_cause": plan.cause or None,
        "rv_lv_ratio": round(anatomy.rv_lv_ratio, 4),
        "rv_diameter_mm": round(anatomy.rv_diameter_mm * scale, 2),
        "lv_diameter_mm": round(anatomy.lv_diameter_mm * scale, 2),
        "noise_hu": round(plan.noise_hu, 2),
        "motion_shift_mm": round(plan.motion.shift_mm, 2) if plan.motion else None,
        "contrast": {k: round(v, 1) for k, v in asdict(anatomy.contrast).items()},
        "sex": anatomy.sex,
        "age_years": anatomy.age_years,
        "body_scale": round(scale, 4),
        "fat_mm": round(anatomy.fat_mm, 2),
        "slice_positive_min_area_mm2": SLICE_POSITIVE_MIN_AREA_MM2,
        "clots": [
            {
                "stage": t.clot.stage,
                "kind": t.clot.kind,
                "level": t.clot.level,
                "place": t.clot.place,
                "side": t.clot.side,
                "central": t.clot.central,
                "vessel": t.clot.vessel_name,
                "hu": round(t.clot.hu, 1),
                "length_mm": round(t.clot.length_mm, 1),
                "web": t.clot.web,
                "calcified": bool(t.clot.calcium),
                "volume_mm3": t.volume_mm3,
                "max_area_mm2": t.max_area_mm2,
                "max_area_slice": t.max_area_slice,
                "first_slice": t.first_slice,
                "last_slice": t.last_slice,
                "centre_lps_mm": t.centre_lps_mm,
                "visible": t.visible,
            }
            for t in clots
        ],
        **_describe_extras(scene),
    }
