"""One CT instance to Hounsfield units.

Stored values are bit patterns: the high bits above Bits Stored are not to be trusted (PS3.5
section 8.1.1), signs come from Pixel Representation, and only Rescale Slope and Intercept, which
CT requires (PS3.3 C.8.2.1), give them a meaning.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pe_triage.errors import ImagingError, InvalidInstanceError
from pe_triage.imaging.codecs import Frame, decode_frame
from pe_triage.imaging.elements import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Elements,
    read_elements,
)
from pe_triage.imaging.values import Values

T = TypeVar("T")

AIR_HU = -1024
"""What padding outside the reconstruction circle becomes."""

TISSUE_HU = (-900.0, 2000.0)
"""Padding must stand for something that no tissue is."""

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""No CT slice is larger; a compressed one of more is not read."""
MAX_SIDE = 4096

_SOP_INSTANCE_UID = 0x00080018
_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS = (
    0x00280002,
    0x00280004,
    0x00280008,
    0x00280010,
    0x00280011,
)
_ALLOCATED, _STORED, _HIGH_BIT, _REPRESENTATION = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_PADDING, _PADDING_LIMIT = 0x00280120, 0x00280121
_INTERCEPT, _SLOPE, _RESCALE_TYPE = 0x00281052, 0x00281053, 0x00281054

WANTED = frozenset(
    {
        _SOP_INSTANCE_UID, _SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _ALLOCATED, _STORED,
        _HIGH_BIT, _REPRESENTATION, _PADDING, _PADDING_LIMIT, _INTERCEPT, _SLOPE, _RESCALE_TYPE,
    }
)  # fmt: skip

# Rescale types that say of another quantity (PS3.3 C.11.1.1.2). Others, misspellings among them,
# pass: whether the values are Hounsfield units is measured on the volume's air as well.
_OTHER_QUANTITIES = frozenset({"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"})

