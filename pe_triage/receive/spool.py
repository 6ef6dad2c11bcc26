"""The spool is the journal: an instance is answered 0000 only once it is durable here.

```
root/incoming/<boot>-<association>-<sequence>.dcm     acknowledged, not yet indexed
root/incoming/<boot>-<association>-<sequence>.event   hints: association opened, released, aborted
root/studies/<2 hex>/<study hash>/<sop hash>.dcm      indexed
root/quarantine/<reason>/<name>                       set aside, kept for people
```

No name is made of anything that was received. Within one association names sort by arrival.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from pe_triage.errors import InvalidInstanceError, PermanentError, SpoolError
from pe_triage.receive.files import (
    DIRECTORY_MODE,
    FILE_MODE,
    TEMPORARY,
    Buffer,
    FileOps,
    RealFiles,
)
from pe_triage.receive.lives import RECEIVERS, Lives, new_boot_id
from pe_triage.receive.part10 import dataset_offset

_INSTANCE = ".dcm"
_EVENT = ".event"
_ENTRY = re.compile(r"(?P<boot>\d{13}[0-9a-f]{8})-(?P<association>\d{8})-(?P<sequence>\d{9})")
DEAD_WAIT_S = 60.0
"""Age of a temporary file of a receiver that is gone: one that starts may not be announced yet."""
_PUT_BACK = 0
"""Number of the association in the name of what a person gave back; those of receivers count from
1."""
_REASON = re.compile(r"[a-z0-9_-]{1,64}")
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})


class AssociationEvent(Enum):
    """What happened to an association."""

    OPENED = "opened"
    RELEASED = "released"
    ABORTED = "aborted"


class Filed(Enum):
    """What `Spool.file_away` found under the final name."""

    NEW = "new"
    SAME = "same"
    """The same data set bytes were there already: receiving it twice changes nothing."""
    DIFFERENT = "different"
    """Another data set has that name; nothing was changed, the caller sets the newcomer aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One complete file of ``incoming/``."""

    path: Path
    association_id: str
    """``<boot>-<association>``, unique for ever."""
    sequence: int
    is_event: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """Content of an association event: a hint about completeness, never needed to lose nothing."""

    event: AssociationEvent
    calling_aet: str
    host: str
    at: datetime
    instances: Mapping[str, int] = field(default_factory=dict)
    """Study Instance UID to the number of instances acknowledged in the association so far."""


def boot_of(association_id: str) -> str | None:
    """Boot id of the receiver that had an association; None of what came by none (`put_back`)."""
    boot, _, number = association_id.rpartition("-")
    return None if number == f"{_PUT_BACK:08d}" else boot


def last_touched_at(root: Path) -> datetime | None:
    """When anything last came into, or left, what receivers write to; None without a spool."""
    found = []
    for directory in (root / "incoming", root / RECEIVERS):
        with suppress(OSError):
            found.append(datetime.fromtimestamp(directory.stat().st_mtime, UTC))
    return max(found, default=None)


def count_incoming(root: Path) -> int:
    """Instances that were acknowledged into the spool at `root` and not indexed yet.

    0 where that cannot be read: a hint for who would rather not be in the way.
    """
    try:
        with os.scandir(root / "incoming") as scan:
            return sum(item.name.endswith(_INSTANCE) for item in scan)
    except OSError:
        return 0


class Spool:
    """A directory on one file system, shared by receivers (who store) and the indexer.

    Parameters
    ----------
    root
        Made with its parts when absent.
    boot_id
        See `new_boot_id`; None makes one of the current time and fresh random bytes.
    files
        File operations; tests pass ones that record or fail.

    Raises
    ------
    SpoolError
        The directories cannot be made or written.
    """

    def __init__(
        self, root: Path, *, boot_id: str | None = None, files: FileOps | None = None
    ) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.studies = root / "studies"
        self.quarantine = root / "quarantine"
        self.boot_id = boot_id or new_boot_id(datetime.now(UTC), os.urandom(4))
        self.lives = Lives(root, self.boot_id)
        self._files: FileOps = files or RealFiles()
        try:
            new = not root.is_dir()
            for directory in (self.incoming, self.studies, self.quarantine, self.lives.directory):
                directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            self._files.fsync_directory(root)
            if new:
                self._files.fsync_directory(root.parent)
        except OSError as error:
            raise _failed("cannot use the spool directory", root, error) from error
        if not os.access(self.incoming, os.W_OK | os.X_OK):
            raise SpoolError(f"the spool directory cannot be written: {self.incoming}")

    # ---------------------------------------------------------------- receiving

    def store(self, parts: Sequence[Buffer], *, association: int, sequence: int) -> Path:
        """Make one instance durable.

        Parameters
        ----------
        parts
            Header (see `part10`) and data set bytes, written one after the other.
        association, sequence
            Counters of this process and of the association.

        Returns
        -------
        Path
            The entry in ``incoming/``. When this returns, a power cut no longer loses it.

        Raises
        ------
        SpoolError
            It is not durable (disk full, input/output error); nothing is left behind. A failed
            fsync is never retried: the kernel may have dropped the pages and report success the
            second time.
        """
        final = self.incoming / f"{self._stem(association, sequence)}{_INSTANCE}"
        self._write(final, parts, durable=True)
        return final

    def record_event(self, record: EventRecord, *, association: int, sequence: int) -> Path:
        """Write an association event; not synced, since losing it only costs patience.

        Raises
        ------
        SpoolError
            It could not be written.
        """
        document = {
            "event": record.event.value,
            "calling_aet": record.calling_aet,
            "host": record.host,
            "at": record.at.isoformat(),
            "instances": dict(record.instances),
        }
        final = self.incoming / f"{self._stem(association, sequence)}{_EVENT}"
        self._write(final, [json.dumps(document).encode()], durable=False)
        return final

    def _stem(self, association: int, sequence: int) -> str:
        return f"{self.boot_id}-{association:08d}-{sequence:09d}"

    def _write(self, final: Path, parts: Sequence[Buffer], *, durable: bool) -> None:
        temporary = final.with_suffix(final.suffix + TEMPORARY)
        try:
            descriptor = self._files.write_new(temporary, parts)
            try:
                if durable:
                    self._files.fsync(descriptor)
            finally:
                self._files.close(descriptor)
            self._files.rename(temporary, final)
        except OSError as error:
            self._drop(temporary)
            raise _failed("cannot write to the spool", final, error) from error
        if not durable:
            return
        try:
            self._files.fsync_directory(self.incoming)
        except OSError as error:
            # The name may or may not survive: the sender is told of failure and sends again, and
            # an entry that stays would be the same bytes under the same UID.
            self._drop(final)
            raise _failed("cannot sync the spool directory", final, error) from error

    def _drop(self, path: Path) -> None:
        with suppress(OSError):
            self._files.unlink(path)

    def clean_temporary(
        self, *, older_than_s: float = 0.0, living: frozenset[str] | None = None
    ) -> int:
        """Remove what transfers left that never finished; none of it was acknowledged.

        Parameters
        ----------
        older_than_s
            0 only where no receiver is running on this spool.
        living
            See `Lives.boots`: what receivers that are gone have left goes after a minute.

        Returns
        -------
        int
            How many files were removed.
        """
        now_s = self.lives.now_s()
        removed = 0
        for directory, pattern in ((self.incoming, "*"), (self.studies, "*/*/*")):
            for path in directory.glob(pattern + TEMPORARY):
                with suppress(FileNotFoundError):
                    dead = living is not None and path.name.partition("-")[0] not in living
                    wait_s = min(older_than_s, DEAD_WAIT_S) if dead else older_than_s
                    if path.stat().st_mtime <= now_s - wait_s:
                        path.unlink()
                        removed += 1
        return removed

    # ---------------------------------------------------------------- indexing

    def incoming_entries(self) -> list[Entry]:
        """Complete entries, oldest association first, by arrival within one.

        An association's closing event is only listed together with every instance that was stored
        before it: a directory scan may miss names that appear while it runs, so what the second
        scan adds belongs to the events of the first.
        """
        first = self._names()
        names = first
        if any(name.endswith(_EVENT) for name in first):
            seen = set(first)
            later = [name for name in self._names() if name.endswith(_INSTANCE)]
            names = first + [name for name in later if name not in seen]
        return [entry for name in sorted(names) if (entry := self._entry(name)) is not None]

    def _names(self) -> list[str]:
        with os.scandir(self.incoming) as scan:
            return [item.name for item in scan if item.name.endswith((_INSTANCE, _EVENT))]

    def _entry(self, name: str) -> Entry | None:
        stem, _, suffix = name.rpartition(".")
        match = _ENTRY.fullmatch(stem)
        if match is None:
            return None
        return Entry(
            path=self.incoming / name,
            association_id=f"{match['boot']}-{match['association']}",
            sequence=int(match["sequence"]),
            is_event=f".{suffix}" == _EVENT,
        )

    @staticmethod
    def read_event(path: Path) -> EventRecord | None:
        """Content of an event file; None when a crash or power cut left it unreadable."""
        try:
            document = json.loads(path.read_bytes())
            return EventRecord(
                event=AssociationEvent(document["event"]),
                calling_aet=str(document["calling_aet"]),
                host=str(document["host"]),
                at=datetime.fromisoformat(document["at"]),
                instances={str(uid): int(n) for uid, n in document["instances"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @staticmethod
    def digest(path: Path) -> str:
        """SHA-256 of the data set bytes, without preamble and file meta information.

        Raises
        ------
        InvalidInstanceError
            The file is not a Part 10 file.
        """
        offset = dataset_offset(path)
        with path.open("rb") as file:
            file.seek(offset)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def final_path(self, study_uid: str, sop_instance_uid: str) -> Path:
        """Where an instance stands once indexed; a function of the two UIDs only."""
        study = hashlib.sha256(study_uid.encode()).hexdigest()[:40]
        sop = hashlib.sha256(f"{study_uid}\n{sop_instance_uid}".encode()).hexdigest()[:40]
        return self.studies / study[:2] / study / f"{sop}{_INSTANCE}"

    def file_away(self, incoming: Path, final: Path) -> Filed:
        """Give an incoming instance its final name, durably; its incoming name stays.

        The database is committed between this and `forget`, so that a crash at any point leaves
        the instance either incoming or indexed, or both, and doing it again changes nothing.

        Raises
        ------
        SpoolError
            The final name is not durable.
        """
        try:
            self._make_directories(final.parent)
            try:
                self._files.link(incoming, final)
            except FileExistsError:
                if not self._same_dataset(incoming, final):
                    return Filed.DIFFERENT
                # It may stem from a run that crashed before the directory was synced.
                self._files.fsync_directory(final.parent)
                return Filed.SAME
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._copy_away(incoming, final)
            self._files.fsync_directory(final.parent)
        except OSError as error:
            raise _failed("cannot file away", final, error) from error
        return Filed.NEW

    def _copy_away(self, incoming: Path, final: Path) -> Filed:
        if final.exists():
            if not self._same_dataset(incoming, final):
                return Filed.DIFFERENT
            self._files.fsync_directory(final.parent)
            return Filed.SAME
        temporary = final.with_suffix(final.suffix + TEMPORARY)
        with suppress(FileNotFoundError):
            self._files.unlink(temporary)
        try:
            with incoming.open("rb") as source, temporary.open("xb") as target:
                temporary.chmod(FILE_MODE)
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                self._files.fsync(target.fileno())
            self._files.rename(temporary, final)
        except OSError:
            self._drop(temporary)
            raise
        self._files.fsync_directory(final.parent)
        return Filed.NEW

    def _same_dataset(self, one: Path, other: Path) -> bool:
        try:
            return one.samefile(other) or self.digest(one) == self.digest(other)
        except InvalidInstanceError:
            return False

    def _make_directories(self, directory: Path) -> None:
        missing: list[Path] = []
        while not directory.is_dir():
            missing.append(directory)
            directory = directory.parent
        for new in reversed(missing):
            new.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
            self._files.fsync_directory(new.parent)

    def forget(self, incoming: Path) -> None:
        """Remove an incoming name (an indexed instance or a consumed event); idempotent."""
        try:
            self._files.unlink(incoming)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed("cannot remove", incoming, error) from error

    def put_back(self, path: Path) -> Path:
        """Give a file of the quarantine back to ``incoming/``, to be indexed again.

        Raises
        ------
        SpoolError
            It could not be moved; it stays where it is.
        """
        # A boot id of its own: no association of a receiver can have this name.
        boot = new_boot_id(datetime.now(UTC), os.urandom(4))
        target = self.incoming / f"{boot}-{_PUT_BACK:08d}-{0:09d}{_INSTANCE}"
        try:
            self._files.rename(path, target)
            self._files.fsync_directory(self.incoming)
            self._files.fsync_directory(path.parent)
        except OSError as error:
            raise _failed("cannot put back", path, error) from error
        return target

    def is_aside(self, path: Path) -> bool:
        """Whether `path` is a file of the quarantine, and of no study."""
        return path.is_file() and path.resolve().is_relative_to(self.quarantine.resolve())

    def set_aside(self, path: Path, reason_name: str) -> Path:
        """Move a file to quarantine, under its own name or one that is free.

        Parameters
        ----------
        path
            A file of this spool.
        reason_name
            Short stable name of lower-case letters, digits, ``_`` and ``-``.

        Raises
        ------
        SpoolError
            It could not be moved; it stays where it is.
        """
        if not _REASON.fullmatch(reason_name):
            raise PermanentError(f"not a name for a quarantine reason: {reason_name!r}")
        directory = self.quarantine / reason_name
        try:
            self._make_directories(directory)
            target = directory / path.name
            serial = 0
            while target.exists():
                serial += 1
                target = directory / f"{path.stem}-{serial}{path.suffix}"
            self._files.rename(path, target)
            self._files.fsync_directory(directory)
            self._files.fsync_directory(path.parent)
        except OSError as error:
            raise _failed("cannot set aside", path, error) from error
        return target


def _failed(what: str, path: Path, error: OSError) -> SpoolError:
    return SpoolError(f"{what}: {path}: {error.strerror or error}")
