"""Which image a header speaks of: an instance, or one frame of a multi-frame instance.

The header of a frame (see `node.source_headers`) is that of its instance with the frame's own
geometry, and names the frame in Referenced Frame Number (0008,1160), which no image's own header
holds.
"""

from __future__ import annotations

from pydicom.dataset import Dataset


def frame_number(header: Dataset) -> int | None:
    """Return the frame (from 1) that a header speaks of; None for a single-frame instance."""
    value = header.get("ReferencedFrameNumber")
    return None if value is None else int(value)


def frame_numbers(header: Dataset) -> list[int] | None:
    """Return the same as highdicom takes it."""
    number = frame_number(header)
    return None if number is None else [number]
