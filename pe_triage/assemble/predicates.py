"""What makes a series unfit: each predicate returns the values found, or None where it passes.

Pure functions over the headers of all instances and their stack; `series_rules` gives them names,
order and words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pe_triage.assemble.compression import changed_by
from pe_triage.assemble.image_types import DERIVED_TYPES, computed
from pe_triage.assemble.kernels import Sharpness, sharpness
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.assemble.words import LOCALIZER_WORDS, TRACKING_WORDS, first_match, plain
from pe_triage.domain import InstanceFacts, ReceivedInstance
from pe_triage.frames import MULTI_FRAME_CT
from pe_triage.stack import Stack

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"

PASS_PAUSE_S = 5.0
"""A longer pause lies between two passes over the body, and not within one."""
TIME_SERIES_IMAGES = 3
"""So many images of different times at every position make no single volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """One series as the rules see it."""

    instances: tuple[ReceivedInstance, ...]
    """Images, frames of multi-frame instances among them; sorted by UID and frame, never empty."""
    stack: Stack

    @property
    def facts(self) -> tuple[InstanceFacts, ...]:
        """Header facts of each instance."""
        return tuple(i.facts for i in self.instances)

    @property
    def description(self) -> str:
        """Series description, words apart, upper case."""
        return plain(self.instances[0].facts.series_description)

    @property
    def image_types(self) -> frozenset[str]:
        """Every Image Type value that any instance has."""
        return frozenset(v.upper() for f in self.facts for v in f.image_type)


Found = Mapping[str, object]
"""Values that go into a rule's words."""


