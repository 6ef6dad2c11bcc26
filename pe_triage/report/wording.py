"""The few words that stand large on captures and in series descriptions, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pe_triage.domain import (
    INTENDED_USE_WORDS,
    IntendedUse,
    ModelIdentity,
    Outcome,
    ResultKind,
    TriageResult,
)

HEADLINES: Mapping[Outcome, str] = {
    Outcome.POSITIVE: "PE SUSPECTED",
    Outcome.NEGATIVE: "NO PE DETECTED",
    Outcome.INDETERMINATE: "PE INDETERMINATE",
    Outcome.NOT_EVALUATED: "PE NOT EVALUATED",
}
"""Plain ASCII: rules in a PACS match on it."""

SERIES_WORDS: Mapping[ResultKind, str] = {
    ResultKind.SR: "triage SR",
    ResultKind.SUMMARY: "summary",
    ResultKind.HEATMAP: "heatmaps",
    ResultKind.NARRATIVE: "narrative",
    ResultKind.KEY_OBJECTS: "key objects",
    ResultKind.PARAMETRIC_MAP: "Grad-CAM map",
}
"""What a series is, in its description."""

NOT_DIAGNOSTIC = "not for diagnostic use"


def headline(result: TriageResult) -> str:
    """Return outcome and priority in a line, such as ``PE SUSPECTED - HIGH``."""
    words = HEADLINES[result.outcome]
    return f"{words} - {result.priority.value}" if result.priority else words


def series_description(result: TriageResult, kind: ResultKind) -> str:
    """Return a Series Description (at most 64 ASCII characters): urgency first, then what it is."""
    text = f"{headline(result)} | AI {SERIES_WORDS[kind]}, {NOT_DIAGNOSTIC}"
    assert len(text) <= 64, text
    return text


def use_banner(model: ModelIdentity | None) -> str:
    """Return the sentence on what the weights are for, for the strip below the banner."""
    if model is None:
        return f"research software; {NOT_DIAGNOSTIC}"
    words = INTENDED_USE_WORDS[model.intended_use]
    if model.intended_use is IntendedUse.RESEARCH:
        return f"{words}; {NOT_DIAGNOSTIC}"
    head, _, rest = words.partition(";")
    return f"{head.upper()};{rest}; {NOT_DIAGNOSTIC}"


def model_words(model: ModelIdentity | None) -> str:
    """Return name, version and the beginning of the weights' digest."""
    if model is None:
        return "no network ran"
    return f"{model.name} {model.version} (weights {model.sha256[:12]})"


def time_words(when: datetime) -> str:
    """Return date and time to the minute, with the zone's offset where it is not UTC itself."""
    offset = when.strftime("%z")
    zone = "" if offset in ("", "+0000") else f"{offset[:3]}:{offset[3:5]}"
    return f"{when:%Y-%m-%d %H:%M} UTC{zone}"
