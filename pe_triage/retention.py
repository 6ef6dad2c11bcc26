"""The ``[retention]`` table: how long files stay here once their study is answered and delivered.

What is owed to a destination never goes, whatever stands here. A full disk refuses every new study,
so the space rule is on by default; what it takes first is the copy that was here longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Days = Annotated[float, Field(ge=0)]

LOW_MARK = 8
"""Default of `low_free_mb` over `min_free_mb`."""
TARGET = 1.5
"""Default of `target_free_mb` over `low_free_mb`."""
RECOVERY = 1.25
"""Free space over the floor, at which images are taken again that were refused for want of it: room
for a study, where the floor is the default. At the floor itself a study would go in by turns."""
DAY_S, HOUR_S = 86400.0, 3600.0


class RetentionTable(BaseModel):
    """When files of answered and delivered studies are removed."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    enabled: bool = Field(
        default=True,
        description="Whether files are removed; never on a node without a destination, unless "
        "`unsent_days` is set.",
    )
    images_days: Days = Field(
        default=30.0, description="Days after which images go; 0: never by age."
    )
    failed_days: Days = Field(
        default=90.0,
        description="Days after which images of a FAILED study go; 0: never. They never go for "
        "want of space.",
    )
    results_days: Days = Field(
        default=365.0,
        description="Days after which result files go, the SR excepted; 0: never by age.",
    )
    uncommitted_days: Days = Field(
        default=0.0,
        description="Days after delivery for which files wait for an archive that was asked to "
        "commit to the result; 0: until it has committed.",
    )
    unsent_days: Days = Field(
        default=0.0,
        description="Days for which files of an answer are kept that was sent nowhere on purpose "
        "(`worker --no-send`, or no destination configured) before they may go as if it had been "
        "delivered; 0: for ever.",
    )
    settle_h: Annotated[float, Field(ge=0)] = Field(
        default=1.0,
        description="Hours for which nothing of a study has happened before it may lose anything.",
    )
    low_free_mb: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Free space (MiB) below which the oldest images go, then the oldest results; "
        "default: 8 times `min_free_mb`.",
    )
    target_free_mb: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Free space (MiB) at which that ends; default: 1.5 times `low_free_mb`.",
    )


def is_on(table: RetentionTable, *, has_destination: bool) -> bool:
    """Whether files are removed; where results are sent nowhere, only once the site says so."""
    return table.enabled and (has_destination or table.unsent_days > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Free space at which removal for want of space begins, and at which it ends; in bytes."""

    low: int
    target: int


def marks_of(table: RetentionTable, min_free_mb: int) -> Marks:
    """Marks in force.

    Raises
    ------
    ValueError
        Images would be refused (`min_free_mb`) before anything was removed, or removal would end
        before it begins.
    """
    low = table.low_free_mb or max(1, LOW_MARK * min_free_mb)
    target = table.target_free_mb or int(TARGET * low)
    if low <= min_free_mb:
        raise ValueError(f"low_free_mb: {low} must be above min_free_mb, which is {min_free_mb}")
    if target < low:
        raise ValueError(f"target_free_mb: {target} is below low_free_mb, which is {low}")
    return Marks(low=low << 20, target=target << 20)


def resume_free(min_free_bytes: int, marks: Marks) -> int:
    """Free bytes at which images are taken again; never more than removal would make free."""
    return min(int(RECOVERY * min_free_bytes), marks.low) if min_free_bytes else 0


def rows(table: type[BaseModel] = RetentionTable) -> list[tuple[str, Any, str]]:
    """Key, default and meaning, for the documentation."""
    return [
        (name, field.default, field.description or "") for name, field in table.model_fields.items()
    ]
