"""What can be wrong with training data: named, counted, skipped by policy, never silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pe_triage.errors import InputError

POLICIES: Final = ("skip", "fail")

PROBLEM_CODES: Final[Mapping[str, str]] = {
    "unknown-column": "a column that RSPECT does not have; ignored",
    "malformed-row": "a row with too few or too many fields, or with an empty or unsafe UID",
    "bad-value": "a label that is neither 0 nor 1",
    "duplicate-instance": "one SOP Instance UID twice in an exam",
    "several-series": "a study with more than one series",
    "contradictory-labels": "exam labels that differ between the rows of one exam",
    "rule-violation": "exam labels that break RSPECT's label rules",
    "image-positive-in-negative-exam": "an image with PE in an exam without",
    "no-positive-image-in-positive-exam": "an exam with PE of which no image shows it",
    "missing-directory": "an exam whose directory is not there",
    "missing-file": "images named in the table whose files are not there",
    "unlisted-file": "files in an exam's directory that the table does not name; ignored",
    "unreadable-file": "a file that is no readable CT image",
    "irregular-stack": "images that do not form one regular axial stack",
    "bad-mask": "a clot mask that cannot be read, or lies outside its exam's images",
    "wrong-identity": "a file whose header names another image than the table does",
}
"""Code to what it means."""

NOT_SKIPPED: Final = frozenset({"unknown-column", "unlisted-file"})
"""Codes that are told and counted, but cost no exam."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with one exam (or, with an empty `study_uid`, with the table).

    Attributes
    ----------
    code
        One of `PROBLEM_CODES`.
    detail
        In words; it names no patient.
    count
        How many rows or files it is about.
    """

    code: str
    study_uid: str
    detail: str
    count: int = 1

    def __post_init__(self) -> None:
        assert self.code in PROBLEM_CODES, self.code

    @property
    def skips(self) -> bool:
        """Whether the exam cannot be used because of it."""
        return self.code not in NOT_SKIPPED

    def __str__(self) -> str:
        where = f"study {self.study_uid}: " if self.study_uid else ""
        return f"{where}{self.code}: {self.detail}"


def count_problems(problems: Iterable[Problem]) -> dict[str, int]:
    """Count exams (or, for the table, rows) by code, in the order of `PROBLEM_CODES`."""
    counts = Counter(problem.code for problem in problems)
    return {code: counts[code] for code in PROBLEM_CODES if counts[code]}


def enforce_policy(problems: Iterable[Problem], on_bad: str) -> None:
    """Apply ``fail``: raise over the first problem that costs an exam.

    Raises
    ------
    InputError
        The policy is unknown, or is ``fail`` and there is such a problem; the message counts all.
    """
    if on_bad not in POLICIES:
        raise InputError(f"--on-bad must be one of {', '.join(POLICIES)}, not {on_bad!r}")
    grave = [problem for problem in problems if problem.skips]
    if on_bad == "fail" and grave:
        summary = ", ".join(f"{code} {n}" for code, n in count_problems(grave).items())
        raise InputError(f"bad training data ({summary}); the first: {grave[0]}")
