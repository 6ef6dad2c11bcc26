"""What runs in each process of a node: receivers, workers, the coordinator.

Nothing here imports torch before a worker loads its model.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from sqlalchemy import Engine

from pe_triage import committing, keeping, sharing, watchers
from pe_triage.answering import Load, analysis_options, eligibility_rules, load_predictor
from pe_triage.assemble.completeness import CompletenessRules
from pe_triage.clock import local_now, utc_now
from pe_triage.config import Settings
from pe_triage.errors import PeTriageError
from pe_triage.logs import get_logger, setup_logging
from pe_triage.node.link import ChildLink
from pe_triage.node.supervisor import ProcessSpec
from pe_triage.sharing import Host
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue
from pe_triage.store.notices import Bell, Topic, listening
from pe_triage.store.retrievals import Retrievals
from pe_triage.store.studies import StudyStore


def owner_of(node_id: str, name: str, pid: int | None = None) -> str:
    """Name that a process of a node holds jobs and leases under; none is the start of another.

    Without `pid`: the start of those of all lives of that process.
    """
    return f"{node_id}/{name}/" + ("" if pid is None else f"{pid}/")


@contextlib.contextmanager
def _child(settings: Settings, connection: Connection) -> Iterator[ChildLink]:
    """Logging, signals and the line to the supervisor; a failure is one event, no traceback."""
    formats = {"json": True, "text": False}
    setup_logging(level=settings.log_level, json_lines=formats.get(settings.log_format))
    link = ChildLink(connection)
    link.start()
    try:
        yield link
    except Exception as error:  # noqa: BLE001 - the supervisor starts the process again
        name = "" if isinstance(error, PeTriageError) else f"{type(error).__name__}: "
        get_logger().error("process.failed", error=f"{name}{error}")
        get_logger().debug("process.failed_traceback", exc_info=error)
        sys.exit(1)


def receiver_process(
    settings: Settings, host: Host, name: str, listener: socket.socket, connection: Connection
) -> None:
    """Main of a receiver process."""
    with _child(settings, connection) as link:
        sharing.check_store(settings, host.store_id)
        from pe_triage.receive.server import ReceiverOptions, run_receiver

        run_receiver(
            listener,
            ReceiverOptions(
                aet=settings.aet,
                spool_root=settings.spool_dir,
                name=host.receiver(name),
                accept_from=settings.accept_rules,
                insecure=settings.insecure,
                max_associations=settings.max_associations,
                network_timeout_s=settings.network_timeout_s,
                min_free_bytes=settings.min_free_mb << 20,
                resume_free_bytes=settings.resume_free_bytes,
                drain_s=settings.drain_s,
                commitment=committing.access(settings),
            ),
            on_ready=link.ready,
            stop=link.stop,
            on_turn=link.turned,
        )


def worker_process(
    settings: Settings,
    host: Host,
    name: str,
    connection: Connection,
    load: Load = load_predictor,
) -> None:
    """Main of a worker process: the only kind that imports torch, by `load`."""
    with _child(settings, connection) as link:
        sharing.check_store(settings, host.store_id)
        engine = open_engine(settings.database_url)
        owner = owner_of(host.node_id, name, os.getpid())
        with listening(engine) as bells:
            worker = build_worker(settings, engine, owner, bells, load, link.turned)
            link.ready()
            worker.run(link.stop)


def coordinator_process(settings: Settings, host: Host, connection: Connection) -> None:
    """Main of the process that indexes, assembles, delivers and keeps the timers."""
    with _child(settings, connection) as link, contextlib.ExitStack() as stack:
        sharing.check_store(settings, host.store_id)
        from pe_triage.node.assembler import Assembler
        from pe_triage.node.coordinator import LONGEST_LEASE_S, Coordinator
        from pe_triage.node.deliverer import Deliverer
        from pe_triage.node.indexer import Indexer
        from pe_triage.node.roads import dicom_road, road_to
        from pe_triage.node.urgency import place_finder
        from pe_triage.receive.spool import Spool
        from pe_triage.store.outbox import Outbox
        from pe_triage.store.quarantine import Quarantine

        engine = open_engine(settings.database_url)
        spool = Spool(settings.spool_dir)
        owner = owner_of(host.node_id, "coordinator", os.getpid())
        part = stack.enter_context(
            sharing.coordinating(settings, engine, spool, owner=owner, link=link, clock=utc_now)
        )
        if part is None:
            return
        bells = stack.enter_context(listening(engine))
        studies = StudyStore(engine, settings.store_dir)
        outbox = Outbox(engine, settings.store_dir, commits=committing.delays(settings))
        queue = JobQueue(engine, max_attempts=settings.max_attempts)
        asked, identity = watchers.asking(settings, utc_now), watchers.pacs_identity(settings)
        assembler = Assembler(
            studies=studies,
            queue=queue,
            data_dir=settings.store_dir,
            completeness=CompletenessRules(
                quiet_s=settings.quiet_s,
                grace_s=settings.grace_s,
                max_wait_s=settings.max_wait_s,
                expected_wait_s=settings.query.expected_wait_s,
            ),
            eligibility=eligibility_rules(settings),
            clock=part.clock,
            living_boots=part.living_boots,
            senders={table.aet: table for table in settings.senders},
            asking=asked,
            retrieving=Retrievals(engine).unfinished,
            place_of=place_finder(settings.urgency, studies, settings.store_dir),
        )
        indexer = Indexer(
            spool=spool,
            studies=studies,
            quarantine=Quarantine(engine),
            assembler=assembler,
            data_dir=settings.store_dir,
            guard=part.guard,
            lag_s=part.lag_s,
            leading=part.leading,
        )
        roads = {
            **{str(peer): dicom_road(peer, aet=settings.aet) for peer in settings.peers},
            **{
                table.name: road_to(table, aet=settings.aet, clock=utc_now)
                for table in settings.destinations
            },
        }
        deliverers = [
            Deliverer(
                name,
                outbox=outbox,
                studies=studies,
                send=send,
                jitter=random.random,
                pacs_identity=identity,
                person_of=None
                if identity is None
                else watchers.person_of(studies, settings.store_dir),
                follow=watchers.follower(settings, engine),
                bell=bells[Topic.DELIVERIES],
                leading=part.leading,
            )
            for name, send in roads.items()
        ]
        for name, waiting in outbox.waiting().items():
            if name not in roads:
                get_logger().warning(
                    "delivery.no_such_destination", destination=name, waiting=waiting
                )
        Coordinator(
            indexer=indexer,
            assembler=assembler,
            spool=spool,
            queue=queue,
            deliverers=deliverers,
            outbox=outbox,
            longest_lease_s=max(LONGEST_LEASE_S, 4 * settings.lease_s),
            timers=[
                *watchers.timers(
                    settings,
                    engine,
                    spool,
                    utc=utc_now,
                    local=local_now,
                    commitments=committing.standing(settings, engine),
                ),
                *committing.timers(settings, engine),
                *keeping.timers(settings, engine, spool, part, utc_now),
            ],
            loops=[*watchers.loops(asked), *committing.loops(settings, engine)],
            living_boots=part.living_boots,
            hosts=part.hosts,
            leading=part.leading,
        ).run(link.stop, on_ready=part.on_ready, on_turn=link.turned)


@dataclass(frozen=True, kw_only=True)
class Mains:
    """What the processes of a node run: importable, since each is spawned by its name.

    The node's own by default. A test gives others that call these with a part of their own, such
    as a worker whose `load` needs no network.
    """

    receiver: Callable[..., None] = receiver_process
    worker: Callable[..., None] = worker_process
    coordinator: Callable[..., None] = coordinator_process


def process_specs(
    settings: Settings, listener: socket.socket, host: Host, mains: Mains
) -> list[ProcessSpec]:
    """Every process of a node, in the order in which they start."""
    receivers = [
        ProcessSpec(
            name=f"receiver-{n}",
            target=mains.receiver,
            args=(settings, host, f"receiver-{n}", listener),
            stop_order=0,
        )
        for n in range(1, settings.receivers + 1)
    ]
    workers = [
        ProcessSpec(
            name=f"worker-{n}",
            target=mains.worker,
            args=(settings, host, f"worker-{n}"),
            stop_order=1,
            awaited=False,
        )
        for n in range(1, settings.workers + 1)
    ]
    coordinator = ProcessSpec(
        name="coordinator", target=mains.coordinator, args=(settings, host), stop_order=2
    )
    return [coordinator, *workers, *receivers]


def build_worker(
    settings: Settings,
    engine: Engine,
    owner: str,
    bells: Mapping[Topic, Bell],
    load: Load,
    on_turn: Callable[[], None],
) -> Any:
    """Load the model and make a worker that holds its jobs as `owner`."""
    from pe_triage.node.ahead import make_ahead
    from pe_triage.node.analysis import prepare_answer
    from pe_triage.node.worker import Worker, WorkerOptions
    from pe_triage.receive.spool import count_incoming
    from pe_triage.report.warm import warm_up

    predictor = load(settings)
    analysis = analysis_options(settings)
    warm_up(analysis.report)
    worker = Worker(
        queue=JobQueue(engine, max_attempts=settings.max_attempts),
        studies=StudyStore(engine),
        predictor=predictor,
        analysis=analysis,
        ahead=make_ahead(
            predictor,
            engine=engine,
            rules=analysis.rules,
            data_dir=settings.data_dir,
            store_dir=settings.store_dir,
            min_free_bytes=settings.min_free_mb << 20,
            key_slices=analysis.key_slices,
            waiting=partial(count_incoming, settings.spool_dir),
            answer=lambda work, images: prepare_answer(work, images, predictor, analysis),
            bell=bells[Topic.ARRIVALS],
        )
        if settings.ahead
        else None,
        options=WorkerOptions(
            owner=owner,
            data_dir=settings.store_dir,
            routes=settings.routes,
            lease_s=settings.lease_s,
            drain_s=settings.drain_s,
        ),
        clock=local_now,
        bell=bells[Topic.JOBS],
        on_turn=on_turn,
    )
    # What is loaded now stays: the collector need not look through it again during each study.
    gc.collect()
    gc.freeze()
    return worker
