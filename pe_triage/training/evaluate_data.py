"""Labelled exams to evaluate on: RSPECT's layout, or what ``pe-triage phantom`` writes.

A phantom's truth knows more than RSPECT's table (clots, masks, causes). It is used wherever it
lies: as the labels of a phantom directory, or as ``truth/`` beside a ``train.csv``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS, CtVolume, InstanceFacts, ReceivedInstance
from pe_triage.errors import InputError, InvalidInstanceError, PermanentError
from pe_triage.imaging.facts import read_instance
from pe_triage.imaging.volume import load_volume
from pe_triage.training.problems import count_problems
from pe_triage.training.rspect import TABLE_NAME, RspectExam, read_rspect
from pe_triage.training.volumes import load_exam

TRUTH_NAME: Final = "truth"
DICOM_NAME: Final = "dicom"
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UID_COLUMNS: Final = ("study_uid", "StudyInstanceUID", "study")
_PART_COLUMNS: Final = ("part", "split", "set", "fold")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledStudy:
    """One exam with its truth; its images are not read yet.

    Attributes
    ----------
    exam_truth
        Label to 0, 1, or -1 for unknown, for all of `EXAM_LABELS`.
    slice_truth
        SOP Instance UID to 0, 1, or -1 for unknown.
    files
        Its images.
    detail
        The phantom's truth document without labels; empty where there is none.
    mask_path
        Clot mask as NIfTI, where there is one.
    rspect
        The row group of RSPECT's table that it is; None for a phantom directory.
    """

    study_uid: str
    exam_truth: Mapping[str, int]
    slice_truth: Mapping[str, int]
    files: tuple[Path, ...]
    detail: Mapping[str, Any] = field(default_factory=dict)
    mask_path: Path | None = None
    rspect: RspectExam | None = None

    @property
    def positive(self) -> bool:
        """Whether the exam shows PE."""
        return not (self.exam_truth["negative_exam_for_pe"] or self.exam_truth["indeterminate"])

    @property
    def remarks(self) -> Mapping[str, int]:
        """Readers' remarks of RSPECT (``qa_motion`` and so on); empty for a phantom directory."""
        if self.rspect is None:
            return {}
        return {k: v for k, v in self.rspect.labels.items() if k not in EXAM_LABELS}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStudy:
    """Its images as they are served.

    Attributes
    ----------
    patient_id
        As in the headers; for grouping exams of one patient only, never written anywhere.
    """

    volume: CtVolume
    patient_id: str
    facts: InstanceFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledData:
    """All usable exams under a directory, sorted by Study Instance UID.

    Attributes
    ----------
    layout
        ``rspect`` or ``phantom``.
    problems
        Code to number of exams (or rows) with it.
    """

    root: Path
    layout: str
    studies: tuple[LabelledStudy, ...]
    problems: Mapping[str, int]


def find_studies(root: Path) -> LabelledData:
    """Read the labels under `root`; no image is opened.

    Raises
    ------
    InputError
        Neither layout, or no usable exam.
    """
    if (root / TABLE_NAME).is_file():
        index = read_rspect(root)
        known = [exam for exam in index.exams if exam.exam_known]
        if not known:
            raise InputError(f"{root}: no exam has known exam labels: nothing to judge by")
        rspect_studies = tuple(_from_rspect(root, exam) for exam in known)
        problems = count_problems(index.problems)
        if len(known) < len(index.exams):
            problems["unknown-exam-labels"] = len(index.exams) - len(known)
        return LabelledData(root=root, layout="rspect", studies=rspect_studies, problems=problems)
    truths = sorted((root / TRUTH_NAME).glob("*.json"))
    if not truths:
        raise InputError(f"{root}: neither {TABLE_NAME} (RSPECT) nor {TRUTH_NAME}/*.json (phantom)")
    studies = []
    missing = 0
    for path in truths:
        study = _from_truth(root, path)
        if study.files:
            studies.append(study)
        else:
            missing += 1
    if not studies:
        raise InputError(f"{root}: no images under {DICOM_NAME}/ for any truth")
    found = {"missing-directory": missing} if missing else {}
    return LabelledData(root=root, layout="phantom", studies=tuple(studies), problems=found)


def _from_rspect(root: Path, exam: RspectExam) -> LabelledStudy:
    beside = root / TRUTH_NAME / f"{exam.study_uid}.json"
    mask = beside.with_suffix(".nii.gz")
    return LabelledStudy(
        study_uid=exam.study_uid,
        exam_truth={label: exam.labels[label] for label in EXAM_LABELS},
        slice_truth=dict(zip(exam.sop_instance_uids, exam.image_pe.tolist(), strict=True)),
        files=tuple(exam.path_of(uid) for uid in exam.sop_instance_uids),
        detail=_detail(_read_truth(beside)) if beside.is_file() else {},
        mask_path=mask if mask.is_file() else exam.mask_path,
        rspect=exam,
    )


def _read_truth(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path}: not JSON") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: not a phantom's truth")
    return document


def _detail(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("exam", "slices")}