def storage_class(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find objects that are no CT image."""
    known = {CT_IMAGE_STORAGE, *MULTI_FRAME_CT}
    return {} if any(i.sop_class_uid not in known for i in view.instances) else None


def modality(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find another modality than CT."""
    other = sorted({f.modality or "missing" for f in view.facts} - {"CT"})
    return {"found": other[0]} if other else None


def several_studies(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find several studies or patients under one series UID."""
    studies = {i.study_uid for i in view.instances}
    patients = {i.identity for i in view.instances}
    if len(studies) == 1 and len(patients) == 1:
        return None
    return {"found": "studies" if len(studies) > 1 else "patients"}


def frames(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find multi-frame images of a class that has none."""
    counts = (
        i.facts.number_of_frames or 1
        for i in view.instances
        if i.sop_class_uid not in MULTI_FRAME_CT
    )
    most = max(counts, default=1)
    return {"found": most} if most > 1 else None


def few(view: SeriesView, rules: EligibilityRules) -> bool:
    """Whether the slices, too, say that this is no whole chest.

    A whole chest may be described as "CTPA bolus tracking": words count only where it is not.
    """
    return (
        len(view.stack.groups) < rules.min_slices and view.stack.extent_mm < rules.min_coverage_mm
    )


def localizer(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find localizers, by image type or, where slices are few, by words."""
    if "LOCALIZER" in view.image_types:
        return {"found": "image type LOCALIZER"}
    if any(f.acquisition_type == "CONSTANT_ANGLE" for f in view.facts):
        return {"found": "acquisition type CONSTANT_ANGLE"}
    if not few(view, rules):
        return None
    match = LOCALIZER_WORDS.search(view.description)
    return {"found": f"series description says {match[0]}"} if match else None


def tracking(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find bolus tracking, test bolus and dose pages by words, where slices are few."""
    match = TRACKING_WORDS.search(view.description) if few(view, rules) else None
    return {"found": match[0]} if match else None


def time_series(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find many images of different times at every position."""
    groups = view.stack.groups
    if not groups or min(len(g) for g in groups) < TIME_SERIES_IMAGES:
        return None
    # The same image under several UIDs is a copy, and copies count once; their pixels decide.
    numbers = {i.facts.acquisition_number for i in groups[0]}
    times = {i.facts.acquisition_time_s for i in groups[0]}
    phases = {i.facts.temporal_position for i in groups[0]}
    if max(len(numbers), len(times), len(phases)) < 2 and len(groups) > 1:
        return None
    return {"found": len(view.instances), "positions": len(groups)}


def reformat_type(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find images whose type is not ORIGINAL, PRIMARY, AXIAL."""
    if rules.allow_derived:
        return None
    for i in view.instances:
        types = tuple(v.upper() for v in i.facts.image_type)
        if rules.allow_lossy and types[:1] == ("DERIVED",) and changed_by(i):
            # Compression with loss makes an image derived (PS3.3 C.7.6.1.1.5), and no other.
            types = ("ORIGINAL", *types[1:])
        if i.sop_class_uid in MULTI_FRAME_CT:
            found = computed(types, (i.facts.calculation or "").upper())
            if found is not None:
                return {"found": found}
            continue
        if types[:2] != ("ORIGINAL", "PRIMARY") or DERIVED_TYPES.intersection(types):
            return {"found": "\\".join(types[:4]) or "missing"}
        if len(types) > 2 and types[2] not in ("AXIAL", ""):
            return {"found": "\\".join(types[:4])}
    return None


def derived_words(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find words for images computed from others."""
    found = None if rules.allow_derived else first_match(view.description, rules.derived_words)
    return {"found": found} if found else None


PLANE_PROBLEMS = frozenset({"not_axial", "turned_in_plane"})


def orientation(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find slices that are not axial."""
    problem = view.stack.problem
    if problem is None or problem.rule not in PLANE_PROBLEMS:
        return None
    return {"found": problem.reason, "rule": problem.rule}


def no_thickness(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Count images without slice thickness."""
    missing = sum(not f.slice_thickness_mm or f.slice_thickness_mm <= 0 for f in view.facts)
    return {"found": missing, "total": len(view.facts)} if missing else None


def thickness(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find slices that are too thick."""
    most = max(f.slice_thickness_mm or 0.0 for f in view.facts)
    return {"found": most} if most > rules.max_slice_thickness_mm + 1e-3 else None


def slices(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find too few positions."""
    # Without geometry the images are counted; the geometry is refused further down.
    count = len(view.stack.groups) or len(view.instances)
    return {"found": count} if count < rules.min_slices else None


def geometry(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find what hinders one regular stack."""
    problem = view.stack.problem
    return {"found": problem.reason, "rule": problem.rule} if problem else None


def mixed(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find values that differ though one reconstruction has one."""
    for what, values in (
        ("reconstruction kernel", {f.kernel[:1] for f in view.facts}),
        ("tube voltage", {f.kvp for f in view.facts}),
        ("temporal position", {f.temporal_position for f in view.facts}),
        ("slice thickness", {round(f.slice_thickness_mm or 0.0, 1) for f in view.facts}),
    ):
        if len(values) > 1:
            words = sorted(str(v[0] if isinstance(v, tuple) and v else v or "none") for v in values)
            return {"what": what, "found": " and ".join(words[:3])}
    return None


def interleaved(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find acquisitions whose slices lie between each other."""
    # Acquisitions one above the other, as of a scanner that steps from place to place, are one
    # chest. Where they lie between each other, two phases would make one volume.
    # The stacks of an Enhanced CT image (PS3.3 C.7.6.16.2.2.4) are told apart in the same way.
    # Without numbers the times tell, where they lie so far apart.
    facts = [g[0].facts for g in view.stack.groups]
    passes = _passes([f.acquisition_time_s for f in facts])
    numbers = [
        (f.acquisition_number, f.stack_id, which) for f, which in zip(facts, passes, strict=True)
    ]
    runs = [number for number, after in pairwise([*numbers, object()]) if number != after]
    if len(runs) == len(set(runs)):
        return None
    return {"found": len(set(runs))}


def _passes(times_s: Sequence[float | None]) -> list[int]:
    """Number the passes over the body that times of acquisition fall into; all 0 if one lacks."""
    known = [t for t in times_s if t is not None]
    if len(known) < len(times_s):
        return [0] * len(times_s)
    ordered = sorted(set(known))
    number = dict.fromkeys(ordered[:1], 1)
    for before, after in pairwise(ordered):
        number[after] = number[before] + (after - before > PASS_PAUSE_S)
    return [number[t] for t in known]


def unimaged(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find length between slices that no slice shows."""
    thickness = min(f.slice_thickness_mm or 0.0 for f in view.facts)
    spacing = view.stack.spacing_mm or 0.0
    if spacing - thickness <= rules.max_unimaged_mm + 1e-3:
        return None
    return {"found": spacing - thickness, "thickness": thickness, "spacing": spacing}


def stated_tilt(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find a stated gantry tilt."""
    tilt = max((abs(f.gantry_tilt_deg or 0.0) for f in view.facts), default=0.0)
    return {"found": tilt} if tilt > 1.0 else None


def spacing(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find slices too near or too far apart."""
    spacing = view.stack.spacing_mm or 0.0
    low, high = rules.min_slice_spacing_mm, rules.max_slice_spacing_mm
    return None if low <= spacing <= high + 1e-3 else {"found": spacing}


def coverage(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find too short a stack."""
    covered = view.stack.extent_mm + (view.stack.spacing_mm or 0.0)
    return {"found": covered} if covered < rules.min_coverage_mm else None


def pixel_spacing(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find a field of view that is no adult chest."""
    for f in view.facts:
        for found in f.pixel_spacing_mm or ():
            if not rules.min_pixel_spacing_mm <= found <= rules.max_pixel_spacing_mm:
                return {"found": found}
    return None


def matrix(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find images that are too small."""
    first = view.facts[0]
    if min(first.rows or 0, first.columns or 0) >= rules.min_matrix:
        return None
    return {"rows": first.rows, "columns": first.columns}


def no_rescale(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Count images without rescale slope or intercept."""
    missing = sum(f.rescale_slope is None or f.rescale_intercept is None for f in view.facts)
    return {"found": missing, "total": len(view.facts)} if missing else None


def kernel(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find a lung or bone kernel."""
    if rules.allow_lung_kernel:
        return None
    for f in view.facts:
        if sharpness(f.kernel, rules.lung_or_bone_kernels) is Sharpness.SHARP:
            return {"found": f.kernel[0]}
    return None


def age(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find a patient younger than the networks were made for."""
    ages = [f.patient_age_years for f in view.facts if f.patient_age_years is not None]
    # AS values are whole: 17Y is under 18; weeks and months are rounded a little.
    return {"found": min(ages)} if ages and min(ages) < rules.min_age_years - 0.01 else None
