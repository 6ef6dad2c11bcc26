"""Thresholds of eligibility: what a site may set, with defaults and bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pe_triage.assemble.kernels import LUNG_OR_BONE_KERNELS
from pe_triage.assemble.words import DERIVED_WORDS
from pe_triage.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class EligibilityRules:
    """When a series is a CTPA that can be analysed.

    Attributes
    ----------
    max_slice_thickness_mm
        Subsegmental arteries are about 3 mm wide: thicker slices hide clots in them.
    min_slice_spacing_mm, max_slice_spacing_mm
        Distance of neighbouring slices.
    min_slices
        Slice positions; fewer are bolus tracking, test bolus or a partial series.
    min_coverage_mm
        Head-to-foot length; an adult's pulmonary arteries, aortic arch to diaphragm, need about
        140 mm.
    max_unimaged_mm
        Length between neighbouring slices that no slice shows: spacing less thickness.
    min_pixel_spacing_mm, max_pixel_spacing_mm, min_matrix
        Field of view and matrix of a whole adult chest.
    min_age_years
        The networks were made for adults. An age that is not stated passes.
    allow_derived
        Take images that are not ORIGINAL and PRIMARY (some sites send only thin reformats).
    allow_lung_kernel
        Take a series of a lung or bone kernel where no other is eligible.
    allow_lossy
        Take images whose pixels a compression has changed: they are then read as they are.
    lung_or_bone_kernels
        Patterns of kernel names, upper case.
    derived_words
        Patterns of words in a series description, upper case, that name images computed from
        others though their image type does not say so.
    min_vessel_hu
        Level of the mediastinal vessels below which no contrast is visible. Unenhanced blood is 30
        to 60 HU; a diagnostic CTPA has 200 HU and more, a poor one is still analysed.
    air_hu, air_tolerance_hu
        Air is -1000 HU by definition; padding reads as -1024.
    max_vessel_hu
        Level of the mediastinal vessels above which the scale must be wrong.
    min_soft_tissue_hu, max_soft_tissue_hu
        Bounds of the body's median without lung: fat is -100 HU, muscle 50 HU.
    min_lung_extent_mm, min_lung_fraction
        Lung that must be seen for the volume to be a chest.
    max_slice_jump
        How much a slice may differ from both its neighbours, in usual differences.
    max_alternation
        How much neighbouring slices may differ, over how much every second one does.
    max_blank_slices, max_saturated_slices
        Slices without a body, or at the upper end of the scale, that are tolerated.
    min_grain
        Correlation of neighbouring pixels' noise below which images of an unknown kernel are taken
        for those of a lung or bone kernel.
    tie_contrast_hu
        Of two equally suitable acquisitions the one whose vessels are brighter by this is taken.
    good_vessel_hu, max_noise_hu
        Beyond these a series is analysed, but a negative answer becomes indeterminate.
    max_unevenness
        The same for slices that advance unevenly through the body, as in breathing.
    max_doubling
        The same for repeated outlines in the lungs; 0: not asked (docs/quality.md says why).
    max_strangeness
        The same for a figure of the chest's make-up that lies so many spreads from the usual.
    max_unlikeness
        The same for exams that the network sees otherwise than those its bundle was calibrated on,
        in units of the bundle's own limit; asked only where the bundle holds a reference.
    """

    max_slice_thickness_mm: float = 3.0
    min_slice_spacing_mm: float = 0.2
    max_slice_spacing_mm: float = 3.0
    max_unimaged_mm: float = 1.0
    min_slices: int = 40
    min_coverage_mm: float = 140.0
    min_pixel_spacing_mm: float = 0.3
    max_pixel_spacing_mm: float = 2.0
    min_matrix: int = 256
    min_age_years: float = 18.0
    allow_derived: bool = False
    allow_lung_kernel: bool = False
    lung_or_bone_kernels: tuple[str, ...] = LUNG_OR_BONE_KERNELS
    derived_words: tuple[str, ...] = DERIVED_WORDS
    min_vessel_hu: float = 100.0
    max_vessel_hu: float = 1500.0
    min_soft_tissue_hu: float = -150.0
    max_soft_tissue_hu: float = 150.0
    allow_lossy: bool = False
    air_hu: float = -1000.0
    air_tolerance_hu: float = 80.0
    min_lung_extent_mm: float = 80.0
    min_lung_fraction: float = 0.08
    max_slice_jump: float = 2.0
    max_alternation: float = 1.1
    max_blank_slices: int = 0
    max_saturated_slices: int = 0
    min_grain: float = 0.3
    tie_contrast_hu: float = 100.0
    good_vessel_hu: float = 150.0
    max_noise_hu: float = 60.0
    max_unevenness: float = 0.12
    max_doubling: float = 0.0
    max_strangeness: float = 6.0
    max_unlikeness: float = 1.0

    @staticmethod
    def from_table(table: Mapping[str, Any]) -> EligibilityRules:
        """Rules from the configuration's table ``eligibility``; absent keys take their default.

        Raises
        ------
        ConfigurationError
            An unknown key, or a value of the wrong kind; the message names the key.
        """
        defaults = {f.name: f.default for f in fields(EligibilityRules)}
        chosen: dict[str, Any] = {}
        for key, value in table.items():
            if key not in defaults:
                raise ConfigurationError(f"eligibility.{key}: unknown key")
            chosen[key] = _checked(f"eligibility.{key}", value, defaults[key])
        return EligibilityRules(**chosen)


def _checked(key: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ConfigurationError(f"{key}: true or false was expected, not {value!r}")
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigurationError(f"{key}: a list of text was expected")
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigurationError(f"{key}: {pattern!r} is no pattern: {error}") from None
        return tuple(value)
    # TOML's 3 is as good as 3.0, but true is no number.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{key}: a number was expected, not {value!r}")
    if isinstance(default, int):
        if int(value) != value or value < 0:
            raise ConfigurationError(f"{key}: a whole number was expected, not {value!r}")
        return int(value)
    if not -10_000 <= value <= 10_000 or (default > 0 and value < 0):
        raise ConfigurationError(f"{key}: {value!r} is out of range")
    return float(value)
