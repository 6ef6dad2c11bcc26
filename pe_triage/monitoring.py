"""The ``[query]``, ``[[senders]]``, ``[watch]`` and ``[reconcile]`` tables: how a node is watched.

All of it is off, or harmless, by default: without a peer under ``query.pacs`` nobody is asked
anything, and without ``watch.metrics_file`` nothing is written beside the log and the database.
"""

from __future__ import annotations

import re
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pe_triage.addresses import parse_aet, parse_destination
from pe_triage.domain import Destination
from pe_triage.errors import InputError

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]

IdentityAttribute = Literal["patient_id", "issuer", "name", "birth_date"]
IDENTITY_ATTRIBUTES: tuple[IdentityAttribute, ...] = (
    "patient_id",
    "issuer",
    "name",
    "birth_date",
)
NOBODY = "none"
"""What a sender's table says where nobody shall be asked about its studies."""

_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]\Z")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class QueryTable(_Table):
    """Who is asked by C-FIND, and what for."""

    pacs: str | None = Field(
        default=None,
        description="`AET@HOST:PORT` that answers Study Root C-FIND; without it nobody is asked.",
    )
    timeout_s: Positive = Field(default=10.0, description="Seconds to wait, at each step.")
    pause_after_failure_s: Positive = Field(
        default=60.0, description="Seconds for which a peer that did not answer is left alone."
    )
    expected_count: bool = Field(
        default=True, description="Ask how many images a study has that is being received."
    )
    expected_scope: Literal["series", "study"] = Field(
        default="series",
        description="`series`: of the series of which images have come; `study`: of every CT "
        "series, where the whole study is always sent.",
    )
    expected_wait_s: Positive = Field(
        default=300.0,
        description="Seconds without a new image after which a study is closed though the PACS "
        "holds more of it; the result then says so.",
    )
    identity: bool = Field(
        default=True, description="Compare the patient with the PACS before each delivery."
    )
    identity_attributes: tuple[IdentityAttribute, ...] = Field(
        default=IDENTITY_ATTRIBUTES,
        description="What must agree where both sides state it.",
    )
    identity_unavailable: Literal["deliver", "wait"] = Field(
        default="deliver",
        description="Where the PACS does not answer, or does not know the study: deliver on the "
        "node's own check, or wait until it does.",
    )
    identity_corrected: Literal["remake", "park"] = Field(
        default="remake",
        description="Where the PACS has the study under another patient: make the results again "
        "under that patient if it is provably the same study, else park them; or always park them "
        "until a person decides.",
    )
    identity_fresh_s: Positive = Field(
        default=60.0, description="Seconds for which an answer on one study is used again."
    )

    @field_validator("pacs")
    @classmethod
    def _check_pacs(cls, value: str | None) -> str | None:
        return None if value is None else _checked(parse_destination, value)

    @property
    def peer(self) -> Destination | None:
        """Parsed `pacs`."""
        return None if self.pacs is None else parse_destination(self.pacs)


class SenderTable(_Table):
    """What holds for the studies of one calling AE, in place of the node's own settings."""

    aet: str = Field(description="Calling AE title.")
    quiet_s: Positive | None = Field(
        default=None, description="Last resort: seconds without a new instance."
    )
    grace_s: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Seconds before positive signs may end a study."
    )
    max_wait_s: Positive | None = Field(
        default=None, description="Seconds after the first instance at which a study is closed."
    )
    expected_wait_s: Positive | None = Field(
        default=None, description="As `query.expected_wait_s`."
    )
    query: str | None = Field(
        default=None,
        description="`AET@HOST:PORT` to ask for the number of images of its studies, in place of "
        "`query.pacs`; `none` asks nobody.",
    )

    @field_validator("aet")
    @classmethod
    def _check_aet(cls, value: str) -> str:
        try:
            return parse_aet(value)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("query")
    @classmethod
    def _check_query(cls, value: str | None) -> str | None:
        return value if value in (None, NOBODY) else _checked(parse_destination, str(value))


