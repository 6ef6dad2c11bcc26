"""Element bytes to values: anything malformed is None, nothing raises (PS3.5 section 6.2)."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Mapping

from pydicom.charset import convert_encodings, decode_bytes

from pe_triage.identity import clean_text, is_uid
from pe_triage.imaging.elements import Element

MAX_TEXT = 256
"""Characters kept of a text value."""
MAX_VALUES = 32

_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?\Z", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,12}\Z", re.ASCII)
_AGE = re.compile(r"(\d{1,3})([DWMY])\Z", re.ASCII)
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})\Z", re.ASCII)
_TIME = re.compile(r"(\d{2}):?(\d{2}):?(\d{2}(?:\.\d{1,6})?)(?:[+-]\d{4})?\Z", re.ASCII)
_DAYS: Mapping[str, float] = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}

_CHARACTER_SET = 0x00080005


class Values:
    """Typed access to the elements of one header.

    Parameters
    ----------
    found
        Tag to element, as of `read_elements`.
    """

    def __init__(self, found: Mapping[int, Element]) -> None:
        self._found = found
        charset = found.get(_CHARACTER_SET)
        self._charset = _ascii(charset.value).split("\\") if charset is not None else []

    def text(self, tag: int) -> str | None:
        """Return the first value, clean, of at most `MAX_TEXT` characters; None when empty."""
        values = self.texts(tag)
        return values[0] if values and values[0] else None

    def texts(self, tag: int) -> tuple[str, ...]:
        """Return all values as clean text."""
        whole = self.unbounded_text(tag)
        if not whole:
            return ()
        return tuple(v.strip()[:MAX_TEXT] for v in whole.split("\\")[:MAX_VALUES])

    def unbounded_text(self, tag: int) -> str:
        """Decode the value without control characters, however long."""
        element = self._found.get(tag)
        if element is None:
            return ""
        return clean_text(self._decode(element.value)).strip()

    def uid(self, tag: int) -> str | None:
        """Return a UID that is well-formed enough to be used (PS3.5 section 9.1), else None."""
        # The rule on receipt is the same: what was acknowledged can be indexed.
        element = self._found.get(tag)
        if element is None:
            return None
        value = element.value.rstrip(b"\0 ")
        return value.decode("ascii") if is_uid(value) else None

    def decimal(self, tag: int) -> float | None:
        """Return the single DS value."""
        values = self.decimals(tag, 1)
        return values[0] if values is not None else None

    def decimals(self, tag: int, count: int) -> tuple[float, ...] | None:
        """Return exactly `count` finite DS values, else None."""
        element = self._found.get(tag)
        if element is None:
            return None
        parts = [p.strip("\0 ") for p in _ascii(element.value).split("\\")]
        if len(parts) != count or not all(_DECIMAL.match(p) for p in parts):
            return None
        numbers = tuple(float(p) for p in parts)
        return numbers if all(math.isfinite(n) for n in numbers) else None

    def integer(self, tag: int) -> int | None:
        """Return the single IS value."""
        element = self._found.get(tag)
        if element is None:
            return None
        text = _ascii(element.value).strip("\0 ")
        return int(text) if _INTEGER.match(text) else None

    def unsigned(self, tag: int) -> int | None:
        """Return the single US (or SS, as its bit pattern) value."""
        element = self._found.get(tag)
        if element is None or len(element.value) != 2 or element.vr not in (b"", b"US", b"SS"):
            return None
        order = "<H" if element.little_endian else ">H"
        return int(struct.unpack(order, element.value)[0])

    def unsigned_long(self, tag: int) -> int | None:
        """Return the single UL value."""
        element = self._found.get(tag)
        if element is None or len(element.value) != 4 or element.vr not in (b"", b"UL"):
            return None
        return int(struct.unpack("<I" if element.little_endian else ">I", element.value)[0])

    def age_years(self, tag: int) -> float | None:
        """Return an AS value in years."""
        match = _AGE.match(self.text(tag) or "")
        return int(match[1]) * _DAYS[match[2]] / _DAYS["Y"] if match else None

    def date_days(self, tag: int) -> float | None:
        """Return a DA value as days on a scale good to a day or two, for differences."""
        match = _DATE.match(self.text(tag) or "")
        if match is None:
            return None
        year, month, day = (int(g) for g in match.groups())
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return None
        return year * _DAYS["Y"] + (month - 1) * _DAYS["M"] + day

    def time_s(self, tag: int, *, skip: int = 0) -> float | None:
        """Return a TM value, or a DT value without its first `skip` characters, in seconds."""
        match = _TIME.match((self.text(tag) or "")[skip:])
        if match is None:
            return None
        hours, minutes, seconds = int(match[1]), int(match[2]), float(match[3])
        return 3600.0 * hours + 60.0 * minutes + seconds if hours < 24 and minutes < 60 else None

    def _decode(self, value: bytes) -> str:
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii")
        # Only text outside ASCII pays for pydicom's decoder, which tells of unknown character
        # sets by warnings; a value that it cannot read keeps its ASCII part.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                encodings = convert_encodings(self._charset or ["ISO_IR 6"])
                return str(decode_bytes(value, encodings, {ord("\\")}))
        except (LookupError, UnicodeError, ValueError, TypeError, AttributeError):
            return _ascii(value)


def _ascii(value: bytes) -> str:
    return value.decode("ascii", "replace")
