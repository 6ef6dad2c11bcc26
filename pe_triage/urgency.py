"""The ``[[urgency]]`` tables: which studies go first in the queue, and which last.

The place in the queue is not the priority of the result: it is given before anybody has looked at
the images, by who sent them, how they were acquired or what was ordered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import IntEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pe_triage.addresses import parse_aet
from pe_triage.errors import InputError

Attribute = Literal[
    "study_description",
    "series_description",
    "protocol_name",
    "body_part",
    "department",
    "accession_number",
    "requested_procedure",
    "requested_procedure_id",
    "reason",
    "priority",
]

KEYWORDS: dict[Attribute, str] = {
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "protocol_name": "ProtocolName",
    "body_part": "BodyPartExamined",
    "department": "InstitutionalDepartmentName",
    "accession_number": "AccessionNumber",
    "requested_procedure": "RequestedProcedureDescription",
    "requested_procedure_id": "RequestedProcedureID",
    "reason": "ReasonForTheRequestedProcedure",
    "priority": "RequestedProcedurePriority",
}
"""Of the images; also looked for in the Request Attributes Sequence (0040,0275)."""


class Place(IntEnum):
    """Where a study stands in the queue before age counts."""

    STAT = 0
    ROUTINE = 100
    BACKFILL = 200


class UrgencyRule(BaseModel):
    """One rule; it matches where each condition that it states holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    place: Literal["STAT", "ROUTINE", "BACKFILL"] = Field(
        default="STAT", description="Where a study that matches stands in the queue."
    )
    senders: tuple[str, ...] = Field(
        default=(), description="Calling AE titles, of which one must have sent images of it."
    )
    attribute: Attribute | None = Field(
        default=None,
        description="What is looked at in one of its images: " + ", ".join(KEYWORDS) + ".",
    )
    words: Annotated[tuple[str, ...], Field(max_length=100)] = Field(
        default=(), description="Of which one must occur in it; case does not count."
    )

    @field_validator("senders")
    @classmethod
    def _check_senders(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(parse_aet(title) for title in value)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("words")
    @classmethod
    def _check_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(word.strip() for word in value):
            raise ValueError("an empty word occurs in everything")
        return value

    @model_validator(mode="after")
    def _check_conditions(self) -> UrgencyRule:
        if (self.attribute is None) != (not self.words):
            raise ValueError("attribute and words go together")
        if not self.senders and self.attribute is None:
            raise ValueError("a rule without senders and words would match every study")
        return self


def place_of(
    rules: Sequence[UrgencyRule],
    calling_aets: Collection[str],
    texts: Callable[[str], Sequence[str]],
) -> Place:
    """Place of a study: that of the first rule that matches, else ROUTINE.

    Parameters
    ----------
    texts
        Values that an image of the study has for a keyword; asked only where a rule needs them.
    """
    for rule in rules:
        if rule.senders and not set(rule.senders) & set(calling_aets):
            continue
        if rule.attribute is not None:
            said = [text.casefold() for text in texts(KEYWORDS[rule.attribute])]
            if not any(word.casefold().strip() in text for word in rule.words for text in said):
                continue
        return Place[rule.place]
    return Place.ROUTINE
