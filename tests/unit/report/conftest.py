"""A small invented study and the results a model might give for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage

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
    Priority,
    ResultObject,
    ResultSet,
    TriageResult,
)
from pe_triage.report import ReportSettings, StudyContext, build_results, make_result
from pe_triage.report import not_evaluated as refuse
from pe_triage.report.captures import build_captures, drawings
from pe_triage.report.slices import SlicePictures
from pe_triage.report.sr import build_sr
from pe_triage.report.study import choose_source

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
SERIES_UID = "1.2.826.0.1.3680043.8.498.2"

POSITIVE = {
    "negative_exam_for_pe": 0.04,
    "indeterminate": 0.02,
    "chronic_pe": 0.08,
    "acute_and_chronic_pe": 0.05,
    "central_pe": 0.87,
    "leftsided_pe": 0.61,
    "rightsided_pe": 0.93,
    "rv_lv_ratio_gte_1": 0.78,
    "rv_lv_ratio_lt_1": 0.21,
}
NEGATIVE = dict.fromkeys(EXAM_LABELS, 0.03) | {"negative_exam_for_pe": 0.95}
INDETERMINATE = dict.fromkeys(EXAM_LABELS, 0.03) | {"indeterminate": 0.88}
EXAMS = {"POSITIVE": POSITIVE, "NEGATIVE": NEGATIVE, "INDETERMINATE": INDETERMINATE}


def header(uid: str, number: int, position_mm: float, rows: int, columns: int) -> Dataset:
    """Return a CT header as a scanner might write it."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = uid
    ds.StudyInstanceUID = STUDY_UID
    ds.SeriesInstanceUID = SERIES_UID
    ds.StudyDate, ds.StudyTime = "20240506", "070000"
    ds.StudyID = "S1"
    ds.AccessionNumber = "ACC7"
    ds.Modality = "CT"
    ds.Manufacturer = "Scanner works"
    ds.StudyDescription = "CT pulmonary angiography"
    ds.SeriesDescription = "PE 1.0 B30f"
    ds.ReferringPhysicianName = "Curie^Marie"
    ds.PatientName = "Test^Patient"
    ds.PatientID = "ID-4711"
    ds.IssuerOfPatientID = "HOSP"
    ds.PatientBirthDate = "19500102"
    ds.PatientSex = "F"
    ds.KVP = "120"
    ds.SeriesNumber = 4
    ds.InstanceNumber = number
    ds.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.3"
    ds.ImagePositionPatient = [-80.0, -60.0, position_mm]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [1.5, 1.25]
    ds.SliceThickness = "2.0"
    ds.Rows, ds.Columns = rows, columns
    return ds


def _ball(shape: tuple[int, ...], center: tuple[float, ...], radii: tuple[float, ...]):
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((g - m) / r) ** 2 for g, m, r in zip(grid, center, radii, strict=True)) <= 1


def chest(shape: tuple[int, int, int] = (24, 80, 128)) -> np.ndarray:
    """Return a crude contrast-filled chest, int16 HU."""
    z, y, x = shape
    hu = np.full(shape, -1000, dtype=np.int16)
    middle = (z / 2, y * 0.5, x * 0.5)
    hu[_ball(shape, middle, (z * 9, y * 0.46, x * 0.46))] = 40
    for side in (0.3, 0.7):
        hu[_ball(shape, (z / 2, y * 0.48, x * side), (z * 0.8, y * 0.34, x * 0.15))] = -860
    hu[_ball(shape, (z * 0.35, y * 0.42, x * 0.52), (z * 0.4, y * 0.16, x * 0.1))] = 300
    hu[_ball(shape, (z * 0.6, y * 0.45, x * 0.4), (z * 0.12, y * 0.06, x * 0.14))] = 380
    hu[_ball(shape, (z * 0.6, y * 0.45, x * 0.36), (z * 0.06, y * 0.03, x * 0.05))] = 30
    hu[_ball(shape, (z * 0.5, y * 0.8, x * 0.5), (z * 9, y * 0.08, x * 0.05))] = 500
    return hu


