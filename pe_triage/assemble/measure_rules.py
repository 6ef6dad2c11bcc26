"""The rules on what was measured of a volume's pixels, as a table (see `series_rules`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pe_triage.assemble.predicates import Found
from pe_triage.assemble.rules import EligibilityRules
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


def _soft_tissue(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    found = m.soft_tissue_hu
    if found is None or rules.min_soft_tissue_hu <= found <= rules.max_soft_tissue_hu:
        return None
    return {"found": found}


def _blood(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    found = m.vessel_hu
    return {"found": found} if found is not None and found > rules.max_vessel_hu else None


def _blank(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    return {"found": m.blank_slices} if m.blank_slices > rules.max_blank_slices else None


def _saturated(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    found = m.saturated_slices
    return {"found": found} if found > rules.max_saturated_slices else None


def _jump(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    found = m.slice_jump
    return {"found": found} if found is not None and found > rules.max_slice_jump else None


def _alternating(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    found = m.alternation
    return {"found": found} if found is not None and found > rules.max_alternation else None


def _sharp(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if rules.allow_lung_kernel or m.grain is None or m.grain >= rules.min_grain:
        return None
    return {"found": m.grain}


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
        name="soft_tissue",
        refuses=_soft_tissue,
        words="implausible calibration: soft tissue measures {found:.0f} HU, outside "
        "{rules.min_soft_tissue_hu:.0f} to {rules.max_soft_tissue_hu:.0f} HU",
    ),
    MeasureRule(
        name="blood",
        refuses=_blood,
        words="implausible calibration: the mediastinal vessels measure {found:.0f} HU > "
        "{rules.max_vessel_hu:.0f} HU",
    ),
    MeasureRule(
        name="blank_slices",
        refuses=_blank,
        words="{found} slice(s) show no body: empty or damaged images",
    ),
    MeasureRule(
        name="saturated_slices",
        refuses=_saturated,
        words="{found} slice(s) are saturated: large parts are at the upper end of the scale",
    ),
    MeasureRule(
        name="slice_jump",
        refuses=_jump,
        words="a slice does not fit between its neighbours: it differs from both {found:.1f} "
        "times as much as usual (> {rules.max_slice_jump:.1f})",
    ),
    MeasureRule(
        name="alternating",
        refuses=_alternating,
        words="slices of two acquisitions lie between each other: neighbours differ {found:.2f} "
        "times as much as every second one (> {rules.max_alternation:.2f})",
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
    MeasureRule(
        name="grain",
        refuses=_sharp,
        words="the noise has the grain of a lung or bone kernel: correlation {found:.2f} < "
        "{rules.min_grain:.2f}",
    ),
)
"""In the order in which they are asked: the scale and the images before what they show."""


def _poor_contrast(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if m.vessel_hu is None or m.vessel_hu >= rules.good_vessel_hu:
        return None
    return {"found": m.vessel_hu}


def _noise(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if m.noise_hu is None or m.noise_hu <= rules.max_noise_hu:
        return None
    return {"found": m.noise_hu}


def _uneven(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if m.unevenness is None or m.unevenness <= rules.max_unevenness:
        return None
    return {"found": m.unevenness}


def _doubled(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if not rules.max_doubling or m.doubling is None or m.doubling <= rules.max_doubling:
        return None
    return {"found": m.doubling}


def _strange(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if m.strangeness is None or m.strangeness <= rules.max_strangeness:
        return None
    return {"found": m.strangeness, "which": m.strangest}


def _unlike(m: VolumeMeasures, rules: EligibilityRules) -> Found | None:
    if m.unlikeness is None or m.unlikeness <= rules.max_unlikeness:
        return None
    return {"found": m.unlikeness}


CAUTION_RULES: tuple[MeasureRule, ...] = (
    MeasureRule(
        name="poor_contrast",
        refuses=_poor_contrast,
        words="poor contrast in the mediastinal vessels: {found:.0f} HU < "
        "{rules.good_vessel_hu:.0f} HU",
    ),
    MeasureRule(
        name="noise",
        refuses=_noise,
        words="noisy images: standard deviation {found:.0f} HU > {rules.max_noise_hu:.0f} HU",
    ),
    MeasureRule(
        name="uneven",
        refuses=_uneven,
        words="motion along the body: the slices advance unevenly, by {found:.2f} of the usual "
        "step (> {rules.max_unevenness:.2f})",
    ),
    MeasureRule(
        name="doubled",
        refuses=_doubled,
        words="motion: outlines in the lungs are repeated, {found:.3f} "
        "(> {rules.max_doubling:.3f})",
    ),
    MeasureRule(
        name="strange",
        refuses=_strange,
        words="not made as a chest usually is: {which} ({found:.1f} usual spreads away, > "
        "{rules.max_strangeness:.1f})",
    ),
    MeasureRule(
        name="unlike",
        refuses=_unlike,
        words="unlike the exams that the model was calibrated on: {found:.1f} times as far as "
        "its limit (> {rules.max_unlikeness:.1f})",
    ),
)
"""What does not hinder the analysis, but takes a negative answer its certainty."""
