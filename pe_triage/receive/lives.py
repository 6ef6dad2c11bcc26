"""Which receivers live: what a process says of itself in ``receivers/`` of the spool.

Entries of the spool begin with the boot id of the receiver that made them. A receiver that was
killed ends none of its associations; that another lives in its place, or nobody does, shows it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pe_triage.errors import SpoolError
from pe_triage.receive.files import TEMPORARY
from pe_triage.repeating import repeating

RECEIVERS = "receivers"
_HOST_END = "_"
_PASSING = "retrieve-"
PASSING_RENEW_S = 3.0
PASSING_WAIT_S = 15.0
"""A command that has not said for so long that it lives was killed. Where it was only slow no harm
is done: what it says of its associations in the end still counts."""


def new_boot_id(now: datetime, token: bytes) -> str:
    """Name of one receiver process's life: sorts by start, unique by `token` (4 random bytes)."""
    return f"{int(now.timestamp() * 1000):013d}{token[:4].hex()}"


def receiver_name(host: str | None, receiver: str) -> str:
    """Name for `Lives.announce`: unique also where several hosts share the spool."""
    return receiver if host is None else f"{host}{_HOST_END}{receiver}"


class Lives:
    """Who lives on one spool.

    Parameters
    ----------
    root
        Of the spool; it makes ``receivers/``.
    boot_id
        Of this process; see `new_boot_id`.
    """

    def __init__(self, root: Path, boot_id: str) -> None:
        self._root = root
        self.boot_id = boot_id
        self.directory = root / RECEIVERS

    def announce(self, receiver: str) -> None:
        """Say that `receiver` lives under this boot id, in place of whoever had its name before.

        A process that was killed records no end of its associations; this is how it becomes known.

        Raises
        ------
        SpoolError
            It could not be written.
        """
        final = self.directory / receiver
        temporary = final.with_suffix(TEMPORARY)
        try:
            temporary.write_text(self.boot_id, encoding="ascii")
            temporary.replace(final)
        except OSError as error:
            raise SpoolError(
                f"cannot write to the spool: {final}: {error.strerror or error}"
            ) from error

    @contextmanager
    def passing(self, token: str) -> Iterator[None]:
        """Live under this boot id while the block runs: a command that stores something.

        Nobody announces another in its place when it is killed, so it says again and again that it
        lives.

        Parameters
        ----------
        token
            Unique among commands.

        Raises
        ------
        SpoolError
            It could not be written.
        """
        name = f"{_PASSING}{token}"
        self.announce(name)

        def renew() -> float:
            # Without a time: on a store that hosts share, its own clock dates it.
            with suppress(OSError):
                os.utime(self.directory / name)
            return PASSING_RENEW_S

        try:
            with repeating(renew, PASSING_RENEW_S, name="passing", join_s=PASSING_WAIT_S):
                yield
        finally:
            (self.directory / name).unlink(missing_ok=True)

    def boots(self, hosts: Collection[str] | None = None) -> frozenset[str]:
        """Boot ids that `announce` last gave for each receiver, and those of `passing` commands.

        Parameters
        ----------
        hosts
            Those that live, where several share the spool: a receiver's name then begins with its
            host's (`receiver_name`), and one whose host is gone does not count.

        Raises
        ------
        SpoolError
            It could not be read.
        """
        boots = set()
        now_s: float | None = None
        try:
            for path in self.directory.iterdir():
                if path.suffix == TEMPORARY or not self._lives(path.name, hosts):
                    continue
                # A command may end while this looks.
                with suppress(FileNotFoundError):
                    if path.name.startswith(_PASSING):
                        now_s = self.now_s() if now_s is None else now_s
                        if path.stat().st_mtime < now_s - PASSING_WAIT_S:
                            continue
                    boots.add(path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise SpoolError(f"cannot read the spool: {type(error).__name__}") from error
        return frozenset(boots)

    @staticmethod
    def _lives(receiver: str, hosts: Collection[str] | None) -> bool:
        host, of_host, _ = receiver.partition(_HOST_END)
        return hosts is None or not of_host or host in hosts

    def forget(self, hosts: Collection[str] | None, *, older_than_s: float) -> None:
        """Remove what commands, and receivers of hosts that are gone, announced so long ago.

        Parameters
        ----------
        hosts
            See `boots`.
        """
        before_s = self.now_s() - older_than_s
        for path in self.directory.iterdir():
            gone = path.name.startswith(_PASSING) or not self._lives(path.name, hosts)
            with suppress(FileNotFoundError):
                if gone and path.stat().st_mtime < before_s:
                    path.unlink()

    def now_s(self) -> float:
        """Seconds since the epoch on the clock by which the file system dates files."""
        probe = self._root / f"clock-{self.boot_id}{TEMPORARY}"
        try:
            probe.write_bytes(b"")
            try:
                return probe.stat().st_mtime
            finally:
                probe.unlink(missing_ok=True)
        except OSError:
            # No room for a name, say: this machine's clock must do.
            return time.time()