NATIVE_ORDER = {
    IMPLICIT_VR_LITTLE_ENDIAN: "<",
    EXPLICIT_VR_LITTLE_ENDIAN: "<",
    EXPLICIT_VR_BIG_ENDIAN: ">",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """How the stored values of one instance are to be read."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    slope: float
    intercept: float
    padding: int | None
    """16-bit pattern."""
    padding_limit: int | None


def decode_hu(path: Path, *, sop_instance_uid: str | None = None) -> NDArray[np.int16]:
    """Decode one single-frame CT instance.

    Parameters
    ----------
    path
        Part 10 file.
    sop_instance_uid
        If given, the file must hold this instance.

    Returns
    -------
    ndarray
        int16 (rows, columns) Hounsfield units in the source's own order; values beyond int16 are
        clipped, padding is `AIR_HU`.

    Raises
    ------
    ImagingError
        With a reason for people; it names no patient.
    """
    elements, values = open_image(path, sop_instance_uid)
    if values.integer(_FRAMES) not in (None, 1):
        raise ImagingError("an image is no CT slice: one frame was expected")
    form = pixel_format(values, values)
    return to_hu(_stored(path, elements, form), form)


def open_image(path: Path, sop_instance_uid: str | None) -> tuple[Elements, Values]:
    """Find what describes the pixels of a Part 10 file, and where they lie.

    Raises
    ------
    ImagingError
        The file cannot be read, or holds another instance than the one named.
    """
    try:
        elements = read_elements(path, WANTED)
    except InvalidInstanceError as error:
        raise ImagingError(f"an image cannot be read: {error}") from error
    values = Values(elements.found)
    if sop_instance_uid is not None and values.uid(_SOP_INSTANCE_UID) != sop_instance_uid:
        raise ImagingError("a stored file holds another image than was received under its name")
    return elements, values


def pixel_format(values: Values, rescale: Values) -> PixelFormat:
    """How stored values are to be read, by an image's header.

    Parameters
    ----------
    values
        Of the outermost data set.
    rescale
        Where slope, intercept and type of the rescaling stand: the same, or a frame's functional
        group (PS3.3 C.7.6.16.2.9).

    Raises
    ------
    ImagingError
        Something is missing, or says that this is no CT slice.
    """
    for holds, wanted in (
        (values.unsigned(_SAMPLES) in (None, 1), "one sample per pixel"),
        (
            (values.text(_PHOTOMETRIC) or "MONOCHROME2") in ("MONOCHROME1", "MONOCHROME2"),
            "a grey image",
        ),
        (
            (rescale.text(_RESCALE_TYPE) or "HU").upper() not in _OTHER_QUANTITIES,
            "rescale type HU (0028,1054)",
        ),
    ):
        if not holds:
            raise ImagingError(f"an image is no CT slice: {wanted} was expected")
    rows, columns = _required(values.unsigned, _ROWS), _required(values.unsigned, _COLUMNS)
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise ImagingError(f"image size {rows} x {columns} is not plausible")
    allocated = _required(values.unsigned, _ALLOCATED)
    stored = _required(values.unsigned, _STORED)
    high_bit = values.unsigned(_HIGH_BIT)
    if high_bit is None:
        high_bit = stored - 1
    if allocated not in (8, 16) or not 1 <= stored <= allocated or not stored <= high_bit + 1 <= 16:
        raise ImagingError(f"{stored} bits stored in {allocated} allocated cannot be read")
    slope, intercept = _required(rescale.decimal, _SLOPE), _required(rescale.decimal, _INTERCEPT)
    if slope <= 0:
        raise ImagingError(f"rescale slope {slope:g} is not positive")
    form = PixelFormat(
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high_bit,
        signed=_required(values.unsigned, _REPRESENTATION) == 1,
        slope=slope,
        intercept=intercept,
        padding=values.unsigned(_PADDING),
        padding_limit=values.unsigned(_PADDING_LIMIT),
    )
    _check_padding(form)
    return form


def _check_padding(form: PixelFormat) -> None:
    """Refuse a padding value that would turn tissue into air."""
    if form.padding is None or (not form.signed and form.padding >= 1 << form.bits_stored):
        return
    for pattern in (form.padding, form.padding_limit):
        if pattern is None:
            continue
        value = int(_signed(np.array(pattern, dtype=np.int32), form.bits_stored, form.signed))
        hu = value * form.slope + form.intercept
        if TISSUE_HU[0] < hu < TISSUE_HU[1]:
            raise ImagingError(
                f"the pixel padding value (0028,0120) stands for {hu:.0f} HU, which is tissue"
            )


_NAMES = {
    _ROWS: "rows (0028,0010)",
    _COLUMNS: "columns (0028,0011)",
    _ALLOCATED: "bits allocated (0028,0100)",
    _STORED: "bits stored (0028,0101)",
    _REPRESENTATION: "pixel representation (0028,0103)",
    _SLOPE: "rescale slope (0028,1053)",
    _INTERCEPT: "rescale intercept (0028,1052)",
}


def _required(read: Callable[[int], T | None], tag: int) -> T:
    value = read(tag)
    if value is None:
        raise ImagingError(f"{_NAMES[tag]} is missing or unreadable on an image")
    return value


def _stored(path: Path, elements: Elements, form: PixelFormat) -> NDArray[Any]:
    """Bit patterns (rows, columns), uint8 or uint16, in the machine's byte order."""
    pixels = elements.pixels
    if pixels is None:
        raise ImagingError("an image holds no pixel data")
    order = NATIVE_ORDER.get(elements.transfer_syntax_uid)
    if order is None:
        frame = Frame(rows=form.rows, columns=form.columns, bits_allocated=form.bits_allocated)
        if pixels.length is not None:
            raise ImagingError("compressed pixel data are not encapsulated (PS3.5 A.4)")
        if elements.file_size - pixels.offset > MAX_FRAME_BYTES:
            raise ImagingError("compressed pixel data are larger than any CT slice")
        with path.open("rb") as file:
            file.seek(pixels.offset)
            stream = join_fragments(file.read(MAX_FRAME_BYTES))
        decoded = decode_frame(elements.transfer_syntax_uid, stream, frame)
        return decoded.view(np.uint16 if decoded.dtype.itemsize == 2 else np.uint8)
    count = form.rows * form.columns
    expected = count * form.bits_allocated // 8
    # One byte of padding makes an odd length even (PS3.5 section 7.1.1).
    if pixels.length is None or pixels.length not in (expected, expected + expected % 2):
        found = "an undefined number of" if pixels.length is None else str(pixels.length)
        raise ImagingError(
            f"pixel data hold {found} bytes, {form.rows} x {form.columns} pixels need {expected}"
        )
    dtype = np.dtype("u1") if form.bits_allocated == 8 else np.dtype(order + "u2")
    with path.open("rb") as file:
        file.seek(pixels.offset)
        data = np.fromfile(file, dtype=dtype, count=count)
    if data.size != count:
        raise ImagingError("an image file ended early")
    # 8-bit pixels in OW of a big-endian file are swapped in pairs; no CT is sent so.
    return data.astype(dtype.newbyteorder("="), copy=False).reshape(form.rows, form.columns)


def join_fragments(data: bytes) -> bytes:
    """Return the one frame of encapsulated pixel data (PS3.5 Annex A.4), fragments joined.

    Raises
    ------
    ImagingError
        The items are malformed or end early.
    """
    parts: list[bytes] = []
    at = 0
    while True:
        if at + 8 > len(data):
            raise ImagingError("compressed pixel data are truncated")
        group, element, length = struct.unpack_from("<HHI", data, at)
        at += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000) or at + length > len(data):
            raise ImagingError("compressed pixel data are damaged: the fragments are malformed")
        parts.append(data[at : at + length])
        at += length
    # The first item is the Basic Offset Table, possibly empty.
    if len(parts) < 2:
        raise ImagingError("compressed pixel data hold no frame")
    return b"".join(parts[1:])


