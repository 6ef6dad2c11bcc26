"""From the settings to the parts that watch: who is asked, who looks, who is told."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from pe_triage.addresses import parse_destination
from pe_triage.config import Settings
from pe_triage.domain import Destination
from pe_triage.monitoring import NOBODY
from pe_triage.store.alarms import AlarmStore
from pe_triage.store.studies import StudyStore
from pe_triage.store.watching import WatchStore

if TYPE_CHECKING:
    from pe_triage.deliver.find_scu import QueryScu
    from pe_triage.node.assembler import Asking
    from pe_triage.node.coordinator import Loop, Timer
    from pe_triage.node.corrections import Corrections, Remade
    from pe_triage.node.pacs_identity import PacsIdentity, Person
    from pe_triage.node.reconciler import Reconciler
    from pe_triage.node.watcher import Commitments
    from pe_triage.receive.spool import Spool

Clock = Callable[[], datetime]

NOTIFY_EVERY_S = 5.0
RECONCILE_EVERY_S = 300.0
"""How often it is looked whether a day is due; the question itself is asked once a day."""


def query_scu(settings: Settings, peer: Destination) -> QueryScu:
    """The way to ask `peer`."""
    from pe_triage.deliver.find_scu import QueryOptions, QueryScu

    return QueryScu(peer, settings.aet, QueryOptions(timeout_s=settings.query.timeout_s))


def asking(settings: Settings, clock: Clock) -> Asking | None:
    """Who is asked for the number of a study's images; None where nobody is."""
    from pe_triage.node.assembler import Asking
    from pe_triage.node.expectations import Expectations

    table = settings.query
    default = table.pacs if table.expected_count else None
    by_sender = {
        sender.aet: None if sender.query == NOBODY else sender.query
        for sender in settings.senders
        if sender.query is not None
    }
    fetched_from = settings.retrieve.pacs
    if fetched_from is not None and table.expected_count:
        # What is fetched comes from there, and what it has is what must come.
        by_sender.setdefault(parse_destination(fetched_from).aet, fetched_from)
    names = {name for name in (default, *by_sender.values()) if name is not None}
    if not names:
        return None
    peers = {name: query_scu(settings, parse_destination(name)).series for name in sorted(names)}
    return Asking(
        expectations=Expectations(peers, clock=clock, pause_s=table.pause_after_failure_s),
        peer=default,
        by_sender=by_sender,
        whole_study=table.expected_scope == "study",
    )


def pacs_identity(settings: Settings) -> PacsIdentity | None:
    """Comparison of patients with the PACS; None where it is not asked."""
    from pe_triage.node.pacs_identity import PacsIdentity

    table = settings.query
    if table.peer is None or not table.identity:
        return None
    return PacsIdentity(
        query_scu(settings, table.peer).study,
        attributes=table.identity_attributes,
        fresh_s=table.identity_fresh_s,
        pause_s=table.pause_after_failure_s,
        waits=table.identity_unavailable == "wait",
    )


def corrections(settings: Settings, engine: Engine) -> Corrections | None:
    """What follows a correction of the patient at the PACS; None where nobody is asked."""
    from pe_triage.node.corrections import Corrections
    from pe_triage.store.corrections import correct_patient

    peer = settings.query.peer
    if peer is None:
        return None
    return Corrections(
        archive=query_scu(settings, peer),
        studies=StudyStore(engine, settings.store_dir),
        data_dir=settings.store_dir,
        correct=partial(correct_patient, engine),
    )


def follower(settings: Settings, engine: Engine) -> Callable[[str], tuple[Remade, str]] | None:
    """What a delivery does where the PACS has corrected the patient; None: it is parked."""
    made = corrections(settings, engine)
    if made is None or settings.query.identity_corrected == "park":
        return None
    return made.follow


def person_of(studies: StudyStore, data_dir: Path) -> Callable[[str], Person]:
    """Whom a study's results name."""
    from pe_triage.node.pacs_identity import person_of_study

    return partial(person_of_study, studies, data_dir)


def reconciler(settings: Settings, engine: Engine, clock: Clock) -> Reconciler | None:
    """The daily comparison; None where there is nobody to compare with."""
    from pe_triage.node.reconciler import Reconciler

    peer = settings.query.peer
    if peer is None or not settings.reconcile.enabled:
        return None
    return Reconciler(
        archive=query_scu(settings, peer),
        pacs=str(peer),
        watching=WatchStore(engine),
        alarms=alarm_store(settings, engine),
        table=settings.reconcile,
        data_dir=settings.store_dir,
        clock=clock,
        remind_s=settings.watch.remind_s,
    )


def alarm_store(settings: Settings, engine: Engine) -> AlarmStore:
    """Alarms, with the webhooks that get them."""
    from pe_triage.node.watcher import alarm_webhooks

    names = [table.name for table in alarm_webhooks(settings.destinations)]
    return AlarmStore(engine, aet=settings.aet, destinations=names)


def backlog(spool: Spool) -> tuple[int, float]:
    """Acknowledged instances that are not indexed, and the age of the oldest in seconds."""
    now_s, ages = time.time(), []
    for entry in spool.incoming_entries():
        if entry.is_event:
            continue
        try:
            ages.append(now_s - entry.path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return len(ages), max(ages, default=0.0)


def timers(
    settings: Settings,
    engine: Engine,
    spool: Spool,
    *,
    utc: Clock,
    local: Clock,
    commitments: Commitments = lambda: ((), 0),
) -> list[Timer]:
    """Everything of this side that happens by the clock.

    Parameters
    ----------
    utc, local
        Aware time; days of the PACS are counted in local time.
    commitments
        How storage commitment stands.
    """
    from pe_triage.node.roads import alarm_poster
    from pe_triage.node.watcher import Notifier, Watcher, alarm_webhooks

    alarms = alarm_store(settings, engine)
    daily = reconciler(settings, engine, local)
    watcher = Watcher(
        watching=WatchStore(engine),
        alarms=alarms,
        settings=settings.watch,
        clock=utc,
        backlog=partial(backlog, spool),
        reconciliation=(lambda: None) if daily is None else daily.last_counts,
        commitments=commitments,
    )
    found: list[Timer] = [("watch", watcher.look, settings.watch.every_s)]
    webhooks = alarm_webhooks(settings.destinations)
    if webhooks:
        notifier = Notifier(
            alarms=alarms,
            posters={table.name: alarm_poster(table, clock=utc) for table in webhooks},
            jitter=random.random,
        )
        found.append(("notify", notifier.tick, NOTIFY_EVERY_S))
    if daily is not None:
        found.append(("reconcile", daily.tick, RECONCILE_EVERY_S))
    return found


def loops(asked: Asking | None) -> list[Loop]:
    """What needs a thread of its own."""
    return [] if asked is None else [("questions", asked.expectations.run)]
