"""Independent judges: dciodvfy, dsrdump and PixelMed's SR validator find nothing wrong."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pe_triage.domain import PatientIdentity
from pe_triage.report import ReportSettings
from pe_triage.report.study import StudyContext
from tests.support.peers import missing, require_program

DEBIAN_PACKAGE = {"dciodvfy": "dicom3tools", "dsrdump": "dcmtk", "java": "default-jre-headless"}


def tool(name: str) -> str:
    return require_program(name, DEBIAN_PACKAGE[name])


def write_all(folder: Path, results) -> list[Path]:
    paths = []
    for item in results.objects:
        path = folder / f"{item.label}.dcm"
        path.write_bytes(item.encoded)
        paths.append(path)
    return paths


def dciodvfy_errors(path: Path) -> list[str]:
    done = subprocess.run(
        [tool("dciodvfy"), str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    errors = [line for line in lines if line.startswith("Error")]
    assert done.returncode == 0 or errors
    return errors


def pixelmed_errors(path: Path, words: tuple[str, ...] = ("Error",)) -> list[str]:
    jar = Path("/usr/share/java/pixelmed.jar")
    if not jar.is_file():
        missing("PixelMed's validator", "libpixelmed-java")
    done = subprocess.run(
        [
            tool("java"),
            "-Djdk.xml.xpathTotalOpLimit=0", "-Djdk.xml.xpathExprOpLimit=0",
            "-Djdk.xml.xpathExprGrpLimit=0", "-cp", str(jar),
            "com.pixelmed.validate.DicomSRValidator", str(path),
        ],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert "IOD validation complete" in text
    return [line for line in text.splitlines() if line.startswith(words)]


def distinct(paths: list[Path]) -> list[Path]:
    """Heatmaps differ in pixels only: the first speaks for all."""
    return [path for path in paths if not path.stem.startswith("heatmap-") or "01" in path.stem]


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
        [tool("dsrdump"), "+U8", "+Pl", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Imaging Measurement Report" in done.stdout
    assert "a negative result does not exclude PE" in done.stdout
    assert result.outcome.value in done.stdout
    if result.reason:
        assert result.reason in done.stdout


@pytest.mark.long
@pytest.mark.timeout(300)
def test_pixelmed_finds_no_error(case, tmp_path):
    for path in write_all(tmp_path, case.results):
        if path.stem in ("sr", "key-objects"):
            assert pixelmed_errors(path) == [], path.stem


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("placed", [1, 0])
def test_pixelmed_finds_no_error_with_one_place_or_none(scene, tmp_path, placed):
    # Where a report holds one region in all, this validator (20220618) takes every measurement
    # group for a planar one: the outline is the second region.
    result = scene.result(keys=2)
    blank = np.zeros((8, 8), np.float32)
    keys = tuple(
        replace(key, heatmap_yx=key.heatmap_yx if i < placed else blank)
        for i, key in enumerate(result.key_slices)
    )
    path = write_all(tmp_path, scene.report(replace(result, key_slices=keys)))[0]
    assert pixelmed_errors(path) == []
    assert dciodvfy_errors(path) == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_pixelmed_knows_every_item_of_the_narrative(case, tmp_path):
    # The validator holds the codes of 2022 for title and sections; under its own ones the whole
    # document must be known to TID 2000: neither an error nor "not in template".
    (item,) = (o for o in case.results.objects if o.label == "narrative")
    ds = pydicom.dcmread(BytesIO(item.encoded))
    older = {
        "24627-2": ("18748-4", "LN"), "55111-9": ("121064", "DCM"),
        "59776-5": ("121070", "DCM"), "19005-8": ("121072", "DCM"),
    }  # fmt: skip
    for holder in (ds, *ds.ContentSequence):
        code = holder.ConceptNameCodeSequence[0]
        if code.CodeValue in older:
            code.CodeValue, code.CodingSchemeDesignator = older.pop(code.CodeValue)
    assert not older
    ds.ConceptNameCodeSequence[0].CodeMeaning = "Diagnostic Imaging Report"
    path = tmp_path / "narrative.dcm"
    ds.save_as(path)
    assert pixelmed_errors(path, ("Error", "Warning")) == []


@pytest.mark.parametrize("kind", ["POSITIVE", "NOT_EVALUATED"])
def test_headers_of_real_ctpa(scene, tmp_path, real_ct, kind, monkeypatch):
    scene.settings = ReportSettings(narrative=True, key_objects=True, parametric_map=True)
    files = sorted((real_ct / "ctpa_single_images").glob("*.dcm"))
    assert len(files) == 6
    for file in files:
        real = pydicom.dcmread(file, stop_before_pixels=True)
        uid = str(real.SOPInstanceUID)
        study = StudyContext(
            study_uid=str(real.StudyInstanceUID), run=1, manifest_digest="ef" * 32,
            identity=PatientIdentity(patient_id=str(real.PatientID)),
        )  # fmt: skip
        result = scene.result(kind, keys=1)
        uids = list(scene.volume.sop_instance_uids)
        if result.key_slices:
            uids[result.key_slices[0].z] = uid
            key = replace(result.key_slices[0], sop_instance_uid=uid)
            result = replace(result, key_slices=(key,), sop_instance_uids=tuple(uids))
        result = replace(result, series_uid=str(real.SeriesInstanceUID))
        volume = replace(
            scene.volume,
            sop_instance_uids=tuple(uids),
            hu_zyx=np.broadcast_to(np.int16(40), (len(uids), real.Rows, real.Columns)),
        )
        if file == files[1]:  # the captures' headers are the same for all: drawn for one
            monkeypatch.setattr("pe_triage.report.results.build_captures", lambda **_: [])
        results = scene.build(result, study=study, headers={uid: real}, volume=volume)
        kinds = [o.label for o in results.objects if o.label not in ("summary", "heatmap-01")]
        assert (
            kinds == ["sr", "narrative", "key-objects", "parametric-map"][: 2 * (len(kinds) // 2)]
        )
        assert (len(kinds) == 4) is (kind == "POSITIVE")
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