def to_hu(stored: NDArray[Any], form: PixelFormat) -> NDArray[np.int16]:
    """Turn stored bit patterns into Hounsfield units, int16, of the same shape."""
    width = 8 * stored.dtype.itemsize
    shift = max(0, min(form.high_bit + 1, width) - form.bits_stored)
    bits = min(form.bits_stored, width)
    whole = form.slope == 1 and form.intercept == int(form.intercept)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if form.signed else (0, (1 << bits) - 1)
    values: NDArray[Any]
    hu: NDArray[np.int16]
    if (
        whole
        and min(low, low + form.intercept) >= -32768
        and max(high, high + form.intercept) < 32768
    ):
        # Nearly every CT: nothing can overflow 16 bits, which halves the memory passed through.
        values = _signed((stored.astype(np.uint16) >> shift).view(np.int16), bits, form.signed)
        hu = values + np.int16(form.intercept)
    else:
        values = _signed(stored.astype(np.int32) >> shift, bits, form.signed)
        scaled = (
            values + np.int32(form.intercept)
            if whole and abs(form.intercept) < 2**30
            else np.rint(values * form.slope + form.intercept)
        )
        hu = np.clip(scaled, -32768, 32767).astype(np.int16)
    if form.padding is not None:
        hu[_is_padding(stored, values, bits, form.padding, form.padding_limit, form.signed)] = (
            AIR_HU
        )
    return hu


def _signed(values: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    """Drop what stands above `bits`, and extend the sign of what is left.

    Parameters
    ----------
    values
        Of a signed type with more than `bits` bits, or as many where they are signed.
    """
    spare = values.dtype.type(8 * values.dtype.itemsize - bits)
    kept: NDArray[Any] = (
        (values << spare) >> spare if signed else values & values.dtype.type((1 << bits) - 1)
    )
    return kept


def _is_padding(
    stored: NDArray[Any],
    values: NDArray[np.int32],
    bits: int,
    padding: int,
    limit: int | None,
    signed: bool,
) -> NDArray[np.bool_]:
    low = int(_signed(np.array(padding, dtype=np.int32), bits, signed))
    high = low if limit is None else int(_signed(np.array(limit, dtype=np.int32), bits, signed))
    low, high = min(low, high), max(low, high)
    # A padding value that needs more bits than are stored stands for its own bit pattern only.
    if not signed and padding >= 1 << bits:
        return np.asarray(stored == padding)
    return np.asarray((values >= low) & (values <= high))
