"""The composition root: settings in, a running node out.

Only this module and those that it brings in decide which parts are put together; everything below
is handed what it needs.
Nothing here imports torch before a worker process does.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from pe_triage import keeping, sharing
from pe_triage.answering import Load, analysis_options, load_predictor
from pe_triage.clock import utc_now
from pe_triage.config import Settings
from pe_triage.domain import Outcome, ReceivedInstance, StudyState
from pe_triage.errors import InputError
from pe_triage.health import Beats, Phase, Signs
from pe_triage.logs import get_logger
from pe_triage.node.supervisor import Supervisor
from pe_triage.processes import Mains, build_worker, owner_of, process_specs
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
from pe_triage.store.notices import listening
from pe_triage.store.studies import StudyStore

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
            process_specs(settings, listener, host_of, mains or Mains()),
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
            worker = build_worker(settings, engine, owner, bells, load, turned)
            signs.ready("worker")
            signs.enter(Phase.RUNNING)
            log.info("worker.ready")
            worker.run(stop)
        finally:
            queue = JobQueue(engine, max_attempts=settings.max_attempts)
            queue.release_owner(owner, "the worker was stopped", counted=False)
    log.info("worker.stopped")


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
