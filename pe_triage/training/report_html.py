"""The report as one HTML file that opens offline: no script, no link, every picture inside it.

Everything printed is escaped; the page's own policy forbids it to load anything. It names studies
by their UID and nobody by anything.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from pe_triage.domain import INTENDED_USE_WORDS, NOTICE, IntendedUse
from pe_triage.training.metrics import DECISION_METRICS

_CSS: Final = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem 1.5rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; font-size: 1.25rem;
  border-bottom: 1px solid #ccc; } h3 { font-size: 1.02rem; margin-bottom: .3rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .86rem; }
th, td { border-bottom: 1px solid #e2e2e2; padding: .22rem .6rem; text-align: right;
  font-variant-numeric: tabular-nums; vertical-align: top; }
th { background: #f3f5f7; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.l, th.l { text-align: left; } small, .ci { color: #555; font-size: .92em; white-space: nowrap; }
.use { background: #fff4d6; border-left: 5px solid #d99a00; padding: .6rem .9rem; }
.warn { background: #fde8e6; border-left: 5px solid #c0392b; padding: .5rem .9rem; }
figure { margin: .6rem 0 1.4rem; } figcaption { color: #444; font-size: .86rem; }
img { max-width: 100%; height: auto; } .pair { display: flex; flex-wrap: wrap; gap: 1rem; }
.wide { overflow-x: auto; } code { font-size: .84em; overflow-wrap: anywhere; }
"""

_NOTE_MARKS: Final[Mapping[str, str]] = {
    "exact": "†",
    "collapsed": "‡",
    "few": "§",
}
_NOTE_WORDS: Final = (
    "Brackets hold 95 % bootstrap intervals over patients. † every resample agreed; the exact "
    "binomial interval stands in. ‡ every resample agreed, which is no certainty. § too few "
    "patients, or too few of one class, for an interval. — the figure does not exist here (one "
    "class is absent, or nothing was called positive)."
)
_POINTS: Final[Mapping[str, str]] = {
    "stored": "stored in the bundle",
    "youden": "Youden (chosen on these data, so it flatters)",
    "half": "0.5",
    "served": "served decision (obeys the label rules)",
}


