"""The items of a sequence from its bytes (PS3.5 section 7.5), as far as they are wanted.

As in `elements`, nothing is decoded on the way: of each item the wanted elements are copied, the
wanted sequences are opened, and everything else is stepped over.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field

from pe_triage.errors import InvalidInstanceError
from pe_triage.imaging.elements import MAX_DEPTH, MAX_VALUE_BYTES, Element

MAX_ITEMS = 16_384
"""Items of one sequence; more frames than any CT image holds."""

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)


@dataclass(frozen=True, slots=True)
class Item:
    """One item: wanted elements and the items of wanted sequences, by tag."""

    elements: dict[int, Element] = field(default_factory=dict)
    sequences: dict[int, tuple[Item, ...]] = field(default_factory=dict)


def parse_items(
    content: Element, wanted: Collection[int], opened: Collection[int], *, implicit: bool
) -> tuple[Item, ...]:
    """Read the items of a sequence.

    Parameters
    ----------
    content
        The sequence, as `elements.read_elements` copied it.
    wanted, opened
        Tags of the elements to copy, and of the nested sequences to open, at whatever depth.
    implicit
        Whether the file is in implicit VR.

    Raises
    ------
    InvalidInstanceError
        A broken structure.
    """
    reader = _Reader(content.value, frozenset(wanted), frozenset(opened), content.little_endian)
    items, _at = reader.items(0, len(content.value), implicit or content.vr == b"UN", 0)
    return items


class _Reader:
    def __init__(
        self, data: bytes, wanted: frozenset[int], opened: frozenset[int], little: bool
    ) -> None:
        self._data = data
        self._wanted = wanted
        self._opened = opened
        self._little = little
        order = "<" if little else ">"
        self._tag = struct.Struct(order + "HH").unpack_from
        self._u16 = struct.Struct(order + "H").unpack_from
        self._u32 = struct.Struct(order + "I").unpack_from

    def items(
        self, at: int, end: int, implicit: bool, depth: int, *, keep: bool = True
    ) -> tuple[tuple[Item, ...], int]:
        """Items from `at` to `end` or to the sequence's delimiter; and where that was."""
        if depth > MAX_DEPTH:
            raise InvalidInstanceError("sequences are nested too deeply")
        found: list[Item] = []
        while at < end:
            tag, _vr, length, at = self._head(at, end, implicit=True)
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise InvalidInstanceError("a sequence holds something that is not an item")
            if len(found) >= MAX_ITEMS:
                raise InvalidInstanceError(f"a sequence holds more than {MAX_ITEMS} items")
            item = Item()
            stop = end if length == _UNDEFINED else at + length
            if stop > end:
                raise InvalidInstanceError("truncated: an item overruns its sequence")
            at = self._item(item if keep else None, at, stop, implicit, depth)
            found.append(item)
        return tuple(found), at

    def _item(self, item: Item | None, at: int, end: int, implicit: bool, depth: int) -> int:
        """Fill `item` (None: step over it); returns where it ends."""
        while at < end:
            tag, vr, length, at = self._head(at, end, implicit=implicit)
            if tag == _ITEM_END:
                return at
            inner = implicit or vr == b"UN"
            opened = item is not None and tag in self._opened
            if length == _UNDEFINED or opened:
                stop = end if length == _UNDEFINED else at + length
                if stop > end:
                    raise InvalidInstanceError("truncated: an element overruns its item")
                items, at = self.items(at, stop, inner, depth + 1, keep=opened)
                if item is not None and opened and tag not in item.sequences:
                    item.sequences[tag] = items
                continue
            if at + length > end:
                raise InvalidInstanceError("truncated: an element overruns its item")
            if item is not None and tag in self._wanted and length <= MAX_VALUE_BYTES:
                value = self._data[at : at + length]
                item.elements.setdefault(
                    tag, Element(vr=vr, value=value, little_endian=self._little)
                )
            at += length
        return at

    def _head(self, at: int, end: int, *, implicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR and length of the next element, and where its value starts."""
        if at + 8 > end:
            raise InvalidInstanceError("truncated: a sequence ended early")
        group, element = self._tag(self._data, at)
        tag = group << 16 | element
        if group == 0xFFFE or implicit:
            return tag, b"", self._u32(self._data, at + 4)[0], at + 8
        vr = self._data[at + 4 : at + 6]
        if not (vr.isalpha() and vr.isupper()):
            raise InvalidInstanceError(
                f"element ({group:04X},{element:04X}) is not encoded in the stated transfer syntax"
            )
        if vr not in _LONG_VRS:
            return tag, vr, self._u16(self._data, at + 6)[0], at + 8
        if at + 12 > end:
            raise InvalidInstanceError("truncated: a sequence ended early")
        return tag, vr, self._u32(self._data, at + 8)[0], at + 12
