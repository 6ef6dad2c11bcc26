"""Files of a node into a backup and back, and what a restored node makes of the difference.

The database is copied first, then the files: whatever the copy of the database names was there when
the copying of files began. Files that came since are in the backup without a row, and become
incoming again; files that retention removed meanwhile are rows without a file, and are marked so.

A backup that is made over an earlier one is that earlier one until all its files are there: only
then does its database take the other's place, and only then does anything go.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pe_triage.errors import InputError, RetryableError
from pe_triage.receive.spool import Spool
from pe_triage.store.quarantine import Quarantine
from pe_triage.store.retention import RetentionStore

FOLDERS = (
    # An instance moves from the first to the second or third; released, from the third to the
    # first: whichever way it goes while this runs, one of the looks finds it.
    "spool/incoming",
    "spool/studies",
    "spool/quarantine",
    "spool/incoming",
    "spool/commitments",
    "results",
)
UNFINISHED = (".part", ".tmp")
NODE_ID = "node-id"
STORE_ID = "store-id"
"""File at the top of the store; the database knows the same id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copying did."""

    copied: int
    unchanged: int
    pruned: int
    """Files of an earlier backup that the node no longer has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a restored node lacks, or has without knowing it."""

    incoming: int
    """Files without a row, which will be indexed again."""
    lost: int
    """Rows without a file."""
    studies: int
    """Studies that these rows belong to."""
    results: int = 0
    """Results without a file."""


def check_target(data_dir: Path, target: Path) -> None:
    """See that a backup is made over one of the same node: what that lacks, it would lose.

    Raises
    ------
    InputError
        `target` holds the backup of another node, or this data directory is not the node's: its
        file system is not mounted, say.
    """
    for name in (NODE_ID, STORE_ID):
        there, here = _name(target / name), _name(data_dir / name)
        if there is not None and there != here:
            raise InputError(
                f"{target} holds the backup of {there}; the data directory {data_dir} is "
                f"{here or 'no node that ever ran'}: give another directory, or mount the right one"
            )


@contextmanager
def sole_backup(target: Path) -> Iterator[None]:
    """Hold `target`: two backups at once would publish each other's half-written database.

    Raises
    ------
    InputError
        Another is being made there.
    """
    with (target / "backup.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another backup is being made in {target}") from None
        yield


def _name(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None


def copy_files(
    source: Path, target: Path, *, publish: Callable[[], object] = lambda: None
) -> Copied:
    """Make `target` hold the files of `source`; content never changes under a name.

    Parameters
    ----------
    publish
        Called once all of them are there durably, and before files go that `source` no longer has.

    Raises
    ------
    RetryableError
        The file system refused. `target` then lacks nothing that it had.
    """
    copied = unchanged = 0
    seen: set[Path] = set()
    folders: set[Path] = {target}
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in FOLDERS:
            for path in _files(source / folder):
                relative = path.relative_to(source)
                seen.add(relative)
                outcome = _copy(path, target / relative)
                if outcome:
                    folders.update(target / parent for parent in relative.parents)
                copied, unchanged = copied + (outcome is True), unchanged + (outcome is False)
        for name in (NODE_ID, STORE_ID):
            if (source / name).is_file():
                _copy(source / name, target / name)
        for folder_written in sorted(folders):
            _sync(folder_written)
        publish()
        pruned = 0
        for folder in dict.fromkeys(FOLDERS):
            for path in list(_files(target / folder)):
                if path.relative_to(target) not in seen:
                    path.unlink(missing_ok=True)
                    pruned += 1
    except OSError as error:
        raise RetryableError(f"cannot copy files: {error.strerror or error}") from None
    return Copied(copied=copied, unchanged=unchanged, pruned=pruned)


def _files(folder: Path) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        # A directory that cannot be read is not one whose files are gone.
        if not isinstance(error, FileNotFoundError):
            raise error

    for directory, _folders, names in os.walk(folder, onerror=failed):
        for name in names:
            if not name.endswith(UNFINISHED):
                yield Path(directory, name)


def _copy(path: Path, target: Path) -> bool | None:
    """Copy one file durably; False where it is there, None where it went meanwhile."""
    try:
        status = path.stat()
        if target.is_file():
            there = target.stat()
            if (there.st_size, there.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
                return False
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp")
        # With its times: by them an instance is dated that is indexed again.
        shutil.copy2(path, temporary)
    except FileNotFoundError:
        return None
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(store: RetentionStore, quarantine: Quarantine, spool: Spool, data_dir: Path) -> Settled:
    """Bring rows and files of a restored node together; it may be done again after a crash.

    A file that nobody would look for becomes incoming, wherever it lies: it was acknowledged.

    Raises
    ------
    SpoolError, StoreUnavailableError
        Do it again.
    """
    known: set[str] = set()
    lost: dict[str, list[str]] = {}
    for study_uid, sop_instance_uid, name in store.held_files():
        if (data_dir / name).is_file():
            known.add(name)
        else:
            lost.setdefault(study_uid, []).append(sop_instance_uid)
    for study_uid, uids in lost.items():
        store.lost(study_uid, uids)
    known.update(entry.path.as_posix() for entry in quarantine.list())
    strangers = [
        path
        for folder in (spool.studies, spool.quarantine)
        for path in _files(folder)
        if path.relative_to(data_dir).as_posix() not in known
    ]
    for stranger in strangers:
        spool.put_back(stranger)
    gone = [
        result_id for result_id, name in store.result_files() if not (data_dir / name).is_file()
    ]
    store.lost_results(gone)
    return Settled(
        incoming=len(strangers),
        lost=sum(map(len, lost.values())),
        studies=len(lost),
        results=len(gone),
    )