class WatchTable(_Table):
    """What the node watches of itself, and when it says so."""

    every_s: Positive = Field(default=60.0, description="Seconds between two looks.")
    window: Annotated[int, Field(ge=10, le=1000)] = Field(
        default=50, description="Studies in the sliding window of the rates."
    )
    baseline: Annotated[int, Field(ge=20, le=5000)] = Field(
        default=100,
        description="First studies of the model in force that say what is usual here; no chart "
        "speaks before.",
    )
    baseline_since: datetime | None = Field(
        default=None,
        description="Time from which the baseline is taken, after a planned change (a new "
        "scanner, a new protocol); ISO 8601 with a zone.",
    )
    positive_rate: Share | None = Field(
        default=None, description="Expected share of POSITIVE; default: that of the baseline."
    )
    not_evaluated_rate: Share | None = Field(
        default=None, description="Expected share of NOT_EVALUATED; default: that of the baseline."
    )
    indeterminate_rate: Share | None = Field(
        default=None, description="Expected share of INDETERMINATE; default: that of the baseline."
    )
    constant_studies: Annotated[int, Field(ge=3, le=1000)] = Field(
        default=8,
        description="Studies in a row with the same probability to 6 digits that raise an alarm.",
    )
    absent_s: Positive = Field(
        default=4 * 3600.0,
        description="Seconds without any answer, while studies came, that raise an alarm.",
    )
    undelivered_s: Positive = Field(
        default=4 * 3600.0,
        description="Seconds that a destination takes nothing, while results wait for it, that "
        "raise an alarm.",
    )
    stalled_s: Positive = Field(
        default=900.0,
        description="Seconds that a run waits in the queue, while none ends, that raise an alarm.",
    )
    silent_s: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Seconds without any new study that raise an alarm; 0: never (nights and "
        "week-ends differ from site to site).",
    )
    remind_s: Positive = Field(
        default=24 * 3600.0, description="Seconds after which a standing alarm is sent again."
    )
    metrics_file: Path | None = Field(
        default=None,
        description="File for the Prometheus node exporter's textfile collector (`….prom`), "
        "rewritten at each look; without it none is written.",
    )

    @field_validator("baseline_since")
    @classmethod
    def _check_aware(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.utcoffset() is None:
            raise ValueError("has no time zone")
        return value

    @field_validator("metrics_file")
    @classmethod
    def _check_suffix(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != ".prom":
            raise ValueError("must end in .prom, or the collector does not read it")
        return value


class ReconcileTable(_Table):
    """Which studies of the PACS should have come to this node."""

    enabled: bool = Field(
        default=True, description="Whether the day before is compared each day, given query.pacs."
    )
    at: str = Field(default="06:30", description="Local time of day from which it is done.")
    modality: str = Field(default="CT", description="Modality of the studies asked for.")
    words: tuple[str, ...] = Field(
        default=(),
        description="Words of Study Description of which one must occur (case does not count); "
        "empty: every study of the modality.",
    )
    without_words: tuple[str, ...] = Field(
        default=(), description="Words of Study Description that leave a study out."
    )
    settle_s: Annotated[float, Field(ge=0)] = Field(
        default=3600.0,
        description="Seconds that a study may be under way here before it counts as late.",
    )

    @field_validator("at")
    @classmethod
    def _check_at(cls, value: str) -> str:
        if not _CLOCK.match(value):
            raise ValueError("expected HH:MM")
        return value

    @property
    def at_time(self) -> time:
        """Parsed `at`."""
        return time.fromisoformat(self.at)


MONITORING_TABLES: dict[str, type[_Table]] = {
    "query": QueryTable,
    "senders": SenderTable,
    "watch": WatchTable,
    "reconcile": ReconcileTable,
}
"""For the documentation."""


def _checked(parse: Any, text: str) -> str:
    try:
        parse(text)
    except InputError as error:
        raise ValueError(str(error)) from None
    return text
