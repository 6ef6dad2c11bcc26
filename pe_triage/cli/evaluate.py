"""``pe-triage evaluate``: a bundle's figures on labelled data."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress


@click.command(name="evaluate")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--data", "data_dir", required=True, type=click.Path(path_type=Path),
    help="RSPECT-layout tree (train.csv, train/) or output of `pe-triage phantom`.",
)  # fmt: skip
@click.option(
    "--out", required=True, type=click.Path(path_type=Path),
    help="Directory for report.html, report.json, predictions.npz, submission.csv.",
)  # fmt: skip
@click.option("--split", type=click.Path(path_type=Path), help="File of splits (JSON, CSV, list).")
@click.option("--part", help="Part of the split.  [default: test]")
@click.option(
    "--compare", multiple=True, type=click.Path(path_type=Path),
    help="Another bundle or table of predictions to set beside it; repeatable.",
)  # fmt: skip
@click.option(
    "--predictions", type=click.Path(path_type=Path),
    help="Read predictions (.npz, or the challenge's .csv) in place of running a bundle.",
)  # fmt: skip
@click.option(
    "--calibrate", type=click.Path(path_type=Path),
    help="Fit temperatures and thresholds on these studies; write the calibrated bundle here.",
)  # fmt: skip
@click.option(
    "--aim", "aim_text",
    help="Aim of the PE threshold with --calibrate: sensitivity>=X, specificity>=X or youden.  "
    "[default: youden where the spec's source chose so, else sensitivity>=0.95]",
)  # fmt: skip
@click.option("--resamples", type=click.IntRange(100, 100_000), default=1000, show_default=True,
              help="Bootstrap resamples of patients.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the resamples.")
@click.option("--gallery", type=click.IntRange(0, 50), default=4, show_default=True,
              help="Exams of each kind in the gallery of heatmaps.")  # fmt: skip
@click.option("--heatmaps/--no-heatmaps", default=True, show_default=True,
              help="Hold heatmaps against masks and causes.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--runtime", type=click.Choice(["auto", "pytorch", "openvino"]), default="auto",
              show_default=True, help="What runs stage 1.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True,
              help="Threads of torch and of decoding.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report's JSON on stdout.")
def evaluate(
    bundle: Path | None,
    data_dir: Path,
    out: Path,
    split: Path | None,
    part: str | None,
    compare: tuple[Path, ...],
    predictions: Path | None,
    calibrate: Path | None,
    aim_text: str | None,
    resamples: int,
    seed: int,
    gallery: int,
    heatmaps: bool,
    device: str,
    runtime: str,
    threads: int,
    as_json: bool,
) -> None:
    """Evaluate BUNDLE on labelled data and write a report that opens offline.

    A run that was stopped goes on where it was when it is started again with the same --out.
    """
    from pe_triage.training.calibration import Aim
    from pe_triage.training.evaluate import Options
    from pe_triage.training.evaluate import evaluate as run

    options = Options(
        split=split,
        part=part,
        compare=compare,
        predictions=predictions,
        resamples=resamples,
        seed=seed,
        device=device,
        runtime=runtime,
        threads=threads,
        gallery=gallery,
        heatmaps=heatmaps,
        calibrate=calibrate,
        aim=None if aim_text is None else Aim.parse(aim_text),
    )
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("studies", total=None)
        found = run(
            bundle, data_dir, out, options, now=datetime.now(UTC),
            progress=lambda _uid: bar.advance(task),
        )  # fmt: skip
    if as_json:
        click.echo(found.json_path.read_text(encoding="utf-8"), nl=False)
        return
    _print(found.document)
    click.echo(f"report: {found.html_path}")
    if calibrate is not None:
        click.echo(f"calibrated bundle: {calibrate}")


def _print(document: object) -> None:
    """Say the few figures that a person looks for first."""
    assert isinstance(document, dict)
    data = document["data"]
    click.echo(
        f"{data['exams']} exams ({data['exams_with_pe']} with PE) of {data['patients']} patients, "
        f"{len(data['skipped'])} left out"
    )
    for uid, reason in list(data["skipped"].items())[:5]:
        click.echo(f"  left out: study {uid}: {reason}", err=True)
    for label in ("pe", "pe_present_on_image"):
        area = document["labels"][label]["auc"]
        if area["value"] is not None:
            limits = "" if area["low"] is None else f" [{area['low']:.3f}, {area['high']:.3f}]"
            click.echo(f"AUC {label}: {area['value']:.3f}{limits}")
    if document["challenge"] is not None:
        click.echo(f"challenge score: {document['challenge']['score']['value']:.4f}")
    click.echo(f"exams that break a label rule: {document['violations']['exams']}")
    for warning in document["warnings"]:
        click.echo(f"note: {warning}", err=True)
