"""Words in descriptions and protocols: hints about what a series is.

Descriptions are typed by people and differ from site to site, so a word decides alone only where
nothing else in the header could (images computed from others that call themselves original);
everywhere else it adds to what the slices say, or tips the choice among eligible series.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LOCALIZER_WORDS = re.compile(
    r"\b(LOCALI[SZ]ERS?|SCOUTS?|TOPOGRAMS?|SURVIEWS?|SCANOGRAMS?|SCANOSCOPE|PILOT)\b"
)
TRACKING_WORDS = re.compile(
    r"\b(BOLUS|TRACK(ER|ING)?|PRE-?MONITORING|MONITORING|SMART ?PREP|SURE ?START|TEST ?BOLUS"
    r"|TIMING|DOSE|PATIENT PROTOCOL)\b"
)
DERIVED_WORDS: tuple[str, ...] = (
    r"MIPS?|MINIP|MAX ?IP|VRT?|VOLUME RENDER\w*|SSD|3D",
    r"IODINE|VNC|VUE|VIRTUAL\w*|PERFUSION|PBV|SUBTRACT\w*|Z ?EFF\w*|SPECTRAL",
    r"MONO\w* ?\d* ?KEV|\d+ ?KEV",
    r"SCREEN ?SAVE",
)
"""Patterns, upper case; each must match whole words."""

PULMONARY_WORDS = re.compile(r"\b(CTPA|PE|PULM\w*|EMBOL\w*|LAE|PA|ANGIO\w*)\b")
OTHER_PHASE_WORDS = re.compile(
    r"\b(NATIVE|NATIV|NON ?CON\w*|WITHOUT|W/?O|UNENHANCED|DELAY\w*|VENOUS|LATE|EXP\w*)\b"
)
CHEST_WORDS = re.compile(r"\b(CHEST|THORAX|THX|TX|LUNGS?|PULM\w*|CTPA)\b")
OTHER_REGION_WORDS = re.compile(
    r"\b(ABD\w*|PELVI\w*|HEAD|BRAIN|NECK|CAROTID\w*|LEGS?|KNEES?|SPINE|LIVER|RENAL|COLON)\b"
)
REFORMAT_WORDS = re.compile(r"\b(MPR|CORONAL|COR|SAGITT?AL|SAG|OBL\w*|REFORMAT\w*)\b")


def plain(text: str | None) -> str:
    """Words apart, upper case."""
    return re.sub(r"[_^/.,;:]+", " ", text or "").upper()


def first_match(text: str, patterns: Iterable[str]) -> str | None:
    """Return the first whole-word match of any of `patterns`."""
    for pattern in patterns:
        match = re.search(rf"\b(?:{pattern})\b", text)
        if match is not None:
            return match[0]
    return None
