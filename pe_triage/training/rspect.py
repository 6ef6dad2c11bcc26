"""RSPECT's own layout: ``train.csv`` and ``train/<Study>/<Series>/<SOP>.dcm``.

The table has one row for each image, the exam's labels repeated on every row. It is read as a
stream: 1.8 million rows cost the UIDs and one byte for each image. Nothing is opened here but the
table and directory listings; headers and pixels are read when the cache is built.

Two things that RSPECT itself does not have, for data from elsewhere (`import_masks`): exams whose
nine exam labels are all left empty, which are then unknown and never taken for 0; and clot masks
under ``masks/<Study>.nii.gz``.

UIDs of RSPECT are arbitrary hexadecimal names, not UIDs in the sense of PS3.5 section 9.1.

Source: Colak E, et al. The RSNA Pulmonary Embolism CT Dataset. Radiology: AI 2021;3(2):e200254.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL
from pe_triage.errors import InputError
from pe_triage.model.consistency import RULES, count_violations
from pe_triage.training.problems import Problem, enforce_policy

UID_COLUMNS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
QA_LABELS: Final = ("qa_motion", "qa_contrast", "flow_artifact", "true_filling_defect_not_pe")
"""Exam-level remarks of the readers; not part of the challenge's score."""
COLUMNS: Final = (
    *UID_COLUMNS,
    IMAGE_LABEL,
    "negative_exam_for_pe",
    "qa_motion",
    "qa_contrast",
    "flow_artifact",
    "rv_lv_ratio_gte_1",
    "rv_lv_ratio_lt_1",
    "leftsided_pe",
    "chronic_pe",
    "true_filling_defect_not_pe",
    "rightsided_pe",
    "acute_and_chronic_pe",
    "central_pe",
    "indeterminate",
)
"""The 17 columns of ``train.csv``, in its order; any order is read."""
TABLE_NAME: Final = "train.csv"
IMAGES_NAME: Final = "train"
MASKS_NAME: Final = "masks"
MASK_SUFFIX: Final = ".nii.gz"
SUFFIX: Final = ".dcm"

_EXAM_COLUMNS = (*EXAM_LABELS, *QA_LABELS)
_SAFE_UID = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")
"""A UID becomes a file name: nothing that could lead elsewhere."""
_BITS: Mapping[str, int] = {"0": 0, "1": 1}
_UNKNOWN = -1
_EXAM_BITS: Mapping[str, int] = {**_BITS, "": _UNKNOWN}
"""An empty cell says unknown; a reader that does not know of this refuses it, guessing nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RspectExam:
    """One exam as the table labels it.

    Attributes
    ----------
    sop_instance_uids
        In the order of the table, which is not anatomical.
    image_pe
        uint8, one for each of `sop_instance_uids`; read-only.
    labels
        0 or 1 for each of `EXAM_LABELS` and `QA_LABELS` that is known: all nine of the exam, or
        none.
    directory
        Where the files lie: ``<SOP Instance UID>.dcm``.
    mask_path
        The clot mask as NIfTI, where there is one.
    """

    study_uid: str
    series_uid: str
    sop_instance_uids: tuple[str, ...]
    image_pe: NDArray[np.uint8]
    labels: Mapping[str, int]
    directory: Path
    mask_path: Path | None = None

    def __post_init__(self) -> None:
        self.image_pe.setflags(write=False)

    @property
    def exam_known(self) -> bool:
        """Whether the nine exam labels are known."""
        return EXAM_LABELS[0] in self.labels

    @property
    def positive(self) -> bool:
        """Whether the exam shows PE; by its images where the exam's labels are unknown."""
        if not self.exam_known:
            return bool(self.image_pe.any())
        return not (self.labels["negative_exam_for_pe"] or self.labels["indeterminate"])

    @property
    def exam_vector(self) -> NDArray[np.float32]:
        """The nine labels, in the order of `EXAM_LABELS`; not a number where unknown."""
        if not self.exam_known:
            return np.full(len(EXAM_LABELS), np.nan, dtype=np.float32)
        return np.array([self.labels[label] for label in EXAM_LABELS], dtype=np.float32)

    def path_of(self, sop_instance_uid: str) -> Path:
        """Where the file of an image lies."""
        return self.directory / f"{sop_instance_uid}{SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RspectIndex:
    """The usable exams of a tree, sorted by Study Instance UID, and everything found wrong.

    Attributes
    ----------
    exams
        Without those that a problem costs.
    problems
        In the order in which they were found.
    images
        Rows of the table, bad ones included.
    """

    root: Path
    exams: tuple[RspectExam, ...]
    problems: tuple[Problem, ...]
    images: int


