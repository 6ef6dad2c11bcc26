"""Compressed frames to stored values, each stream's own size checked before it is decoded.

imagecodecs (BSD) wraps libjpeg-turbo (all JPEG processes, lossless ones too), CharLS, OpenJPEG and
a DICOM RLE decoder; all release the GIL. libjpeg-turbo fills what a truncated stream lacks without
a word, so a JPEG stream that does not end with its end-of-image marker is refused here; CharLS,
OpenJPEG and RLE notice by themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pe_triage.errors import ImagingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the data set says of the frame to decode."""

    rows: int
    columns: int
    bits_allocated: int


def decode_frame(transfer_syntax_uid: str, stream: bytes, frame: Frame) -> NDArray[Any]:
    """Decode one grey frame.

    Returns
    -------
    ndarray
        (rows, columns), uint8, uint16, int8 or int16: the stored values; where the stream does
        not know signs, their bit patterns.

    Raises
    ------
    ImagingError
        Unknown transfer syntax, a stream of another size than the header's, or a damaged one.
    """
    codec = _CODECS.get(transfer_syntax_uid)
    if codec is None:
        raise ImagingError(f"transfer syntax {transfer_syntax_uid} cannot be decoded")
    check, decode = codec
    try:
        check(stream, frame)
        pixels = np.asarray(decode(stream, frame))
    except ImagingError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, struct.error, MemoryError) as error:
        raise ImagingError("compressed pixel data are damaged") from error
    if pixels.shape != (frame.rows, frame.columns):
        raise ImagingError(
            f"compressed pixel data hold {_size(pixels.shape)}, the header says "
            f"{frame.rows} x {frame.columns}"
        )
    if pixels.dtype not in (np.uint8, np.uint16, np.int8, np.int16):
        raise ImagingError(f"compressed pixel data have {8 * pixels.dtype.itemsize} bits a pixel")
    return pixels


def supported_transfer_syntaxes() -> frozenset[str]:
    """UIDs of the compressed transfer syntaxes that `decode_frame` takes."""
    return frozenset(_CODECS)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _expect(frame: Frame, rows: int, columns: int, components: int, precision: int) -> None:
    if (rows, columns) != (frame.rows, frame.columns):
        raise ImagingError(
            f"compressed pixel data hold {rows} x {columns}, the header says "
            f"{frame.rows} x {frame.columns}"
        )
    if components != 1:
        raise ImagingError(f"compressed pixel data have {components} components, CT has one")
    if not 2 <= precision <= frame.bits_allocated:
        raise ImagingError(
            f"compressed pixel data have {precision} bits a pixel, the header allocates "
            f"{frame.bits_allocated}"
        )


_NOT_SOF = frozenset({0xC4, 0xC8, 0xCC})


def _check_jpeg(stream: bytes, frame: Frame) -> None:
    """Read the frame header of a JPEG (ITU-T T.81 B.2.2) or JPEG-LS (T.87 C.2.2) stream."""
    if stream[:2] != b"\xff\xd8":
        raise ImagingError("compressed pixel data are damaged: no JPEG stream")
    if not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ImagingError("compressed pixel data are truncated: the end-of-image marker is absent")
    at = 2
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            break
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", stream, at + 2)
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NOT_SOF):
            precision, rows, columns, components = struct.unpack_from(">BHHB", stream, at + 4)
            _expect(frame, rows, columns, components, precision)
            return
        if marker == 0xDA or length < 2:
            break
        at += 2 + length
    raise ImagingError("compressed pixel data are damaged: no JPEG frame header")


def _check_jpeg2000(stream: bytes, frame: Frame) -> None:
    """Read the SIZ marker of a JPEG 2000 code stream (ITU-T T.800 A.5.1)."""
    # Some senders leave the JP2 boxes around the code stream, though PS3.5 A.4.4 forbids them.
    start = stream.find(b"\xff\x4f\xff\x51", 0, 1024)
    if start < 0:
        raise ImagingError("compressed pixel data are damaged: no JPEG 2000 stream")
    x1, y1, x0, y0 = struct.unpack_from(">4I", stream, start + 8)
    (components,) = struct.unpack_from(">H", stream, start + 40)
    depth = stream[start + 42]
    _expect(frame, y1 - y0, x1 - x0, components, (depth & 0x7F) + 1)


def _check_rle(stream: bytes, frame: Frame) -> None:
    """Read the RLE header (PS3.5 Annex G.5)."""
    (segments,) = struct.unpack_from("<I", stream, 0)
    if segments * 8 != frame.bits_allocated:
        raise ImagingError(
            f"compressed pixel data have {segments} RLE segments, the header allocates "
            f"{frame.bits_allocated} bits"
        )


def _rle(stream: bytes, frame: Frame) -> NDArray[Any]:
    dtype = np.dtype("<u2" if frame.bits_allocated == 16 else "u1")
    # The given buffer bounds what a malicious stream can make the decoder write.
    out = bytearray(frame.rows * frame.columns * dtype.itemsize)
    decoded = imagecodecs.dicomrle_decode(stream, dtype, out=out)
    if len(decoded) != len(out):
        raise ImagingError("compressed pixel data are truncated")
    return np.frombuffer(out, dtype=dtype).reshape(frame.rows, frame.columns)


Codec = tuple[Callable[[bytes, Frame], None], Callable[[bytes, Frame], Any]]

_JPEG: Codec = (_check_jpeg, lambda stream, _frame: imagecodecs.jpeg8_decode(stream))
_JPEG_LS: Codec = (_check_jpeg, lambda stream, _frame: imagecodecs.jpegls_decode(stream))
_JPEG_2000: Codec = (_check_jpeg2000, lambda stream, _frame: imagecodecs.jpeg2k_decode(stream))
_RLE: Codec = (_check_rle, _rle)

_CODECS: Mapping[str, Codec] = {
    "1.2.840.10008.1.2.4.50": _JPEG,  # baseline, 8 bit
    "1.2.840.10008.1.2.4.51": _JPEG,  # extended, 8 and 12 bit
    "1.2.840.10008.1.2.4.57": _JPEG,  # lossless, process 14
    "1.2.840.10008.1.2.4.70": _JPEG,  # lossless, process 14, selection value 1
    "1.2.840.10008.1.2.4.80": _JPEG_LS,  # lossless
    "1.2.840.10008.1.2.4.81": _JPEG_LS,  # near-lossless
    "1.2.840.10008.1.2.4.90": _JPEG_2000,  # lossless only
    "1.2.840.10008.1.2.4.91": _JPEG_2000,
    "1.2.840.10008.1.2.5": _RLE,
}
