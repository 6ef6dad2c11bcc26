"""The two DIMSE messages of the fast path as bytes: C-STORE-RQ in, C-STORE-RSP out.

Command sets are always Implicit VR Little Endian (PS3.7 Section 6.3.1); P-DATA-TF is PS3.8
Section 9.3.5, its message control header PS3.8 Annex E.2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from pe_triage.identity import is_uid

C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
NO_DATA_SET = 0x0101

_HEADER = struct.Struct("<HHI")
_US = struct.Struct("<H")
_PDU = struct.Struct(">BxI")
_PDV = struct.Struct(">IBB")
_COMMAND_LAST = 0x03
_MAX_COMMENT = 64


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What is needed of a C-STORE-RQ (PS3.7 Section 9.3.1.1)."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool


def parse_command(command: bytes | bytearray) -> dict[int, bytes]:
    """Elements of group 0000 by element number; empty when the command set is malformed."""
    elements: dict[int, bytes] = {}
    at, end = 0, len(command)
    while at < end:
        if at + 8 > end:
            return {}
        group, element, length = _HEADER.unpack_from(command, at)
        at += 8
        if group or at + length > end:
            return {}
        elements[element] = bytes(command[at : at + length])
        at += length
    return elements


def command_field(elements: Mapping[int, bytes]) -> int | None:
    """Command Field (0000,0100) of a parsed command set; None when there is none."""
    return _us(elements, 0x0100)


def store_request(elements: Mapping[int, bytes]) -> StoreRequest | None:
    """Read a parsed command set; None when it is no well-formed C-STORE-RQ."""
    message_id = _us(elements, 0x0110)
    data_set_type = _us(elements, 0x0800)
    sop_class = elements.get(0x0002, b"").rstrip(b"\x00 ")
    sop_instance = elements.get(0x1000, b"").rstrip(b"\x00 ")
    if _us(elements, 0x0100) != C_STORE_RQ or message_id is None or data_set_type is None:
        return None
    if not (is_uid(sop_class) and is_uid(sop_instance)):
        return None
    return StoreRequest(
        message_id=message_id,
        sop_class_uid=sop_class.decode("ascii"),
        sop_instance_uid=sop_instance.decode("ascii"),
        has_data_set=data_set_type != NO_DATA_SET,
    )


def store_response(
    request: StoreRequest, *, context_id: int, status: int, comment: str, max_pdu: int
) -> bytes:
    """P-DATA-TF PDUs of a C-STORE-RSP (PS3.7 Section 9.3.1.2).

    Parameters
    ----------
    comment
        Error Comment (0000,0902), cut at 64 characters; left out when empty.
    max_pdu
        The peer's maximum length of received P-DATA-TF PDUs; 0 is no limit (PS3.8 Annex D.1).
    """
    body = b"".join(
        (
            _element(0x0002, _even(request.sop_class_uid.encode(), b"\x00")),
            _element(0x0100, _US.pack(C_STORE_RSP)),
            _element(0x0120, _US.pack(request.message_id)),
            _element(0x0800, _US.pack(NO_DATA_SET)),
            _element(0x0900, _US.pack(status)),
            _element(0x0902, _comment(comment)) if comment else b"",
            _element(0x1000, _even(request.sop_instance_uid.encode(), b"\x00")),
        )
    )
    command = _element(0x0000, struct.pack("<I", len(body))) + body
    # A PDV costs 6 bytes of the PDU's length; a limit below that is none to keep.
    room = max_pdu - 6 if max_pdu > 6 else len(command)
    pdus = []
    for start in range(0, len(command), room):
        part = command[start : start + room]
        control = _COMMAND_LAST if start + room >= len(command) else 0x01
        pdus.append(_PDU.pack(0x04, len(part) + 6))
        pdus.append(_PDV.pack(len(part) + 2, context_id, control))
        pdus.append(part)
    return b"".join(pdus)


def _us(elements: Mapping[int, bytes], element: int) -> int | None:
    raw = elements.get(element, b"")
    return int(_US.unpack(raw)[0]) if len(raw) == 2 else None


def _element(element: int, value: bytes) -> bytes:
    return _HEADER.pack(0, element, len(value)) + value


def _even(value: bytes, pad: bytes) -> bytes:
    return value if len(value) % 2 == 0 else value + pad


def _comment(text: str) -> bytes:
    ascii_text = text.replace("×", "x").encode("ascii", "replace").replace(b"\\", b"/")
    return _even(ascii_text[:_MAX_COMMENT], b" ")
