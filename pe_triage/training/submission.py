"""The challenge's submission table (``id,label``), and the count of rule violations in one.

A row's id is a SOP Instance UID, or ``<StudyInstanceUID>_<label>``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.model.consistency import RULES, count_violations


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionCheck:
    """What a check of a submission found.

    Attributes
    ----------
    exams
        Exams that were checked.
    violations
        Rule to number of exams that break it, for all of `RULES`.
    inconsistent_exams
        Exams that break one rule at least.
    missing, unknown
        Rows that the exams need and the table lacks; rows that belong to no exam.
    """

    exams: int
    violations: Mapping[str, int]
    inconsistent_exams: int
    missing: int
    unknown: int


def read_submission(path: Path) -> dict[str, float]:
    """Read a submission: id to probability.

    Raises
    ------
    InputError
        Not such a table, a value that is no number, or an id that stands twice.
    """
    rows: dict[str, float] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            if [column.strip() for column in next(reader, [])] != ["id", "label"]:
                raise InputError(f"{path}: the header of a submission is id,label")
            for number, row in enumerate(reader, start=2):
                if not row:
                    continue
                try:
                    key, value = row[0].strip(), float(row[1])
                except (IndexError, ValueError):
                    raise InputError(f"{path}: row {number} is not an id and a number") from None
                if key in rows:
                    raise InputError(f"{path}: row {number}: the id stands twice")
                rows[key] = value
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV table ({error})") from None
    return rows


def write_submission(
    path: Path,
    exams: Iterable[tuple[str, Mapping[str, float], Sequence[str], Sequence[float]]],
) -> int:
    """Write a submission; return the number of rows.

    Numbers are written in full: no rounding takes one to the other side of one half.

    Parameters
    ----------
    exams
        (Study Instance UID, label to probability, SOP Instance UIDs, their probabilities).
    """
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "label"])
        for study_uid, labels, uids, probabilities in exams:
            for label in EXAM_LABELS:
                writer.writerow([f"{study_uid}_{label}", repr(float(labels[label]))])
            for uid, probability in zip(uids, probabilities, strict=True):
                writer.writerow([uid, repr(float(probability))])
            count += len(EXAM_LABELS) + len(uids)
    return count


def check_submission(
    rows: Mapping[str, float], exams: Iterable[tuple[str, Sequence[str]]]
) -> SubmissionCheck:
    """Count the exams whose rows break a rule.

    Parameters
    ----------
    rows
        Id to probability.
    exams
        (Study Instance UID, SOP Instance UIDs) of each exam. An exam of which a row is missing
        breaks the rule on numbers, whatever the others say.
    """
    totals = dict.fromkeys(RULES, 0)
    count = bad = missing = used = 0
    nan = float("nan")
    for study_uid, uids in exams:
        count += 1
        exam = [rows.get(f"{study_uid}_{label}", nan) for label in EXAM_LABELS]
        image = [rows.get(uid, nan) for uid in uids]
        absent = sum(value != value for value in (*exam, *image))
        missing += absent
        used += len(exam) + len(image) - absent
        broken = count_violations(image, exam)
        bad += any(broken.values())
        for rule, number in broken.items():
            totals[rule] += number
    return SubmissionCheck(
        exams=count,
        violations=totals,
        inconsistent_exams=bad,
        missing=missing,
        unknown=len(rows) - used,
    )
