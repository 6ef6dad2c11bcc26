"""The comparison of a day at the PACS with the same day here: what never came, what got no result.

A pure function over what the PACS says and what the database says; who asks stands at the edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from pe_triage.domain import StudyState
from pe_triage.monitoring import ReconcileTable


class Verdict(StrEnum):
    """What became here of one study of the PACS."""

    NEVER_CAME = "NEVER_CAME"
    NO_RESULT = "NO_RESULT"
    """It came, and there is no answer: it failed, is in quarantine, or has waited too long."""
    INCOMPLETE = "INCOMPLETE"
    """Answered, though the PACS holds more images of the series than came here."""
    NOT_DELIVERED = "NOT_DELIVERED"
    UNDER_WAY = "UNDER_WAY"
    """It came a short while ago."""
    ANSWERED = "ANSWERED"


TROUBLE: tuple[Verdict, ...] = (
    Verdict.NEVER_CAME,
    Verdict.NO_RESULT,
    Verdict.INCOMPLETE,
    Verdict.NOT_DELIVERED,
)
"""Verdicts that a person should look at, the gravest first."""


class Listed(Protocol):
    """One study as the PACS lists it; `deliver.find_scu.PacsStudy` is one."""

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""

    @property
    def study_date(self) -> str:
        """As the PACS writes it."""

    @property
    def study_time(self) -> str:
        """As the PACS writes it."""

    @property
    def description(self) -> str:
        """Study Description."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in Study; empty where the PACS does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtPacs:
    """One study as the PACS has it."""

    study_uid: str
    study_date: str
    study_time: str
    description: str
    modalities: tuple[str, ...]
    series: Mapping[str, int] | None = None
    """CT series UID to instances; None where it was not asked."""

    @staticmethod
    def of(study: Listed) -> AtPacs:
        """What counts here of a study that the PACS lists."""
        return AtPacs(
            study_uid=study.study_uid,
            study_date=study.study_date,
            study_time=study.study_time,
            description=study.description,
            modalities=study.modalities,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The same study as this node has it."""

    state: StudyState
    reason: str | None
    series: Mapping[str, int]
    """Series UID to CT images held."""
    last_image_at: datetime
    completed_at: datetime | None
    answered: bool
    undelivered: int
    parked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One study and its verdict."""

    study_uid: str
    study_date: str
    study_time: str
    verdict: Verdict
    reason: str


def is_wanted(study: AtPacs, table: ReconcileTable) -> bool:
    """Whether the study should have come here, by modality and words of its description.

    A study whose modalities the PACS leaves out is kept: rather one too many in a list.
    """
    if study.modalities and table.modality not in study.modalities:
        return False
    text = study.description.casefold()
    if any(word.casefold() in text for word in table.without_words):
        return False
    return not table.words or any(word.casefold() in text for word in table.words)


def reconcile(
    studies: Sequence[AtPacs],
    here: Mapping[str, Here],
    *,
    now: datetime,
    settle_s: float,
) -> tuple[Line, ...]:
    """Judge each study of the PACS; the gravest first, then by time of day."""
    order = {
        verdict: n for n, verdict in enumerate((*TROUBLE, Verdict.UNDER_WAY, Verdict.ANSWERED))
    }
    lines = [_line(study, here.get(study.study_uid), now, settle_s) for study in studies]
    return tuple(
        sorted(lines, key=lambda x: (order[x.verdict], x.study_date, x.study_time, x.study_uid))
    )


def _line(study: AtPacs, known: Here | None, now: datetime, settle_s: float) -> Line:
    verdict, reason = _judge(study, known, now, settle_s)
    return Line(
        study_uid=study.study_uid,
        study_date=study.study_date,
        study_time=study.study_time,
        verdict=verdict,
        reason=reason,
    )


def _judge(
    study: AtPacs, known: Here | None, now: datetime, settle_s: float
) -> tuple[Verdict, str]:
    if known is None:
        return Verdict.NEVER_CAME, "the PACS has it; this node never saw it"
    age_s = (now - known.last_image_at).total_seconds()
    if not known.answered:
        if known.state in (StudyState.RECEIVING, StudyState.QUEUED, StudyState.RUNNING):
            if age_s < settle_s:
                return Verdict.UNDER_WAY, f"{known.state} since {age_s:.0f} s"
            words = f"{known.state} for {age_s / 3600:.1f} h"
        else:
            words = str(known.state)
        return Verdict.NO_RESULT, f"{words}: {known.reason}" if known.reason else words
    if known.parked:
        return Verdict.NOT_DELIVERED, f"{known.parked} results are parked"
    if known.undelivered:
        since = known.completed_at or known.last_image_at
        if (now - since).total_seconds() < settle_s:
            return Verdict.UNDER_WAY, f"{known.undelivered} results are being delivered"
        return Verdict.NOT_DELIVERED, f"{known.undelivered} results still wait"
    short = {
        uid: (held, at_pacs)
        for uid, held in known.series.items()
        if (at_pacs := (study.series or {}).get(uid, 0)) > held
    }
    if short:
        held, at_pacs = max(short.values(), key=lambda pair: pair[1] - pair[0])
        return Verdict.INCOMPLETE, f"{held} of {at_pacs} images of a series came"
    return Verdict.ANSWERED, str(known.state)


def counts(lines: Sequence[Line]) -> dict[str, int]:
    """Verdict to number of studies, every verdict named."""
    return {v.value: sum(line.verdict is v for line in lines) for v in Verdict}


def document(
    lines: Sequence[Line], *, first: str, last: str, pacs: str, at: datetime
) -> dict[str, Any]:
    """The report as plain JSON: UIDs, times and verdicts, nothing of a patient."""
    return {
        "first_day": first,
        "last_day": last,
        "pacs": pacs,
        "made_at": at.isoformat(),
        "studies_at_pacs": len(lines),
        "counts": counts(lines),
        "studies": [
            {
                "study_uid": line.study_uid,
                "study_date": line.study_date,
                "study_time": line.study_time,
                "verdict": line.verdict.value,
                "reason": line.reason,
            }
            for line in lines
        ],
    }
