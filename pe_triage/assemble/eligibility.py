"""Which series of a study can be analysed, by rules on headers, geometry and measured pixels.

Every rule is a row of a table: a stable name, a predicate that returns the values found when it
refuses, and the words for people. Rules stand in the order in which a person would want to hear of
them: what the series is before how it was reconstructed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pe_triage.assemble.kernels import Sharpness, sharpness
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import EligibilityVerdict, InstanceFacts, ReceivedInstance, VolumeMeasures
from pe_triage.stack import Stack, analyse_stack

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

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_OTHER_CT_STORAGE = {
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT multi-frame images are not analysed yet",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy converted enhanced CT images are not analysed yet",
}

LOCALIZER_WORDS = re.compile(
    r"\b(LOCALI[SZ]ERS?|SCOUTS?|TOPOGRAMS?|SURVIEWS?|SCANOGRAMS?|SCANOSCOPE|PILOT)\b"
)
TRACKING_WORDS = re.compile(
    r"\b(BOLUS|TRACK(ER|ING)?|PRE-?MONITORING|MONITORING|SMART ?PREP|SURE ?START|TEST ?BOLUS"
    r"|TIMING|DOSE|PATIENT PROTOCOL)\b"
)
DERIVED_WORDS = re.compile(
    r"\b(MIP|MINIP|MPR|VRT|CORONAL|COR|SAGITT?AL|SAG|REFORMAT\w*|3D|IODINE|VNC|VUE|PERFUSION"
    r"|SUBTRACT\w*|PBV|MONO\w* ?\d* ?KEV|SCREEN ?SAVE)\b"
)
DERIVED_TYPES = frozenset(
    {
        "REFORMATTED", "MPR", "MIP", "MIN_IP", "MINIP", "MAX_IP", "PROJECTION IMAGE", "VRT", "CPR",
        "SUBTRACT", "DOSE_INFO", "SCREEN SAVE", "MULTIPLANAR", "SSD", "CT_SOM5 MPR",
        "VOLUME_RENDERED",
    }
)  # fmt: skip
PULMONARY_WORDS = re.compile(r"\b(CTPA|PE|PULM\w*|EMBOL\w*|LAE|PA|ANGIO\w*)\b")
OTHER_PHASE_WORDS = re.compile(
    r"\b(NATIVE|NATIV|NON ?CON\w*|WITHOUT|W/?O|UNENHANCED|DELAY\w*|VENOUS|LATE|EXP\w*)\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """One series as the rules see it."""

    instances: tuple[ReceivedInstance, ...]
    """Sorted by UID, never empty."""
    stack: Stack

    @property
    def facts(self) -> tuple[InstanceFacts, ...]:
        """Header facts of each instance."""
        return tuple(i.facts for i in self.instances)

    @property
    def description(self) -> str:
        """Series description, words apart, upper case."""
        text = self.instances[0].facts.series_description or ""
        return re.sub(r"[_^/.,;:]+", " ", text).upper()

    @property
    def image_types(self) -> frozenset[str]:
        """Every Image Type value that any instance has."""
        return frozenset(v.upper() for f in self.facts for v in f.image_type)


Found = Mapping[str, object]
"""Values that go into a rule's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One reason for refusing a series."""

    name: str
    refuses: Callable[[SeriesView, EligibilityRules], Found | None]
    """The values found, or None where the series passes."""
    words: str
    """Template over the values found and ``rules``."""


