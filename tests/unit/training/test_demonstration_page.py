"""docs/demonstration.md holds the figures of the reports beside it, and they are of this bundle."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pe_triage.model.card import read_card
from pe_triage.model.encoders import make_encoder
from pe_triage.phantom import generate_study
from pe_triage.phantom.effects import Habitus
from pe_triage.phantom.study import field_of_view_mm
from pe_triage.resources import demonstration_bundle
from pe_triage.training.demonstration.seeds import read_seeds

DOCS = Path(__file__).resolve().parents[3] / "docs"
REPORTS = DOCS / "demonstration"
PARTS = {"validation": "validation", "standard": "test-standard", "hard": "test-hard"}


def _script() -> ModuleType:
    path = DOCS / "make_demonstration.py"
    spec = importlib.util.spec_from_file_location("make_demonstration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_reports_say() -> None:
    written = (DOCS / "demonstration.md").read_text(encoding="utf-8")
    assert written == _script().make(), "run: python docs/make_demonstration.py"


def _report(name: str) -> dict[str, Any]:
    text = (REPORTS / f"{name}.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def test_each_report_is_of_the_bundle_that_is_shipped() -> None:
    """A test part is looked at once, when the bundle that it judges is final."""
    sha256 = read_card(demonstration_bundle()).sha256
    for name, part in PARTS.items():
        if name == "validation" or (REPORTS / f"{name}.json").exists():
            report = _report(name)
            assert report["model"]["sha256"] == sha256
            assert report["data"]["exams"] == read_seeds().parts[part].count
            assert report["data"]["skipped"] == {}


def test_the_bundle_that_is_shipped_was_calibrated_on_the_validation_part() -> None:
    fitted = _report("validation")["calibration_fit"]
    assert fitted == read_card(demonstration_bundle()).metrics["calibration"]
    assert fitted["studies"] == read_seeds().parts["validation"].count


def test_a_heatmap_cell_is_no_larger_than_12_mm_whatever_body_is_drawn() -> None:
    spec = read_card(demonstration_bundle()).spec
    step = make_encoder(spec).grid.step
    body = Habitus()
    for scale, fat_mm, cell_mm in (
        (body.scale.low, body.fat_mm.low, 7.7),
        (body.scale.high, body.fat_mm.high, 12.0),
    ):
        assert field_of_view_mm(fat_mm, scale) * step / spec.size == pytest.approx(
            cell_mm, abs=0.05
        )
        assert f"{cell_mm}" in (DOCS / "demonstration.md").read_text(encoding="utf-8")
    drawn = generate_study(1, "standard", size=64, n_slices=8)
    whole_mm = field_of_view_mm(drawn.drawn["fat_mm"], drawn.drawn["body_scale"])
    assert drawn.spacing_mm[2] * 64 == pytest.approx(whole_mm, abs=1)
