"""Write docs/demonstration.md from the reports beside it: ``python docs/make_demonstration.py``.

The figures on the page are read from ``docs/demonstration/*.json``, which `pe-triage evaluate`
wrote; a test holds page and reports together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pe_triage.training.demonstration.seeds import Seeds, read_seeds

HERE = Path(__file__).resolve().parent
REPORTS = HERE / "demonstration"
PAGE = HERE / "demonstration.md"
EXAM_LABELS = (
    "negative_exam_for_pe", "indeterminate", "chronic_pe", "acute_and_chronic_pe", "central_pe",
    "leftsided_pe", "rightsided_pe", "rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1",
)  # fmt: skip


def number(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Write a figure with its interval."""
    if value is None or value.get("value") is None:
        return "none"
    text = f"{value['value']:.{digits}f}"
    if value.get("low") is None:
        return text
    return f"{text} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table."""
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def goal(value: float | None, least: float) -> str:
    """Say whether a goal of at least so much is reached."""
    if value is None:
        return "not measurable"
    return "reached" if value >= least else "**missed**"


def goals(report: Mapping[str, Any], exam_auc: float, *, all_goals: bool) -> str:
    """Write the table of goals, asked for before the first training run, and what came out."""
    labels = report["labels"]
    pe, image = labels["pe"], labels["pe_present_on_image"]
    rows = [
        ["exam AUC, PE", f"≥ {exam_auc:.2f}", number(pe["auc"]), goal(pe["auc"]["value"], exam_auc)]
    ]
    if all_goals:
        rows.append(
            ["slice AUC", "≥ 0.95", number(image["auc"]), goal(image["auc"]["value"], 0.95)]
        )
        if (alone := report.get("slice_position_alone")) is not None:
            rows.append(["slice AUC of the position in the scan alone", "", number(alone), ""])
        ece = pe["calibration"]["ece"]
        said = "reached" if ece["value"] <= 0.05 else "**missed**"
        rows.append(["calibration error (ECE), PE", "≤ 0.05", number(ece), said])
        for name in EXAM_LABELS:
            area = labels[name]["auc"]
            rows.append([f"AUC, `{name}`", "≥ 0.90", number(area), goal(area["value"], 0.90)])
    else:
        rows.append(["slice AUC", "none set", number(image["auc"]), ""])
    return table(["what", "goal", "measured (95 % interval)", ""], rows)


def operating_point(report: Mapping[str, Any]) -> str:
    """Write sensitivity and specificity at the stored threshold."""
    rows = []
    for key, words in (("pe", "exam"), ("pe_present_on_image", "slice")):
        at = report["labels"][key]["thresholds"]["stored"]
        rows.append(
            [words, f"{at['threshold']:.4f}", *(number(at[k]) for k in
             ("sensitivity", "specificity", "ppv", "npv"))]
        )  # fmt: skip
    return table(["unit", "threshold", "sensitivity", "specificity", "PPV", "NPV"], rows)


def by_clot(report: Mapping[str, Any]) -> str:
    """Write sensitivity and AUC by what the clots are."""
    rows = []
    for kind, parts in report["subgroups"]["clot"].items():
        rows += [
            [kind, part["part"], str(part["exams"]), number(part["sensitivity"]),
             number(part["auc_against_all_without_pe"])]
            for part in parts
        ]  # fmt: skip
    return table(["by", "part", "exams", "sensitivity", "AUC against all without PE"], rows)


def false_positives(report: Mapping[str, Any]) -> str:
    """Write what exams without PE showed, and how many of them were called PE."""
    rows = [
        [row["trait"], str(row["exams_without_pe"]), str(row["false_positives"]),
         number(row["rate"])]
        for row in report["false_positives"]["by_trait"]
    ]  # fmt: skip
    return table(["exams without PE that show", "exams", "called PE", "share"], rows)


