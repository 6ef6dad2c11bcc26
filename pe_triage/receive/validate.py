"""Refuse a data set that cannot be right before it is acknowledged, without decoding a value.

The element headers are walked (PS3.5 Section 7.1): everything must end where the data set ends,
sequences may not nest beyond what readers survive, and the identifying UIDs must be there, well
formed (PS3.5 Section 9.1) and those of the command. Statuses are those of PS3.4 Annex B.2.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import DicomDictionary  # type: ignore[attr-defined]

from pe_triage.errors import InvalidInstanceError
from pe_triage.identity import MAX_IDENTIFIER, is_uid

STATUS_MISMATCH = 0xA900
STATUS_CANNOT_UNDERSTAND = 0xC000

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

MAX_DEPTH = 32
"""Nested sequences; pydicom's recursion ends between 100 and 200, real objects stay below 12."""

MAX_ELEMENTS = 2_000_000
"""Headers in one data set, so that a gigabyte of empty elements cannot hold a receiver."""

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_SAMPLES, _FRAMES, _ROWS, _COLUMNS, _BITS = (
    0x00280002,
    0x00280008,
    0x00280010,
    0x00280011,
    0x00280100,
)
_IDENTIFIERS = {
    0x00100020: "Patient ID (0010,0020)",
    0x00100021: "Issuer of Patient ID (0010,0021)",
}
_KEPT = frozenset(
    {
        _SOP_CLASS,
        _SOP_INSTANCE,
        _STUDY,
        _SERIES,
        _SAMPLES,
        _FRAMES,
        _ROWS,
        _COLUMNS,
        _BITS,
        *_IDENTIFIERS,
    }
)
_MAX_KEPT = 4 * MAX_IDENTIFIER
_IDENTIFYING = {
    _SOP_CLASS: "SOP Class UID (0008,0016)",
    _SOP_INSTANCE: "SOP Instance UID (0008,0018)",
    _STUDY: "Study Instance UID (0020,000D)",
    _SERIES: "Series Instance UID (0020,000E)",
}

_NEEDS_PIXEL_DATA = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.840.10008.5.1.4.1.1.2.1",
        "1.2.840.10008.5.1.4.1.1.2.2",
    }
)
"""CT, Enhanced CT and Legacy Converted Enhanced CT: cut off before the pixel data, the headers
alone still end where the data set ends."""

_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(b" ")
)
"""VRs with a 16-bit length; all others, those not yet invented included, have 32 bits."""
_SEQUENCE_TAGS = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")
"""Implicit VR does not say which elements are sequences; the data dictionary does."""
_MAY_BE_UNDEFINED = frozenset({b"SQ", b"UN"})

