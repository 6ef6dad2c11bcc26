"""The rules on what was measured of a volume's pixels, as a table (see `series_rules`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.assemble.series_rules import Found
from pe_triage.domain import VolumeMeasures


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRule:
    """One reason for refusing a volume by what was measured on its pixels."""

    name: str
    refuses: Callable[[VolumeMeasures, EligibilityRules], Found | None]
    words: str


def _no_air(m: VolumeMeasures, _rules: EligibilityRules) -> Found | None:
    return {} if m.air_hu is None else None


def _air(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if m.air_hu is None or abs(m.air_hu - rules.air_hu) <= rules.air_tolerance_hu:
        return None
    return {"found": m.air_hu}


def _lung(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    return {"found": m.lung_extent_mm} if m.lung_extent_mm < rules.min_lung_extent_mm else None


def _lung_share(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if m.lung_fraction >= rules.min_lung_fraction:
        return None
    return {"found": 100 * m.lung_fraction, "limit": 100 * rules.min_lung_fraction}


def _no_vessels(m: VolumeMeasures, _rules: EligibilityRules) -> Found | None:
    return {} if m.vessel_hu is None else None


def _contrast(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if m.vessel_hu is None or m.vessel_hu >= rules.min_vessel_hu:
        return None
    return {"found": m.vessel_hu}


MEASURE_RULES: tuple[MeasureRule, ...] = (
    MeasureRule(
        name="air_missing", refuses=_no_air, words="no air was found to check the calibration by"
    ),
    MeasureRule(
        name="air",
        refuses=_air,
        words="implausible calibration: air measures {found:.0f} HU, not about "
        "{rules.air_hu:.0f} HU",
    ),
    MeasureRule(
        name="lung_extent",
        refuses=_lung,
        words="lung is seen over {found:.0f} mm < {rules.min_lung_extent_mm:.0f} mm: "
        "not a whole chest",
    ),
    MeasureRule(
        name="lung_fraction",
        refuses=_lung_share,
        words="aerated lung fills {found:.0f} % of the chest < {limit:.0f} %",
    ),
    MeasureRule(name="vessels_missing", refuses=_no_vessels, words="the mediastinum was not found"),
    MeasureRule(
        name="contrast",
        refuses=_contrast,
        words="too little contrast in the mediastinal vessels: {found:.0f} HU < "
        "{rules.min_vessel_hu:.0f} HU",
    ),
)
