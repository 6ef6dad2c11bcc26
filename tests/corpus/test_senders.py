"""Vendors' headers, transfer syntaxes and the real chests, judged as the node judges them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.cli import main
from pe_triage.cli.analyze import read_folder
from pe_triage.node.selection import select_volume
from pe_triage.phantom import DIALECTS, generate_study, write_study
from pe_triage.receive.contexts import TRANSFER_SYNTAXES
from tests.corpus import recipes
from tests.corpus.test_corpus import CASES, RULES

LOSSY = {"1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.50",
         "1.2.840.10008.1.2.4.51"}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_vendor_s_way_of_writing_gives_the_same_hu(dialect: str, tmp_path: Path) -> None:
    study = generate_study(
        3, "negative", size=recipes.SIZE, slice_spacing_mm=3.0, coverage_mm=recipes.COVERAGE_MM
    )
    written = write_study(study, tmp_path, dialect=DIALECTS[dialect], mask=False)
    selection = select_volume(read_folder(written.dicom_dir), RULES)
    assert selection.volume is not None, selection.choice.reason
    # 12 stored bits and padding outside the circle are all that a vendor may change.
    y, x = np.mgrid[: recipes.SIZE, : recipes.SIZE] - (recipes.SIZE - 1) / 2
    inside = x**2 + y**2 < (recipes.SIZE / 2 - 1) ** 2
    got = np.clip(selection.volume.hu_zyx, -1024, 3071)[:, inside]
    np.testing.assert_array_equal(got, np.clip(study.hu_zyx, -1024, 3071)[:, inside])


def test_the_corpus_holds_every_lossless_transfer_syntax_that_is_accepted() -> None:
    named = {word for case in CASES if case.answer == "corrected" for word in case.recipe.split()}
    assert set(TRANSFER_SYNTAXES) - LOSSY - {recipes.EXPLICIT_LE} <= named


THICK = EligibilityRules(max_slice_thickness_mm=10, max_slice_spacing_mm=10, min_slices=10)
SOUND = replace(THICK, min_vessel_hu=0.0, good_vessel_hu=0.0)


@pytest.mark.parametrize(
    ("folder", "rules", "kernel", "rule"),
    [
        # The first reason, then what each next one would be if the site allowed the last.
        ("chest_siemens_b40f", EligibilityRules(), True, "slice_thickness"),
        ("chest_siemens_b40f", THICK, True, "contrast"),
        ("chest_siemens_b40f", SOUND, True, None),
        ("chest_siemens_b70f", EligibilityRules(), True, "slice_thickness"),
        ("chest_siemens_b70f", SOUND, True, "kernel"),
        ("chest_siemens_b70f", SOUND, False, "grain"),
        ("chest_siemens_b40f", SOUND, False, None),
        ("chest_philips_b", EligibilityRules(), True, "slice_thickness"),
        ("chest_philips_b", THICK, True, "contrast"),
        ("chest_philips_b", SOUND, True, None),
    ],
)
def test_real_chests_are_refused_for_one_reason_after_the_other(
    real_ct: Path, folder: str, rules: EligibilityRules, kernel: bool, rule: str | None
) -> None:
    held = read_folder(real_ct / folder)
    if not kernel:
        held = [replace(i, facts=replace(i.facts, kernel=())) for i in held]
    selection = select_volume(held, rules)
    (verdict,) = selection.choice.verdicts
    assert verdict.rule == rule
    assert (selection.volume is None) is (rule is not None)


def test_explain_prints_the_verdict_of_headers_and_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    recipe = "set SliceThickness 8 || nothing || native 60; set ConvolutionKernel XYZ || keep 0"
    recipes.write(recipes.series_of(recipe), folder)
    config = tmp_path / "rules.toml"
    config.write_text("[eligibility]\nmin_matrix = 96\nmax_pixel_spacing_mm = 5.0\n")
    assert main(["analyze", str(folder), "--explain", "--config", str(config)]) == 0
    text = capsys.readouterr().out
    assert "refused by slice_thickness: slice thickness 8.0 mm > 3.0 mm" in text
    assert "what to do: Send the thin reconstruction." in text
    assert "eligible (chosen)" in text
    assert "refused by contrast: too little contrast" in text
    assert "measured: air -1000 HU" in text
    assert "study: analysed: best of 2 eligible series: soft kernel B30f" in text
    assert main(["analyze", str(folder), "--explain", "--json", "--config", str(config)]) == 0
    (study,) = json.loads(capsys.readouterr().out)["studies"]
    verdicts = {s["series_uid"]: s for s in study["series"]}
    assert [s["rule"] for s in study["series"]] == ["slice_thickness", None, "contrast", "slices"]
    assert verdicts[study["series_uid"]]["chosen"] is True
    assert verdicts[study["series_uid"]]["measures"]["vessel_hu"] > 200
