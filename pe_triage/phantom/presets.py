"""What may be drawn: each preset is a row of frozen distributions, nothing else.

Figures are plausible ranges for a commissioning phantom, chosen by its authors and stated here;
they are not measured on patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pe_triage.errors import InputError
from pe_triage.phantom.distributions import Choice, Uniform
from pe_triage.phantom.effects import EASY_EFFECTS, HARD_EFFECTS, STANDARD_EFFECTS, Effects

GENERATOR_VERSION = 1
"""Raised whenever the same seed would give other voxels; it goes into UIDs and headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Distributions that one study is drawn from; HU and mm as the names say."""

    name: str
    status: Choice
    """positive, negative or indeterminate."""
    stage: Choice
    """acute, chronic or both (of positive studies)."""
    central: float
    """Probability that a positive study has a central clot."""
    side: Choice
    """left, right or both."""
    clots_per_side: Uniform
    """Number of peripheral clots in an affected side (rounded down)."""
    peripheral_level: Choice
    """lobar, segmental or subsegmental."""
    clot_length_mm: Uniform
    clot_hu: Uniform
    artery_hu: Uniform
    poor_artery_hu: Uniform
    """Of studies that are indeterminate for poor contrast: visible, yet too little to judge a
    segment by; it overlaps a little with what passes as good."""
    indeterminate_cause: Choice
    """contrast or motion."""
    rv_dilated: float
    """Probability that RV/LV >= 1 in a study with a central clot; half of it without one."""
    noise_hu: Uniform
    effects: Effects | None = field(default=None, repr=False)
    """What else is drawn (`effects`); None: the plain body and image, as in the samples. Left out
    of the representation, from which keys are made: `study` adds it where there is one."""


_PLAIN = Preset(
    name="plain",
    status=Choice(weights=(("positive", 0.42), ("negative", 0.48), ("indeterminate", 0.10))),
    stage=Choice(weights=(("acute", 0.70), ("chronic", 0.15), ("both", 0.15))),
    central=0.25,
    side=Choice(weights=(("right", 0.30), ("left", 0.22), ("both", 0.48))),
    clots_per_side=Uniform(low=1, high=4),
    peripheral_level=Choice(weights=(("lobar", 0.15), ("segmental", 0.60), ("subsegmental", 0.25))),
    clot_length_mm=Uniform(low=8, high=26),
    clot_hu=Uniform(low=30, high=70),
    artery_hu=Uniform(low=150, high=450),
    poor_artery_hu=Uniform(low=125, high=165),
    indeterminate_cause=Choice(weights=(("contrast", 0.6), ("motion", 0.4))),
    rv_dilated=0.6,
    noise_hu=Uniform(low=9, high=20),
)

_POSITIVE = Choice(weights=(("positive", 1.0),))

# Prevalences near RSPECT's where that leaves enough of each label among a thousand studies.
_STANDARD = replace(
    _PLAIN,
    name="standard",
    status=Choice(weights=(("positive", 0.42), ("negative", 0.51), ("indeterminate", 0.07))),
    stage=Choice(weights=(("acute", 0.62), ("chronic", 0.19), ("both", 0.19))),
    rv_dilated=0.6,
    poor_artery_hu=Uniform(low=100, high=175),
    effects=STANDARD_EFFECTS,
)

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        _STANDARD,
        replace(
            _STANDARD,
            name="easy",
            central=0.6,
            clots_per_side=Uniform(low=2, high=5),
            peripheral_level=Choice(weights=(("lobar", 0.6), ("segmental", 0.4))),
            clot_length_mm=Uniform(low=18, high=40),
            artery_hu=Uniform(low=330, high=480),
            poor_artery_hu=Uniform(low=100, high=160),
            noise_hu=Uniform(low=5, high=9),
            effects=EASY_EFFECTS,
        ),
        replace(
            _STANDARD,
            name="hard",
            central=0.03,
            clots_per_side=Uniform(low=1, high=3),
            peripheral_level=Choice(weights=(("segmental", 0.6), ("subsegmental", 0.4))),
            clot_length_mm=Uniform(low=6, high=14),
            artery_hu=Uniform(low=150, high=220),
            noise_hu=Uniform(low=18, high=40),
            effects=HARD_EFFECTS,
        ),
        replace(
            _PLAIN,
            name="pe-acute",
            status=_POSITIVE,
            stage=Choice(weights=(("acute", 1.0),)),
            central=0.5,
        ),
        replace(
            _PLAIN,
            name="pe-chronic",
            status=_POSITIVE,
            stage=Choice(weights=(("chronic", 1.0),)),
            central=0.4,
        ),
        replace(_PLAIN, name="negative", status=Choice(weights=(("negative", 1.0),))),
        replace(
            _PLAIN,
            name="poor-contrast",
            status=Choice(weights=(("indeterminate", 1.0),)),
            indeterminate_cause=Choice(weights=(("contrast", 1.0),)),
        ),
    )
}


def find_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises
    ------
    InputError
        There is none; the message lists those there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}") from None
