"""``pe-triage bundle``: what a model bundle is, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pe_triage.domain import INTENDED_USE_WORDS
from pe_triage.model.card import BundleCard, read_card


@click.group()
def bundle() -> None:
    """Inspect and verify model bundles."""


@bundle.command()
@click.argument("path", type=click.Path(path_type=Path))
def verify(path: Path) -> None:
    """Load the bundle at PATH: hash, card, every tensor's name, shape and values."""
    from pe_triage.model.bundle import load_bundle

    card = load_bundle(path).card
    click.echo(f"{card.name} {card.version} is sound (model {card.sha256})")


@bundle.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def inspect(path: Path, as_json: bool) -> None:
    """Print the card of the bundle at PATH; its weights are not read."""
    card = read_card(path)
    if as_json:
        document = {**card.to_json(), "sha256": card.sha256}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for key, value in _lines(card):
        click.echo(f"{key:<14} {value}")


@bundle.command()
@click.option(
    "--out", required=True, type=click.Path(path_type=Path),
    help="Directory of the run, some 20 GB; started again with the same, it goes on.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True,
    help="Processes that draw phantoms.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto", show_default=True,
    help="Of stage 1's training; auto is bf16 where the processor has the instructions.",
)  # fmt: skip
def demonstration(out: Path, workers: int, precision: str) -> None:
    """Make the bundled demonstration model again, from seeds to calibrated bundles.

    Phantoms only, and for phantoms only; hours on two cores. docs/training.md says more.
    """
    from datetime import UTC, datetime

    import torch

    from pe_triage.training.demonstration.calibrate import calibrate_all
    from pe_triage.training.demonstration.recipe import Amounts, Recipe, make_demonstration
    from pe_triage.training.demonstration.seeds import read_seeds
    from pe_triage.training.loop import processor_precision
    from pe_triage.training.reporting import Reporter

    recipe = Recipe(
        seeds=read_seeds(), out=out, amounts=Amounts(), workers=workers,
        precision={"bf16": torch.bfloat16, "fp32": torch.float32}.get(
            precision, processor_precision()
        ),
    )  # fmt: skip

    def now() -> datetime:
        return datetime.now(UTC)

    with Reporter(speaks=True) as reporter:
        bundles = make_demonstration(recipe, reporter, now=now)
        finished = calibrate_all(recipe, bundles, reporter, now=now)
    for path in finished.values():
        click.echo(path)


def _lines(card: BundleCard) -> list[tuple[str, str]]:
    spec = card.spec
    windows = ", ".join(f"{level:g}/{width:g}" for level, width in spec.windows)
    raised = {k: v for k, v in card.thresholds.items() if v != 0.5}
    thresholds = ", ".join(f"{k} {v:.4g}" for k, v in raised.items())
    metrics = ", ".join(f"{k} {v}" for k, v in card.metrics.items())
    return [
        ("name", f"{card.name} {card.version}"),
        ("intended use", f"{card.intended_use.value} ({INTENDED_USE_WORDS[card.intended_use]})"),
        ("training data", card.training_data),
        ("network", f"{spec.name}: {spec.backbone}, {spec.sequence}, {spec.pooling} pooling"),
        ("input", f"{spec.size} x {spec.size}, windows (level/width HU) {windows}"),
        ("thresholds", f"{thresholds}; others 0.5" if thresholds else "0.5 for every label"),
        ("calibrated", "yes" if card.calibrated else "no: read probabilities as scores"),
        ("reference", _reference(card)),
        ("metrics", metrics or "none"),
        ("model sha256", card.sha256),
        ("weights sha256", card.weights_sha256),
    ]


def _reference(card: BundleCard) -> str:
    if card.reference is None:
        return "none: exams unlike those it was calibrated on are not told"
    return f"made of {card.reference.get('exams')} exams"
