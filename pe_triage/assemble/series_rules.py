"""The rules on a series' headers and geometry, as a table.

Every rule is a row: a stable name, a predicate that returns the values found when it refuses, and
the words for people. Rules stand in the order in which a person would want to hear of them: what
the series is before how it was reconstructed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pe_triage.assemble.kernels import Sharpness, sharpness
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import InstanceFacts, ReceivedInstance
from pe_triage.stack import Stack

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
