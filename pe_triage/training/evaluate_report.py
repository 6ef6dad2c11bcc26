"""The document of an evaluation as a page: which section says what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL
from pe_triage.model.decisions import PE
from pe_triage.training import figures
from pe_triage.training import report_html as html
from pe_triage.training.evaluate_embedding import in_the_plane
from pe_triage.training.evaluate_gallery import KINDS, Case
from pe_triage.training.evaluate_tables import LABELS
from pe_triage.training.predictions import Predictions

_NAMES = {label: figures.nice_name(label) for label in LABELS} | {"challenge": "challenge"}
_SIDES = ("negative", "indeterminate", "acute", "chronic", "acute and chronic")


def render(
    document: Mapping[str, Any],
    table: Predictions,
    exam_truth: np.ndarray[Any, Any],
    cases: Sequence[Case],
) -> str:
    """Return the page."""
    labels = document["labels"]
    model = document["model"]
    title = f"Evaluation of {model.get('name') or 'predictions'} {model.get('version') or ''}"
    sections = [
        ("", html.use_banner(model.get("intended_use"))),
        ("", _warnings(document)),
        ("What was evaluated", _what(document)),
        ("Figures by label", html.label_tables(labels, _NAMES) + _position(document)),
        ("ROC and precision-recall curves", _curves(labels)),
        ("Calibration", _calibration(document)),
        ("Challenge score and label rules", _score(document)),
        ("Subgroups", html.subgroup_tables(document["subgroups"])),
        ("False positives", html.false_positive_tables(document["false_positives"])),
        ("Heatmaps against clot masks", _localisation(document)),
        ("Bundles side by side", _comparisons(document)),
        ("Bag features", _bags(table, exam_truth)),
        ("Gallery", _gallery(cases)),
        ("Beside the source documents", _seeds(document)),
        ("Studies left out", _skipped(document)),
    ]
    return html.page(title.strip(), sections)


def _warnings(document: Mapping[str, Any]) -> str:
    return "".join(f'<p class="warn">{escape(w)}</p>' for w in document["warnings"])


def _what(document: Mapping[str, Any]) -> str:
    model, data, how = document["model"], document["data"], document["settings"]
    rows = [
        ("model SHA-256", f"<code>{escape(str(model.get('sha256') or 'not known'))}</code>"),
        ("calibrated", "yes" if model.get("calibrated") else "no: read probabilities as scores"),
        ("data", escape(f"{data['layout']} layout, part {data['part'] or 'all'}")),
        ("exams", f"{data['exams']} of {data['patients']} patients, {data['exams_with_pe']} with "
         f"PE, {data['exams_indeterminate']} indeterminate"),
        ("slices", f"{data['slices']}, {data['slices_with_pe']} with PE"),
        ("left out", f"{len(data['skipped'])} exams that could not be used; problems of the data: "
         + (escape(", ".join(f"{k} {v}" for k, v in data["problems"].items())) or "none")),
        ("intervals", f"{how['resamples']} resamples of patients, seed {how['seed']}, 95 %"),
        ("made", escape(f"{document['created_at']} by pe-triage {document['program']}")),
    ]  # fmt: skip
    return html.table(("", ""), [[f"<b>{k}</b>", v] for k, v in rows], left=2)


def _position(document: Mapping[str, Any]) -> str:
    alone = html.with_interval(document["slice_position_alone"])
    words = "Control for the AUC of slices: their place along the scan alone, without any image"
    return f"<p>{words}: {alone}</p>"


def _curves(labels: Mapping[str, Any]) -> str:
    parts = []
    groups = (
        ("PE in the exam and on slices", (PE, IMAGE_LABEL)),
        ("The nine exam labels", EXAM_LABELS),
    )
    for words, chosen in groups:
        pair = []
        for kind, area in (("roc", "auc"), ("pr", "auprc")):
            series = {
                _NAMES[name]: (labels[name][kind], labels[name][area]["value"]) for name in chosen
            }
            name = "ROC" if kind == "roc" else "precision-recall"
            pair.append(html.picture(figures.curves(series, kind), "svg+xml", f"{words}: {name}"))
        parts.append(f'<div class="pair">{"".join(pair)}</div>')
    return "".join(parts)


def _calibration(document: Mapping[str, Any]) -> str:
    labels = document["labels"]
    chart = figures.reliability_chart({_NAMES[k]: labels[k] for k in (PE, IMAGE_LABEL)})
    words = (
        "Reliability: dots on the diagonal are true probabilities; below, how many samples each "
        "bin holds"
    )
    fitted = document.get("calibration_fit")
    record = ""
    if fitted:
        same = fitted["on_the_same_studies"]
        rows = [
            ["aim for PE", escape(fitted["aim"])],
            ["threshold of PE", html.number(same["pe_threshold"], 4)],
            ["sensitivity reached", html.with_interval(same["sensitivity"])],
            ["specificity there", html.with_interval(same["specificity"])],
            ["ECE of PE", " → ".join(html.number(same["ece_pe"][k]) for k in ("before", "after"))],
            [
                "temperatures left at 1",
                escape(", ".join(fitted["temperatures_left_at_1"])) or "none",
            ],
            [
                "thresholds left at 0.5",
                escape(", ".join(fitted["thresholds_left_at_half"])) or "none",
            ],
        ]
        record = "<h3>Fitted on these studies</h3>" + html.table(("", ""), rows, left=2)
    return html.picture(chart, "svg+xml", words) + record


def _score(document: Mapping[str, Any]) -> str:
    score, broken = document["challenge"], document["violations"]
    parts = []
    if score is not None:
        parts.append(
            f"<p>Challenge score (lower is better): {html.with_interval(score['score'], 4)}</p>"
        )
        rows = [
            [escape(_NAMES[k]), html.number(v, 4), html.number(score["share"][k], 4)]
            for k, v in score["mean_log_loss"].items()
        ]
        parts.append(html.table(("label", "weighted mean log loss", "part of the score"), rows))
    rows = [[escape(rule), str(count)] for rule, count in broken["by_rule"].items()]
    rows.append(["<b>exams that break a rule</b>", f"<b>{broken['exams']}</b>"])
    parts.append(html.table(("label rule", "exams that break it"), rows))
    return "".join(parts)


def _localisation(document: Mapping[str, Any]) -> str:
    found = document["localisation"]
    if found is None:
        return "<p>No clot masks lie beside these data.</p>"
    words = (
        f"Share of true-positive key slices whose heatmap peaks in a clot or within "
        f"{found['reach_mm']:g} mm of one, beside what a blind guess would score on the same "
        "slices: the image's centre, and a point drawn evenly from the body."
    )
    return f"<p>{escape(words)}</p>" + html.localisation_table(found)


def _comparisons(document: Mapping[str, Any]) -> str:
    parts = []
    for one in document["comparisons"]:
        first, second = one["first"], one["second"]
        words = (
            f"{first.get('name')} {first.get('version')} minus {second.get('name')} "
            f"{second.get('version')}, on {one['exams']} exams that both answered"
        )
        parts.append(f"<h3>{escape(words)}</h3>{html.comparison_table(one, _NAMES)}")
    return "".join(parts)


def _bags(table: Predictions, exam_truth: np.ndarray[Any, Any]) -> str:
    found = in_the_plane(table.bag_sd)
    if found is None:
        return "<p>Too few exams, or features that are not known.</p>"
    xy, index, method = found
    group = [_status(exam_truth[s]) for s in index]
    chart = figures.scatter(xy, group, title=method, order=_SIDES)
    words = f"Features z of {len(index)} exams by {method}, coloured by truth; distances between"
    return html.picture(chart, "svg+xml", f"{words} groups mean nothing")


def _status(truth_l: np.ndarray[Any, Any]) -> str:
    said = dict(zip(EXAM_LABELS, truth_l.tolist(), strict=True))
    for label, name in (
        ("negative_exam_for_pe", "negative"),
        ("indeterminate", "indeterminate"),
        ("chronic_pe", "chronic"),
        ("acute_and_chronic_pe", "acute and chronic"),
    ):
        if said[label] == 1:
            return name
    return "acute"


def _gallery(cases: Sequence[Case]) -> str:
    parts = []
    for kind, words in KINDS.items():
        of_kind = [case for case in cases if case.kind == kind]
        if not of_kind:
            continue
        parts.append(f"<h3>{escape(words)}</h3>")
        for case in of_kind:
            facts = [
                ("study", case.study_uid),
                ("truth", ", ".join(figures.nice_name(label) for label in case.truth)),
                ("shows", ", ".join(case.traits)),
            ]
            parts.append(
                html.case_section(
                    title=f"PE probability {case.pe:.3f}",
                    facts=facts,
                    picture_png=case.picture_png,
                    scan_svg=case.scan_svg,
                )
            )
    return "".join(parts)


def _seeds(document: Mapping[str, Any]) -> str:
    words = (
        "Other patients, other splits, other units: to be seen side by side, not compared figure "
        "by figure. Figures on phantoms say nothing about patients."
    )
    beside = document["beside_sources"]
    return f"<p>{words}</p>" + html.seeds_table(beside["published"], beside["ours"])


def _skipped(document: Mapping[str, Any]) -> str:
    rows = [
        [f"<code>{escape(u)}</code>", escape(r)] for u, r in document["data"]["skipped"].items()
    ]
    return html.table(("study", "reason"), rows, left=2) if rows else "<p>None.</p>"
