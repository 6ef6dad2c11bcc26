"""Checks of configuration tables: one line that names the key, whatever is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from pydicom.sr.coding import Code

from pe_triage.domain import Priority
from pe_triage.errors import ConfigurationError


def check_keys(where: str, table: Any, known: Collection[str]) -> Mapping[str, Any]:
    """Return `table`, a mapping of known keys only."""
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where}: a table was expected, not {table!r}")
    for key in table:
        if key not in known:
            raise ConfigurationError(f"{where}.{key}: unknown key; known: {', '.join(known)}")
    return table


def text(where: str, value: Any, *, longest: int = 64) -> str:
    """Return a printable text of one line, 1 to `longest` characters."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{where}: a text was expected, not {value!r}")
    if len(value) > longest or not value.isprintable() or "\\" in value:
        raise ConfigurationError(
            f"{where}: at most {longest} printable characters without backslash were expected"
        )
    return value.strip()


def flag(where: str, value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where}: true or false was expected, not {value!r}")
    return value


def whole(where: str, value: Any, low: int, high: int) -> int:
    """Return a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigurationError(
            f"{where}: a whole number from {low} to {high} was expected, not {value!r}"
        )
    return value


def priority(where: str, value: Any) -> Priority:
    """Return a priority by its name."""
    try:
        return Priority(value)
    except ValueError:
        names = ", ".join(p.value for p in Priority)
        raise ConfigurationError(f"{where}: {value!r} is none of {names}") from None


def labels(where: str, value: Any, known: Collection[str]) -> frozenset[str]:
    """Return a list of known labels as a set."""
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise ConfigurationError(f"{where}: a list of labels was expected, not {value!r}")
    for label in value:
        if label not in known:
            raise ConfigurationError(f"{where}: unknown label {label!r}; known: {', '.join(known)}")
    return frozenset(value)


def code(where: str, value: Any) -> Code:
    """Return a code from a table of value, scheme and meaning (PS3.3 Table 8.8-1)."""
    table = check_keys(where, value, ("value", "scheme", "meaning"))
    for key in ("value", "scheme", "meaning"):
        if key not in table:
            raise ConfigurationError(f"{where}.{key}: is missing")
    scheme = text(f"{where}.scheme", table["scheme"], longest=16)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", scheme):
        raise ConfigurationError(f"{where}.scheme: {scheme!r} is no coding scheme designator")
    return Code(
        text(f"{where}.value", table["value"], longest=16),
        scheme,
        text(f"{where}.meaning", table["meaning"]),
    )
