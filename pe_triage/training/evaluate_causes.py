"""Why was an exam without PE called PE? By what it shows, and by what its heatmap points at.

Two tables. *Traits* are whatever the truth says of an exam (artefacts, findings, remarks of
RSPECT's readers): the share of exams with a trait that were called PE. *Causes* go by place: where
the surest slice's heatmap peaks, and which of the things that could be taken for a clot lies there.
The same is counted for all exams without PE, because a heatmap points somewhere in any exam, and
lymph nodes are everywhere: a cause is one that false positives point at more often than others do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.training.evaluate_data import LabelledStudy
from pe_triage.training.evaluate_tables import LabelSample
from pe_triage.training.intervals import Resampler, mean_interval

REACH_MM: Final = 10.0
"""From a mimic's surface, as for clots."""
ELSEWHERE: Final = "nothing drawn there"

_NOT_TRAITS: Final = frozenset({"status", "sex", "clots", "preset", "contrast"})


def mimics_of(detail: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What could be taken for a clot, as the truth lists it."""
    drawn = detail.get("drawn")
    found = drawn.get("mimics") if isinstance(drawn, Mapping) else None
    return [m for m in found or [] if isinstance(m, Mapping) and m.get("cause")]


def traits(study: LabelledStudy) -> set[str]:
    """What an exam shows besides clots, as far as its truth says."""
    found = {name for name, value in study.remarks.items() if value}
    if study.exam_truth["indeterminate"]:
        found.add("indeterminate")
    drawn = study.detail.get("drawn")
    if isinstance(drawn, Mapping):
        found.update(_named(drawn))
    return found


def _named(drawn: Mapping[str, Any]) -> Iterator[str]:
    """Names of flags, words and things; numbers are no traits."""
    for key, value in drawn.items():
        name = key.replace("_", " ")
        if key in _NOT_TRAITS or value is None or value is False:
            continue
        if value is True:
            yield name
        elif isinstance(value, str):
            yield f"{name}: {value}"
        elif isinstance(value, Mapping):
            yield from _named(value)
        elif isinstance(value, Sequence):
            for item in value:
                words = (
                    (item.get("cause") or item.get("kind")) if isinstance(item, Mapping) else item
                )
                if isinstance(words, str):
                    yield f"{name}: {words}"


def cause_at(point_lps_mm: Sequence[float], mimics: Sequence[Mapping[str, Any]]) -> str:
    """The nearest mimic within `REACH_MM`; of those that are a range of heights only, if no other.

    A mimic is a sphere (``centre_lps_mm``, ``radius_mm``) or a range (``foot_mm`` to ``head_mm``);
    one that states both is a range around an axis, and its sphere is too large to say anything.
    """
    best, cause = math.inf, ""
    for mimic in mimics:
        centre = mimic.get("centre_lps_mm")
        if centre is None or "foot_mm" in mimic:
            continue
        off = math.dist(point_lps_mm, centre) - float(mimic.get("radius_mm", 0.0))
        if off <= REACH_MM and off < best:
            best, cause = off, str(mimic["cause"])
    if cause:
        return cause
    for mimic in mimics:
        foot, head = mimic.get("foot_mm"), mimic.get("head_mm")
        if foot is None or head is None or not foot <= point_lps_mm[2] <= head:
            continue
        centre = mimic.get("centre_lps_mm")
        reach = float(mimic.get("radius_mm", math.inf))
        if centre is None or math.dist(point_lps_mm[:2], centre[:2]) <= reach:
            return str(mimic["cause"])
    return ELSEWHERE


def trait_table(
    sample: LabelSample, studies: Sequence[LabelledStudy], called_s: NDArray[np.bool_],
    resampler: Resampler,
) -> list[dict[str, Any]]:  # fmt: skip
    """Share of exams without PE that were called PE, by what they show."""
    negative = sample.truth_s == 0
    of_exam = [traits(studies[s]) for s in sample.index_s]
    names = sorted(set().union(*(t for t, n in zip(of_exam, negative, strict=True) if n)))
    rows = [("all", negative)]
    rows += [(name, negative & np.array([name in t for t in of_exam])) for name in names]
    if names:
        rows.append(("none of these", negative & np.array([not t for t in of_exam])))
    return [
        {
            "trait": name,
            "exams_without_pe": int(part.sum()),
            "false_positives": int((part & called_s).sum()),
            "rate": mean_interval(
                called_s[part], sample.group_s[part], resampler, independent=sample.independent
            ).to_json(),
        }
        for name, part in rows
    ]


def cause_table(
    sample: LabelSample, studies: Sequence[LabelledStudy], called_s: NDArray[np.bool_],
    pointed_s: Mapping[int, Sequence[float]], resampler: Resampler,
) -> list[dict[str, Any]]:  # fmt: skip
    """What heatmaps point at in false positives, beside all exams without PE.

    Parameters
    ----------
    pointed_s
        Row of the table to the peak of its surest slice, LPS millimetres.
    """
    at: list[tuple[int, str, bool]] = []
    for i, s in enumerate(sample.index_s):
        point = pointed_s.get(int(s))
        if sample.truth_s[i] == 0 and point is not None:
            cause = cause_at(point, mimics_of(studies[s].detail))
            at.append((int(sample.group_s[i]), cause, bool(called_s[i])))
    false = [row for row in at if row[2]]
    causes = sorted({cause for _, cause, _ in at}, key=lambda c: (c == ELSEWHERE, c))
    return [
        {
            "cause": cause,
            "false_positives": sum(c == cause for _, c, _ in false),
            "share_of_false_positives": _share(cause, false, resampler, sample.independent),
            "share_of_all_without_pe": _share(cause, at, resampler, sample.independent),
        }
        for cause in causes
    ]


def _share(
    cause: str, rows: Sequence[tuple[int, str, bool]], resampler: Resampler, independent: bool
) -> dict[str, Any]:
    return mean_interval(
        [float(c == cause) for _, c, _ in rows],
        [g for g, _, _ in rows],
        resampler,
        independent=independent,
    ).to_json()