@dataclass(slots=True)
class _Draft:
    """An exam while its rows are being read."""

    series_uid: str
    labels: tuple[int, ...]
    uids: list[str] = field(default_factory=list)
    image_pe: bytearray = field(default_factory=bytearray)
    wrong: dict[str, tuple[str, int]] = field(default_factory=dict)

    def note(self, code: str, detail: str) -> None:
        """Count a problem; the first one's words stand for all of its code."""
        first, count = self.wrong.get(code, (detail, 0))
        self.wrong[code] = (first, count + 1)


def read_rspect(root: Path, *, on_bad: str = "skip", check_files: bool = True) -> RspectIndex:
    """Read the table of an RSPECT-layout tree and look whether its files are there.

    Parameters
    ----------
    root
        Directory of ``train.csv`` and ``train/``.
    on_bad
        ``skip`` leaves out exams with a problem, ``fail`` raises over the first.
    check_files
        Whether to list the exams' directories.

    Raises
    ------
    InputError
        No table, one that is not RSPECT's, no usable exam, or a problem under ``fail``.
    """
    table = root / TABLE_NAME
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            drafts, problems, images = _read_table(csv.reader(file), str(table))
    except OSError as error:
        raise InputError(f"{table}: {error.strerror or error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table}: not a CSV table in UTF-8 ({error})") from None
    exams = []
    masks = _masks(root)
    for study_uid in sorted(drafts):
        draft = drafts.pop(study_uid)
        exam = RspectExam(
            study_uid=study_uid,
            series_uid=draft.series_uid,
            sop_instance_uids=tuple(draft.uids),
            image_pe=np.frombuffer(bytes(draft.image_pe), dtype=np.uint8),
            labels={
                label: value
                for label, value in zip(_EXAM_COLUMNS, draft.labels, strict=True)
                if value != _UNKNOWN
            },
            directory=root / IMAGES_NAME / study_uid / draft.series_uid,
            mask_path=masks.get(study_uid),
        )
        found = [
            Problem(code=code, study_uid=study_uid, detail=detail, count=count)
            for code, (detail, count) in draft.wrong.items()
        ]
        if not found:
            found.extend(_label_problems(exam))
        if check_files:
            found.extend(_file_problems(exam))
        problems.extend(found)
        if not any(problem.skips for problem in found):
            exams.append(exam)
    enforce_policy(problems, on_bad)
    if not exams:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise InputError(f"{table}: no usable exam{first}")
    return RspectIndex(root=root, exams=tuple(exams), problems=tuple(problems), images=images)