Data = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHeader:
    """The identifying UIDs of an accepted data set."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


def check_instance(
    data: Data, *, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str
) -> InstanceHeader:
    """Walk an encoded data set and compare it with the C-STORE command that carried it.

    Parameters
    ----------
    data
        The data set as received, in `transfer_syntax_uid`.
    sop_class_uid, sop_instance_uid
        Affected SOP Class and Instance UID of the command.

    Raises
    ------
    InvalidInstanceError
        With the status to answer. Nothing else is raised, whatever the bytes are.
    """
    walker = _Walker(data, transfer_syntax_uid)
    kept = walker.walk()
    uids = {tag: _uid_value(kept, tag, name) for tag, name in _IDENTIFYING.items()}
    for tag, command in ((_SOP_CLASS, sop_class_uid), (_SOP_INSTANCE, sop_instance_uid)):
        if uids[tag] != command:
            raise InvalidInstanceError(
                f"{_IDENTIFYING[tag]} differs from the command's", status=STATUS_MISMATCH
            )
    for tag, name in _IDENTIFIERS.items():
        if len(kept.get(tag, b"").strip(b"\x00 ")) > MAX_IDENTIFIER:
            raise _not_understood(f"{name} is longer than {MAX_IDENTIFIER} bytes")
    if not walker.has_pixel_data and uids[_SOP_CLASS] in _NEEDS_PIXEL_DATA:
        raise _not_understood("pixel data is missing")
    return InstanceHeader(
        sop_class_uid=uids[_SOP_CLASS],
        sop_instance_uid=uids[_SOP_INSTANCE],
        study_uid=uids[_STUDY],
        series_uid=uids[_SERIES],
    )


def _uid_value(kept: dict[int, bytes], tag: int, name: str) -> str:
    raw = kept.get(tag)
    if raw is None:
        raise _not_understood(f"{name} is missing")
    value = raw.rstrip(b"\x00 ")
    if not is_uid(value):
        raise _not_understood(f"{name} is empty or malformed")
    return value.decode("ascii")


def _not_understood(message: str) -> InvalidInstanceError:
    return InvalidInstanceError(message, status=STATUS_CANNOT_UNDERSTAND)


def _truncated(at: int) -> InvalidInstanceError:
    return _not_understood(f"data set is truncated: an element at byte {at} ends beyond its end")


_Reader = Callable[..., tuple[Any, ...]]


def _readers(order: str) -> tuple[_Reader, _Reader, _Reader, _Reader]:
    u16, u32, explicit, implicit = (
        struct.Struct(order + layout).unpack_from for layout in ("H", "I", "HH2sH", "HHI")
    )
    return u16, u32, explicit, implicit


_READERS = {False: _readers("<"), True: _readers(">")}
"""By whether the data set is big endian: 16 bits, 32 bits, and the two kinds of header."""


class _Walker:
    """One pass over the element headers of one data set."""

    def __init__(self, data: Data, transfer_syntax_uid: str) -> None:
        self.data = data
        self.size = len(data)
        self.implicit = transfer_syntax_uid == IMPLICIT_LITTLE
        self.encapsulated = transfer_syntax_uid not in (
            IMPLICIT_LITTLE,
            EXPLICIT_LITTLE,
            EXPLICIT_BIG,
        )
        self.u16, self.u32, self.explicit_header, self.implicit_header = _READERS[
            transfer_syntax_uid == EXPLICIT_BIG
        ]
        self.kept: dict[int, bytes] = {}
        self.elements = 0
        self.has_pixel_data = False

    def walk(self) -> dict[int, bytes]:
        if self.size == 0:
            raise _not_understood("data set is empty")
        self._elements(0, self.size, depth=0, implicit=self.implicit, until_end_item=False)
        return self.kept

    def _elements(
        self, at: int, end: int, *, depth: int, implicit: bool, until_end_item: bool
    ) -> int:
        """Walk elements up to `end`, or to an Item Delimitation Item; returns where it stopped."""
        data, header = self.data, self.explicit_header
        implicit_header, u32 = self.implicit_header, self.u32
        count = 0
        top = depth == 0
        while at < end:
            count += 1
            if at + 8 > end:
                raise _truncated(at)
            if implicit:
                group, element, length = implicit_header(data, at)
                vr = b""
                value = at + 8
            else:
                group, element, vr, length = header(data, at)
                value = at + 8
                if vr not in _SHORT_VRS and group != 0xFFFE:
                    if not (vr.isalpha() and vr.isupper()):
                        raise _not_understood(f"no value representation at byte {at + 4}")
                    if at + 12 > end:
                        raise _truncated(at)
                    (length,) = u32(data, at + 8)
                    value = at + 12
            tag = group << 16 | element
            if group == 0xFFFE:
                if until_end_item and tag == _ITEM_END:
                    if u32(data, at + 4)[0]:
                        raise _not_understood(f"an item delimiter at byte {at} has a length")
                    self._count(count)
                    return at + 8
                raise _not_understood(f"an item or delimiter stands alone at byte {at}")
            if group < 0x0008 and top:
                raise _not_understood(f"group {group:04X} is no part of a data set")
            if length == _UNDEFINED:
                self._count(count)
                count = 0
                at = self._undefined(value, end, tag=tag, vr=vr, depth=depth, implicit=implicit)
                continue
            after = value + length
            if after > end:
                raise _truncated(at)
            if vr == b"SQ" or ((implicit or vr == b"UN") and tag in _SEQUENCE_TAGS):
                self._count(count)
                count = 0
                self._items(
                    value, after, depth=depth + 1, implicit=implicit or vr == b"UN", delimited=False
                )
            elif top:
                if tag in _KEPT:
                    if tag in self.kept:
                        raise _not_understood(f"({group:04X},{element:04X}) stands twice")
                    self.kept[tag] = bytes(data[value : value + min(length, _MAX_KEPT)])
                elif tag == _PIXEL_DATA:
                    self._pixel_data(length)
            at = after
        if until_end_item:
            raise _truncated(at)
        self._count(count)
        return at

    def _count(self, elements: int) -> None:
        self.elements += elements
        if self.elements > MAX_ELEMENTS:
            raise _not_understood(f"data set has more than {MAX_ELEMENTS} elements")

    def _undefined(
        self, value: int, end: int, *, tag: int, vr: bytes, depth: int, implicit: bool
    ) -> int:
        if tag == _PIXEL_DATA:
            if not self.encapsulated:
                raise _not_understood("pixel data of undefined length is not encapsulated here")
            self.has_pixel_data = self.has_pixel_data or depth == 0
            return self._fragments(value, end)
        if not implicit and vr not in _MAY_BE_UNDEFINED:
            raise _not_understood(f"an element before byte {value} has an undefined length")
        # An UN of undefined length holds a sequence in Implicit VR (PS3.5 Section 6.2.2 Note 2).
        return self._items(
            value, end, depth=depth + 1, implicit=implicit or vr == b"UN", delimited=True
        )

    def _items(self, at: int, end: int, *, depth: int, implicit: bool, delimited: bool) -> int:
        """Walk the items of a sequence (PS3.5 Section 7.5); returns where it ends."""
        if depth > MAX_DEPTH:
            raise _not_understood(f"sequences are nested deeper than {MAX_DEPTH}")
        while at < end:
            if at + 8 > end:
                raise _truncated(at)
            group, element, length = self.implicit_header(self.data, at)
            tag = group << 16 | element
            self._count(1)
            if tag == _SEQUENCE_END and delimited:
                if length:
                    raise _not_understood(f"a sequence delimiter at byte {at} has a length")
                return at + 8
            if tag != _ITEM:
                raise _not_understood(f"no item where a sequence needs one, at byte {at}")
            at += 8
            if length == _UNDEFINED:
                at = self._elements(at, end, depth=depth, implicit=implicit, until_end_item=True)
                continue
            if at + length > end:
                raise _truncated(at - 8)
            self._elements(at, at + length, depth=depth, implicit=implicit, until_end_item=False)
            at += length
        if delimited:
            raise _truncated(at)
        return at

    def _fragments(self, at: int, end: int) -> int:
        """Walk encapsulated pixel data (PS3.5 Annex A.4); returns where it ends."""
        fragments = 0
        while True:
            if at + 8 > end:
                raise _truncated(at)
            group, element, length = self.implicit_header(self.data, at)
            tag = group << 16 | element
            self._count(1)
            if tag == _SEQUENCE_END:
                if length:
                    raise _not_understood("the pixel data's sequence delimiter has a length")
                if fragments < 2:
                    raise _not_understood("encapsulated pixel data holds no fragment")
                return at + 8
            if tag != _ITEM or length == _UNDEFINED:
                raise _not_understood(f"no pixel data fragment at byte {at}")
            at += 8 + length
            fragments += 1
            if at > end:
                raise _truncated(at - 8 - length)

    def _pixel_data(self, length: int) -> None:
        """Compare native pixel data with what the header promises."""
        self.has_pixel_data = True
        if self.encapsulated:
            raise _not_understood("pixel data is not encapsulated as its transfer syntax demands")
        rows, columns, bits = (self._number(tag) for tag in (_ROWS, _COLUMNS, _BITS))
        # Subsampled colour and packed bits have rules of their own; CT has neither.
        if None in (rows, columns) or bits not in (8, 16, 32) or self._number(_SAMPLES) != 1:
            return
        expected = (rows or 0) * (columns or 0) * (bits // 8) * self._frames()
        if length < expected:
            raise _not_understood(
                f"pixel data has {length} bytes, Rows × Columns × Bits × Frames need {expected}"
            )

    def _number(self, tag: int) -> int | None:
        raw = self.kept.get(tag, b"")
        return int(self.u16(raw)[0]) if len(raw) == 2 else None

    def _frames(self) -> int:
        raw = self.kept.get(_FRAMES, b"").strip(b"\x00 ")
        return max(int(raw), 1) if raw.isdigit() else 1
