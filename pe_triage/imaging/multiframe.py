"""The frames of an Enhanced CT image to Hounsfield units, one at a time.

A chest of 1,000 frames is half a gigabyte: frames are found by their place in the file and read
singly, so that memory holds the volume and little else.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pe_triage.errors import ImagingError, InvalidInstanceError
from pe_triage.imaging.codecs import Frame, decode_frame
from pe_triage.imaging.elements import Elements
from pe_triage.imaging.functional_groups import (
    PIXEL_VALUE_TRANSFORMATION,
    FunctionalGroups,
    read_functional_groups,
)
from pe_triage.imaging.pixels import (
    MAX_FRAME_BYTES,
    NATIVE_ORDER,
    PixelFormat,
    open_image,
    pixel_format,
    to_hu,
)
from pe_triage.imaging.values import Values

_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")
"""First bytes of a JPEG or JPEG-LS stream, a JPEG 2000 code stream, and one in JP2 boxes."""
_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_FRAMES = 0x00280008


@dataclass(frozen=True, slots=True)
class Fragment:
    """One item of encapsulated pixel data (PS3.5 Annex A.4): where its value lies in the file."""

    offset: int
    length: int
    starts: bool
    """Whether its first bytes are those of a compressed image."""


class MultiFrame:
    """One multi-frame CT instance whose frames can be decoded, from several threads at once.

    Parameters
    ----------
    path
        Part 10 file.
    sop_instance_uid
        The file must hold this instance.

    Raises
    ------
    ImagingError
        The header cannot be read, or the pixel data do not hold the frames that it states; with a
        reason for people, which names no patient.
    """

    def __init__(self, path: Path, sop_instance_uid: str) -> None:
        self._path = path
        self._elements, self._values = open_image(path, sop_instance_uid)
        try:
            self._groups: FunctionalGroups = read_functional_groups(path)
        except InvalidInstanceError as error:
            raise ImagingError(f"an image cannot be read: {error}") from error
        self.frames = len(self._groups.per_frame)
        stated = self._values.integer(_FRAMES)
        if stated != self.frames:
            raise ImagingError(f"{stated} frames are stated, {self.frames} are described")
        form = self._format(1)
        self._streams: tuple[tuple[Fragment, ...], ...] = ()
        if self._elements.transfer_syntax_uid in NATIVE_ORDER:
            _check_length(self._elements, form, self.frames)
        else:
            self._streams = _streams(path, self._elements, self.frames)

    def hu(self, frame: int) -> NDArray[np.int16]:
        """Decode one frame.

        Parameters
        ----------
        frame
            From 1 (PS3.3 C.7.6.16.1.1.1).

        Returns
        -------
        ndarray
            int16 (rows, columns) Hounsfield units, as of `pixels.decode_hu`.

        Raises
        ------
        ImagingError
            With a reason for people.
        """
        if not 1 <= frame <= self.frames:
            raise ImagingError(f"there is no frame {frame} among {self.frames}")
        form = self._format(frame)
        if self._streams:
            return to_hu(self._compressed(frame, form), form)
        return to_hu(self._native(frame, form), form)

    def _format(self, frame: int) -> PixelFormat:
        rescale: Values = self._groups.values(frame, PIXEL_VALUE_TRANSFORMATION)
        return pixel_format(self._values, rescale)

    def _native(self, frame: int, form: PixelFormat) -> NDArray[np.generic]:
        order = NATIVE_ORDER[self._elements.transfer_syntax_uid]
        dtype = np.dtype("u1") if form.bits_allocated == 8 else np.dtype(order + "u2")
        count = form.rows * form.columns
        assert self._elements.pixels is not None  # the constructor has looked
        with self._path.open("rb") as file:
            file.seek(self._elements.pixels.offset + (frame - 1) * count * dtype.itemsize)
            data = np.fromfile(file, dtype=dtype, count=count)
        if data.size != count:
            raise ImagingError("an image file ended early")
        return data.astype(dtype.newbyteorder("="), copy=False).reshape(form.rows, form.columns)

    def _compressed(self, frame: int, form: PixelFormat) -> NDArray[np.generic]:
        fragments = self._streams[frame - 1]
        if sum(f.length for f in fragments) > MAX_FRAME_BYTES:
            raise ImagingError("compressed pixel data are larger than any CT slice")
        with self._path.open("rb") as file:
            parts = []
            for fragment in fragments:
                file.seek(fragment.offset)
                parts.append(file.read(fragment.length))
        decoded = decode_frame(
            self._elements.transfer_syntax_uid,
            b"".join(parts),
            Frame(rows=form.rows, columns=form.columns, bits_allocated=form.bits_allocated),
        )
        return decoded.view(np.uint16 if decoded.dtype.itemsize == 2 else np.uint8)


def _check_length(elements: Elements, form: PixelFormat, frames: int) -> None:
    expected = form.rows * form.columns * form.bits_allocated // 8 * frames
    held = None if elements.pixels is None else elements.pixels.length
    if held is None:
        raise ImagingError("an image holds no pixel data of a stated length")
    # One byte of padding makes an odd length even (PS3.5 section 7.1.1).
    if held not in (expected, expected + expected % 2):
        raise ImagingError(
            f"pixel data hold {held} bytes, {frames} frames of {form.rows} x {form.columns} "
            f"pixels need {expected}"
        )


def _streams(path: Path, elements: Elements, frames: int) -> tuple[tuple[Fragment, ...], ...]:
    """The fragments of each frame.

    One for each frame is the rule, and with RLE or an Extended Offset Table the only way (PS3.5
    A.4.2, A.4). Otherwise the Basic Offset Table tells them apart, or the streams' own beginnings.
    """
    if elements.pixels is None or elements.pixels.length is not None:
        raise ImagingError("compressed pixel data are not encapsulated (PS3.5 A.4)")
    with path.open("rb") as file:
        table, fragments = _fragments(file, elements.pixels.offset, elements.file_size)
    if len(fragments) < frames:
        raise ImagingError(f"pixel data hold {len(fragments)} compressed frames of {frames}")
    if len(fragments) == frames:
        return tuple((fragment,) for fragment in fragments)
    first = fragments[0].offset - 8
    if len(table) == frames:
        heads = [n for n, f in enumerate(fragments) if f.offset - 8 - first in table]
    else:
        heads = [n for n, f in enumerate(fragments) if f.starts]
    if len(heads) != frames or heads[0] != 0:
        raise ImagingError(
            f"pixel data hold {len(fragments)} fragments; which of the {frames} frames they "
            "belong to cannot be told"
        )
    return tuple(tuple(fragments[a:b]) for a, b in _spans(heads, len(fragments)))


def _spans(heads: Sequence[int], end: int) -> list[tuple[int, int]]:
    return list(zip(heads, [*heads[1:], end], strict=True))


def _fragments(file: BufferedReader, at: int, size: int) -> tuple[frozenset[int], list[Fragment]]:
    """Basic Offset Table and fragments of encapsulated pixel data, values left in the file."""
    table: frozenset[int] | None = None
    fragments: list[Fragment] = []
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            raise ImagingError("compressed pixel data are truncated")
        group, element, length = struct.unpack("<HHI", head)
        at += 8
        if (group, element) == _SEQUENCE_END:
            break
        if (group, element) != _ITEM or at + length > size:
            raise ImagingError("compressed pixel data are damaged: the fragments are malformed")
        if table is None:
            offsets = file.read(length) if length % 4 == 0 else b""
            table = frozenset(struct.unpack(f"<{len(offsets) // 4}I", offsets))
        else:
            starts = file.read(min(length, 6)).startswith(_STARTS)
            fragments.append(Fragment(at, length, starts))
        at += length
    return table or frozenset(), fragments