def data_uri(content: bytes, kind: str) -> str:
    """An image as a data URI; `kind` is ``png`` or ``svg+xml``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture(content: bytes | None, kind: str, caption: str) -> str:
    """A figure element; empty where there is no picture."""
    if content is None:
        return ""
    words = escape(caption)
    return (
        f'<figure><img src="{data_uri(content, kind)}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "—" if value is None else f"{value:.{digits}f}"


def with_interval(document: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A figure with its interval and mark, as HTML."""
    if document is None or document.get("value") is None:
        return "—"
    mark = _NOTE_MARKS.get(str(document.get("note", "")), "")
    text = number(document["value"], digits)
    if document.get("low") is None:
        return f"{text}{_NOTE_MARKS['few']}"
    low, high = number(document["low"], digits), number(document["high"], digits)
    return f'{text} <span class="ci">[{low}, {high}]</span>{mark}'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; cells are HTML already, heads are text; the first `left` columns align left."""

    def cell(tag: str, i: int, content: str) -> str:
        return f"<{tag}{' class=l' if i < left else ''}>{content}</{tag}>"

    top = "".join(cell("th", i, escape(h)) for i, h in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead>{body}</table></div>'


def label_tables(labels: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """The overview of all labels, then one table for each operating point."""
    overview = [
        [
            escape(names[label]),
            d["unit"],
            str(d["samples"]),
            str(d["positives"]),
            with_interval(d["auc"]),
            with_interval(d["auprc"]),
            with_interval(d["calibration"]["ece"]),
            number(d["calibration"]["brier"]),
        ]
        for label, d in labels.items()
    ]
    head: tuple[str, ...] = ("label", "unit", "number", "positive", "AUC", "AUPRC", "ECE", "Brier")
    parts = [table(head, overview, left=2)]
    for point, words in _POINTS.items():
        rows = [
            [
                escape(names[label]),
                number(d["thresholds"][point]["threshold"]),
                *(with_interval(d["thresholds"][point][m]) for m in DECISION_METRICS),
                "/".join(
                    str(d["thresholds"][point]["counts"][c]) for c in ("tp", "fp", "fn", "tn")
                ),
            ]
            for label, d in labels.items()
            if point in d["thresholds"]
        ]
        if rows:
            head = ("label", "threshold", *DECISION_METRICS, "tp/fp/fn/tn")
            parts.append(f"<h3>At the threshold: {escape(words)}</h3>" + table(head, rows))
    return "".join(parts)


def subgroup_tables(document: Mapping[str, Any]) -> str:
    """Tables of subgroups."""
    parts = []
    for name, rows in document["scan"].items():
        cells = [
            [
                escape(r["part"]), str(r["exams"]), str(r["positives"]), with_interval(r["auc"]),
                with_interval(r["sensitivity"]), with_interval(r["specificity"]),
            ]
            for r in rows
        ]  # fmt: skip
        head: tuple[str, ...] = (name, "exams", "with PE", "AUC", "sensitivity", "specificity")
        parts.append(f"<h3>By {escape(name)}</h3>{table(head, cells)}")
    for name, rows in document["clot"].items():
        cells = [
            [
                escape(r["part"]), str(r["exams"]), with_interval(r["sensitivity"]),
                with_interval(r["auc_against_all_without_pe"]),
            ]
            for r in rows
        ]  # fmt: skip
        head = (name, "exams with PE", "sensitivity", "AUC against all without PE")
        parts.append(f"<h3>By {escape(name)}</h3>{table(head, cells)}")
    return "".join(parts)


def false_positive_tables(document: Mapping[str, Any]) -> str:
    """Exams without PE that were called PE: by what they show, by what the heatmap points at."""
    cells = [
        [
            escape(r["trait"]), str(r["exams_without_pe"]), str(r["false_positives"]),
            with_interval(r["rate"]),
        ]
        for r in document["by_trait"]
    ]  # fmt: skip
    head: tuple[str, ...] = ("exams without PE that show", "number", "called PE", "share")
    page_part = table(head, cells)
    cells = [
        [
            escape(r["cause"]), str(r["false_positives"]),
            with_interval(r["share_of_false_positives"]),
            with_interval(r["share_of_all_without_pe"]),
        ]
        for r in document["by_place"]
    ]  # fmt: skip
    if cells:
        head = ("the surest slice's heatmap points at", "false positives", "share of these",
                "control: share of all without PE")  # fmt: skip
        page_part += table(head, cells)
    return page_part


def localisation_table(document: Mapping[str, Any]) -> str:
    """Peaks of heatmaps in or near a clot, beside the controls."""
    names = {
        "all": "all",
        "small": f"under {document['small_below_mm2']:g} mm² of clot on the slice",
        "large": f"{document['small_below_mm2']:g} mm² and more",
    }
    rows = [
        [
            escape(words),
            str(document[key]["slices"]),
            str(document[key]["exams"]),
            with_interval(document[key]["heatmap"]),
            with_interval(document[key]["image_centre"]),
            with_interval(document[key]["chance"]),
            number(document[key]["median_distance_mm"], 1),
        ]
        for key, words in names.items()
    ]
    head = ("key slices", "slices", "exams", "heatmap", "control: image centre",
            "control: chance in the body", "median distance, mm")  # fmt: skip
    return table(head, rows)


def seeds_table(published: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> str:
    """The sources' own figures with ours below them."""
    keys = ("auc", "sensitivity", "specificity", "ppv", "f1", "accuracy", "score")
    rows = []
    for row in (*published, *ours):
        figures = row["figures"]
        other = "; ".join(
            f"{k.removeprefix('auc:').replace('_', ' ')} {v:.3f}"
            for k, v in figures.items()
            if k.startswith("auc:") and v is not None
        )
        words = "; ".join(w for w in (f"AUC: {other}" if other else "", row["note"]) if w)
        cells = [escape(row["source"]), escape(row["system"]), escape(row["spec"]),
                 escape(row["data"]), row["unit"]]  # fmt: skip
        if row in ours:
            cells = [f"<b>{c}</b>" for c in cells]
        cells += [number(figures.get(k)) for k in keys]
        rows.append([*cells, f"<small style='white-space:normal'>{escape(words)}</small>"])
    head = ("source", "system", "spec here", "data", "unit", *keys, "more")
    return table(head, rows, left=5)


def comparison_table(document: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Paired differences of two bundles."""
    rows = [
        [
            escape(names.get(r["label"], r["label"])),
            escape(r["figure"]),
            with_interval(r),
            number(r["p"], 4),
            number(r["p_holm"], 4),
            escape(r["method"]),
        ]
        for r in document["differences"]
    ]
    head = ("label", "figure", "first − second", "p", "p (Holm)", "method")
    return table(head, rows, left=2)


def case_section(
    *, title: str, facts: Sequence[tuple[str, str]], picture_png: bytes, scan_svg: bytes
) -> str:
    """One exam of the gallery."""
    words = " · ".join(f"{escape(k)}: {escape(v)}" for k, v in facts if v)
    return (
        f"<h3>{escape(title)}</h3><p><small style='white-space:normal'>{words}</small></p>"
        + picture(
            picture_png, "png", "Above plain, below with heatmap; + its peak; cyan: clot mask"
        )
        + picture(scan_svg, "svg+xml", "Along the scan; triangles mark the slices above")
    )


def use_banner(intended_use: str | None) -> str:
    """What the weights are for, on every report."""
    try:
        words = INTENDED_USE_WORDS[IntendedUse(intended_use or "")]
    except ValueError:
        words = "a table of predictions whose model is not known"
    return f'<p class="use"><b>Intended use: {escape(words)}.</b> {escape(NOTICE)}</p>'


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page from (heading, HTML) sections; a section without content is left out."""
    body = "".join(f"<h2>{escape(h)}</h2>{c}" if h else c for h, c in sections if c)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>"
        f"<h1>{escape(title)}</h1>{body}<p><small style='white-space:normal'>"
        f"{escape(_NOTE_WORDS)}</small></p></body></html>\n"
    )
