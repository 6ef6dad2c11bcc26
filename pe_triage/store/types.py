"""Column types that mean the same on both databases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Text
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored and returned in UTC with microseconds.

    PostgreSQL keeps ``timestamptz``; SQLite keeps fixed-width text without a zone, which sorts as
    time does because all of it is UTC.

    Raises
    ------
    ValueError
        On a naive datetime: nobody knows what it means.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive datetimes and convert the rest to UTC."""
        if value is None:
            return None
        if value.utcoffset() is None:
            raise ValueError("a datetime without a time zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware datetime in UTC, whatever the session's zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def clean_text(value: str) -> str:
    """Make `value` storable: no NUL (PostgreSQL refuses it), no lone surrogate (UTF-8 does).

    One odd instance must never keep a whole batch from being recorded.
    """
    return value.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def storable(value: Any) -> Any:
    """Copy a JSON value, with null for numbers that JSON has no word for (NaN, infinities)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value


class StrictJson(TypeDecorator[Any]):
    """JSON as both databases and every reader understand it: null for None, no NaN.

    Raises
    ------
    ValueError, TypeError
        On a value that JSON has no word for, before a driver sees it.
    """

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Refuse what is no JSON."""
        if value is not None:
            json.dumps(value, allow_nan=False)
        return value


class SafeText(TypeDecorator[str]):
    """Text that both databases can always store; see `clean_text`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Remove what a database would refuse."""
        return None if value is None else clean_text(value)
