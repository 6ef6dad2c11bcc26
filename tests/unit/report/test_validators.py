"""Independent judges: dciodvfy, dsrdump and PixelMed's SR validator find nothing wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sr.coding import Code

from pe_triage.domain import ResultSet
from tests.support.peers import require_program
from tests.support.validators import PixelMed, dciodvfy_errors, narrative_of_2022
from tests.unit.report.conftest import EVERYTHING, NAMES, make_scene, renamed, seated

SAMPLES = Path(__file__).resolve().parents[3] / "sample_dicom"


@pytest.fixture(scope="session")
def pixelmed() -> Iterator[PixelMed]:
    """PixelMed's validator, one process for all tests."""
    with PixelMed() as validator:
        yield validator


def write_all(folder: Path, results: ResultSet) -> list[Path]:
    paths = []
    for item in results.objects:
        path = folder / f"{item.label}.dcm"
        path.write_bytes(item.encoded)
        paths.append(path)
    return paths


def distinct(paths: list[Path]) -> list[Path]:
    """Heatmaps differ in pixels only: the first speaks for all."""
    return [path for path in paths if not path.stem.startswith("heatmap-") or "01" in path.stem]


def check_documents(pixelmed: PixelMed, folder: Path, results: ResultSet) -> None:
    """Let PixelMed judge each document of a set."""
    for item in results.objects:
        path = folder / f"{item.label}-judged.dcm"
        if item.label in ("sr", "key-objects"):
            path.write_bytes(item.encoded)
            assert pixelmed.complaints(path) == [], item.label
        elif item.label == "narrative":
            narrative_of_2022(item.encoded).save_as(path)
            assert pixelmed.complaints(path, ("Error", "Warning")) == [], item.label


def test_dciodvfy_finds_no_error(case, tmp_path):
    for path in distinct(write_all(tmp_path, case.results)):
        assert dciodvfy_errors(path) == [], path.stem


def test_dciodvfy_finds_no_error_in_a_rerun(positive, tmp_path):
    scene = positive.scene
    earlier = pydicom.dcmread(BytesIO(positive.results.objects[0].encoded))
    results = scene.build(
        positive.result, study=replace(scene.study, run=2), predecessors=[earlier]
    )
    for path in distinct(write_all(tmp_path, results)):
        assert dciodvfy_errors(path) == [], path.stem


def test_dsrdump_renders_the_report(case, tmp_path):
    result = case.result
    path = write_all(tmp_path, case.results)[0]
    done = subprocess.run(
        [require_program("dsrdump", "dcmtk"), "+U8", "+Pl", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Imaging Measurement Report" in done.stdout
    assert "a negative result does not exclude PE" in done.stdout
    assert result.outcome.value in done.stdout
    if result.reason:
        assert result.reason in done.stdout


@pytest.mark.parametrize("kind", ["POSITIVE", "NOT_EVALUATED"])
def test_headers_of_real_ctpa(scene, tmp_path, real_ct, kind, monkeypatch):
    scene.settings = EVERYTHING
    files = sorted((real_ct / "ctpa_single_images").glob("*.dcm"))
    assert len(files) == 6
    for file in files:
        real = pydicom.dcmread(file, stop_before_pixels=True)
        there, result = seated(scene, real, kind)
        if file == files[1]:  # the captures' headers are the same for all: drawn for one
            monkeypatch.setattr("pe_triage.report.results.build_captures", lambda **_: [])
        results = there.build(result)
        kinds = [o.label for o in results.objects if o.label not in ("summary", "heatmap-01")]
        expected = ["sr", "narrative"]
        if kind == "POSITIVE":
            expected += ["key-objects", "parametric-map"]
        assert kinds == expected
        folder = tmp_path / file.stem
        folder.mkdir()
        for path in write_all(folder, results):
            assert dciodvfy_errors(path) == [], (file.stem, path.stem)
            ds = pydicom.dcmread(path)
            assert ds.PatientName == real.PatientName
            assert ds.StudyDescription == real.StudyDescription
            assert ds.PatientIdentityRemoved == "YES"
            assert not [e for e in ds if e.tag.is_private]
            assert "KVP" not in ds


@pytest.mark.long
@pytest.mark.timeout(300)
def test_pixelmed_finds_no_error(case, tmp_path, pixelmed):
    check_documents(pixelmed, tmp_path, case.results)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_pixelmed_finds_an_error_where_there_is_one(negative, tmp_path, pixelmed):
    # A procedure's code that the context group of this validator's year does not hold.
    settings = replace(
        negative.scene.settings,
        procedure_reported=Code("36147-7", "LN", "CTA Pulmonary arteries"),
    )
    path = write_all(tmp_path, negative.scene.report(negative.result, settings=settings))[0]
    (error,) = pixelmed.complaints(path)
    assert "36147-7" in error


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("placed", [1, 0])
def test_pixelmed_finds_no_error_with_one_place_or_none(scene, tmp_path, placed, pixelmed):
    # Where a report holds one region in all, this validator (20220618) takes every measurement
    # group for a planar one: the outline is the second region.
    result = scene.result(keys=2)
    blank = np.zeros((8, 8), np.float32)
    keys = tuple(
        replace(key, heatmap_yx=key.heatmap_yx if i < placed else blank)
        for i, key in enumerate(result.key_slices)
    )
    path = write_all(tmp_path, scene.report(replace(result, key_slices=keys)))[0]
    assert pixelmed.complaints(path) == []
    assert dciodvfy_errors(path) == []


OUTCOMES = ("POSITIVE", "NEGATIVE", "INDETERMINATE", "NOT_EVALUATED", "RERUN")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("source", range(7))
def test_every_object_of_every_outcome(source, outcome, request, tmp_path, pixelmed):
    """Headers of a phantom (0) and of the six real images, each under names of many alphabets."""
    if source:
        folder = request.getfixturevalue("real_ct") / "ctpa_single_images"
        file = sorted(folder.glob("*.dcm"))[source - 1]
    else:
        file = min((SAMPLES / "acute-bilateral-pe").glob("*.dcm"))
    alphabet = list(NAMES)[(source * len(OUTCOMES) + OUTCOMES.index(outcome)) % len(NAMES)]
    header = renamed(pydicom.dcmread(file, stop_before_pixels=True), alphabet)
    kind = "POSITIVE" if outcome == "RERUN" else outcome
    scene, result = seated(replace(make_scene(), settings=EVERYTHING), header, kind)
    results = scene.build(result)
    if outcome == "RERUN":
        earlier = pydicom.dcmread(BytesIO(results.objects[0].encoded))
        results = scene.build(result, study=replace(scene.study, run=2), predecessors=[earlier])
    for path in distinct(write_all(tmp_path, results)):
        assert dciodvfy_errors(path) == [], (path.stem, alphabet)
        assert str(pydicom.dcmread(path).PatientName) == NAMES[alphabet][1]
    check_documents(pixelmed, tmp_path, results)
