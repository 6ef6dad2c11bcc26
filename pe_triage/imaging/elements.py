"""Walking a Part 10 file's elements without decoding them (PS3.5 section 7, PS3.10 section 7).

A general reader decodes values on the way, warns about the malformed ones and descends into nested
sequences by recursion. Here a file is untrusted: only the wanted elements of the outermost data
set are copied out, as bytes; everything else is stepped over, sequences iteratively and to a
bounded depth.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path

from pe_triage.errors import InvalidInstanceError

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED_EXPLICIT_VR = "1.2.840.10008.1.2.1.99"

PIXEL_DATA = 0x7FE00010
TRANSFER_SYNTAX_UID = 0x00020010

MAX_DEPTH = 64
"""Nested sequences beyond this are an attack or an accident; real CT headers use about four."""
MAX_VALUE_BYTES = 16 * 1024
"""No header value read here is longer; a longer one is treated as unreadable."""
MAX_SEQUENCE_BYTES = 64 * 1024 * 1024
"""Functional groups of 2,000 frames with a vendor's private ones stay below 20 MiB."""
MAX_META_BYTES = 64 * 1024

_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD
_LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element's value as it stands in the file."""

    vr: bytes
    """Empty where the transfer syntax does not state it."""
    value: bytes
    little_endian: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelElement:
    """Where Pixel Data lies; `length` is None for encapsulated data (PS3.5 Annex A.4)."""

    offset: int
    length: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """What was found of the wanted elements, and where the pixels start."""

    transfer_syntax_uid: str
    found: dict[int, Element]
    pixels: PixelElement | None
    file_size: int
    sequences: dict[int, Element]
    """Content of whole sequences, for `sequences.parse_items`; VR UN means implicit content."""


def read_elements(
    path: Path,
    wanted: Collection[int],
    *,
    last: int = PIXEL_DATA,
    sequences: Collection[int] = (),
) -> Elements:
    """Copy the `wanted` elements of the outermost data set.

    Parameters
    ----------
    wanted
        Tags as (group << 16 | element).
    sequences
        Tags of sequences whose content is copied out as it stands.
    last
        Stop after this tag; with the default the walk ends at Pixel Data, whose value is never
        read.

    Raises
    ------
    InvalidInstanceError
        Not a Part 10 file, an encoding that this node does not take, or a broken structure.
    """
    try:
        with BufferedReader(FileIO(path), 64 * 1024) as file:
            return _Walker(file, frozenset(wanted), last, frozenset(sequences)).run()
    except FileNotFoundError as error:
        raise InvalidInstanceError("the file is gone") from error
    except IsADirectoryError as error:
        raise InvalidInstanceError("not a DICOM file: a folder") from error


