"""File Meta Information as bytes, from a template: nothing of the data set is decoded.

A Part 10 file is 128 bytes of preamble (zeros: a preamble may smuggle another format in),
``DICM``, the File Meta Information in Explicit VR Little Endian, and the data set bytes exactly
as they came (PS3.10 Section 7.1).
"""

from __future__ import annotations

import struct
from pathlib import Path

from pe_triage import __version__
from pe_triage.errors import InvalidInstanceError

PREAMBLE = b"\x00" * 128 + b"DICM"

IMPLEMENTATION_CLASS_UID = "2.25.80428825980690287362371702358884479838"
IMPLEMENTATION_VERSION_NAME = f"PETRIAGE_{__version__}"[:16]

_SHORT = struct.Struct("<HH2sH")
_GROUP_LENGTH = struct.Struct("<HH2sHI")
_VERSION = struct.pack("<HH2sHI2s", 0x0002, 0x0001, b"OB", 0, 2, b"\x00\x01")


def _element(element: int, vr: bytes, value: str, pad: bytes) -> bytes:
    encoded = value.encode("ascii", "replace")
    if len(encoded) % 2:
        encoded += pad
    return _SHORT.pack(0x0002, element, vr, len(encoded)) + encoded


class FileMetaTemplate:
    """File meta of one presentation context; only the two SOP UIDs change between instances.

    Parameters
    ----------
    transfer_syntax_uid
        Of the accepted presentation context.
    calling_aet
        Written as Source Application Entity Title (0002,0016).
    """

    def __init__(self, *, transfer_syntax_uid: str, calling_aet: str) -> None:
        self._tail = b"".join(
            (
                _element(0x0010, b"UI", transfer_syntax_uid, b"\x00"),
                _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID, b"\x00"),
                _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME, b" "),
                _element(0x0016, b"AE", calling_aet, b" "),
            )
        )

    def header(self, *, sop_class_uid: str, sop_instance_uid: str) -> bytes:
        """Everything that stands before the data set: preamble, prefix, file meta."""
        body = b"".join(
            (
                _VERSION,
                _element(0x0002, b"UI", sop_class_uid, b"\x00"),
                _element(0x0003, b"UI", sop_instance_uid, b"\x00"),
                self._tail,
            )
        )
        return PREAMBLE + _GROUP_LENGTH.pack(0x0002, 0x0000, b"UL", 4, len(body)) + body


def dataset_offset(path: Path) -> int:
    """Byte at which the data set of a Part 10 file starts.

    Raises
    ------
    InvalidInstanceError
        `path` does not start with a preamble, ``DICM`` and a group length (PS3.10 Section 7.1).
    """
    with path.open("rb") as file:
        head = file.read(144)
    if len(head) < 144 or head[128:132] != b"DICM":
        raise InvalidInstanceError("not a DICOM Part 10 file")
    group, element, vr, length, value = _GROUP_LENGTH.unpack_from(head, 132)
    if (group, element, vr, length) != (0x0002, 0x0000, b"UL", 4):
        raise InvalidInstanceError("file meta information has no group length (0002,0000)")
    return 144 + int(value)
