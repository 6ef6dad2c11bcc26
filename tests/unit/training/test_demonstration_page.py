"""docs/demonstration.md holds the figures of the reports beside it, and they are of this bundle."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from pe_triage.model.card import read_card
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
