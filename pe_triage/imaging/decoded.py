"""Slices that were decoded before their study was complete, so that they need not be read again."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class DecodedSlices:
    """Decoded slices by the file that they were read from; beyond a limit they are not kept.

    A slice may be a view of the volume that was made of it (`moved`), so that it takes no memory
    twice. One thread keeps and forgets; others may get, and move what is not being forgotten.

    Parameters
    ----------
    limit_bytes
        Of all slices together.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._slices: dict[Path, NDArray[np.int16]] = {}

    def keep(self, path: Path, hu_yx: NDArray[np.int16]) -> None:
        """Take a copy of what `pixels.decode_hu` gave of a file, unless there is no room for it.

        Parameters
        ----------
        hu_yx
            int16 (rows, columns), Hounsfield units, in the source's own order.
        """
        if path in self._slices or self._bytes + hu_yx.nbytes > self._limit_bytes:
            return
        # Pages of its own for each: what is let go one by one goes back to the system at once,
        # which the allocator's heap does not promise.
        try:
            pages = mmap.mmap(-1, max(1, hu_yx.nbytes), flags=_PRIVATE)
        except OSError:
            return
        copy = np.frombuffer(pages, dtype=np.int16, count=hu_yx.size).reshape(hu_yx.shape)
        copy[:] = hu_yx
        copy.setflags(write=False)
        self._slices[path] = copy
        self._bytes += copy.nbytes

    def get(self, path: Path) -> NDArray[np.int16] | None:
        """Return the slice of a file, read-only and in the source's own order; None: not kept."""
        return self._slices.get(path)

    def moved(self, path: Path, hu_yx: NDArray[np.int16]) -> None:
        """Hold a slice as this view from now on: the same pixels, which something else holds."""
        if path in self._slices:
            self._slices[path] = hu_yx

    def forget(self, paths: Iterable[Path]) -> None:
        """Let go of the slices of these files."""
        for path in paths:
            gone = self._slices.pop(path, None)
            self._bytes -= 0 if gone is None else gone.nbytes