def _storage_class(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    other = sorted({i.sop_class_uid for i in view.instances} - {CT_IMAGE_STORAGE})
    if not other:
        return None
    return {"what": _OTHER_CT_STORAGE.get(other[0], "the series holds objects that are no CT")}


def _modality(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    other = sorted({f.modality or "missing" for f in view.facts} - {"CT"})
    return {"found": other[0]} if other else None


def _several_studies(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    studies = {i.study_uid for i in view.instances}
    patients = {i.identity for i in view.instances}
    if len(studies) == 1 and len(patients) == 1:
        return None
    return {"found": "studies" if len(studies) > 1 else "patients"}


def _frames(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    most = max(f.number_of_frames or 1 for f in view.facts)
    return {"found": most} if most > 1 else None


def _localizer(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    if "LOCALIZER" in view.image_types:
        return {"found": "image type LOCALIZER"}
    match = LOCALIZER_WORDS.search(view.description)
    return {"found": f"series description says {match[0]}"} if match else None


def _tracking(view: SeriesView, rules: EligibilityRules) -> Found | None:
    # A whole chest may be described as "CTPA bolus tracking": the words count only where the
    # slices say the same.
    if len(view.stack.groups) >= rules.min_slices or view.stack.extent_mm >= rules.min_coverage_mm:
        return None
    match = TRACKING_WORDS.search(view.description)
    return {"found": match[0]} if match else None


def _reformat_type(view: SeriesView, rules: EligibilityRules) -> Found | None:
    if rules.allow_derived:
        return None
    for f in view.facts:
        types = tuple(v.upper() for v in f.image_type)
        if types[:2] != ("ORIGINAL", "PRIMARY") or DERIVED_TYPES.intersection(types):
            return {"found": "\\".join(types[:4]) or "missing"}
        if len(types) > 2 and types[2] not in ("AXIAL", ""):
            return {"found": "\\".join(types[:4])}
    return None


def _derived_words(view: SeriesView, rules: EligibilityRules) -> Found | None:
    match = None if rules.allow_derived else DERIVED_WORDS.search(view.description)
    return {"found": match[0]} if match else None


_PLANE_PROBLEMS = frozenset({"not_axial", "turned_in_plane"})


def _orientation(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    problem = view.stack.problem
    return {"found": problem.reason} if problem and problem.rule in _PLANE_PROBLEMS else None


def _no_thickness(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    missing = sum(not f.slice_thickness_mm or f.slice_thickness_mm <= 0 for f in view.facts)
    return {"found": missing, "total": len(view.facts)} if missing else None


def _thickness(view: SeriesView, rules: EligibilityRules) -> Found | None:
    most = max(f.slice_thickness_mm or 0.0 for f in view.facts)
    return {"found": most} if most > rules.max_slice_thickness_mm + 1e-3 else None


def _slices(view: SeriesView, rules: EligibilityRules) -> Found | None:
    # Without geometry the images are counted; the geometry is refused further down.
    count = len(view.stack.groups) or len(view.instances)
    return {"found": count} if count < rules.min_slices else None


def _geometry(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    problem = view.stack.problem
    return {"found": problem.reason} if problem else None


def _stated_tilt(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    tilt = max((abs(f.gantry_tilt_deg or 0.0) for f in view.facts), default=0.0)
    return {"found": tilt} if tilt > 1.0 else None


def _spacing(view: SeriesView, rules: EligibilityRules) -> Found | None:
    spacing = view.stack.spacing_mm or 0.0
    low, high = rules.min_slice_spacing_mm, rules.max_slice_spacing_mm
    return None if low <= spacing <= high + 1e-3 else {"found": spacing}


def _coverage(view: SeriesView, rules: EligibilityRules) -> Found | None:
    covered = view.stack.extent_mm + (view.stack.spacing_mm or 0.0)
    return {"found": covered} if covered < rules.min_coverage_mm else None


def _pixel_spacing(view: SeriesView, rules: EligibilityRules) -> Found | None:
    for f in view.facts:
        for found in f.pixel_spacing_mm or ():
            if not rules.min_pixel_spacing_mm <= found <= rules.max_pixel_spacing_mm:
                return {"found": found}
    return None


def _matrix(view: SeriesView, rules: EligibilityRules) -> Found | None:
    first = view.facts[0]
    if min(first.rows or 0, first.columns or 0) >= rules.min_matrix:
        return None
    return {"rows": first.rows, "columns": first.columns}


def _no_rescale(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    missing = sum(f.rescale_slope is None or f.rescale_intercept is None for f in view.facts)
    return {"found": missing, "total": len(view.facts)} if missing else None


def _kernel(view: SeriesView, rules: EligibilityRules) -> Found | None:
    if rules.allow_lung_kernel:
        return None
    for f in view.facts:
        if sharpness(f.kernel, rules.lung_or_bone_kernels) is Sharpness.SHARP:
            return {"found": f.kernel[0]}
    return None


def _age(view: SeriesView, rules: EligibilityRules) -> Found | None:
    ages = [f.patient_age_years for f in view.facts if f.patient_age_years is not None]
    # AS values are whole: 17Y is under 18; weeks and months are rounded a little.
    return {"found": min(ages)} if ages and min(ages) < rules.min_age_years - 0.01 else None


SERIES_RULES: tuple[Rule, ...] = (
    Rule(name="storage_class", refuses=_storage_class, words="{what}"),
    Rule(name="modality", refuses=_modality, words="modality is {found}, not CT"),
    Rule(
        name="several_owners",
        refuses=_several_studies,
        words="the series holds images of several {found}",
    ),
    Rule(name="multi_frame", refuses=_frames, words="images hold {found} frames each, not one"),
    Rule(name="localizer", refuses=_localizer, words="localizer: {found}"),
    Rule(
        name="bolus_tracking",
        refuses=_tracking,
        words="bolus tracking, timing or dose images: series description says {found}",
    ),
    Rule(
        name="image_type",
        refuses=_reformat_type,
        words="image type is {found}, not ORIGINAL\\PRIMARY\\AXIAL",
    ),
    Rule(
        name="derived",
        refuses=_derived_words,
        words="derived images: series description says {found}",
    ),
    Rule(name="orientation", refuses=_orientation, words="{found}"),
    Rule(
        name="slice_thickness_missing",
        refuses=_no_thickness,
        words="slice thickness is missing on {found} of {total} images",
    ),
    Rule(
        name="slice_thickness",
        refuses=_thickness,
        words="slice thickness {found:.1f} mm > {rules.max_slice_thickness_mm:.1f} mm",
    ),
    Rule(name="slices", refuses=_slices, words="{found} slices < {rules.min_slices}"),
    Rule(name="geometry", refuses=_geometry, words="{found}"),
    Rule(name="gantry_tilt", refuses=_stated_tilt, words="gantry tilt {found:.1f} degrees > 1.0"),
    Rule(
        name="slice_spacing",
        refuses=_spacing,
        words="slices are {found:.2f} mm apart, outside {rules.min_slice_spacing_mm:.1f} to "
        "{rules.max_slice_spacing_mm:.1f} mm",
    ),
    Rule(
        name="coverage",
        refuses=_coverage,
        words="slices cover {found:.0f} mm < {rules.min_coverage_mm:.0f} mm of the chest",
    ),
    Rule(
        name="pixel_spacing",
        refuses=_pixel_spacing,
        words="pixel spacing {found:.2f} mm is outside {rules.min_pixel_spacing_mm:.1f} to "
        "{rules.max_pixel_spacing_mm:.1f} mm",
    ),
    Rule(
        name="matrix",
        refuses=_matrix,
        words="image size {rows} x {columns} < {rules.min_matrix} x {rules.min_matrix}",
    ),
    Rule(
        name="rescale_missing",
        refuses=_no_rescale,
        words="rescale slope or intercept is missing on {found} of {total} images",
    ),
    Rule(
        name="kernel",
        refuses=_kernel,
        words="reconstruction kernel {found} is a lung or bone kernel",
    ),
    Rule(
        name="age",
        refuses=_age,
        words="patient's age {found:.0f} years < {rules.min_age_years:.0f}: made for adults only",
    ),
)
"""In the order in which they are asked; the first that refuses gives the reason."""

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


def judge_measures(measures: VolumeMeasures, rules: EligibilityRules) -> tuple[str, str] | None:
    """Name of the refusing rule and its words, or None where the pixels are plausible."""
    for rule in MEASURE_RULES:
        found = rule.refuses(measures, rules)
        if found is not None:
            return rule.name, rule.words.format(rules=rules, **found)
    return None
