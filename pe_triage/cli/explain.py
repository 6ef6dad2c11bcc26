"""``pe-triage analyze --explain``: the verdict on each series of a folder, for commissioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pe_triage.assemble.rules import EligibilityRules
    from pe_triage.domain import ReceivedInstance

MEASURED: tuple[tuple[str, str, str], ...] = (
    ("air_hu", "air", "{:.0f} HU"),
    ("soft_tissue_hu", "soft tissue", "{:.0f} HU"),
    ("vessel_hu", "mediastinal vessels", "{:.0f} HU"),
    ("noise_hu", "noise", "{:.0f} HU"),
    ("lung_extent_mm", "lung over", "{:.0f} mm"),
    ("slice_jump", "slice jump", "{:.1f}"),
    ("alternation", "alternation", "{:.2f}"),
    ("unevenness", "unevenness", "{:.2f}"),
    ("doubling", "doubling", "{:.3f}"),
    ("strangeness", "strangeness", "{:.1f}"),
)
"""Which measures are printed, under which words."""


def explanation(
    instances: Sequence[ReceivedInstance], rules: EligibilityRules
) -> list[dict[str, Any]]:
    """Return, for each study, the verdict on each series as plain values."""
    from pe_triage.assemble.advice import ADVICE
    from pe_triage.node.analysis import relevant_instances
    from pe_triage.node.selection import explain_study

    studies = []
    for study_uid in sorted({i.study_uid for i in instances}):
        of_study = relevant_instances([i for i in instances if i.study_uid == study_uid])
        told = explain_study(of_study, rules)
        described = {i.series_uid: i.facts.series_description for i in of_study}
        series = []
        for verdict in told.choice.verdicts:
            uid = verdict.series_uid
            measures = told.measures.get(uid)
            series.append(
                {
                    "series_uid": uid,
                    "series_description": described[uid],
                    "slices": verdict.slices,
                    "eligible": verdict.eligible,
                    "chosen": uid == told.choice.series_uid,
                    "rule": verdict.rule,
                    "reason": verdict.reason,
                    "advice": ADVICE[verdict.rule].do if verdict.rule else None,
                    "merits": {merit.name: merit.words for merit in verdict.merits},
                    "remarks": list(verdict.remarks),
                    "measures": None if measures is None else asdict(measures),
                    "cautions": list(told.cautions.get(uid, ())),
                }
            )
        studies.append(
            {
                "study_uid": study_uid,
                "series_uid": told.choice.series_uid,
                "reason": told.choice.reason,
                "series": series,
            }
        )
    return studies


def print_explanation(studies: Sequence[Mapping[str, Any]]) -> None:
    """Print what `explanation` returned, for a person."""
    for study in studies:
        click.echo(f"study {study['study_uid']}")
        for series in study["series"]:
            _print_series(series)
        ends = "analysed" if study["series_uid"] else "not evaluated"
        click.echo(f"  study: {ends}: {study['reason']}")


def _print_series(series: Mapping[str, Any]) -> None:
    word = "eligible" if series["eligible"] else f"refused by {series['rule']}"
    chosen = " (chosen)" if series["chosen"] else ""
    why = f": {series['reason']}" if series["reason"] else ""
    click.echo(
        f"  series {series['series_uid']} {series['series_description'] or ''!r}, "
        f"{series['slices']} slices: {word}{chosen}{why}"
    )
    if series["advice"]:
        click.echo(f"    what to do: {series['advice']}")
    measures = series["measures"]
    if measures:
        found = [
            f"{words} {form.format(measures[name])}"
            for name, words, form in MEASURED
            if measures[name] is not None
        ]
        click.echo(f"    measured: {', '.join(found)}")
    for remark in (*series["remarks"], *series["cautions"]):
        click.echo(f"    note: {remark}")
