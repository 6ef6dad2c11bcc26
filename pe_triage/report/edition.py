"""What an object is made of, as one digest: it enters the object's UIDs.

A SOP Instance UID names one object in the world (PS3.5 Section 9). A run that is made again, by a
database that was restored, say, may be made by another version of the program, under other settings
or with another caution in its answer: another object, though of the same run. With everything that
shapes the bytes in the UID, one UID never stands for two objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from importlib.metadata import version
from io import BytesIO
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite

_WRITERS = ("highdicom", "numpy", "pillow", "pydicom")
"""Libraries whose versions show in the bytes: encoding, document structure, drawing."""


def edition_of(*parts: object) -> str:
    """Return the SHA-256 in hex of values and of the libraries that write them.

    Parameters
    ----------
    parts
        Frozen values: numbers, text, times, enums, dataclasses, arrays, data sets, and mappings,
        sequences and sets of these.

    Raises
    ------
    TypeError
        A value of another kind: it has no certain form.
    """
    hasher = hashlib.sha256(b"pe-triage edition 1")
    for piece in _pieces((*_library_versions(), *parts)):
        hasher.update(len(piece).to_bytes(8, "big"))
        hasher.update(piece)
    return hasher.hexdigest()


@cache
def _library_versions() -> tuple[str, ...]:
    return tuple(version(name) for name in _WRITERS)


def _order(value: object) -> list[bytes]:
    return list(_pieces(value))


def _pieces(value: Any) -> Iterator[bytes]:
    """A value as pieces that begin with its kind and, where it holds others, their number."""
    match value:
        case Enum():
            yield f"enum {type(value).__name__}.{value.name}".encode()
        case None | bool() | int() | float() | str():
            yield f"{type(value).__name__} {value!r}".encode()
        case datetime():
            yield f"datetime {value.isoformat()}".encode()
        case np.ndarray() | np.generic():
            array = np.ascontiguousarray(value)
            yield f"array {array.dtype.str} {array.shape}".encode()
            yield array.tobytes()
        case Dataset():
            buffer = BytesIO()
            dcmwrite(buffer, value, implicit_vr=False, little_endian=True)
            yield b"dataset " + buffer.getvalue()
        case Mapping():
            yield f"mapping {len(value)}".encode()
            for key in sorted(value, key=_order):
                yield from _pieces((key, value[key]))
        case Set():
            yield f"set {len(value)}".encode()
            for item in sorted(value, key=_order):
                yield from _pieces(item)
        case Sequence():
            yield f"sequence {len(value)}".encode()
            for item in value:
                yield from _pieces(item)
        case _ if is_dataclass(value):
            yield f"{type(value).__name__} {len(fields(value))}".encode()
            for each in fields(value):
                yield from _pieces((each.name, getattr(value, each.name)))
        case _:
            raise TypeError(f"no certain form of {type(value).__name__}")
