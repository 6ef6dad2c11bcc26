"""Which of several series is analysed, and why: the choice is explained or refused, never guessed.

Series are first sorted into acquisitions. Where words or a stated contrast agent single one
acquisition out, its best reconstruction is taken. Where they do not, headers cannot tell a
pulmonary from another phase: the choice is left to the measured contrast of the contenders, and
refused where that cannot tell either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pe_triage.assemble.merits import MERIT_RULES, OF_ACQUISITION
from pe_triage.assemble.predicates import PLANE_PROBLEMS
from pe_triage.assemble.series_rules import SERIES_RULES
from pe_triage.domain import Acquisition, EligibilityVerdict, Merit

TIE_RULE = "tie"
SAME_TIME_S = 1.0
"""Clock readings of one acquisition's reconstructions may differ by rounding."""

_RANK = {rule.name: rank for rank, rule in enumerate(SERIES_RULES)}
_RANK.update(dict.fromkeys(PLANE_PROBLEMS, _RANK["orientation"]))
_STACK_RANK = _RANK["geometry"]
_PIXEL_RANK = len(SERIES_RULES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesChoice:
    """Which series of a study is analysed, and why that one or none.

    Attributes
    ----------
    contenders
        Best series of each acquisition that the headers cannot tell apart; empty where the choice
        is made. Their measured contrast may decide: `by_contrast`.
    """

    series_uid: str | None
    reason: str
    verdicts: tuple[EligibilityVerdict, ...]
    contenders: tuple[str, ...] = ()

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

    def by_contrast(self, vessel_hu: Mapping[str, float | None], margin_hu: float) -> SeriesChoice:
        """Choose among the contenders by the measured level of their mediastinal vessels.

        Parameters
        ----------
        vessel_hu
            Series UID to level, for every contender.
        margin_hu
            How much brighter the best must be; with less the choice stays refused.
        """
        levels = sorted(((vessel_hu[uid] or 0.0, uid) for uid in self.contenders), reverse=True)
        found = " and ".join(f"{level:.0f}" for level, _ in levels[:3])
        (best, series_uid), (second, _) = levels[0], levels[1]
        if best - second < margin_hu:
            reason = f"{self.reason}; their vessels are enhanced alike ({found} HU)"
            return replace(self, reason=reason, contenders=())
        reason = (
            f"best enhanced of {len(levels)} acquisitions "
            f"(mediastinal vessels {found} HU), {_slices(self.verdicts, series_uid)} slices"
        )
        return replace(self, series_uid=series_uid, reason=reason, contenders=())


def choose_series(verdicts: Sequence[EligibilityVerdict]) -> SeriesChoice:
    """Choose the best eligible series by the merits that their headers show.

    Without an eligible one the reason is that of the series which came furthest through the rules.
    The answer does not depend on the order of `verdicts`.
    """
    ordered = tuple(sorted(verdicts, key=lambda v: v.series_uid))
    eligible = sorted((v for v in ordered if v.eligible), key=_merit_key)
    if not eligible:
        return _none(ordered)
    if len(eligible) == 1:
        reason = f"the only eligible series, {eligible[0].slices} slices"
        return SeriesChoice(series_uid=eligible[0].series_uid, reason=reason, verdicts=ordered)
    leading = [v for v in eligible if _phase_key(v) == _phase_key(eligible[0])]
    acquisitions = _acquisitions(leading)
    if len(acquisitions) > 1:
        return SeriesChoice(
            series_uid=None,
            reason=f"{len(acquisitions)} acquisitions are equally suitable: which one is the CTPA "
            "cannot be told",
            verdicts=ordered,
            contenders=tuple(members[0].series_uid for members in acquisitions),
        )
    best = eligible[0]
    alike = [v for v in eligible if _scores(v) == _scores(best)]
    if len(alike) > 1 and any(v.acquisition.begin_s is None for v in alike):
        return SeriesChoice(
            series_uid=None,
            reason=f"{len(alike)} series are equally suitable: which one is the CTPA cannot be "
            "told",
            verdicts=ordered,
            contenders=tuple(v.series_uid for v in alike),
        )
    return SeriesChoice(
        series_uid=best.series_uid,
        reason=f"best of {len(eligible)} eligible series{_why(best, eligible)}, "
        f"{best.slices} slices",
        verdicts=ordered,
    )


def _none(ordered: tuple[EligibilityVerdict, ...]) -> SeriesChoice:
    if not ordered:
        return SeriesChoice(series_uid=None, reason="the study holds no CT images", verdicts=())
    closest = max(ordered, key=lambda v: (_rank(v), v.preference, v.slices))
    more = f" (closest of {len(ordered)} series)" if len(ordered) > 1 else ""
    return SeriesChoice(series_uid=None, reason=f"{closest.reason}{more}", verdicts=ordered)


def _rank(verdict: EligibilityVerdict) -> int:
    """How far the series came: pixel rules come after all header rules."""
    rule = verdict.rule or ""
    if rule in _RANK:
        return _RANK[rule]
    return _STACK_RANK if rule in STACK_PROBLEMS else _PIXEL_RANK


STACK_PROBLEMS = frozenset(
    {
        "geometry_missing", "orientation_invalid", "mixed_orientation", "mixed_matrix",
        "pixel_spacing_invalid", "mixed_pixel_spacing", "mixed_frame_of_reference",
        "shifted_slices", "gap", "unequal_spacing",
    }
)  # fmt: skip
"""Names that `pe_triage.stack` gives to what hinders a regular stack, but for the plane's."""


def _slices(verdicts: Sequence[EligibilityVerdict], series_uid: str) -> int:
    return next(v.slices for v in verdicts if v.series_uid == series_uid)


def _scores(verdict: EligibilityVerdict) -> tuple[float, ...]:
    return tuple(merit.score for merit in verdict.merits)


def _merit_key(verdict: EligibilityVerdict) -> tuple[tuple[float, ...], str]:
    return tuple(-score for score in _scores(verdict)), verdict.series_uid


def _phase_key(verdict: EligibilityVerdict) -> tuple[float, ...]:
    return tuple(m.score for m in verdict.merits if m.name in OF_ACQUISITION)


def _acquisitions(verdicts: Sequence[EligibilityVerdict]) -> list[list[EligibilityVerdict]]:
    """Series by acquisition, each list best first."""
    groups: list[list[EligibilityVerdict]] = []
    for verdict in verdicts:
        for group in groups:
            if all(same_acquisition(verdict.acquisition, v.acquisition) for v in group):
                group.append(verdict)
                break
        else:
            groups.append([verdict])
    return groups


def same_acquisition(one: Acquisition, other: Acquisition) -> bool:
    """Whether no header says that two series come from different acquisitions."""
    frames = one.frame_of_reference_uid, other.frame_of_reference_uid
    if None not in frames and frames[0] != frames[1]:
        return False
    if one.numbers and other.numbers and not one.numbers & other.numbers:
        return False
    if one.begin_s is None or one.end_s is None or other.begin_s is None or other.end_s is None:
        return True
    return one.begin_s <= other.end_s + SAME_TIME_S and other.begin_s <= one.end_s + SAME_TIME_S


def _why(best: EligibilityVerdict, eligible: Sequence[EligibilityVerdict]) -> str:
    """What decided against the runner-up, in words."""
    second = next((v for v in eligible if v is not best), None)
    if second is None:
        return ""
    theirs: Mapping[str, Merit] = {m.name: m for m in second.merits}
    for rule in MERIT_RULES:
        mine = next((m for m in best.merits if m.name == rule.name), None)
        other = theirs.get(rule.name)
        if mine is not None and other is not None and mine.score != other.score:
            return f": {mine.words} (the next: {other.words})"
    return ": reconstructions of one acquisition, equal in every respect"
