"""The composition root: settings in, a running node out.

Only this module decides which parts are put together; everything below is handed what it needs.
Nothing here imports torch before a worker process does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from pe_triage import committing, keeping, sharing, watchers
from pe_triage.assemble.completeness import CompletenessRules
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.clock import local_now, utc_now
from pe_triage.config import Settings
from pe_triage.cores import usable_cores
from pe_triage.domain import Outcome, ReceivedInstance, StudyState
from pe_triage.errors import InputError, PeTriageError
from pe_triage.health import Beats, Phase, Signs
from pe_triage.logs import get_logger, setup_logging
from pe_triage.node.link import ChildLink
from pe_triage.node.supervisor import ProcessSpec, Supervisor
from pe_triage.resources import demonstration_bundle
from pe_triage.sharing import Host
from pe_triage.startup import (
    check_bundle,
    check_device,
    hold_data_dir,
    node_id_of,
    open_listener,
    prepare_database,
    warn_if_clock_behind,
    warn_if_open,
)
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue, Rank
from pe_triage.store.leases import Leases
from pe_triage.store.migrate import check_schema
from pe_triage.store.notices import Bell, Topic, listening
from pe_triage.store.retrievals import Retrievals
from pe_triage.store.studies import StudyStore

if TYPE_CHECKING:
    from pe_triage.infer.predictor import Predictor
    from pe_triage.node.analysis import AnalysisOptions


# ------------------------------------------------------------------ values from settings


def eligibility_rules(settings: Settings) -> EligibilityRules:
    """Limits of the ``[eligibility]`` table over the defaults.

    Raises
    ------
    ConfigurationError
        Naming an unknown key or one of the wrong type.
    """
    return EligibilityRules.from_table(settings.eligibility)


def analysis_options(settings: Settings) -> AnalysisOptions:
    """What the analysis may be told."""
    from pe_triage.node.analysis import AnalysisOptions
    from pe_triage.report.policy import TriagePolicy
    from pe_triage.report.settings import ReportSettings

    policy = TriagePolicy.from_table(settings.policy)
    return AnalysisOptions(
        rules=eligibility_rules(settings),
        report=ReportSettings.from_table(settings.report, policy=policy),
        key_slices=settings.key_slices,
        allow_on_patients=settings.allow_on_patients,
        destinations=settings.destinations,
    )


def load_predictor(settings: Settings) -> Predictor:
    """Load the bundle in force: the site's, or the demonstration bundle of the package.

    One event says which model, and what runs it.
    """
    from pe_triage.infer.predictor import Predictor

    predictor = Predictor(
        settings.model or demonstration_bundle(),
        settings.device,
        runtime=settings.runtime,
        batch_size=settings.batch_size or None,
        threads=settings.threads or usable_cores(),
    )
    model, runtime = predictor.identity, predictor.runtime.info
    get_logger().info(
        "model.loaded",
        model=f"{model.name} {model.version}",
        sha256=model.sha256,
        intended_use=model.intended_use.value,
        runtime=runtime.name,
        runtime_version=runtime.version,
        device=runtime.device,
        precision=runtime.precision,
        threads=runtime.threads,
        difference=runtime.difference,
    )
    return predictor


Load = Callable[[Settings], "Predictor"]
"""Brings the model that a worker answers with."""


# ------------------------------------------------------------------ again


def requeue(engine: Engine, study_uid: str, *, rank: int | None) -> int:
    """Queue a study again as a new run; returns the run's number.

    A backfill (`Rank.BACKFILL`) of a study that waits for one already is that one: a long list can
    be given again after an interruption.

    Raises
    ------
    StudyNotFoundError
        No such study here.
    InputError
        The study is in quarantine, still arrives, or holds no instance any more.
    """
    studies = StudyStore(engine)
    study = studies.get(study_uid)
    if study.state is StudyState.QUARANTINED or study.quarantine_reason is not None:
        # Also one that has ended: a new report would stand under a patient who is in doubt.
        raise InputError(
            f"{study_uid} cannot be analysed again: {study.quarantine_reason}; settle it first, "
            "see pe-triage quarantine list"
        )
    if study.state is StudyState.RECEIVING and not study.removed:
        # The list of a backfill may well name it: its first half is no study.
        raise InputError(
            f"{study_uid} is still arriving; it is analysed by itself once it is complete"
        )
    digest = studies.manifest(study_uid).digest
    queue = JobQueue(engine)
    if rank == Rank.BACKFILL and study.state is StudyState.QUEUED:
        waiting = queue.latest(study_uid)
        if waiting is not None and waiting.manifest_digest == digest:
            return waiting.run
    job = queue.enqueue(study_uid, digest, forced=True, rank=Rank.ROUTINE if rank is None else rank)
    assert job is not None
    return job.run


# ------------------------------------------------------------------ the node


def run_node(settings: Settings, mains: Mains | None = None) -> None:
    """Run `serve` in the foreground until SIGTERM or SIGINT, then drain.

    Parameters
    ----------
    mains
        What its processes run; None: the node's own.

    Raises
    ------
    InputError
        Data directory, port, database or bundle cannot be used; nothing was started.
    """
    log = get_logger()
    check_bundle(settings)
    check_device(settings.device, settings.runtime)
    # Every table is read before anything starts: a worker must not find the mistake.
    analysis_options(settings)
    for table in settings.destinations:
        table.check_secrets()
    with hold_data_dir(settings):
        keeping.check_restored(settings)
        prepare_database(settings)
        engine = open_engine(settings.database_url)
        store_id = sharing.enter_store(settings, engine)
        # Before anything of this start is written.
        warn_if_clock_behind(settings, engine, utc_now())
        keeping.clean_at_start(settings)
        node_id = node_id_of(settings.data_dir)
        host_of = Host(node_id=node_id, store_id=store_id)
        listener = open_listener(settings.host, settings.port)
        host, port = settings.host, listener.getsockname()[1]
        warn_if_open(settings, log)
        queue = JobQueue(engine, max_attempts=settings.max_attempts)
        leases = Leases(engine)
        stop = threading.Event()
        previous = {
            number: signal.signal(number, lambda *_: stop.set())
            for number in (signal.SIGTERM, signal.SIGINT)
        }

        def stopping() -> bool:
            if not stop.is_set():
                return False
            # From here on a caller is refused, and not left waiting in the backlog of a node
            # that will never answer it.
            listener.close()
            return True

        supervisor = Supervisor(
            _processes(settings, listener, host_of, mains or Mains()),
            drain_s=settings.drain_s,
            on_death=lambda name, pid: _release(queue, leases, owner_of(node_id, name, pid), log),
            on_stopped=lambda name, pid: _release(
                queue, leases, owner_of(node_id, name, pid), log, counted=False
            ),
            signs=Signs(settings.health_file),
        )
        try:
            with sharing.living(settings, engine, node_id, stop):
                # Whatever an earlier life of this node held is free: the lock says that it is
                # over, and the lease of the host that there is no copy of it.
                queue.release_owner(f"{node_id}/")
                leases.release(owner_of(node_id, "coordinator"))
                supervisor.run(
                    stopping,
                    lambda: log.info("node.ready", aet=settings.aet, host=host, port=port),
                )
        finally:
            listener.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        log.info("node.stopped")


def run_worker(settings: Settings, load: Load = load_predictor) -> None:
    """Run one worker in the foreground on an existing database."""
    check_bundle(settings)
    engine = open_engine(settings.database_url)
    check_schema(engine)
    sharing.find_store(settings, engine)
    warn_if_clock_behind(settings, engine, utc_now())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    owner = owner_of(f"worker-{uuid.uuid4().hex[:12]}", "worker", os.getpid())
    log = get_logger(owner=owner)
    if not settings.routes:
        log.warning("worker.sends_nowhere", kept_days=settings.retention.unsent_days or None)
    signs = Signs(settings.health_file)
    signs.expect("worker", awaited=True)
    with signs.written_down(stop), listening(engine) as bells:
        turned = Beats(lambda: signs.turned("worker"))
        try:
            worker = _build_worker(settings, engine, owner, bells[Topic.JOBS], load, turned)
            signs.ready("worker")
            signs.enter(Phase.RUNNING)
            log.info("worker.ready")
            worker.run(stop)
        finally:
            queue = JobQueue(engine, max_attempts=settings.max_attempts)
            queue.release_owner(owner, "the worker was stopped", counted=False)
    log.info("worker.stopped")


def _processes(
    settings: Settings, listener: socket.socket, host: Host, mains: Mains
) -> list[ProcessSpec]:
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


def owner_of(node_id: str, name: str, pid: int | None = None) -> str:
    """Name that a process of a node holds jobs and leases under; none is the start of another.

    Without `pid`: the start of those of all lives of that process.
    """
    return f"{node_id}/{name}/" + ("" if pid is None else f"{pid}/")


def _release(
    queue: JobQueue, leases: Leases, prefix: str, log: Any, *, counted: bool = True
) -> None:
    leases.release(prefix)
    if counted:
        released = queue.release_owner(prefix)
    else:
        released = queue.release_owner(prefix, "the node was stopped", counted=False)
    if released:
        log.warning("job.released", owner=prefix, jobs=released)


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
            worker = _build_worker(settings, engine, owner, bells[Topic.JOBS], load, link.turned)
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


def _build_worker(
    settings: Settings,
    engine: Engine,
    owner: str,
    bell: Bell,
    load: Load,
    on_turn: Callable[[], None],
) -> Any:
    from pe_triage.node.ahead import make_ahead
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
        bell=bell,
        on_turn=on_turn,
    )
    # What is loaded now stays: the collector need not look through it again during each study.
    gc.collect()
    gc.freeze()
    return worker


# ------------------------------------------------------------------ without a network


def analyse_folder(
    settings: Settings, instances: Sequence[ReceivedInstance], out: Path
) -> dict[str, Any]:
    """Analyse one study's instances and write its results into `out`; returns a show document.

    Raises
    ------
    PeTriageError
        The analysis failed.
    """
    from pe_triage.node.analysis import analyse_study
    from pe_triage.node.document import analysis_document
    from pe_triage.node.files import write_results

    check_bundle(settings)
    options = analysis_options(settings)
    started = utc_now()
    first = instances[0]
    predictor = load_predictor(settings)
    analysis = analyse_study(
        study_uid=first.study_uid,
        run=1,
        identity=first.identity,
        instances=instances,
        predictor=predictor,
        options=options,
        predecessors=(),
        now=started.astimezone(),
        beat=lambda: None,
    )
    written = write_results(out, analysis.objects)
    result = analysis.result
    refused = result.outcome is Outcome.NOT_EVALUATED
    return {
        "study_uid": first.study_uid,
        "state": str(StudyState.NOT_EVALUATED if refused else StudyState.DONE),
        "outcome": str(result.outcome),
        "reason": result.reason,
        "priority": None if result.priority is None else str(result.priority),
        "instances": len(instances),
        "run": 1,
        **analysis_document(result, options.report.policy),
        "results": [
            {
                "kind": str(item.kind),
                "sop_class_uid": item.sop_class_uid,
                "sop_instance_uid": item.sop_instance_uid,
                "path": str(path.resolve()),
                "deliveries": [],
            }
            for item, path, _sha256 in written
        ],
        "received_at": started.isoformat(),
        "last_image_at": started.isoformat(),
        "completed_at": utc_now().isoformat(),
        "delivered_at": None,
        "latency_s": None,
    }