def by_place(report: Mapping[str, Any]) -> str:
    """Write what lay where the heatmap of a false positive peaked."""
    rows = [
        [row["cause"], str(row["false_positives"]), number(row["share_of_false_positives"]),
         number(row["share_of_all_without_pe"])]
        for row in report["false_positives"]["by_place"]
    ]  # fmt: skip
    return table(
        ["at the heatmap's peak lay", "false positives", "share of them",
         "share of all exams without PE"], rows,
    )  # fmt: skip


def localisation(report: Mapping[str, Any]) -> str:
    """Write hits of the heatmaps beside those of the controls."""
    found = report["localisation"]
    words = {"all": "all", "small": f"clot under {found['small_below_mm2']:g} mm²",
             "large": f"clot of {found['small_below_mm2']:g} mm² and more"}  # fmt: skip
    rows = [
        [words[k], str(found[k]["slices"]), str(found[k]["exams"]), number(found[k]["heatmap"]),
         number(found[k]["image_centre"]), number(found[k]["chance"]),
         _plain(found[k]["median_distance_mm"])]
        for k in words
    ]  # fmt: skip
    return table(
        ["true-positive key slices", "slices", "exams", "heatmap", "image centre", "chance",
         "median distance, mm"], rows,
    )  # fmt: skip


def comparison(report: Mapping[str, Any], *, score: bool = True) -> str:
    """Write attention against each other system, paired; areas alone without `score`."""
    rows = []
    name = str(report["model"]["name"])
    for other in report["comparisons"]:
        for row in other["differences"]:
            if row["figure"] not in (("auc", "score") if score else ("auc",)) or (
                row["label"] not in ("pe", "pe_present_on_image", "challenge")
            ):
                continue
            rows.append(
                [f"{name} - {other['second']['name']}", f"{row['label']} {row['figure']}",
                 number(row, 4), f"{row['p_holm']:.3g}" if row["p_holm"] is not None else "none"]
            )  # fmt: skip
    return table(["pair", "figure", "first minus second (95 %)", "p (Holm)"], rows)


def poolings(standard: Mapping[str, Any], taught: Mapping[str, Any] | None) -> list[str]:
    """Write the paired differences between attention, mean pooling and CNN-max."""
    blocks = ["### Attention, mean pooling, CNN-max"]
    if taught is not None:
        blocks += [
            "The bundle's stage 2 was taught on 2,380 exams. To compare poolings and nothing else, "
            "attention and mean pooling were taught anew by the same recipe on the first 300 exams "
            "(225 to learn from), over the same encoder: the names with `-300`. CNN-max has no "
            "stage 2. `python -m tests.benchmarks.demonstration` does it all.",
            comparison(taught),
            "The bundle itself beside these; it alone is calibrated, so only areas under curves "
            "are set side by side:",
        ]
    return [*blocks, comparison(standard, score=taught is None)]


def tested(
    seeds: Seeds, standard: Mapping[str, Any], taught: Mapping[str, Any] | None
) -> list[str]:
    """Write what came out on the test part of preset standard."""
    found = standard["data"]
    blocks = [
        f"## Preset `standard`: {found['exams']} phantoms of unseen seeds",
        f"{found['exams_with_pe']} with PE, {found['exams_indeterminate']} indeterminate, "
        f"{found['slices']} slices of which {found['slices_with_pe']} with PE; 256 × 256, every "
        f"{seeds.slice_spacing_mm:g} mm. {len(found['skipped'])} left out.",
        goals(standard, 0.97, all_goals=True),
        f"Challenge score: {number(standard['challenge']['score'], 4)}. Exams whose outputs break "
        f"a label rule: {standard['violations']['exams']}.",
        "### At the stored thresholds",
        operating_point(standard),
        "### By size and place of the clots",
        by_clot(standard),
        "### False positives",
        false_positives(standard),
        by_place(standard),
        "### Heatmaps",
        "A peak counts where it lies in a clot or within "
        f"{standard['localisation']['reach_mm']:g} mm of one. The goal is 0.80 of all, beside "
        f"controls: {goal(standard['localisation']['all']['heatmap']['value'], 0.80)}.",
        localisation(standard),
    ]
    if standard["comparisons"]:
        blocks += poolings(standard, taught)
    return blocks


