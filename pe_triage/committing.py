"""From the settings to the parts that speak of storage commitment with archives and scanners."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from pydicom.uid import generate_uid
from sqlalchemy import Engine

from pe_triage.addresses import parse_destination
from pe_triage.config import Settings
from pe_triage.store.commitment_requests import CommitmentRequestStore, Place, RequestState
from pe_triage.store.commitments import CommitmentStore
from pe_triage.watch.samples import Uncommitted
from pe_triage.watchers import query_scu

if TYPE_CHECKING:
    from pe_triage.commitment import CommitmentReport
    from pe_triage.deliver.commitment import CommitmentPeer
    from pe_triage.domain import Destination
    from pe_triage.node.coordinator import Loop, Timer
    from pe_triage.node.watcher import Commitments
    from pe_triage.receive.commitments import CommitmentAccess

PRUNE_EVERY_S = 3600.0


def access(settings: Settings) -> CommitmentAccess:
    """Whose requests and reports the receivers take; nobody's unless configured."""
    from pe_triage.receive.commitments import CommitmentAccess

    table = settings.commitment
    reporters = {title for titles in _reporters(settings).values() for title in titles}
    return CommitmentAccess(
        requesters=frozenset(peer.aet for peer in table.requester_peers),
        reporters=frozenset(reporters),
    )


def delays(settings: Settings) -> dict[str, float]:
    """For `store.outbox.Outbox`: destination to the seconds after which it is asked."""
    return dict.fromkeys(settings.commitment_peers, settings.commitment.delay_s)


def _asked(settings: Settings) -> dict[str, Destination]:
    """Everybody that we ask for commitment, by the name that the database has."""
    asked = dict(settings.commitment_peers)
    table, archive = settings.commitment, settings.commitment_archive
    if table.requesters and table.confirm_by == "commitment" and archive is not None:
        asked[archive] = parse_destination(archive)
    return asked


def _reporters(settings: Settings) -> dict[str, frozenset[str]]:
    """Name of who was asked, to the AE titles that may report."""
    more = settings.commitment.report_aets
    return {name: frozenset((peer.aet, *more)) for name, peer in _asked(settings).items()}


def _peer(settings: Settings, address: Destination) -> CommitmentPeer:
    from pe_triage.deliver.commitment import CommitmentPeer

    return CommitmentPeer(address, settings.aet, linger_s=settings.commitment.linger_s)


def loops(settings: Settings, engine: Engine) -> list[Loop]:
    """Threads of the coordinator; none unless something is configured."""
    from pe_triage.node.commitments import (
        Committer,
        Confirmer,
        JournalReader,
        Reporter,
        Reports,
    )
    from pe_triage.receive.commitments import CommitmentJournal

    table, archive = settings.commitment, settings.commitment_archive
    if not (table.of or table.requesters):
        return []
    commitments, requests = CommitmentStore(engine), CommitmentRequestStore(engine)
    reports = Reports(commitments, table, _reporters(settings))
    make_uid = partial(generate_uid, prefix=None)
    found: list[Loop] = []
    reader = JournalReader(
        CommitmentJournal(settings.spool_dir),
        requests=requests,
        reports=reports,
        requesters={
            peer.aet: text
            for text, peer in zip(table.requesters, table.requester_peers, strict=True)
        },
        delay_s=table.delay_s,
    )
    found.append((reader.name, reader.run))
    for name, address in settings.commitment_peers.items():
        committer = Committer(
            name,
            commitments=commitments,
            peer=_peer(settings, address),
            aet=address.aet,
            table=table,
            reports=reports,
            make_uid=make_uid,
            jitter=random.random,
        )
        found.append((committer.name, committer.run))
    if table.requesters:
        assert archive is not None
        by_find = table.confirm_by == "find"
        holder = parse_destination(archive)
        scu = query_scu(settings, holder)

        def find(place: Place) -> Mapping[str, str]:
            return scu.instances(place.study_uid, place.series_uid)

        def heard(report: CommitmentReport) -> bool:
            reports.take(report, holder.aet)
            return True

        confirmer = Confirmer(
            requests=requests,
            commitments=commitments,
            table=table,
            make_uid=make_uid,
            archive=archive,
            find=find if by_find else None,
            peer=None if by_find else _peer(settings, holder),
            heard=heard,
        )
        found.append((confirmer.name, confirmer.run))
        for text, address in zip(table.requesters, table.requester_peers, strict=True):
            reporter = Reporter(
                text, requests=requests, peer=_peer(settings, address), jitter=random.random
            )
            found.append((reporter.name, reporter.run))
    return found


def standing(settings: Settings, engine: Engine) -> Commitments:
    """How storage commitment stands, for the alarms."""
    table, asked = settings.commitment, settings.commitment_peers
    commitments, requests = CommitmentStore(engine), CommitmentRequestStore(engine)

    def look() -> tuple[tuple[Uncommitted, ...], int]:
        if not (table.of or table.requesters):
            return (), 0
        late = tuple(
            Uncommitted(destination=i.destination, objects=i.waiting, oldest_s=i.oldest_s)
            for i in commitments.lacking()
            if i.destination in asked and i.oldest_s > table.alarm_after_s
        )
        return late, requests.counts()[RequestState.PARKED]

    return look


def timers(settings: Settings, engine: Engine) -> list[Timer]:
    """What forgets requests of long ago."""
    from pe_triage.node.commitments import REMEMBERED_S

    if not (settings.commitment.of or settings.commitment.requesters):
        return []
    commitments, requests = CommitmentStore(engine), CommitmentRequestStore(engine)

    def prune() -> None:
        while commitments.prune(REMEMBERED_S) or requests.prune(REMEMBERED_S):
            pass

    return [("commitment-prune", prune, PRUNE_EVERY_S)]