@dataclass
class Scene:
    """A study with everything that `build_results` asks for."""

    volume: CtVolume
    headers: dict[str, Dataset]
    study: StudyContext
    settings: ReportSettings = field(default_factory=ReportSettings)

    def model(self, use: IntendedUse = IntendedUse.RESEARCH, *, calibrated: bool = True):
        """Return a model's identity."""
        return ModelIdentity(
            name="attention-bilstm", version="1.2.0", sha256="ab" * 32, intended_use=use,
            calibrated=calibrated,
        )  # fmt: skip

    def prediction(
        self, kind: str = "POSITIVE", use: IntendedUse = IntendedUse.RESEARCH,
        *, calibrated: bool = True,
    ) -> ExamPrediction:  # fmt: skip
        """Return a prediction of that kind."""
        count = len(self.volume.sop_instance_uids)
        at = np.arange(count)
        bump = np.exp(-(((at - 0.6 * count) / (0.08 * count)) ** 2)) * 0.9 + 0.03
        probability = (bump if kind == "POSITIVE" else np.full(count, 0.03)).astype(np.float32)
        attention = (bump / bump.sum()).astype(np.float32)
        exam = EXAMS[kind]
        return ExamPrediction(
            slice_probability_z=probability,
            attention_z=attention,
            exam_probability=exam,
            pe_probability=0.9612345678901234 if kind == "POSITIVE" else 0.05,
            findings={k: Decision.PRESENT if v > 0.5 else Decision.ABSENT for k, v in exam.items()},
            thresholds=dict.fromkeys(EXAM_LABELS, 0.5) | {"pe": 0.43, IMAGE_LABEL: 0.371},
            model=self.model(use, calibrated=calibrated),
        )

    def keys(self, count: int = 3) -> tuple[KeySlice, ...]:
        """Return key slices around the clot, foot to head."""
        total = len(self.volume.sop_instance_uids)
        chosen = np.unique(np.linspace(0.45 * total, 0.75 * total, count).astype(int))
        rows, columns = self.volume.hu_zyx.shape[1:]
        y, x = np.mgrid[0:16, 0:16] / 15
        heat = np.exp(-(((y - 0.45) ** 2 + (x - 0.36) ** 2) / 0.012)).astype(np.float32)
        return tuple(
            KeySlice(
                z=int(z),
                sop_instance_uid=self.volume.sop_instance_uids[z],
                probability=float(np.float32(0.9 - 0.07 * i)),
                attention=float(np.float32(0.11 - 0.013 * i)),
                heatmap_yx=heat,
                peak_yx=(0.45 * rows, 0.36 * columns),
            )
            for i, z in enumerate(chosen)
        )

    def result(
        self, kind: str = "POSITIVE", *, use: IntendedUse = IntendedUse.RESEARCH, keys: int = 3,
        quality_control: bool = True, calibrated: bool = True,
    ) -> TriageResult:  # fmt: skip
        """Return the result for a kind of exam, or NOT_EVALUATED."""
        if kind == "NOT_EVALUATED":
            return refuse("slice thickness 8 mm is above 3 mm", series_uid=SERIES_UID)
        return make_result(
            self.prediction(kind, use, calibrated=calibrated),
            series_uid=SERIES_UID,
            sop_instance_uids=self.volume.sop_instance_uids,
            quality_control=quality_control,
            policy=self.settings.policy,
            key_slices=self.keys(keys),
        )

    def build(self, result: TriageResult, **changes) -> ResultSet:
        """Build the result objects."""
        arguments = {
            "result": result, "study": self.study, "volume": self.volume,
            "headers": self.headers, "now": NOW, "settings": self.settings,
        } | changes  # fmt: skip
        return build_results(**arguments)

    def report(self, result: TriageResult, **changes) -> ResultSet:
        """Build the report alone, without the pictures: quicker."""
        arguments = {
            "result": result, "study": self.study, "volume": self.volume,
            "headers": self.headers, "now": NOW, "settings": self.settings, "predecessors": (),
        } | changes  # fmt: skip
        source = choose_source(arguments["headers"], result)
        sr = build_sr(**arguments, source=source, series_description="report alone")
        return ResultSet(study_uid=STUDY_UID, run=arguments["study"].run, objects=(sr,))

    def captures(self, result: TriageResult) -> list[ResultObject]:
        """Build the pictures alone, without the report: quicker."""
        common: dict[str, Any] = {
            "result": result, "study": self.study, "headers": self.headers, "now": NOW,
            "source": choose_source(self.headers, result), "settings": self.settings,
        }  # fmt: skip
        drawn = drawings(volume=self.volume, pictures=SlicePictures(), **common)
        pictures = [draw() for draw in drawn]
        return build_captures(pictures=pictures, **common)


def make_scene(hu_zyx: np.ndarray | None = None, spacing_mm=(2.0, 1.5, 1.25)) -> Scene:
    """Return the invented study."""
    hu = chest() if hu_zyx is None else hu_zyx
    count, rows, columns = hu.shape
    uids = tuple(f"1.2.826.0.1.3680043.8.498.4.{i + 1}" for i in range(count))
    affine = np.diag([spacing_mm[2], spacing_mm[1], spacing_mm[0], 1.0])
    affine[:3, 3] = (-80.0, -60.0, -300.0)
    volume = CtVolume(
        hu_zyx=hu, spacing_mm=spacing_mm, affine_lps=affine, sop_instance_uids=uids,
        series_uid=SERIES_UID, quality_control=True,
    )  # fmt: skip
    headers = {
        uid: header(uid, count - i, -300.0 + spacing_mm[0] * i, rows, columns)
        for i, uid in enumerate(uids)
    }
    study = StudyContext(
        study_uid=STUDY_UID, run=1, manifest_digest="cd" * 32,
        identity=PatientIdentity(patient_id="ID-4711", issuer="HOSP"),
    )  # fmt: skip
    return Scene(volume=volume, headers=headers, study=study)


@pytest.fixture
def scene() -> Scene:
    """Return the invented study, fresh for each test."""
    return make_scene()