def tested_hard(hard: Mapping[str, Any]) -> list[str]:
    """Write what came out on the test part of preset hard."""
    return [
        f"## Preset `hard`: {hard['data']['exams']} phantoms of unseen seeds",
        goals(hard, 0.90, all_goals=False),
        operating_point(hard),
        by_clot(hard),
    ]


def validated(report: Mapping[str, Any]) -> list[str]:
    """Write the figures on the phantoms that temperatures and thresholds were chosen on."""
    found = report["data"]
    blocks = [
        f"## On the validation phantoms: {found['exams']} of preset `standard`",
        f"{found['exams_with_pe']} with PE, {found['exams_indeterminate']} indeterminate, "
        f"{found['slices']} slices of which {found['slices_with_pe']} with PE. **Temperatures and "
        "thresholds were chosen on these very phantoms**, so calibration error, sensitivity and "
        "specificity flatter here; no weights were.",
        goals(report, 0.97, all_goals=True),
        operating_point(report),
        by_clot(report),
    ]
    if report["comparisons"]:
        blocks += ["### Attention, mean pooling, CNN-max", comparison(report)]
    return blocks


def page(seeds: Seeds, reports: Mapping[str, Mapping[str, Any]], remarks: str) -> str:
    """Return the page; test parts that were not looked at yet are said to be so."""
    model = reports["validation"]["model"]
    parts = seeds.parts
    blocks = [
        "# The demonstration model",
        "The bundle that pe-triage uses where no other is configured. It was trained **on phantoms "
        "only** and its card says `intended_use: demonstration on phantoms; no clinical use`, as "
        "does every result. On images that are not marked as Quality Control Image its outcome is "
        "INDETERMINATE. **No figure on this page says anything about patients.**",
        f"`{model['name']} {model['version']}`.",
        "## How it was made",
        "```\npe-triage bundle demonstration --out RUN\n```",
        f"draws {parts['specimens'].count} specimens and {parts['exams'].count} exams, teaches the "
        "encoder (a ResNet-18 whose stride-16 map is joined to that of stride 8, on slices of 320 "
        "× 320) first on patches around vessels, then on crops of the chest, then on whole slices; "
        "teaches stage 2 on exams that stage 1 never saw; and chooses temperatures and thresholds "
        f"on {parts['validation'].count} validation phantoms. **Voxel masks of clots** taught "
        "stage 1: slice labels alone teach little in the time. The seeds of every part stand in "
        "`pe_triage/training/demonstration/seeds.json`; the phantom's physical parameters "
        "([phantom.md](phantom.md)) were frozen before the first training run. Heatmap cells "
        "measure 7.7 to 12.0 mm, by the field of view.",
        remarks.strip(),
    ]
    if "standard" in reports:
        blocks += tested(seeds, reports["standard"], reports.get("pooling"))
    if "hard" in reports:
        blocks += tested_hard(reports["hard"])
    if "standard" not in reports:
        blocks += [
            "## Test parts",
            f"{parts['test-standard'].count} phantoms of preset `standard` and "
            f"{parts['test-hard'].count} of preset `hard` are set aside. **They have not been "
            "looked at yet.**",
        ]
    blocks += validated(reports["validation"])
    return "\n\n".join(blocks) + "\n"


def make() -> str:
    """Return the page from the files beside this script."""
    reports = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(REPORTS.glob("*.json"))
    }
    remarks = (REPORTS / "remarks.md").read_text(encoding="utf-8")
    return page(read_seeds(), reports, remarks)


if __name__ == "__main__":
    PAGE.write_text(make(), encoding="utf-8")
