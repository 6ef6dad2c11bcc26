"""One study with every kind of result object, held by an Orthanc with DICOMweb and a viewer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from pe_triage.domain import (
    EXAM_LABELS,
    IMAGE_LABEL,
    CtVolume,
    Decision,
    ExamPrediction,
    IntendedUse,
    KeySlice,
    ModelIdentity,
    PatientIdentity,
    ReceivedInstance,
    ResultSet,
    TriageResult,
)
from pe_triage.imaging.facts import read_instance
from pe_triage.imaging.volume import load_volume
from pe_triage.report import ReportSettings, StudyContext, build_results, make_result
from pe_triage.report import not_evaluated as refuse
from pe_triage.report.settings import UNMARKED, NarrativeChoice
from tests.support.ohif import browser, ohif_pages, serve_ohif, upload
from tests.support.orthanc import Orthanc

SAMPLES = Path(__file__).resolve().parents[2] / "sample_dicom"
NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
PEAK_SHARES = (0.47, 0.34)
"""(row, column) of every heatmap's peak, as shares of the slice: off the middle in both."""


@dataclass(frozen=True)
class Viewed:
    """A study at the archive."""

    study_uid: str
    volume: CtVolume
    result: TriageResult
    results: ResultSet


def read_study(folder: Path) -> tuple[CtVolume, dict[str, Dataset], PatientIdentity]:
    """Return a sample study's volume, headers by UID, and patient."""
    instances = []
    for path in sorted(folder.glob("*.dcm")):
        record = read_instance(path)
        instances.append(
            ReceivedInstance(
                study_uid=record.study_uid, series_uid=record.series_uid,
                sop_instance_uid=record.sop_instance_uid, sop_class_uid=record.sop_class_uid,
                transfer_syntax_uid=record.transfer_syntax_uid, identity=record.identity,
                sha256="0" * 64, size_bytes=1, path=path, received_at=NOW, calling_aet="",
                facts=record.facts,
            )
        )  # fmt: skip
    headers = {i.sop_instance_uid: dcmread(i.path, stop_before_pixels=True) for i in instances}
    return load_volume(instances), headers, instances[0].identity