def _read_table(
    rows: Iterator[list[str]], name: str
) -> tuple[dict[str, _Draft], list[Problem], int]:
    header = [column.strip() for column in next(rows, [])]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise InputError(f"{name}: columns missing: {', '.join(missing)}")
    if len(set(header)) != len(header):
        raise InputError(f"{name}: a column stands twice in the header")
    problems = [
        Problem(code="unknown-column", study_uid="", detail=f"column {column!r} is ignored")
        for column in header
        if column not in COLUMNS
    ]
    at_study, at_series, at_sop = (header.index(column) for column in UID_COLUMNS)
    at_image = header.index(IMAGE_LABEL)
    at_labels = [header.index(column) for column in _EXAM_COLUMNS]
    drafts: dict[str, _Draft] = {}
    images = 0
    orphans = 0
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        images += 1
        study_uid = row[at_study].strip() if len(row) > at_study else ""
        if not _SAFE_UID.fullmatch(study_uid):
            orphans += 1
            continue
        draft = drafts.get(study_uid)
        if len(row) != len(header):
            # The exam lacks an image now, so it must not be used as if it were whole.
            draft = drafts.setdefault(study_uid, _Draft("", (0,) * len(_EXAM_COLUMNS)))
            draft.note("malformed-row", f"row {number} has {len(row)} fields, not {len(header)}")
            continue
        series_uid, sop_uid = row[at_series].strip(), row[at_sop].strip()
        try:
            labels = tuple([_EXAM_BITS[row[at].strip()] for at in at_labels])
            image = _BITS[row[at_image].strip()]
        except KeyError as error:
            draft = drafts.setdefault(study_uid, _Draft(series_uid, (0,) * len(_EXAM_COLUMNS)))
            draft.note("bad-value", f"row {number} holds {str(error.args[0])[:20]!r}")
            continue
        if draft is None:
            draft = drafts[study_uid] = _Draft(series_uid, labels)
        elif not draft.uids:
            draft.series_uid, draft.labels = series_uid, labels
        if not (_SAFE_UID.fullmatch(series_uid) and _SAFE_UID.fullmatch(sop_uid)):
            draft.note("malformed-row", f"row {number} has an empty or unsafe UID")
            continue
        if series_uid != draft.series_uid:
            draft.note("several-series", f"row {number} names another series")
        if labels != draft.labels:
            draft.note("contradictory-labels", f"row {number} differs from the exam's first row")
        if 0 < labels[: len(EXAM_LABELS)].count(_UNKNOWN) < len(EXAM_LABELS):
            draft.note("bad-value", f"row {number} leaves some exam labels empty, not all nine")
        draft.uids.append(sop_uid)
        draft.image_pe.append(image)
    if orphans:
        problems.append(
            Problem(
                code="malformed-row",
                study_uid="",
                detail=f"{orphans} rows without a usable StudyInstanceUID",
                count=orphans,
            )
        )
    for draft in drafts.values():
        repeated = len(draft.uids) - len(set(draft.uids))
        if repeated:
            draft.wrong["duplicate-instance"] = (f"{repeated} images stand twice", repeated)
    return drafts, problems, images


def _label_problems(exam: RspectExam) -> Iterator[Problem]:
    """Say how the labels of one exam contradict each other."""
    if not exam.exam_known:
        return
    positives = int(exam.image_pe.sum())
    if positives and not exam.positive:
        yield Problem(
            code="image-positive-in-negative-exam",
            study_uid=exam.study_uid,
            detail=f"{positives} images show PE, the exam is negative or indeterminate",
            count=positives,
        )
        return
    if exam.positive and not positives:
        yield Problem(
            code="no-positive-image-in-positive-exam",
            study_uid=exam.study_uid,
            detail="the exam's labels say PE, no image shows it",
        )
        return
    broken = count_violations(exam.image_pe, exam.exam_vector)
    for rule in RULES:
        if broken[rule]:
            yield Problem(code="rule-violation", study_uid=exam.study_uid, detail=f"not {rule}")


def _masks(root: Path) -> dict[str, Path]:
    """Clot masks by Study Instance UID; none where there is no directory of them."""
    try:
        names = os.listdir(root / MASKS_NAME)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {
        name.removesuffix(MASK_SUFFIX): root / MASKS_NAME / name
        for name in names
        if name.endswith(MASK_SUFFIX)
    }


def _file_problems(exam: RspectExam) -> Iterator[Problem]:
    try:
        there = {entry for entry in os.listdir(exam.directory) if entry.endswith(SUFFIX)}  # noqa: PTH208
    except OSError as error:
        yield Problem(
            code="missing-directory", study_uid=exam.study_uid, detail=error.strerror or "not there"
        )
        return
    named = {f"{uid}{SUFFIX}" for uid in exam.sop_instance_uids}
    for code, names, words in (
        ("missing-file", named - there, "named in the table, not there"),
        ("unlisted-file", there - named, "there, not named in the table"),
    ):
        if names:
            yield Problem(
                code=code,
                study_uid=exam.study_uid,
                detail=f"{len(names)} files {words}, {min(names)} among them",
                count=len(names),
            )
