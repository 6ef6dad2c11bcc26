"""Who is trained on and who is not: by patient, fixed by a seed or by a file, checked for leaks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pe_triage.errors import InputError
from pe_triage.training.cache import CachedExam

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Exams by part; every exam of a patient lies in one part."""

    train: tuple[CachedExam, ...]
    validation: tuple[CachedExam, ...]
    test: tuple[CachedExam, ...]
    left_out: int = 0
    """Exams that a file of splits does not name."""

    def part(self, name: str) -> tuple[CachedExam, ...]:
        """Exams of one of `PARTS`."""
        exams: tuple[CachedExam, ...] = getattr(self, name)
        return exams

    def to_json(self) -> dict[str, Any]:
        """Study Instance UIDs by part: what `read_split` reads."""
        return {name: [exam.study_uid for exam in self.part(name)] for name in PARTS}


def split_by_patient(
    exams: Sequence[CachedExam], *, seed: int, validation: float, test: float
) -> Split:
    """Split patients at random, positive and negative exams apart, so that shares are alike.

    The order of a patient among the others follows from a hash of seed and patient alone, so a new
    exam moves hardly any other.

    Raises
    ------
    InputError
        Fractions out of range, or no exam for training or validation.
    """
    if not (0 < validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise InputError("the shares of validation and test must leave something to train on")
    patients: dict[str, list[CachedExam]] = {}
    for exam in exams:
        patients.setdefault(exam.patient_key, []).append(exam)
    parts: dict[str, list[CachedExam]] = {name: [] for name in PARTS}
    for positive in (False, True):
        keys = sorted(
            (key for key, own in patients.items() if any(e.positive for e in own) == positive),
            key=lambda key: hashlib.sha256(f"{seed}|{key}".encode()).hexdigest(),
        )
        first = round(len(keys) * validation)
        second = first + round(len(keys) * test)
        for number, key in enumerate(keys):
            name = "validation" if number < first else "test" if number < second else "train"
            parts[name].extend(patients[key])
    return _checked(parts, 0)


def read_split(path: Path, exams: Sequence[CachedExam]) -> Split:
    """Read ``{"train": [Study Instance UID, …], "validation": […], "test": […]}``.

    Raises
    ------
    InputError
        Not such a file, a study that the data lack, one in two parts, or a patient in two parts.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path}: not JSON") from None
    if not isinstance(document, Mapping) or set(document) - set(PARTS):
        raise InputError(f"{path}: expected an object with {', '.join(PARTS)}")
    by_uid = {exam.study_uid: exam for exam in exams}
    parts: dict[str, list[CachedExam]] = {name: [] for name in PARTS}
    for name in PARTS:
        for uid in document.get(name, []):
            exam = by_uid.pop(uid, None) if isinstance(uid, str) else None
            if exam is None:
                raise InputError(f"{path}: {name}: study {uid} is named twice or not in the data")
            parts[name].append(exam)
    return _checked(parts, len(by_uid))


def check_leakage(split: Split) -> None:
    """Make sure that no patient and no pixels stand in two parts.

    Raises
    ------
    InputError
        Naming two of the studies.
    """
    for what, words in (("patient_key", "the same patient"), ("sha256", "the same pixels")):
        seen: dict[str, tuple[str, str]] = {}
        for name in PARTS:
            for exam in split.part(name):
                other = seen.setdefault(getattr(exam, what), (name, exam.study_uid))
                if other[0] != name:
                    raise InputError(
                        f"leakage: study {exam.study_uid} ({name}) is of {words} as "
                        f"study {other[1]} ({other[0]})"
                    )


def _checked(parts: Mapping[str, list[CachedExam]], left_out: int) -> Split:
    split = Split(
        **{name: tuple(sorted(parts[name], key=lambda e: e.study_uid)) for name in PARTS},
        left_out=left_out,
    )
    for name in ("train", "validation"):
        if not split.part(name):
            raise InputError(f"the split leaves no exam for {name}: more data are needed")
    check_leakage(split)
    return split
