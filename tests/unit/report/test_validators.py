"""Independent judges: dciodvfy, dsrdump and PixelMed's SR validator find nothing wrong."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from pe_triage.domain import PatientIdentity
from pe_triage.report.study import StudyContext

DEBIAN_PACKAGE = {"dciodvfy": "dicom3tools", "dsrdump": "dcmtk", "java": "default-jre-headless"}


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian package {DEBIAN_PACKAGE[name]})")
    return found


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


def pixelmed_errors(path: Path) -> list[str]:
    jar = Path("/usr/share/java/pixelmed.jar")
    if not jar.is_file():
        pytest.skip("PixelMed's validator is not installed (Debian package libpixelmed-java)")
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
    return [line for line in text.splitlines() if line.startswith("Error")]


def test_dciodvfy_finds_no_error(case, tmp_path):
    # Heatmaps differ in pixels only: the first speaks for all.
    for path in write_all(tmp_path, case.results)[:3]:
        assert dciodvfy_errors(path) == []


def test_dciodvfy_finds_no_error_in_a_rerun(scene, tmp_path):
    earlier = pydicom.dcmread(BytesIO(scene.report(scene.result()).objects[0].encoded))
    results = scene.build(scene.result(), study=replace(scene.study, run=2), predecessors=[earlier])
    for path in write_all(tmp_path, results)[:3]:
        assert dciodvfy_errors(path) == []


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
    # Not for exactly one key slice: where a report holds one SCOORD in all, this validator
    # (20220618) takes every measurement group for TID 1410 and misses coordinates in the others.
    assert len(case.result.key_slices) != 1
    assert pixelmed_errors(write_all(tmp_path, case.results)[0]) == []


@pytest.mark.parametrize("kind", ["POSITIVE", "NOT_EVALUATED"])
def test_headers_of_real_ctpa(scene, tmp_path, real_ct, kind):
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
        volume = replace(scene.volume, sop_instance_uids=tuple(uids))
        results = scene.build(result, study=study, headers={uid: real}, volume=volume)
        folder = tmp_path / file.stem
        folder.mkdir()
        for path in write_all(folder, results):
            if path.stem == "sr" or file == files[0]:  # the captures' headers are the same
                assert dciodvfy_errors(path) == []
            ds = pydicom.dcmread(path)
            assert ds.PatientName == real.PatientName
            assert ds.StudyDescription == real.StudyDescription
            assert ds.PatientIdentityRemoved == "YES"
            assert not [e for e in ds if e.tag.is_private]
            assert "KVP" not in ds
