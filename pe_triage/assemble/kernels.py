"""Reconstruction kernels by how sharp they are, from the vendors' own names.

Sources: vendors' DICOM conformance statements and user guides. Numbers of Siemens kernels grow
with sharpness; Canon/Toshiba FC30-39 are bone, FC50-59 lung, FC80-86 high resolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum


class Sharpness(IntEnum):
    """Higher is better suited to contrast-filled vessels."""

    SHARP = 0
    UNKNOWN = 1
    SOFT = 2


LUNG_OR_BONE_KERNELS: tuple[str, ...] = (
    # Siemens: B60s, B70f, I70f, Br64, Bl57 (lung), Hr60, Ur77
    r"[BHITUDJ][A-Z]?V?[6-9]\d[A-Z]?",
    r"BL\d\d[A-Z]?",
    # GE
    r"LUNG|BONE|BONEPLUS|EDGE|ULTRA|HD ?LUNG|HD ?BONE|HD ?ULTRA|HD ?EDGE|HD ?BONEPLUS",
    # Philips
    r"L|Y[A-D]|D|E",
    # Canon and Toshiba
    r"FC(3|5|8)\d",
)
"""Patterns of whole kernel names, upper case."""

SOFT_KERNELS: tuple[str, ...] = (
    r"[BHIUQDJ][A-Z]?V?[1-5]\d[A-Z]?",
    r"STANDARD|STND|SOFT|CHST|DETAIL|HD ?STANDARD|HD ?STND|HD ?DETAIL",
    r"A|B|C|SA|SB|IPAD|XCA|UB",
    r"FC(0|1|2|4)\d|BODY.*",
)


def sharpness(kernel: Iterable[str], lung_or_bone: Iterable[str]) -> Sharpness:
    """Sharpness of a Convolution Kernel (0018,1210); the first value names the kernel.

    Parameters
    ----------
    kernel
        Its values; further ones (iterative strength, such as ``3``) are ignored.
    lung_or_bone
        Patterns that count as sharp.
    """
    name = next(iter(kernel), "").strip().upper()
    if not name:
        return Sharpness.UNKNOWN
    if any(re.fullmatch(pattern, name) for pattern in lung_or_bone):
        return Sharpness.SHARP
    if any(re.fullmatch(pattern, name) for pattern in SOFT_KERNELS):
        return Sharpness.SOFT
    return Sharpness.UNKNOWN
