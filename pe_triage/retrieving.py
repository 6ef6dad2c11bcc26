"""From the settings to studies that are fetched from the PACS and queued."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from pe_triage.config import Settings
from pe_triage.domain import StudyState
from pe_triage.errors import InputError, RetryableError, StudyNotFoundError
from pe_triage.identity import same_patient
from pe_triage.store.jobs import Closing, JobQueue, Rank, StudyChangedError
from pe_triage.store.retrievals import Retrievals
from pe_triage.store.studies import StudyStore
from pe_triage.watch.priors import Entry, UncertainPatientError, earlier_of, person_of
from pe_triage.watch.reconcile import AtPacs, is_wanted
from pe_triage.watchers import query_scu

if TYPE_CHECKING:
    from pe_triage.deliver.find_scu import PacsStudy
    from pe_triage.deliver.retrieve_scu import Progress, Sent
    from pe_triage.domain import Destination
    from pe_triage.node.retrieval import Retriever

SIGN = "retrieved"
"""What closed a study that was fetched, in the words of the event ``study.complete``."""


def fetch_and_queue(
    settings: Settings,
    engine: Engine,
    study_uid: str,
    *,
    rank: int | None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> int:
    """Fetch what is not held of a study, then queue it; returns the run's number.

    Raises
    ------
    StudyNotFoundError
        The PACS does not have it either.
    PermanentError, RetryableError
        It did not come whole; nothing was queued.
    """
    peer = settings.retrieve_from
    if peer is None:
        raise InputError("retrieve.pacs: nobody is configured to fetch studies from")
    studies = StudyStore(engine, settings.store_dir)
    before = _newest_run(studies, study_uid)
    with ExitStack() as stack:
        count = _retriever(settings, engine, peer, studies, stack).fetch(study_uid, on_progress)
        return _queue(studies, JobQueue(engine), study_uid, before, count, rank)


def _newest_run(studies: StudyStore, study_uid: str) -> int:
    try:
        return studies.get(study_uid).run
    except StudyNotFoundError:
        return 0


def _queue(
    studies: StudyStore, queue: JobQueue, study_uid: str, before: int, count: int, rank: int | None
) -> int:
    closing = Closing(
        sign=SIGN, reason=f"all {count} instances that the PACS has are here", expected_images=None
    )
    while True:
        study = studies.get(study_uid)
        if study.run > before and study.state is not StudyState.RECEIVING:
            # The assembler was quicker: that run is about the same images.
            return study.run
        try:
            job = queue.enqueue(
                study_uid,
                studies.manifest(study_uid).digest,
                forced=before > 0,
                rank=Rank.ROUTINE if rank is None else rank,
                closing=closing,
            )
        except StudyChangedError:
            continue
        return studies.get(study_uid).run if job is None else job.run


def _retriever(
    settings: Settings, engine: Engine, peer: Destination, studies: StudyStore, stack: ExitStack
) -> Retriever:
    from pe_triage.deliver.retrieve_scu import RetrieveScu
    from pe_triage.node.retrieval import Retriever
    from pe_triage.receive.contexts import TRANSFER_SYNTAXES

    table = settings.retrieve
    scu = RetrieveScu(peer, settings.aet, timeout_s=table.timeout_s)
    build = partial(
        Retriever,
        archive=query_scu(settings, peer),
        studies=studies,
        modality=table.modality,
        attempts=table.attempts,
        index_wait_s=table.index_wait_s,
        retrievals=Retrievals(engine),
    )
    if table.by == "move":
        return build(move=scu.move)
    return build(
        get=lambda part, store, classes: scu.get(
            part, store, sop_classes=classes, syntaxes=TRANSFER_SYNTAXES
        ),
        hand_over=partial(_hand_over, settings, peer, stack),
        scratch=settings.data_dir,
    )


def _hand_over(
    settings: Settings,
    peer: Destination,
    stack: ExitStack,
    objects: Sequence[tuple[Sent, Path]],
) -> None:
    """Make durable in the spool, as a receiver does; its checks hold here too."""
    from pe_triage.receive.spool import Spool
    from pe_triage.receive.storing import SUCCESS, FreeSpace, StoreService

    size = sum(path.stat().st_size for _, path in objects)
    spool = Spool(settings.spool_dir)
    stack.enter_context(spool.lives.passing(uuid.uuid4().hex[:12]))
    min_free = settings.min_free_mb << 20
    if min_free and FreeSpace(str(spool.incoming)).bytes() - size < min_free:
        # All of it or nothing: a part in the spool would be taken for a study.
        raise RetryableError(f"{size >> 20} MiB do not fit: free space is too low")
    service = StoreService(spool, min_free_bytes=min_free)
    session = service.open_association(calling_aet=peer.aet, host=peer.host)
    # Open until the study is queued: nothing else closes a study that is still being sent.
    stack.callback(session.close, released=True)
    for sent, path in objects:
        answer = session.store(
            path.read_bytes(),
            transfer_syntax_uid=sent.transfer_syntax_uid,
            sop_class_uid=sent.sop_class_uid,
            sop_instance_uid=sent.sop_instance_uid,
        )
        if answer.status != SUCCESS:
            # Not released: what is there is a part, and must not be closed as a whole.
            session.close(released=False)
            raise RetryableError(
                f"{sent.sop_instance_uid} cannot be stored here: {answer.status:04X} "
                f"{answer.comment}"
            )


def studies_of_days(settings: Settings, first: date, last: date) -> Iterator[str]:
    """Study Instance UIDs of the PACS from these days (both included), the oldest day first.

    As in the daily comparison, ``reconcile.modality``, ``words`` and ``without_words`` say which.

    Raises
    ------
    InputError
        Nobody can be asked, or the days are the wrong way round.
    QueryError
        No usable answer.
    """
    peer = settings.retrieve_from
    if peer is None:
        raise InputError("retrieve.pacs: nobody is configured to be asked for studies")
    if last < first:
        raise InputError(f"{last} is before {first}")
    scu = query_scu(settings, peer)
    table = settings.reconcile
    day = first
    while day <= last:
        # Day by day: archives bound the number of matches to one question.
        found = [AtPacs.of(study) for study in scu.studies(day, day, modality=table.modality)]
        yield from sorted({study.study_uid for study in found if is_wanted(study, table)})
        day += timedelta(days=1)


def priors_of(settings: Settings, engine: Engine, study_uid: str, *, years: float) -> list[str]:
    """Study Instance UIDs of the patient's earlier studies at the PACS, the newest first.

    As in the daily comparison, ``reconcile.modality``, ``words`` and ``without_words`` say which.

    Raises
    ------
    InputError
        Nobody can be asked, or whose study it is is not certain (`watch.priors`).
    QueryError
        No usable answer.
    """
    peer = settings.retrieve_from
    if peer is None:
        raise InputError("retrieve.pacs: nobody is configured to be asked for studies")
    scu, table = query_scu(settings, peer), settings.reconcile
    try:
        person = person_of([_entry(study) for study in scu.study(study_uid)])
        _check_held(engine, study_uid, person)
        found = scu.studies_of(person.identity, modality=table.modality)
        day = date.fromisoformat(person.study_date).toordinal() - round(365.25 * years)
        since = date.fromordinal(max(1, day)).isoformat().replace("-", "")
        earlier = earlier_of(person, [_entry(study) for study in found], since=since)
    except UncertainPatientError as error:
        raise InputError(f"{study_uid}: {error}; no priors are fetched") from None
    wanted = {study.study_uid for study in found if is_wanted(AtPacs.of(study), table)}
    return [entry.study_uid for entry in earlier if entry.study_uid in wanted]


def _check_held(engine: Engine, study_uid: str, person: Entry) -> None:
    """See that the study, where it is held, is the same patient's here."""
    try:
        study = StudyStore(engine).get(study_uid)
    except StudyNotFoundError:
        return
    if study.quarantine_reason is not None:
        raise UncertainPatientError("its patient is in doubt here, see pe-triage quarantine list")
    if not same_patient(study.identity, person.identity):
        raise UncertainPatientError("the PACS has it under another patient than it is held here")


def _entry(study: PacsStudy) -> Entry:
    return Entry(
        study_uid=study.study_uid,
        identity=study.identity,
        birth_date=study.birth_date,
        sex=study.sex,
        study_date=study.study_date,
        study_time=study.study_time,
    )
