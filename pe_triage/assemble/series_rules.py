"""The rules on a series' headers and geometry, as a table.

Every rule is a row: a stable name, a predicate that returns the values found when it refuses, and
the words for people. Rules stand in the order in which a person would want to hear of them: what
the series is before how it was reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pe_triage.assemble import object_predicates as o
from pe_triage.assemble import predicates as p
from pe_triage.assemble.predicates import Found, SeriesView
from pe_triage.assemble.rules import EligibilityRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One reason for refusing a series."""

    name: str
    refuses: Callable[[SeriesView, EligibilityRules], Found | None]
    """The values found, or None where the series passes. A value ``rule`` names the rule more
    exactly than the row does."""
    words: str
    """Template over the values found and ``rules``."""


SERIES_RULES: tuple[Rule, ...] = (
    Rule(
        name="storage_class",
        refuses=p.storage_class,
        words="the series holds objects that are no CT",
    ),
    Rule(name="modality", refuses=p.modality, words="modality is {found}, not CT"),
    Rule(
        name="several_owners",
        refuses=p.several_studies,
        words="the series holds images of several {found}",
    ),
    Rule(name="multi_frame", refuses=p.frames, words="images hold {found} frames each, not one"),
    Rule(
        name="functional_groups",
        refuses=o.functional_groups,
        words="the frames of the {kind} image cannot be told: {found}",
    ),
    Rule(
        name="concatenation",
        refuses=o.concatenation,
        words="of the {total} parts of a split image these are missing: {found}",
    ),
    Rule(name="localizer", refuses=p.localizer, words="localizer: {found}"),
    Rule(
        name="bolus_tracking",
        refuses=p.tracking,
        words="bolus tracking, timing or dose images: series description says {found}",
    ),
    # Before the image type, which compression makes DERIVED.
    Rule(
        name="lossy",
        refuses=o.lossy,
        words="the images were compressed with loss: {found}",
    ),
    Rule(
        name="image_type",
        refuses=p.reformat_type,
        words="image type is {found}, not ORIGINAL\\PRIMARY\\AXIAL",
    ),
    Rule(
        name="derived",
        refuses=p.derived_words,
        words="derived images: series description says {found}",
    ),
    Rule(name="orientation", refuses=p.orientation, words="{found}"),
    Rule(
        name="time_series",
        refuses=p.time_series,
        words="{found} images lie at {positions} position(s): bolus tracking, test bolus or "
        "perfusion",
    ),
    Rule(
        name="slice_thickness_missing",
        refuses=p.no_thickness,
        words="slice thickness is missing on {found} of {total} images",
    ),
    Rule(
        name="slice_thickness",
        refuses=p.thickness,
        words="slice thickness {found:.1f} mm > {rules.max_slice_thickness_mm:.1f} mm",
    ),
    Rule(name="slices", refuses=p.slices, words="{found} slices < {rules.min_slices}"),
    Rule(name="geometry", refuses=p.geometry, words="{found}"),
    Rule(
        name="mixed_reconstruction",
        refuses=p.mixed,
        words="the images of the series differ in {what}: {found}",
    ),
    Rule(
        name="several_acquisitions",
        refuses=p.interleaved,
        words="{found} acquisitions lie between each other in one series",
    ),
    Rule(name="gantry_tilt", refuses=p.stated_tilt, words="gantry tilt {found:.1f} degrees > 1.0"),
    Rule(
        name="slice_spacing",
        refuses=p.spacing,
        words="slices are {found:.2f} mm apart, outside {rules.min_slice_spacing_mm:.1f} to "
        "{rules.max_slice_spacing_mm:.1f} mm",
    ),
    Rule(
        name="unimaged",
        refuses=p.unimaged,
        words="slices {thickness:.2f} mm thick lie {spacing:.2f} mm apart: {found:.2f} mm between "
        "them are not imaged",
    ),
    Rule(
        name="coverage",
        refuses=p.coverage,
        words="slices cover {found:.0f} mm < {rules.min_coverage_mm:.0f} mm of the chest",
    ),
    Rule(
        name="pixel_spacing",
        refuses=p.pixel_spacing,
        words="pixel spacing {found:.2f} mm is outside {rules.min_pixel_spacing_mm:.1f} to "
        "{rules.max_pixel_spacing_mm:.1f} mm",
    ),
    Rule(
        name="matrix",
        refuses=p.matrix,
        words="image size {rows} x {columns} < {rules.min_matrix} x {rules.min_matrix}",
    ),
    Rule(
        name="rescale_missing",
        refuses=p.no_rescale,
        words="rescale slope or intercept is missing on {found} of {total} images",
    ),
    Rule(
        name="kernel",
        refuses=p.kernel,
        words="reconstruction kernel {found} is a lung or bone kernel",
    ),
    Rule(
        name="age",
        refuses=p.age,
        words="patient's age {found:.0f} years < {rules.min_age_years:.0f}: made for adults only",
    ),
)
"""In the order in which they are asked; the first that refuses gives the reason."""