NAMES = {
    "latin-1": ("ISO_IR 100", "Müller^Jürgen", "Düsseldorf Straße"),
    "latin-2": ("ISO_IR 101", "Dvořák^Jiří", "Łódź"),
    "cyrillic": ("ISO_IR 144", "Люкceмбypг^Иван", "КТ лёгких"),
    "greek": ("ISO_IR 126", "Διονυσιος^Α", "Πνεύμονας"),
    "japanese-2022": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "胸部CT"),
    "japanese-13": (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        "\uff94\uff8f\uff80\uff9e^\uff80\uff9b\uff73=山田^太郎=やまだ^たろう",
        "胸部",
    ),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", "흉부"),
    "utf-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東", "肺动脉 ≥ 1"),
    "ascii": (None, "Smith^John", "Chest"),
}
"""Specific Character Set, a name in it, and words in it."""


def as_received(ds: Dataset, charset: Any) -> Dataset:
    """Send a header through its own encoding, as it would arrive."""
    if charset is None:
        if "SpecificCharacterSet" in ds:
            del ds.SpecificCharacterSet
    else:
        ds.SpecificCharacterSet = charset
    buffer = BytesIO()
    dcmwrite(buffer, ds, implicit_vr=False, little_endian=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer, force=True)


def renamed(header: Dataset, alphabet: str) -> Dataset:
    """Return a copy of a header whose patient, physician and words are of `NAMES`."""
    charset, name, words = NAMES[alphabet]
    ds = Dataset()
    ds.update(header)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = ds.ReferringPhysicianName = name
    ds.StudyDescription = words
    return as_received(ds, charset)


def seated(scene: Scene, header: Dataset, kind: str, **changes: Any) -> tuple[Scene, TriageResult]:
    """Return the invented answer `kind` as one about the study of a header from elsewhere.

    That header is the first key slice's, or the only one at hand.
    """
    uid, series_uid = str(header.SOPInstanceUID), str(header.SeriesInstanceUID)
    study = StudyContext(
        study_uid=str(header.StudyInstanceUID), run=1, manifest_digest="ef" * 32,
        identity=PatientIdentity(
            patient_id=str(header.PatientID), issuer=str(header.get("IssuerOfPatientID") or "")
        ),
    )  # fmt: skip
    result = scene.result(kind, **({"keys": 1} | changes))
    uids = list(scene.volume.sop_instance_uids)
    if result.key_slices:
        uids[result.key_slices[0].z] = uid
        key = replace(result.key_slices[0], sop_instance_uid=uid)
        result = replace(result, key_slices=(key,), sop_instance_uids=tuple(uids))
    volume = replace(
        scene.volume,
        sop_instance_uids=tuple(uids),
        series_uid=series_uid,
        hu_zyx=np.broadcast_to(np.int16(40), (len(uids), header.Rows, header.Columns)),
    )
    there = replace(scene, volume=volume, headers={uid: header}, study=study)
    return there, replace(result, series_uid=series_uid)


CASES: dict[str, Callable[[Scene], TriageResult]] = {
    "positive": lambda s: replace(
        s.result("POSITIVE"), series_choice="best of 2 eligible series: thinner slices, 24 slices"
    ),
    "positive-uncalibrated": lambda s: s.result("POSITIVE", calibrated=False, keys=2),
    "negative": lambda s: s.result("NEGATIVE"),
    "indeterminate": lambda s: s.result("INDETERMINATE", keys=2),
    "untrained-shown": lambda s: s.result("POSITIVE", use=IntendedUse.UNTRAINED, keys=2),
    "untrained-withheld": lambda s: s.result(
        "POSITIVE", use=IntendedUse.UNTRAINED, quality_control=False
    ),
    "demonstration": lambda s: s.result("POSITIVE", use=IntendedUse.DEMONSTRATION, keys=1),
    "not-evaluated": lambda s: s.result("NOT_EVALUATED"),
}
"""One of every kind of answer."""


@dataclass(frozen=True)
class Case:
    """One kind of answer and the objects built for it; shared, so tests must not change it."""

    name: str
    scene: Scene
    result: TriageResult
    results: ResultSet


EVERYTHING = ReportSettings(narrative=True, key_objects=True, parametric_map=True)
"""Every optional kind of object switched on."""


@pytest.fixture(scope="session")
def cases() -> Callable[[str], Case]:
    """Return the builder of cases by name, with every kind of object; each is built once."""

    @cache
    def made(name: str) -> Case:
        scene = replace(make_scene(), settings=EVERYTHING)
        result = CASES[name](scene)
        assert result.priority in (None, Priority.HIGH)
        return Case(name=name, scene=scene, result=result, results=scene.build(result))

    return made


@pytest.fixture(scope="session", params=sorted(CASES))
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Return each kind of answer in turn."""
    return cases(request.param)


@pytest.fixture(scope="session")
def positive(cases: Callable[[str], Case]) -> Case:
    """Return the positive case; shared, so tests must not change it."""
    return cases("positive")


@pytest.fixture(scope="session")
def negative(cases: Callable[[str], Case]) -> Case:
    """Return the negative case; shared, so tests must not change it."""
    return cases("negative")
