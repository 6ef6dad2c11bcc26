"""Files of a node into a backup and back, and what a restored node makes of the difference.

The database is copied first, then the files: whatever the copy of the database names was there when
the copying of files began. Files that came since are in the backup without a row, and become
incoming again; files that retention removed meanwhile are rows without a file, and are marked so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pe_triage.errors import RetryableError
from pe_triage.receive.spool import Spool
from pe_triage.store.retention import RetentionStore

FOLDERS = (
    # An instance moves from the first to the second or third; released, from the third to the
    # first: whichever way it goes while this runs, one of the looks finds it.
    "spool/incoming",
    "spool/studies",
    "spool/quarantine",
    "spool/incoming",
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


def copy_files(source: Path, target: Path) -> Copied:
    """Make `target` hold the files of `source`; content never changes under a name.

    Raises
    ------
    RetryableError
        The file system refused.
    """
    copied = unchanged = 0
    seen: set[Path] = set()
    try:
        for folder in FOLDERS:
            for path in _files(source / folder):
                relative = path.relative_to(source)
                seen.add(relative)
                outcome = _copy(path, target / relative)
                copied, unchanged = copied + (outcome is True), unchanged + (outcome is False)
        for name in (NODE_ID, STORE_ID):
            if (source / name).is_file():
                _copy(source / name, target / name)
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
    for directory, _folders, names in os.walk(folder):
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


def settle(store: RetentionStore, spool: Spool, data_dir: Path) -> Settled:
    """Bring rows and files of a restored node together; it may be done again after a crash.

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
    strangers = [
        path for path in _files(spool.studies) if path.relative_to(data_dir).as_posix() not in known
    ]
    for stranger in strangers:
        spool.put_back(stranger)
    return Settled(incoming=len(strangers), lost=sum(map(len, lost.values())), studies=len(lost))
