"""PE figures in parts of the data: by scanner, by thickness, and by clot where the truth knows it.

Two kinds. A property of the scan (scanner, thickness, spacing) divides all exams. A property of
the clot (load, largest area, most proximal place, stage, side) exists for exams with PE only: each
part gives a sensitivity, and an AUC against all exams without PE. Why exams without PE were called
PE is told by `evaluate_causes`.

Load is the volume of visible clot. Parts are half-open: ``[low, high)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.training.evaluate_data import LabelledStudy
from pe_triage.training.evaluate_tables import LabelSample
from pe_triage.training.intervals import (
    Resampler,
    decision_intervals,
    mean_interval,
    rank_replicates,
)
from pe_triage.training.metrics import auc

THICKNESS_MM: Final = (0.0, 1.0, 1.5, 2.5, 3.5)
LOAD_MM3: Final = (0.0, 100.0, 500.0, 2000.0, 10000.0)
AREA_MM2: Final = (0.0, 30.0, 60.0, 120.0, 240.0)
PLACES: Final = ("central", "lobar", "segmental", "subsegmental")
"""From the most proximal."""


def subgroup_documents(
    sample: LabelSample,
    studies: Sequence[LabelledStudy],
    facts: Sequence[Mapping[str, Any]],
    called_s: NDArray[np.bool_],
    resampler: Resampler,
) -> dict[str, Any]:
    """Figures of PE in every part of the data.

    Parameters
    ----------
    sample
        Of the label ``pe``, over all of `studies`.
    studies, facts
        In the order of the table.
    called_s
        Whether each exam of the sample was called PE.
    """
    index = sample.index_s
    by_scan: dict[str, list[dict[str, Any]]] = {}
    for name, of_facts in _SCAN.items():
        values = [of_facts(facts[s]) for s in index]
        by_scan[name] = [
            {"part": part, **_scan_part(sample, _where(values, part), called_s, resampler)}
            for part in _order(values)
        ]
    by_clot: dict[str, list[dict[str, Any]]] = {}
    for name, of_clots in _CLOT.items():
        values = [
            of_clots(_clots(studies[s])) if studies[s].positive else "" for s in index
        ]  # fmt: skip
        parts = [part for part in _order(values) if part]
        if parts:
            by_clot[name] = [
                {"part": part, **_clot_part(sample, _where(values, part), called_s, resampler)}
                for part in parts
            ]
    return {"scan": by_scan, "clot": by_clot}


def _where(values: Sequence[str], part: str) -> NDArray[np.bool_]:
    return np.array([value == part for value in values], dtype=np.bool_)


def _order(values: Sequence[str]) -> list[str]:
    """Parts in the order of their ranges or places, others by name."""
    ranks = {name: i for i, name in enumerate((*_all_ranges(), *PLACES))}
    return sorted(set(values), key=lambda v: (ranks.get(v, len(ranks)), v))


def _all_ranges() -> list[str]:
    return [
        range_name(low, edges, unit)
        for edges, unit in ((THICKNESS_MM, "mm"), (LOAD_MM3, "mm³"), (AREA_MM2, "mm²"))
        for low in edges
    ]


def range_name(value: float, edges: Sequence[float], unit: str) -> str:
    """Name of the half-open range that a value lies in."""
    at = int(np.searchsorted(edges, value, side="right")) - 1
    low = edges[max(at, 0)]
    if at + 1 >= len(edges):
        return f"≥ {low:g} {unit}"
    return f"{low:g} to < {edges[at + 1]:g} {unit}"


def _thickness(facts: Mapping[str, Any]) -> str:
    value = facts.get("slice_thickness_mm")
    return "not stated" if value is None else range_name(float(value), THICKNESS_MM, "mm")


def _scanner(facts: Mapping[str, Any]) -> str:
    words = [facts.get("manufacturer"), facts.get("model_name")]
    return " ".join(str(w) for w in words if w) or "not stated"


_SCAN: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "manufacturer": lambda facts: str(facts.get("manufacturer") or "not stated"),
    "scanner": _scanner,
    "slice thickness": _thickness,
    "slice spacing": lambda facts: range_name(float(facts["spacing_z_mm"]), THICKNESS_MM, "mm"),
}


def _clots(study: LabelledStudy) -> list[Mapping[str, Any]]:
    drawn = study.detail.get("drawn")
    clots = drawn.get("clots") if isinstance(drawn, Mapping) else None
    return [c for c in clots or [] if isinstance(c, Mapping) and c.get("visible", True)]


def _place(clots: Sequence[Mapping[str, Any]]) -> str:
    found = {"central" if c.get("central") else str(c.get("level", "")) for c in clots}
    return next((place for place in PLACES if place in found), "other" if clots else "")


def _sides(clots: Sequence[Mapping[str, Any]]) -> str:
    sides = {str(c.get("side", "")) for c in clots} - {""}
    return next(iter(sides), "") if len(sides) < 2 else "both"


_CLOT: Final[Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]]] = {
    "clot load": lambda clots: range_name(
        sum(float(c.get("volume_mm3", 0)) for c in clots), LOAD_MM3, "mm³"
    ) if clots else "",
    "largest clot area": lambda clots: range_name(
        max(float(c.get("max_area_mm2", 0)) for c in clots), AREA_MM2, "mm²"
    ) if clots else "",
    "most proximal place": _place,
    "stage": lambda clots: " and ".join(sorted({str(c.get("stage", "")) for c in clots})),
    "side": _sides,
}  # fmt: skip


def _scan_part(
    sample: LabelSample, part_s: NDArray[np.bool_], called_s: NDArray[np.bool_],
    resampler: Resampler,
) -> dict[str, Any]:  # fmt: skip
    truth, group = sample.truth_s[part_s], sample.group_s[part_s]
    figures = decision_intervals(
        truth, called_s[part_s], group, resampler, independent=sample.independent
    )
    return {
        "exams": len(truth),
        "positives": int((truth == 1).sum()),
        "auc": _auc(sample, part_s, resampler),
        "sensitivity": figures["sensitivity"].to_json(),
        "specificity": figures["specificity"].to_json(),
    }


def _clot_part(
    sample: LabelSample, part_s: NDArray[np.bool_], called_s: NDArray[np.bool_],
    resampler: Resampler,
) -> dict[str, Any]:  # fmt: skip
    found = mean_interval(
        called_s[part_s], sample.group_s[part_s], resampler, independent=sample.independent
    )
    return {
        "exams": int(part_s.sum()),
        "auc_against_all_without_pe": _auc(sample, part_s | (sample.truth_s == 0), resampler),
        "sensitivity": found.to_json(),
    }


def _auc(
    sample: LabelSample, part_s: NDArray[np.bool_], resampler: Resampler
) -> dict[str, Any]:  # fmt: skip
    truth, score, group = sample.truth_s[part_s], sample.score_s[part_s], sample.group_s[part_s]
    value = auc(truth, score)
    replicate_b = rank_replicates(truth, score, group, resampler)[0]
    return resampler.interval(value, replicate_b, groups_used=len(np.unique(group))).to_json()
