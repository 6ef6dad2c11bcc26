"""Which series of a study can be analysed, by rules on headers, geometry and measured pixels."""

from __future__ import annotations

from collections.abc import Sequence

from pe_triage.assemble.choice import SeriesChoice, choose_series
from pe_triage.assemble.compression import changed_by
from pe_triage.assemble.measure_rules import CAUTION_RULES, MEASURE_RULES
from pe_triage.assemble.merits import acquisition_of, merits_of, preference_of
from pe_triage.assemble.predicates import SeriesView
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.assemble.series_rules import SERIES_RULES, Rule
from pe_triage.domain import EligibilityVerdict, ReceivedInstance, VolumeMeasures
from pe_triage.frames import by_image, images_of
from pe_triage.stack import analyse_stack

__all__ = [
    "CAUTION_RULES",
    "MEASURE_RULES",
    "SERIES_RULES",
    "EligibilityRules",
    "Rule",
    "SeriesChoice",
    "cautions_of",
    "choose_series",
    "judge_measures",
    "judge_series",
]


PROVISIONAL = frozenset(
    {"concatenation", "slices", "gap", "unequal_spacing", "slice_spacing", "unimaged", "coverage"}
)
"""Rules that images which are still to come may satisfy."""


def judge_series(
    instances: Sequence[ReceivedInstance], rules: EligibilityRules, *, so_far: bool = False
) -> EligibilityVerdict:
    """Judge one series by the headers of all its instances, whatever their order.

    Parameters
    ----------
    so_far
        More images may come: leave the `PROVISIONAL` rules out.

    Raises
    ------
    ValueError
        No instance, or instances of several series.
    """
    if len({i.series_uid for i in instances}) != 1:
        raise ValueError("the instances of exactly one series were expected")
    ordered = tuple(sorted(images_of(instances), key=by_image))
    view = SeriesView(instances=ordered, stack=analyse_stack(ordered))
    refusal = _refusal(view, rules, PROVISIONAL if so_far else frozenset())
    merits = merits_of(view, rules)
    return EligibilityVerdict(
        series_uid=ordered[0].series_uid,
        eligible=refusal is None,
        rule=None if refusal is None else refusal[0],
        reason=None if refusal is None else refusal[1],
        slices=len(view.stack.groups) or len(ordered),
        preference=preference_of(merits),
        merits=merits,
        acquisition=acquisition_of(view),
        remarks=_remarks(view),
    )


def _refusal(
    view: SeriesView, rules: EligibilityRules, left_out: frozenset[str]
) -> tuple[str, str] | None:
    for rule in SERIES_RULES:
        found = rule.refuses(view, rules)
        if found is not None:
            name = str(found.get("rule", rule.name))
            if name in left_out:
                continue
            return name, rule.words.format(rules=rules, **found)
    return None


def _remarks(view: SeriesView) -> tuple[str, ...]:
    copies = view.stack.duplicates
    found = next(filter(None, map(changed_by, view.instances)), None)
    remarks = (
        f"{copies} image(s) at a position that another holds" if copies else None,
        f"the images were compressed with loss: {found}" if found else None,
    )
    return tuple(remark for remark in remarks if remark is not None)


def judge_measures(measures: VolumeMeasures, rules: EligibilityRules) -> tuple[str, str] | None:
    """Name of the refusing rule and its words, or None where the pixels are plausible."""
    for rule in MEASURE_RULES:
        found = rule.refuses(measures, rules)
        if found is not None:
            return rule.name, rule.words.format(rules=rules, **found)
    return None


def cautions_of(measures: VolumeMeasures, rules: EligibilityRules) -> tuple[str, ...]:
    """What takes a negative answer on these pixels its certainty, in words; empty where nothing."""
    return tuple(
        rule.words.format(rules=rules, **found)
        for rule in CAUTION_RULES
        if (found := rule.refuses(measures, rules)) is not None
    )