class _Walker:
    def __init__(
        self,
        file: BufferedReader[FileIO],
        wanted: frozenset[int],
        last: int,
        sequences: frozenset[int],
    ) -> None:
        self._file = file
        self._sequences = sequences
        self._wanted = wanted
        self._last = last
        self._size = os.fstat(file.fileno()).st_size
        self._at = 0
        self._explicit = True
        self._little = True

    def run(self) -> Elements:
        transfer_syntax_uid = self._meta()
        self._explicit = transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN
        self._little = transfer_syntax_uid != EXPLICIT_VR_BIG_ENDIAN
        found: dict[int, Element] = {}
        sequences: dict[int, Element] = {}
        pixels: PixelElement | None = None
        while self._at < self._size:
            tag, vr, length = self._head()
            if tag > self._last:
                break
            if tag == PIXEL_DATA:
                encapsulated = length == _UNDEFINED
                if not encapsulated and self._at + length > self._size:
                    raise InvalidInstanceError("truncated: pixel data overruns the file")
                pixels = PixelElement(offset=self._at, length=None if encapsulated else length)
                break
            if tag in self._sequences and tag not in sequences:
                sequences[tag] = self._whole(vr, length)
            elif length == _UNDEFINED:
                self._step_over_sequence(vr)
            elif tag in self._wanted and tag not in found and length <= MAX_VALUE_BYTES:
                found[tag] = Element(vr=vr, value=self._read(length), little_endian=self._little)
            else:
                self._skip(length)
        return Elements(
            transfer_syntax_uid=transfer_syntax_uid,
            found=found,
            pixels=pixels,
            file_size=self._size,
            sequences=sequences,
        )

    def _whole(self, vr: bytes, length: int) -> Element:
        """Copy a sequence's content, of defined or undefined length."""
        start = self._at
        if length == _UNDEFINED:
            self._step_over_sequence(vr)
            length = self._at - start
            self._at = start
            self._file.seek(start)
        if length > MAX_SEQUENCE_BYTES:
            raise InvalidInstanceError("a sequence is longer than any header's")
        return Element(vr=vr, value=self._read(length), little_endian=self._little)

    def _meta(self) -> str:
        if self._size < 132 or self._read(132)[128:] != b"DICM":
            raise InvalidInstanceError("not a DICOM file: the prefix DICM is missing (PS3.10)")
        value = b""
        while self._at < min(self._size, MAX_META_BYTES):
            group = self._file.peek(2)[:2]
            if group != b"\x02\x00":
                break
            tag, _vr, length = self._head()
            if length > MAX_META_BYTES:
                raise InvalidInstanceError("file meta information is malformed")
            content = self._read(length)
            if tag == TRANSFER_SYNTAX_UID:
                value = content
        uid = value.rstrip(b"\0 ").decode("ascii", "replace")
        if not uid:
            raise InvalidInstanceError("file meta information names no transfer syntax")
        if uid == DEFLATED_EXPLICIT_VR:
            raise InvalidInstanceError("deflated transfer syntax is not accepted")
        return uid

    def _read(self, length: int) -> bytes:
        if self._at + length > self._size:
            raise InvalidInstanceError("truncated: an element overruns the file")
        data = self._file.read(length)
        if len(data) != length:
            raise InvalidInstanceError("truncated: the file ended early")
        self._at += length
        return data

    def _skip(self, length: int) -> None:
        if self._at + length > self._size:
            raise InvalidInstanceError("truncated: an element overruns the file")
        self._at += length
        self._file.seek(length, os.SEEK_CUR)

    def _head(self, *, implicit: bool | None = None) -> tuple[int, bytes, int]:
        """Tag, VR and length of the next element; the position moves to its value."""
        endian = "<" if self._little else ">"
        group, element = struct.unpack(endian + "HH", self._read(4))
        tag = group << 16 | element
        explicit = self._explicit if implicit is None else not implicit
        if group == 0xFFFE or not explicit:
            (length,) = struct.unpack(endian + "I", self._read(4))
            return tag, b"", length
        vr = self._read(2)
        if not (vr.isalpha() and vr.isupper()):
            raise InvalidInstanceError(
                f"element ({group:04X},{element:04X}) is not encoded in the stated transfer syntax"
            )
        if vr in _LONG_VRS:
            (length,) = struct.unpack(endian + "I", self._read(6)[2:])
        else:
            (length,) = struct.unpack(endian + "H", self._read(2))
        return tag, vr, length

    def _step_over_sequence(self, vr: bytes) -> None:
        """Step over a value of undefined length, whatever is nested in it.

        The stack holds, for each open level, whether it is a sequence (else an item) and whether
        its content is implicit VR: UN of undefined length always is (PS3.5 section 6.2.2 note 2).
        """
        stack: list[tuple[bool, bool]] = [(True, not self._explicit or vr == b"UN")]
        while stack:
            if len(stack) > 2 * MAX_DEPTH:
                raise InvalidInstanceError("sequences are nested too deeply")
            in_sequence, implicit = stack[-1]
            tag, inner_vr, length = self._head(implicit=implicit)
            if in_sequence:
                if tag == _SEQUENCE_END:
                    stack.pop()
                elif tag != _ITEM:
                    raise InvalidInstanceError("a sequence holds something that is not an item")
                elif length == _UNDEFINED:
                    stack.append((False, implicit))
                else:
                    self._skip(length)
            elif tag == _ITEM_END:
                stack.pop()
            elif length == _UNDEFINED:
                stack.append((True, implicit or inner_vr == b"UN"))
            else:
                self._skip(length)
