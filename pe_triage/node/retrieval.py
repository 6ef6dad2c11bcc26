"""Fetching a study that is not held here, whole or not at all.

What the archive has is asked for first, instance by instance (C-FIND), and only when all of it is
in the database is the study queued: the archive's own "success" is not believed, and a part is
never queued here for the whole. By C-GET a part does not even enter the spool, unless this command
is killed at that very moment. By C-MOVE it does, as anything that is sent here. What was to come is
written down before the first of it can be there (`store.retrievals`), so the node knows how much
is missing, whatever becomes of the archive and of this command, and says so in the answer, if it
has to give one.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pe_triage.deliver.find_scu import PacsSeries, PacsStudy
from pe_triage.deliver.retrieve_scu import Course, Part, Progress, Retrieved, Sent, parts_of
from pe_triage.domain import PatientIdentity
from pe_triage.errors import (
    InputError,
    PeerError,
    PermanentError,
    QueryError,
    QueryUnavailableError,
    RetryableError,
    StudyNotFoundError,
)
from pe_triage.identity import same_patient
from pe_triage.logs import get_logger
from pe_triage.store.retrievals import Retrievals
from pe_triage.store.studies import StudyStore

CT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
)
"""CT Image, Enhanced CT and Legacy Converted Enhanced CT Image Storage."""
POLL_S = 0.1
SCRATCH = "retrieving-"
"""Start of the name of a folder for what is not whole yet."""
ABANDONED_AFTER_S = 6 * 3600.0
"""Age at which such a folder belongs to nobody: no archive is waited for so long."""
SUCCESS = 0x0000


class Archive(Protocol):
    """A `deliver.find_scu.QueryScu`."""

    def study(self, study_uid: str) -> tuple[PacsStudy, ...]:
        """See there."""

    def series(self, study_uid: str) -> tuple[PacsSeries, ...]:
        """See there."""

    def instances(self, study_uid: str, series_uid: str) -> dict[str, str]:
        """See there."""


class RetrievalError(PeerError, PermanentError):
    """A study could not be fetched whole; nothing was queued."""


class RetrievalLaterError(PeerError, RetryableError):
    """A study could not be fetched now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the archive has of a study, and this node is to hold."""

    study_uid: str
    identity: PatientIdentity = field(repr=False)
    series: Mapping[str, Mapping[str, str]]
    """Series UID to (SOP Instance UID to SOP Class UID)."""

    @property
    def uids(self) -> frozenset[str]:
        """Every SOP Instance UID."""
        return frozenset(uid for instances in self.series.values() for uid in instances)

    @property
    def images(self) -> dict[str, int]:
        """Series UID to its number of CT images; one of unstated class counts as an image."""
        counts = {
            uid: sum(c in CT_CLASSES or not c for c in instances.values())
            for uid, instances in self.series.items()
        }
        return {uid: count for uid, count in counts.items() if count}

    @property
    def sop_classes(self) -> tuple[str, ...]:
        """Classes, each once; where the archive does not state one, those that a CT has."""
        stated = {c for instances in self.series.values() for c in instances.values()}
        usual = set(CT_CLASSES) if "" in stated else set()
        return tuple(sorted((stated | usual) - {""}))


def ask_archive(archive: Archive, study_uid: str, *, modality: str) -> Wanted:
    """What there is to be fetched.

    Parameters
    ----------
    modality
        Of the series to fetch; empty: every series.

    Raises
    ------
    StudyNotFoundError
        The archive does not have the study.
    RetrievalError
        It has it under several patients, or nothing of that modality, or names fewer instances of
        a series than it says that it has: what it names would be a part.
    QueryError
        It does not answer.
    """
    entries = archive.study(study_uid)
    if not entries:
        raise StudyNotFoundError(study_uid)
    first = entries[0]
    if not all(same_patient(first.identity, entry.identity) for entry in entries):
        raise RetrievalError(f"{study_uid}: the PACS has it under several patients")
    series: dict[str, Mapping[str, str]] = {}
    for item in archive.series(study_uid):
        # A series of unstated modality may be the one.
        if modality and item.modality not in ("", modality):
            continue
        instances = archive.instances(study_uid, item.series_uid)
        if len(instances) < (item.instances or 0):
            raise RetrievalError(
                f"{study_uid}: the PACS says that it has {item.instances} instances of a series, "
                f"and names {len(instances)}"
            )
        if instances:
            series[item.series_uid] = instances
    if not series:
        raise RetrievalError(f"{study_uid}: the PACS has no {modality or 'image'} series of it")
    return Wanted(study_uid=study_uid, identity=first.identity, series=series)


Move = Callable[[Part, Callable[[Progress], None]], Retrieved]
"""`deliver.retrieve_scu.RetrieveScu.move`."""
Get = Callable[[Part, Callable[[Sent], int], Sequence[str]], Retrieved]
"""Part, where its objects go, SOP classes that may come."""
HandOver = Callable[[Sequence[tuple[Sent, Path]]], None]
"""Makes objects durable in the spool, all of them; raises RetryableError where that failed."""


class Retriever:
    """Fetches studies from one archive.

    Parameters
    ----------
    archive
        Asked what there is.
    move
        By C-MOVE to the running node; None where `get` is used.
    get, hand_over
        By C-GET, and from there into the spool of the running node.
    scratch
        Directory for what is not whole yet.
    retrievals
        Where it is said what is to come, before it comes.
    """

    def __init__(
        self,
        *,
        archive: Archive,
        studies: StudyStore,
        modality: str,
        attempts: int,
        index_wait_s: float,
        move: Move | None = None,
        get: Get | None = None,
        hand_over: HandOver | None = None,
        scratch: Path | None = None,
        retrievals: Retrievals | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._archive = archive
        self._studies = studies
        self._modality = modality
        self._attempts = attempts
        self._index_wait_s = index_wait_s
        self._move = move
        self._get = get
        self._hand_over = hand_over
        self._scratch = scratch
        self._retrievals = retrievals
        self._monotonic = monotonic
        self._sleep = sleep
        self._log = get_logger()

    def fetch(
        self, study_uid: str, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> int:
        """Fetch what is not held of a study; returns how many instances the archive has of it.

        Raises
        ------
        StudyNotFoundError
            The archive does not have it.
        RetrievalError
            It is another patient's there, is refused, or did not come whole.
        RetrievalLaterError
            The archive is away, or still receives the study itself.
        """
        wanted = self._ask(study_uid)
        for _ in range(self._attempts):
            missing = self._missing(wanted)
            log = self._log.bind(study_uid=study_uid, instances=len(wanted.uids))
            if not missing:
                self._end(wanted)
                return len(wanted.uids)
            log.info("retrieval.started", missing=len(missing))
            if self._get is not None:
                self._fetch_by_get(wanted, missing, on_progress)
            else:
                self._fetch_by_move(wanted, missing, on_progress)
            # Whoever sent it may have named another patient than the C-FIND did.
            self._check_patient(wanted)
            # All of it is here as the archive had it; a study of today may have grown there since.
            wanted = self._ask(study_uid)
        if self._missing(wanted):
            raise RetrievalLaterError(f"{study_uid}: the PACS is still receiving it")
        self._end(wanted)
        return len(wanted.uids)

    def _begin(self, wanted: Wanted) -> None:
        if self._retrievals is not None:
            self._retrievals.begin(wanted.study_uid, wanted.images)

    def _end(self, wanted: Wanted) -> None:
        if self._retrievals is not None:
            self._retrievals.end(wanted.study_uid)
        self._log.info("retrieval.done", study_uid=wanted.study_uid, instances=len(wanted.uids))

    def _ask(self, study_uid: str) -> Wanted:
        try:
            wanted = ask_archive(self._archive, study_uid, modality=self._modality)
        except QueryUnavailableError as error:
            raise RetrievalLaterError(f"{study_uid}: {error.message}") from None
        except QueryError as error:
            raise RetrievalError(f"{study_uid}: {error.message}") from None
        self._check_patient(wanted)
        return wanted

    def _check_patient(self, wanted: Wanted) -> None:
        try:
            study = self._studies.get(wanted.study_uid)
        except StudyNotFoundError:
            return
        if study.quarantine_reason is not None:
            raise InputError(
                f"{wanted.study_uid} is in quarantine: {study.quarantine_reason}; "
                "see pe-triage quarantine list"
            )
        if not same_patient(study.identity, wanted.identity):
            raise RetrievalError(
                f"{wanted.study_uid}: the PACS has it under another patient than it was "
                "received here"
            )

    def _missing(self, wanted: Wanted) -> set[str]:
        held = {row.sop_instance_uid for row in self._studies.instances(wanted.study_uid)}
        return set(wanted.uids - held)

    def _fetch_by_move(
        self, wanted: Wanted, missing: set[str], on_progress: Callable[[Progress], None]
    ) -> None:
        assert self._move is not None
        self._begin(wanted)
        ended: Retrieved | None = None
        for _ in range(self._attempts):
            for part in parts_of(wanted.study_uid, wanted.series, missing):
                ended = self._move(part, on_progress)
                if ended.course is Course.REFUSED:
                    raise RetrievalError(f"{wanted.study_uid}: {ended.error}")
            missing = self._wait_indexed(wanted, missing)
            if not missing:
                return
        self._give_up(wanted, missing, ended)

    def _fetch_by_get(
        self, wanted: Wanted, missing: set[str], on_progress: Callable[[Progress], None]
    ) -> None:
        assert self._get is not None
        assert self._hand_over is not None
        ended: Retrieved | None = None
        if self._scratch is not None:
            clean_scratch(self._scratch)
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix=SCRATCH) as folder:
            came: dict[str, tuple[Sent, Path]] = {}

            def store(sent: Sent) -> int:
                if sent.sop_instance_uid not in missing:
                    # Of another study, or never asked for; it is not ours to keep.
                    return SUCCESS
                path = Path(folder) / f"{len(came):06d}"
                path.write_bytes(sent.data)
                light = Sent(
                    sop_class_uid=sent.sop_class_uid,
                    sop_instance_uid=sent.sop_instance_uid,
                    transfer_syntax_uid=sent.transfer_syntax_uid,
                    data=b"",
                )
                came.setdefault(sent.sop_instance_uid, (light, path))
                return SUCCESS

            for _ in range(self._attempts):
                left = missing - came.keys()
                for part in parts_of(wanted.study_uid, wanted.series, left):
                    ended = self._get(part, store, wanted.sop_classes)
                    if ended.course is Course.REFUSED:
                        raise RetrievalError(f"{wanted.study_uid}: {ended.error}")
                    on_progress(ended.progress)
                if missing <= came.keys():
                    break
            left = missing - came.keys()
            if left:
                self._give_up(wanted, left, ended)
            self._begin(wanted)
            self._hand_over([came[uid] for uid in sorted(came)])
        still = self._wait_indexed(wanted, missing)
        if still:
            self._give_up(wanted, still, ended)

    def _wait_indexed(self, wanted: Wanted, missing: set[str]) -> set[str]:
        """Wait while the node goes on filing; returns what is missing when it no longer does."""
        until_s = self._monotonic() + self._index_wait_s
        before = len(missing)
        while missing := self._missing(wanted):
            if len(missing) < before:
                before, until_s = len(missing), self._monotonic() + self._index_wait_s
            if self._monotonic() >= until_s:
                break
            self._sleep(POLL_S)
        return missing

    def _give_up(self, wanted: Wanted, missing: set[str], ended: Retrieved | None) -> None:
        # What came under another patient was set aside, which is why it is missing.
        self._check_patient(wanted)
        total = len(wanted.uids)
        words = f"{len(missing)} of the {total} instances that the PACS has did not come"
        if ended is not None and ended.error:
            words += f" ({ended.error})"
        elif len(missing) == total:
            words += "; is pe-triage serve running, and does the PACS send to its address?"
        self._log.error(
            "retrieval.incomplete", study_uid=wanted.study_uid, missing=len(missing), of=total
        )
        kind = RetrievalLaterError if ended and ended.course is Course.AGAIN else RetrievalError
        raise kind(f"{wanted.study_uid}: {words}")


def clean_scratch(scratch: Path) -> None:
    """Remove what commands that were killed had fetched and not handed over."""
    before_s = time.time() - ABANDONED_AFTER_S
    for folder in scratch.glob(f"{SCRATCH}*"):
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < before_s:
                shutil.rmtree(folder, ignore_errors=True)
