"""The committed samples are what the generator makes, and what the node accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless

from pe_triage.phantom import to_datasets, truth_of
from pe_triage.phantom.samples import SAMPLES, generate_sample
from pe_triage.phantom.writer import identity_of

SAMPLE_DIR = Path(__file__).resolve().parents[3] / "sample_dicom"


@pytest.mark.parametrize("name", list(SAMPLES))
def test_regenerating_gives_the_committed_study(name: str) -> None:
    study = generate_sample(name)
    files = sorted((SAMPLE_DIR / name).glob("*.dcm"))
    assert len(files) == study.hu_zyx.shape[0] == 90
    # Pixels of every third slice keep this quick; headers of all.
    for index, (path, made) in enumerate(zip(files, to_datasets(study), strict=True)):
        kept = pydicom.dcmread(path)
        assert kept.file_meta.TransferSyntaxUID == JPEGLSLossless
        if index % 3 == 0:
            hu = kept.pixel_array.astype(np.int16) + int(kept.RescaleIntercept)
            np.testing.assert_array_equal(hu, study.hu_zyx[index])
        del kept.PixelData, made.PixelData
        assert kept == made
    truth = json.loads((SAMPLE_DIR / "truth" / f"{name}.json").read_text(encoding="utf-8"))
    assert truth == json.loads(json.dumps(truth_of(study, identity_of(study))))


def test_samples_show_what_they_are_named_for() -> None:
    exams = {
        name: json.loads((SAMPLE_DIR / "truth" / f"{name}.json").read_text(encoding="utf-8"))
        for name in SAMPLES
    }
    acute = exams["acute-bilateral-pe"]
    assert acute["exam"]["leftsided_pe"] == acute["exam"]["rightsided_pe"] == 1
    assert acute["exam"]["rv_lv_ratio_gte_1"] == 1
    assert acute["exam"]["chronic_pe"] == acute["exam"]["acute_and_chronic_pe"] == 0
    assert acute["drawn"]["rv_lv_ratio"] > 1.2
    assert sum(s["pe"] for s in acute["slices"]) >= 20
    assert exams["negative"]["exam"]["negative_exam_for_pe"] == 1
    assert exams["poor-contrast"]["exam"]["indeterminate"] == 1
    ratio = f"{acute['drawn']['rv_lv_ratio']:.2f}"
    readme = (SAMPLE_DIR / "README.md").read_text(encoding="utf-8")
    assert f"RV/LV {ratio}" in readme
    assert "Apache-2.0" in readme


def test_samples_fit_the_repository() -> None:
    files = [p for p in SAMPLE_DIR.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 15e6
    for folder in SAMPLES:
        assert {p.suffix for p in (SAMPLE_DIR / folder).iterdir()} == {".dcm"}


@pytest.mark.parametrize("name", list(SAMPLES))
def test_samples_are_eligible_by_header(name: str) -> None:
    headers = [
        pydicom.dcmread(p, stop_before_pixels=True) for p in (SAMPLE_DIR / name).glob("*.dcm")
    ]
    heights = sorted(float(h.ImagePositionPatient[2]) for h in headers)
    assert heights[-1] - heights[0] >= 200
    assert np.diff(heights).max() <= 3
    assert all(float(h.SliceThickness) <= 3 for h in headers)
    assert len({h.StudyInstanceUID for h in headers}) == 1
    assert all(re.fullmatch(r"PHANTOM\^CTPA\^\d{4}", str(h.PatientName)) for h in headers)
    assert all(h.QualityControlImage == "YES" for h in headers)