def invented_result(volume: CtVolume, keys: int = 4) -> TriageResult:
    """Return a positive answer whose key slices and places are known exactly."""
    count, rows, columns = volume.hu_zyx.shape
    exam = dict(zip(EXAM_LABELS, (0.04, 0.02, 0.08, 0.05, 0.87, 0.61, 0.93, 0.78, 0.21),
                    strict=True))  # fmt: skip
    bump = np.exp(-(((np.arange(count) - 0.6 * count) / (0.1 * count)) ** 2)) * 0.9 + 0.03
    grid = (np.mgrid[0:16, 0:16] + 0.5) / 16
    distance = sum((axis - share) ** 2 for axis, share in zip(grid, PEAK_SHARES, strict=True))
    heat = np.exp(-distance / 0.008)
    heat = (heat / heat.max()).astype(np.float32)
    at = np.linspace(0.45 * count, 0.75 * count, keys).astype(int)
    prediction = ExamPrediction(
        slice_probability_z=bump.astype(np.float32),
        attention_z=(bump / bump.sum()).astype(np.float32),
        exam_probability=exam,
        pe_probability=0.9612,
        findings={k: Decision.PRESENT if v > 0.5 else Decision.ABSENT for k, v in exam.items()},
        thresholds=dict.fromkeys(EXAM_LABELS, 0.5) | {"pe": 0.43, IMAGE_LABEL: 0.371},
        model=ModelIdentity(
            name="attention-bilstm", version="1.2.0", sha256="ab" * 32,
            intended_use=IntendedUse.DEMONSTRATION, calibrated=True,
        ),
    )  # fmt: skip
    return make_result(
        prediction,
        series_uid=volume.series_uid,
        sop_instance_uids=volume.sop_instance_uids,
        quality_control=True,
        key_slices=tuple(
            KeySlice(
                z=int(z), sop_instance_uid=volume.sop_instance_uids[z],
                probability=0.91 - 0.07 * i, attention=0.11 - 0.013 * i, heatmap_yx=heat,
                peak_yx=(PEAK_SHARES[0] * rows - 0.5, PEAK_SHARES[1] * columns - 0.5),
            )
            for i, z in enumerate(at)
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc with DICOMweb and its own web viewer."""
    home = tmp_path_factory.mktemp("orthanc")
    with Orthanc(home, plugins=("OrthancDicomWeb", "OrthancWebViewer")) as orthanc:
        orthanc.start()
        yield orthanc


def negative_result(volume: CtVolume) -> TriageResult:
    """Return a negative answer."""
    shown = invented_result(volume)
    assert shown.prediction is not None
    exam = dict.fromkeys(EXAM_LABELS, 0.03) | {"negative_exam_for_pe": 0.95}
    count = volume.hu_zyx.shape[0]
    prediction = replace(
        shown.prediction,
        exam_probability=exam,
        pe_probability=0.05,
        slice_probability_z=np.full(count, 0.03, np.float32),
        findings={k: Decision.PRESENT if v > 0.5 else Decision.ABSENT for k, v in exam.items()},
    )
    return make_result(
        prediction,
        series_uid=volume.series_uid,
        sop_instance_uids=volume.sop_instance_uids,
        quality_control=True,
    )


def refusal(volume: CtVolume) -> TriageResult:
    """Return what is said of a study that was not evaluated."""
    return refuse("slice thickness 8 mm is above 3 mm", series_uid=volume.series_uid)


def _held(
    archive: Orthanc,
    name: str,
    answer: Callable[[CtVolume], TriageResult],
    narrative: NarrativeChoice = UNMARKED,
) -> Viewed:
    folder = SAMPLES / name
    volume, headers, identity = read_study(folder)
    study_uid = str(next(iter(headers.values())).StudyInstanceUID)
    result = answer(volume)
    results = build_results(
        result=result,
        study=StudyContext(
            study_uid=study_uid,
            run=1,
            manifest_digest=sha256(name.encode()).hexdigest(),
            identity=identity,
        ),
        volume=volume,
        headers=headers,
        now=NOW,
        settings=ReportSettings(narrative=narrative, key_objects=True, parametric_map=True),
    )
    for path in sorted(folder.glob("*.dcm")):
        # Debian's Orthanc has no JPEG-LS decoder for its own viewer.
        ds = dcmread(path)
        ds.decompress(generate_instance_uid=False)
        buffer = BytesIO()
        ds.save_as(buffer)
        upload(archive.http_port, buffer.getvalue())
    for item in results.objects:
        upload(archive.http_port, item.encoded)
    return Viewed(study_uid=study_uid, volume=volume, result=result, results=results)


@pytest.fixture(scope="session")
def positive(archive: Orthanc) -> Viewed:
    """A positive study with four key slices."""
    return _held(archive, "acute-bilateral-pe", invented_result, narrative=True)


@pytest.fixture(scope="session")
def refused(archive: Orthanc) -> Viewed:
    """A study that was not evaluated."""
    return _held(archive, "poor-contrast", refusal)


@pytest.fixture(scope="session")
def negative(archive: Orthanc) -> Viewed:
    """A negative study."""
    return _held(archive, "negative", negative_result)


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for screenshots, kept where ``VIEWER_SHOTS`` says."""
    given = os.environ.get("VIEWER_SHOTS")
    return Path(given) if given else tmp_path_factory.mktemp("shots")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory):
    """One headless browser for all tests."""
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="session")
def ohif_address(request: pytest.FixtureRequest, archive: Orthanc) -> Iterator[str]:
    """Where OHIF is served."""
    pages = ohif_pages(request.config.cache.mkdir("ohif"))
    with serve_ohif(pages, f"http://127.0.0.1:{archive.http_port}/dicom-web") as address:
        yield address
