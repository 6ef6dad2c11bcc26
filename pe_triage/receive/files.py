"""The few file operations that durability rests on, behind a port that tests can make fail."""

# ruff: noqa: D102  (what a method does is said once, by the port)

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Buffer = bytes | bytearray | memoryview

TEMPORARY = ".part"
"""End of the name of a file that is still being written."""
FILE_MODE = 0o600
"""Received objects carry patient identity: nobody but the node's own user reads them."""

DIRECTORY_MODE = 0o700


class FileOps(Protocol):
    """What the spool asks of a file system. Every method raises OSError when it fails."""

    def write_new(self, path: Path, parts: Sequence[Buffer]) -> int:
        """Create `path`, write `parts` one after the other, return the open descriptor."""
        ...

    def fsync(self, descriptor: int) -> None:
        """Return once the file's bytes are on stable storage."""
        ...

    def close(self, descriptor: int) -> None:
        """Close a descriptor of `write_new`."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Rename within one file system, atomically."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Give the file a second name; FileExistsError when the name is taken."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        ...

    def fsync_directory(self, directory: Path) -> None:
        """Return once the directory's entries are on stable storage."""
        ...


class RealFiles:
    """`FileOps` of the operating system."""

    def write_new(self, path: Path, parts: Sequence[Buffer]) -> int:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            self._write_all(descriptor, parts)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @staticmethod
    def _write_all(descriptor: int, parts: Sequence[Buffer]) -> None:
        pending = [memoryview(part) for part in parts if len(part)]
        while pending:
            written = os.writev(descriptor, pending)
            # Linux writes at most 2 GiB a call, and less when the disk fills up meanwhile.
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if pending and written:
                pending[0] = pending[0][written:]

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)  # noqa: PTH104  (Path.rename builds another Path each time)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)  # noqa: PTH108

    def fsync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
