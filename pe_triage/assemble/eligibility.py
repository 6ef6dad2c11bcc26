"""Which series of a study can be analysed, by rules on headers, geometry and measured pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pe_triage.assemble.kernels import sharpness
from pe_triage.assemble.measure_rules import MEASURE_RULES
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.assemble.series_rules import SERIES_RULES, Rule, SeriesView
from pe_triage.domain import EligibilityVerdict, ReceivedInstance, VolumeMeasures
from pe_triage.stack import analyse_stack

__all__ = [
    "MEASURE_RULES",
    "SERIES_RULES",
    "EligibilityRules",
    "Rule",
    "SeriesChoice",
    "choose_series",
    "judge_measures",
    "judge_series",
]

PULMONARY_WORDS = re.compile(r"\b(CTPA|PE|PULM\w*|EMBOL\w*|LAE|PA|ANGIO\w*)\b")
OTHER_PHASE_WORDS = re.compile(
    r"\b(NATIVE|NATIV|NON ?CON\w*|WITHOUT|W/?O|UNENHANCED|DELAY\w*|VENOUS|LATE|EXP\w*)\b"
)

_RANK = {rule.name: rank for rank, rule in enumerate(SERIES_RULES)}


def judge_series(
    instances: Sequence[ReceivedInstance], rules: EligibilityRules
) -> EligibilityVerdict:
    """Judge one series by the headers of all its instances, whatever their order.

    Raises
    ------
    ValueError
        No instance, or instances of several series.
    """
    if len({i.series_uid for i in instances}) != 1:
        raise ValueError("the instances of exactly one series were expected")
    ordered = tuple(sorted(instances, key=lambda i: i.sop_instance_uid))
    view = SeriesView(instances=ordered, stack=analyse_stack(ordered))
    slices = len(view.stack.groups) or len(ordered)
    for rule in SERIES_RULES:
        found = rule.refuses(view, rules)
        if found is not None:
            return EligibilityVerdict(
                series_uid=ordered[0].series_uid,
                eligible=False,
                rule=rule.name,
                reason=rule.words.format(rules=rules, **found),
                slices=slices,
                preference=_preference(view, rules),
            )
    return EligibilityVerdict(
        series_uid=ordered[0].series_uid,
        eligible=True,
        rule=None,
        reason=None,
        slices=slices,
        preference=_preference(view, rules),
    )


def _preference(view: SeriesView, rules: EligibilityRules) -> float:
    """Kernel first, then words that name the phase, then thinness, then coverage and slices."""
    first = view.facts[0]
    words = f"{view.description} {first.protocol_name or ''}".upper()
    phase = bool(PULMONARY_WORDS.search(words)) - bool(OTHER_PHASE_WORDS.search(view.description))
    return round(
        1000.0 * sharpness(first.kernel, rules.lung_or_bone_kernels)
        + 300.0 * phase
        + 100.0 * bool(first.contrast_agent)
        - 20.0 * max(f.slice_thickness_mm or 0.0 for f in view.facts)
        + 0.01 * view.stack.extent_mm
        + 0.001 * len(view.stack.groups),
        3,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesChoice:
    """Which series of a study is analysed, and why that one or none."""

    series_uid: str | None
    reason: str
    verdicts: tuple[EligibilityVerdict, ...]

    def refused(self, series_uid: str, rule: str, reason: str) -> SeriesChoice:
        """Choose anew after the pixels of `series_uid` were refused by `rule`."""
        return choose_series(
            [
                replace(v, eligible=False, rule=rule, reason=reason)
                if v.series_uid == series_uid
                else v
                for v in self.verdicts
            ]
        )


def choose_series(verdicts: Sequence[EligibilityVerdict]) -> SeriesChoice:
    """Choose the eligible series of highest preference.

    Several that are equally good are refused: nobody can tell here which of two phases shows the
    pulmonary arteries. Without an eligible one the reason is that of the series which came
    furthest through the rules.
    """
    ordered = tuple(sorted(verdicts, key=lambda v: v.series_uid))
    eligible = sorted((v for v in ordered if v.eligible), key=lambda v: -v.preference)
    if len(eligible) > 1 and eligible[0].preference == eligible[1].preference:
        count = sum(v.preference == eligible[0].preference for v in eligible)
        reason = f"{count} series are equally suitable: which one is the CTPA cannot be told"
        return SeriesChoice(series_uid=None, reason=reason, verdicts=ordered)
    if eligible:
        best = eligible[0]
        others = len(eligible) - 1
        reason = f"best of {others + 1} eligible series" if others else "the only eligible series"
        return SeriesChoice(
            series_uid=best.series_uid,
            reason=f"{reason}, {best.slices} slices",
            verdicts=ordered,
        )
    if not ordered:
        return SeriesChoice(series_uid=None, reason="the study holds no CT images", verdicts=())
    # Pixel rules come after all header rules.
    closest = max(
        ordered, key=lambda v: (_RANK.get(v.rule or "", len(_RANK)), v.preference, v.slices)
    )
    more = f" (closest of {len(ordered)} series)" if len(ordered) > 1 else ""
    return SeriesChoice(series_uid=None, reason=f"{closest.reason}{more}", verdicts=ordered)


def judge_measures(measures: VolumeMeasures, rules: EligibilityRules) -> tuple[str, str] | None:
    """Name of the refusing rule and its words, or None where the pixels are plausible."""
    for rule in MEASURE_RULES:
        found = rule.refuses(measures, rules)
        if found is not None:
            return rule.name, rule.words.format(rules=rules, **found)
    return None
