"""The bundle that serves by default: what it says it is, and what it says of the samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pe_triage.cli import main
from pe_triage.domain import IntendedUse
from pe_triage.infer.openvino_runtime import TOLERANCE
from pe_triage.infer.predictor import Predictor
from pe_triage.model.bundle import verify_weights
from pe_triage.model.card import WEIGHTS_NAME, read_card
from pe_triage.resources import demonstration_bundle
from pe_triage.training.demonstration.recipe import SPEC
from pe_triage.training.demonstration.seeds import read_seeds

SAMPLES = Path(__file__).resolve().parents[3] / "sample_dicom"
GOLDEN = Path(__file__).with_name("demonstration.json")
"""Probabilities of the samples when the bundle was made; written anew only with a new bundle."""
MOST_BYTES = 25e6


def test_it_says_what_it_is() -> None:
    path = demonstration_bundle()
    card = read_card(path)
    verify_weights(path, card)
    assert (path / WEIGHTS_NAME).stat().st_size <= MOST_BYTES
    assert card.intended_use is IntendedUse.DEMONSTRATION
    assert card.calibrated
    assert card.spec == SPEC
    parts = read_seeds().parts
    for words in ("phantoms only", "no image of a patient", "masks", str(parts["exams"].count)):
        assert words in card.training_data


def test_openvino_serves_it_as_pytorch_does() -> None:
    predictor = Predictor(demonstration_bundle(), "cpu", runtime="openvino", threads=1)
    difference = predictor.runtime.info.difference
    assert difference is not None
    assert difference <= TOLERANCE


@pytest.mark.parametrize("name", ["acute-bilateral-pe", "negative", "poor-contrast"])
def test_golden_answers_of_the_samples(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(SAMPLES / name)
    assert main(["analyze", folder, "--out", str(tmp_path / "out"), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert document["model"]["sha256"] == read_card(demonstration_bundle()).sha256
    assert document["outcome"] == expected["outcome"]
    assert document["pe_probability"] == pytest.approx(expected["pe_probability"], abs=1e-3)
    assert document["exam"] == pytest.approx(expected["exam"], abs=1e-3)
    slices = [row["probability"] for row in document["slices"]]
    assert slices == pytest.approx(expected["slices"], abs=1e-3)