def _from_truth(root: Path, path: Path) -> LabelledStudy:
    document = _read_truth(path)
    try:
        exam = {label: int(document["exam"][label]) for label in EXAM_LABELS}
        slices = {str(s["sop_instance_uid"]): int(s["pe"]) for s in document["slices"]}
        study_uid = str(document["study_uid"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not a phantom's truth") from None
    mask = path.with_suffix(".nii.gz")
    return LabelledStudy(
        study_uid=study_uid,
        exam_truth=exam,
        slice_truth=slices,
        files=tuple(sorted((root / DICOM_NAME / study_uid).glob("*.dcm"))),
        detail=_detail(document),
        mask_path=mask if mask.is_file() else None,
    )


def load_study(study: LabelledStudy, *, threads: int = 2) -> LoadedStudy:
    """Read a study's images into the volume that would be served.

    Raises
    ------
    PermanentError
        They cannot be used, or are not those that the labels speak of; the message is the reason.
    """
    if study.rspect is not None:
        loaded = load_exam(study.rspect, threads=threads)
        _check_labels(study, loaded.volume)
        return LoadedStudy(volume=loaded.volume, patient_id=loaded.patient_id, facts=loaded.facts)
    try:
        instances = [_instance(path) for path in study.files]
    except (InvalidInstanceError, OSError) as error:
        raise PermanentError(f"an image cannot be read: {error}") from None
    if {i.study_uid for i in instances} != {study.study_uid}:
        raise PermanentError("an image belongs to another study than its truth")
    if len({i.identity for i in instances}) != 1:
        raise PermanentError("the images name different patients")
    volume = load_volume(instances, max_threads=threads)
    _check_labels(study, volume)
    first = instances[0]
    return LoadedStudy(volume=volume, patient_id=first.identity.patient_id, facts=first.facts)


def _check_labels(study: LabelledStudy, volume: CtVolume) -> None:
    unknown = sum(uid not in study.slice_truth for uid in volume.sop_instance_uids)
    if unknown:
        raise PermanentError(f"{unknown} images have no label")
    if len(volume.sop_instance_uids) < len(study.slice_truth) and study.rspect is None:
        lost = len(study.slice_truth) - len(volume.sop_instance_uids)
        raise PermanentError(f"{lost} labelled images are not there")


def _instance(path: Path) -> ReceivedInstance:
    record = read_instance(path)
    return ReceivedInstance(
        study_uid=record.study_uid,
        series_uid=record.series_uid,
        sop_instance_uid=record.sop_instance_uid,
        sop_class_uid=record.sop_class_uid,
        transfer_syntax_uid=record.transfer_syntax_uid,
        identity=record.identity,
        sha256="",
        size_bytes=0,
        path=path,
        received_at=_NEVER,
        calling_aet="",
        facts=record.facts,
    )


def slice_truth_k(
    studies: Sequence[LabelledStudy], sop_instance_uids: Sequence[str]
) -> NDArray[np.int8]:
    """Truth of each slice, -1 where none is known."""
    known: dict[str, int] = {}
    for study in studies:
        known.update(study.slice_truth)
    return np.array([known.get(uid, -1) for uid in sop_instance_uids], dtype=np.int8)


def exam_truth_sl(studies: Sequence[LabelledStudy]) -> NDArray[np.int8]:
    """Truth of the nine labels of each exam."""
    rows = [[study.exam_truth[label] for label in EXAM_LABELS] for study in studies]
    return np.array(rows, dtype=np.int8).reshape(len(rows), len(EXAM_LABELS))


def read_split(path: Path) -> dict[str, frozenset[str]]:
    """Read which studies belong to which part.

    JSON ``{"train": [uid, …], "validation": […], "test": […]}`` (also one level down, under
    ``parts``, ``splits`` or ``studies``; other members are ignored), CSV with a column of Study
    Instance UIDs and one named ``part`` or ``split``, or a text file of UIDs, one on a line, which
    is one part named ``all``.

    Raises
    ------
    InputError
        Unreadable, empty, or a study in two parts.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    parts: dict[str, set[str]] = {}
    seen: dict[str, str] = {}
    for part, uid in _pairs(path, text):
        if seen.setdefault(uid, part) != part:
            raise InputError(f"{path}: study {uid} stands in {seen[uid]} and in {part}")
        parts.setdefault(part, set()).add(uid)
    if not parts:
        raise InputError(f"{path}: no study in any part")
    return {part: frozenset(uids) for part, uids in parts.items()}


def _pairs(path: Path, text: str) -> Iterator[tuple[str, str]]:
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except ValueError:
            raise InputError(f"{path}: not JSON") from None
        for key in ("parts", "splits", "studies"):
            if isinstance(document.get(key), dict):
                document = document[key]
                break
        for part, uids in document.items():
            if isinstance(uids, list) and all(isinstance(uid, str) for uid in uids):
                yield from ((part, uid) for uid in uids)
            elif isinstance(uids, str) and key == "studies":
                yield uids, part  # {study: part}
        return
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and "," in lines[0]:
        rows = csv.DictReader(lines)
        columns = rows.fieldnames or []
        uid_column = next((c for c in _UID_COLUMNS if c in columns), None)
        part_column = next((c for c in _PART_COLUMNS if c in columns), None)
        if uid_column is None or part_column is None:
            raise InputError(f"{path}: a table needs the columns study_uid and part")
        yield from ((row[part_column], row[uid_column]) for row in rows)
        return
    yield from (("all", line) for line in lines)


def choose(data: LabelledData, split: Path | None, part: str | None) -> tuple[LabelledStudy, ...]:
    """Studies of one part of a split; all where there is no split.

    Raises
    ------
    InputError
        The part is unknown, not named although there are several, or has no study in the data.
    """
    if split is None:
        if part is not None:
            raise InputError("--part needs --split FILE")
        return data.studies
    parts = read_split(split)
    if part is None:
        part = "test" if "test" in parts else next(iter(parts)) if len(parts) == 1 else None
    if part not in parts:
        raise InputError(f"{split}: give --part, one of {', '.join(sorted(parts))}")
    chosen = tuple(study for study in data.studies if study.study_uid in parts[part])
    if not chosen:
        raise InputError(f"{split}: no study of part {part} is in {data.root}")
    return chosen
