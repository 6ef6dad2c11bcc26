"""Why one eligible series is better than another, as a table that can be said in words.

Two questions are kept apart. *Which acquisition* is the CTPA is told by words and contrast alone:
a thinner venous phase is no better CTPA. *Which reconstruction* of it is analysed is told by
kernel and thickness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pe_triage.assemble.kernels import Sharpness, sharpness
from pe_triage.assemble.predicates import SeriesView
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.assemble.words import (
    CHEST_WORDS,
    OTHER_PHASE_WORDS,
    OTHER_REGION_WORDS,
    PULMONARY_WORDS,
    REFORMAT_WORDS,
    plain,
)
from pe_triage.domain import Acquisition, Merit

KERNEL_WORDS = {
    Sharpness.SOFT: "soft kernel",
    Sharpness.UNKNOWN: "kernel of unknown sharpness",
    Sharpness.SHARP: "lung or bone kernel",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeritRule:
    """One row: how a merit is found and how much it weighs in the one-number preference."""

    name: str
    weight: float
    of_acquisition: bool
    """Whether it tells acquisitions apart; the others tell reconstructions apart."""
    found: Callable[[SeriesView, EligibilityRules], tuple[float, str]]


def _phase(view: SeriesView, _rules: EligibilityRules) -> tuple[float, str]:
    protocol = plain(view.facts[0].protocol_name)
    pulmonary = PULMONARY_WORDS.search(f"{view.description} {protocol}")
    other = OTHER_PHASE_WORDS.search(view.description)
    words = " and ".join(f"described {m[0]}" for m in (pulmonary, other) if m)
    return float(bool(pulmonary) - bool(other)), words or "no word on the phase"


def _region(view: SeriesView, _rules: EligibilityRules) -> tuple[float, str]:
    text = f"{view.description} {plain(view.facts[0].body_part)}"
    chest, other = CHEST_WORDS.search(text), OTHER_REGION_WORDS.search(text)
    words = " and ".join(f"described {m[0]}" for m in (chest, other) if m)
    return float(bool(chest) - bool(other)), words or "no word on the region"


def _agent(view: SeriesView, _rules: EligibilityRules) -> tuple[float, str]:
    given = any(f.contrast_agent for f in view.facts)
    return float(given), "contrast agent stated" if given else "no contrast agent stated"


def _kernel(view: SeriesView, rules: EligibilityRules) -> tuple[float, str]:
    kernel = view.facts[0].kernel
    found = sharpness(kernel, rules.lung_or_bone_kernels)
    name = f" {kernel[0]}" if kernel and kernel[0] else ""
    return float(found), f"{KERNEL_WORDS[found]}{name}"


def _reformat(view: SeriesView, _rules: EligibilityRules) -> tuple[float, str]:
    match = REFORMAT_WORDS.search(view.description)
    return -float(bool(match)), f"described {match[0]}" if match else "not described as reformat"


def _thickness(view: SeriesView, _rules: EligibilityRules) -> tuple[float, str]:
    most = max(f.slice_thickness_mm or 0.0 for f in view.facts)
    return -round(most, 2), f"slices of {most:.2f} mm"


def _coverage(view: SeriesView, _rules: EligibilityRules) -> tuple[float, str]:
    covered = view.stack.extent_mm + (view.stack.spacing_mm or 0.0)
    return round(covered), f"{covered:.0f} mm covered"


def _slices(view: SeriesView, _rules: EligibilityRules) -> tuple[float, str]:
    count = len(view.stack.groups)
    return float(count), f"{count} slices"


MERIT_RULES: tuple[MeritRule, ...] = (
    MeritRule(name="phase", weight=10_000.0, of_acquisition=True, found=_phase),
    MeritRule(name="region", weight=3_000.0, of_acquisition=True, found=_region),
    MeritRule(name="contrast_agent", weight=1_000.0, of_acquisition=True, found=_agent),
    MeritRule(name="kernel", weight=300.0, of_acquisition=False, found=_kernel),
    MeritRule(name="reformat", weight=100.0, of_acquisition=False, found=_reformat),
    MeritRule(name="thickness", weight=20.0, of_acquisition=False, found=_thickness),
    MeritRule(name="coverage", weight=0.01, of_acquisition=False, found=_coverage),
    MeritRule(name="slices", weight=0.001, of_acquisition=False, found=_slices),
)
"""Most important first: a later one is looked at where all before it are equal."""

OF_ACQUISITION = frozenset(rule.name for rule in MERIT_RULES if rule.of_acquisition)
_WEIGHT = {rule.name: rule.weight for rule in MERIT_RULES}


def merits_of(view: SeriesView, rules: EligibilityRules) -> tuple[Merit, ...]:
    """Every merit of a series, most important first."""
    out = []
    for rule in MERIT_RULES:
        score, words = rule.found(view, rules)
        out.append(Merit(name=rule.name, score=score, words=words))
    return tuple(out)


def preference_of(merits: tuple[Merit, ...]) -> float:
    """All merits in one number."""
    return round(sum(_WEIGHT[merit.name] * merit.score for merit in merits), 3)


def acquisition_of(view: SeriesView) -> Acquisition:
    """When and where the series was acquired, by the headers of its images."""
    frames = {f.frame_of_reference_uid for f in view.facts}
    times = [f.acquisition_time_s for f in view.facts if f.acquisition_time_s is not None]
    numbers = {f.acquisition_number for f in view.facts if f.acquisition_number is not None}
    return Acquisition(
        frame_of_reference_uid=next(iter(frames)) if len(frames) == 1 else None,
        numbers=frozenset(numbers),
        begin_s=min(times, default=None),
        end_s=max(times, default=None),
    )
