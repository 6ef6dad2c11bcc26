"""The ``[commitment]`` and ``[retrieve]`` tables: what an archive is asked beside C-FIND.

All of it is off by default: without names under ``commitment.of`` or ``commitment.requesters``
storage commitment is neither asked for nor offered, and nothing is retrieved without
``retrieve.pacs`` or ``query.pacs``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pe_triage.addresses import parse_aet, parse_destination
from pe_triage.domain import Destination
from pe_triage.errors import InputError

Positive = Annotated[float, Field(gt=0)]

HOUR_S, DAY_S = 3600.0, 86400.0


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CommitmentTable(_Table):
    """Storage commitment, both ways (PS3.4 Annex J)."""

    of: tuple[str, ...] = Field(
        default=(),
        description="Destinations that are asked to commit to what was delivered: a `send_to` as "
        "it stands there, or the name of a `dicom` table.",
    )
    at: dict[str, str] = Field(
        default_factory=dict,
        description="Destination to the `AET@HOST:PORT` that answers for it, where that is "
        "another than the one which takes the objects.",
    )
    report_aets: tuple[str, ...] = Field(
        default=(),
        description="Further AE titles that reports may come from; those asked may always report.",
    )
    delay_s: Positive = Field(
        default=10.0, description="Seconds after delivery before it is asked: a run goes as one."
    )
    linger_s: Annotated[float, Field(ge=0)] = Field(
        default=3.0,
        description="Seconds that the association of a request is kept open for a report on it.",
    )
    ask_again_s: Positive = Field(
        default=HOUR_S,
        description="Seconds without a report after which it is asked again; doubles up to a day.",
    )
    alarm_after_s: Positive = Field(
        default=DAY_S, description="Seconds without commitment that raise an alarm."
    )
    give_up_s: Positive = Field(
        default=7 * DAY_S,
        description="Seconds after delivery at which asking ends; what is not committed to then "
        "is kept, and stands in the alarm, until a person decides (`retention.uncommitted_days`).",
    )
    redeliveries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=3,
        description="How often an object that the destination says it lacks is sent again.",
    )
    requesters: tuple[str, ...] = Field(
        default=(),
        description="`AET@HOST:PORT` of those who may ask this node before they delete; the "
        "answer is sent there.",
    )
    archive: str | None = Field(
        default=None,
        description="`AET@HOST:PORT` of the PACS that must hold what is confirmed to them; "
        "default: `query.pacs`.",
    )
    confirm_by: Literal["find", "commitment"] = Field(
        default="find",
        description="How the PACS is asked: C-FIND at IMAGE level, or storage commitment in turn.",
    )
    settle_s: Positive = Field(
        default=HOUR_S,
        description="Seconds that an answer waits for the PACS to hold everything; then what is "
        "missing is reported as failed.",
    )
    check_every_s: Positive = Field(
        default=60.0, description="Seconds between two questions to the PACS for one request."
    )

    @field_validator("at")
    @classmethod
    def _check_at(cls, value: dict[str, str]) -> dict[str, str]:
        for address in value.values():
            _check_address(address)
        return value

    @field_validator("report_aets")
    @classmethod
    def _check_aets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(parse_aet(title) for title in value)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("requesters")
    @classmethod
    def _check_requesters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        titles = [_check_address(text).aet for text in value]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            # The answer would go to one of two machines, and nobody knows which.
            raise ValueError(f"the AE title {twice[0]!r} is given twice")
        return value

    @field_validator("archive")
    @classmethod
    def _check_archive(cls, value: str | None) -> str | None:
        if value is not None:
            _check_address(value)
        return value

    @model_validator(mode="after")
    def _check_names(self) -> CommitmentTable:
        unknown = sorted(set(self.at) - set(self.of))
        if unknown:
            raise ValueError(f"at: {unknown[0]!r} is not in commitment.of")
        return self

    @property
    def requester_peers(self) -> tuple[Destination, ...]:
        """Parsed `requesters`."""
        return tuple(parse_destination(text) for text in self.requesters)


class RetrieveTable(_Table):
    """How a study that is no longer held is fetched from the PACS (PS3.4 Annex C.4.2, C.4.3)."""

    pacs: str | None = Field(
        default=None, description="`AET@HOST:PORT` to retrieve from; default: `query.pacs`."
    )
    by: Literal["move", "get"] = Field(
        default="move",
        description="`move`: C-MOVE to this node's own AE, which must be running and known to the "
        "PACS; `get`: C-GET on the command's own association.",
    )
    modality: str = Field(
        default="CT", description="Modality of the series to retrieve; empty: every series."
    )
    timeout_s: Positive = Field(
        default=120.0,
        description="Seconds without any word from the PACS after which a retrieval is given up.",
    )
    attempts: Annotated[int, Field(ge=1, le=20)] = Field(
        default=3, description="How often what is missing is asked for again."
    )
    index_wait_s: Positive = Field(
        default=60.0,
        description="Seconds to wait until this node has filed what was retrieved.",
    )

    @field_validator("pacs")
    @classmethod
    def _check_pacs(cls, value: str | None) -> str | None:
        if value is not None:
            _check_address(value)
        return value


def _check_address(text: str) -> Destination:
    try:
        return parse_destination(text)
    except InputError as error:
        raise ValueError(str(error)) from None


ARCHIVE_TABLES: dict[str, type[_Table]] = {"commitment": CommitmentTable, "retrieve": RetrieveTable}
"""For the documentation."""
