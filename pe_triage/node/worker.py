"""A worker: claims a study, analyses it, persists its results, and nothing else.

The result files are durable before the database says that they exist, and one transaction makes
the run's end, its results and their deliveries visible together. A worker that lost its lease
finds its fencing token refused there; what it wrote lies in a directory of its own and is never
sent. Result UIDs and dates derive from the run, so whoever takes over makes the same objects.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from pe_triage.assemble.completeness import FORCED
from pe_triage.domain import Job, Outcome, ResultKind, StudyManifest, StudyState
from pe_triage.errors import (
    ConfigurationError,
    DeviceFaultError,
    LeaseLostError,
    PermanentError,
    PeTriageError,
    RetryableError,
)
from pe_triage.logs import get_logger
from pe_triage.node.analysis import Analysis, AnalysisOptions, analyse_study, relevant_instances
from pe_triage.node.corrections import restated
from pe_triage.node.document import analysis_document
from pe_triage.node.files import result_dir, to_received, write_messages, write_results
from pe_triage.routing import Route
from pe_triage.store.engine import StoreUnavailableError
from pe_triage.store.jobs import JobQueue, ResultRow
from pe_triage.store.notices import Bell, Looking
from pe_triage.store.studies import StudyStore

if TYPE_CHECKING:
    from pe_triage.infer.predictor import Predictor
    from pe_triage.node.ahead import Ahead
    from pe_triage.node.work import StudyWork


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Settings of one worker."""

    owner: str
    data_dir: Path
    routes: tuple[Route, ...]
    lease_s: float
    drain_s: float = 20.0
    """Seconds after a stop within which the running job must end or be handed back."""
    poll_s: float = 0.1
    """How often to look for work where nothing rings."""
    retry_s: float = 10.0
    """First wait after a fault of the environment; it doubles up to `RETRY_MAX_S`."""


RETRY_MAX_S = 600.0
HAND_BACK_AT = 0.8
"""Part of `drain_s` after which a stopping worker hands its job back: the rest is for doing so."""
STOPPED = "the node was stopped while this was analysed; it is analysed again"

ENVIRONMENT_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTCONN,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""What a file system says of itself and not of the file that was asked for."""


class Worker:
    """Claims and runs jobs one at a time.

    Parameters
    ----------
    queue, studies
        The store.
    predictor
        Loaded once; jobs share it.
    clock
        Aware time written into messages; objects bear their run's, see `Job.dated_at`.
    local
        Puts that into the zone of the site.
    ahead
        What to do while there is no job; None: nothing.
    bell
        Rings when a job waits; None: it looks every `WorkerOptions.poll_s`.
    on_turn
        Called as the work goes on: at each look into the queue and at each step of an analysis.
    """

    def __init__(
        self,
        *,
        queue: JobQueue,
        studies: StudyStore,
        predictor: Predictor,
        analysis: AnalysisOptions,
        options: WorkerOptions,
        clock: Callable[[], datetime],
        local: Callable[[datetime], datetime] = datetime.astimezone,
        ahead: Ahead | None = None,
        bell: Bell | None = None,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue = queue
        self._studies = studies
        self._predictor = predictor
        self._analysis = analysis
        self._options = options
        self._clock = clock
        self._local = local
        self._ahead = ahead
        self._bell = bell or Looking(options.poll_s)
        self._on_turn = on_turn
        self._log = get_logger(owner=options.owner)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`; a claimed job is finished first, or handed back when time is up.

        Raises
        ------
        DeviceFaultError
            The process can compute nothing more. What it held was given back.
        """
        with nullcontext() if self._ahead is None else self._ahead.running(stop):
            self._work(stop)

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._on_turn()
            heard = self._bell.heard()
            try:
                if not self.step(stop):
                    self._bell.wait(stop, heard, self._queue.next_due_s)
            except DeviceFaultError:
                raise
            except Exception as error:  # noqa: BLE001 - a database that is away must not end us
                self._log.error("worker.queue_failed", error=one_line(error))
                stop.wait(2.0)

    def step(self, stop: threading.Event | None = None) -> bool:
        """Claim and run one job; False where none is waiting."""
        job = self._queue.claim(self._options.owner, self._options.lease_s)
        if job is None:
            return False
        log = self._log.bind(study_uid=job.study_uid, job_id=job.job_id, run=job.run)
        log.info("job.claimed", attempt=job.attempt)
        resting = nullcontext() if self._ahead is None else self._ahead.resting(job.study_uid)
        beating = _Heartbeat(
            self._queue, job, self._options, stop or threading.Event(), self._on_turn
        )
        with beating as heart, resting as work:
            try:
                self._run_job(job, heart, log, work)
            except LeaseLostError:
                if heart.handed_back:
                    log.info("job.handed_back")
                else:
                    log.warning("job.lease_lost")
            except Exception as error:
                self._give_back(job, error, heart, log)
                if isinstance(error, DeviceFaultError) and error.process_is_lost:
                    raise
        return True

    def _run_job(self, job: Job, heart: _Heartbeat, log: Any, work: StudyWork | None) -> None:
        started = time.monotonic()
        study = self._studies.get(job.study_uid)
        # A slice that came after the job was queued belongs to the next run.
        instances = [
            to_received(stored, self._options.data_dir)
            for stored in self._studies.instances(job.study_uid, run=job.run)
        ]
        if (
            StudyManifest.of(job.study_uid, relevant_instances(instances)).digest
            != job.manifest_digest
        ):
            raise PermanentError("the instances held are not those that the run was queued with")
        analysis = analyse_study(
            study_uid=job.study_uid,
            run=job.run,
            identity=study.identity,
            instances=instances,
            predictor=self._predictor,
            options=self._analysis,
            predecessors=[restated(ds, study.corrected) for ds in self._predecessors(job)],
            now=self._clock(),
            dated_at=self._local(job.dated_at),
            beat=heart.check,
            cautions=self._cautions(job, len(relevant_instances(instances))),
            corrected=study.corrected,
            work=work,
        )
        heart.check()
        self._finish(job, analysis, heart)
        if self._ahead is not None:
            self._ahead.forget({i.series_uid for i in instances})
        log.info(
            "job.finished",
            outcome=str(analysis.result.outcome),
            priority=analysis.result.priority and str(analysis.result.priority),
            objects=len(analysis.objects.objects),
            seconds=round(time.monotonic() - started, 3),
        )

    def _cautions(self, job: Job, images: int) -> tuple[str, ...]:
        """What to say of a study that was closed though nothing said that it was whole."""
        closing = self._queue.closing(job)
        if closing is None:
            return ()
        said = [FORCED[closing.sign]] if closing.sign in FORCED else []
        if (expected := closing.expected_images or 0) > images:
            said.append(f"only {images} of the {expected} images at the PACS had come")
        return tuple(said)

    def _predecessors(self, job: Job) -> list[Dataset]:
        """Reports that this run's report replaces."""
        found: list[Dataset] = []
        for row in self._queue.earlier_results(job):
            if row.kind is not ResultKind.SR or row.path is None:
                continue
            try:
                found.append(dcmread(self._options.data_dir / row.path))
            except (OSError, InvalidDicomError) as error:
                if is_environment(error):
                    raise
                raise PermanentError(
                    f"the report of an earlier run cannot be read: {one_line(error)}"
                ) from None
        return found

    def _finish(self, job: Job, analysis: Analysis, heart: _Heartbeat) -> None:
        result = analysis.result
        directory = result_dir(self._options.data_dir, job)
        try:
            written = write_results(directory, analysis.objects)
            messages = write_messages(directory, analysis.messages)
        except RetryableError:
            # Each claim has a directory of its own: what fills the disk must not be left behind.
            shutil.rmtree(directory, ignore_errors=True)
            raise
        rows = [
            ResultRow(
                kind=item.kind,
                sop_class_uid=item.sop_class_uid,
                sop_instance_uid=item.sop_instance_uid,
                sha256=sha256,
                path=path.relative_to(self._options.data_dir),
            )
            for item, path, sha256 in written
        ]
        rows += [
            ResultRow(
                kind=message.kind,
                sop_class_uid=None,
                sop_instance_uid=None,
                sha256=digest,
                path=None if file is None else file.relative_to(self._options.data_dir),
                addressee=message.destination,
                refused=message.refused,
            )
            for message, file, digest in messages
        ]
        # Done twice it is harmless, so a database that is away costs patience and no analysis.
        heart.patiently(
            lambda: self._queue.finish(
                job,
                state=(
                    StudyState.NOT_EVALUATED
                    if result.outcome is Outcome.NOT_EVALUATED
                    else StudyState.DONE
                ),
                outcome=result.outcome,
                reason=result.reason,
                priority=result.priority,
                document=analysis_document(result, self._analysis.report.policy),
                model_sha256=result.model.sha256 if result.model else None,
                results=rows,
                routes=self._options.routes,
            )
        )

    def _give_back(self, job: Job, error: Exception, heart: _Heartbeat, log: Any) -> None:
        environment = is_environment(error)
        retry = environment or not isinstance(error, PeTriageError)
        delay_s = self._options.retry_s * job.attempt
        if environment:
            # The token counts claims, also those that do not count as attempts.
            doublings = min(max(job.fencing_token, 1) - 1, 16)
            delay_s = min(self._options.retry_s * 2.0**doublings, RETRY_MAX_S)
        log.error("job.failed", error=one_line(error), attempt=job.attempt, retry=retry)
        if not isinstance(error, PeTriageError):
            # Without the error's own words, for the same reason as in `one_line`.
            stack = "".join(traceback.format_tb(error.__traceback__))
            log.debug("job.failed_traceback", stack=stack)
        try:
            heart.patiently(
                lambda: self._queue.fail(
                    job, one_line(error), retry=retry, delay_s=delay_s, counted=not environment
                )
            )
        except LeaseLostError:
            log.warning("job.lease_lost")


class _Heartbeat:
    """Renews the lease from a thread of its own while the job runs.

    The same thread hands the job back, uncounted, when a stopping node has no more time for it:
    the analysis itself may be deep in a library then, and is killed soon after.
    """

    def __init__(
        self,
        queue: JobQueue,
        job: Job,
        options: WorkerOptions,
        stop: threading.Event,
        on_turn: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._job = job
        self._options = options
        self._stop = stop
        self._on_turn = on_turn
        self.handed_back = False
        """Whether the job was given back because the node stops."""
        self._done = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        self._thread.join()

    def check(self) -> None:
        """Raise `LeaseLostError` as soon as another worker may own the job."""
        self._on_turn()
        if self._lost.is_set():
            raise LeaseLostError("the lease of this job was lost")

    def patiently(self, work: Callable[[], object]) -> None:
        """Do `work`, again and again while the database does not answer.

        Raises
        ------
        LeaseLostError
            The job is not ours any more, or was handed back.
        """
        told = False
        while True:
            self.check()
            try:
                work()
            except StoreUnavailableError as error:
                if not told:
                    get_logger(job_id=self._job.job_id).warning(
                        "worker.waits_for_database", error=str(error)
                    )
                told = True
                self._lost.wait(PATIENCE_S)
                continue
            return

    def _beat(self) -> None:
        every_s = self._options.lease_s / 3
        hand_back_at: float | None = None
        next_beat = time.monotonic() + every_s
        while not self._done.wait(min(every_s, TICK_S)):
            now = time.monotonic()
            if self._stop.is_set():
                if hand_back_at is None:
                    hand_back_at = now + HAND_BACK_AT * self._options.drain_s
                if now >= hand_back_at and self._hand_back():
                    return
            if now < next_beat:
                continue
            try:
                self._queue.heartbeat(self._job, self._options.owner, self._options.lease_s)
            except LeaseLostError:
                self._lost.set()
                return
            except Exception:  # noqa: BLE001 - a database away for a moment; fencing decides
                # Soon again: the lease may have run out meanwhile.
                next_beat = now + min(every_s, PATIENCE_S)
                continue
            next_beat = now + every_s

    def _hand_back(self) -> bool:
        try:
            self._queue.fail(self._job, STOPPED, retry=True, delay_s=None, counted=False)
        except LeaseLostError:
            pass
        except Exception:  # noqa: BLE001 - once more at the next tick
            # A finish that waits for the database ends too: the supervisor releases the job.
            if not self._lost.is_set():
                self._lost.set()
            return False
        else:
            self.handed_back = True
        self._lost.set()
        return True


TICK_S = 0.25
PATIENCE_S = 1.0


def is_environment(error: BaseException) -> bool:
    """Whether a fault lies with the machine and not with the study, so that no attempt counts.

    A wrong setting seen while a job runs (a database that cannot be opened, a device that is
    gone) is one too: the study did nothing to cause it.
    """
    if isinstance(error, OSError):
        return error.errno in ENVIRONMENT_ERRNOS
    return isinstance(error, RetryableError | ConfigurationError)


def one_line(error: BaseException) -> str:
    """Return what may be told of an error in a log or the database, in one bounded line.

    Of errors that are not this program's own only the class and the place are told: libraries
    quote the value that they stumbled over, and that may be a patient's.
    """
    if isinstance(error, PeTriageError):
        return " ".join(str(error).split())[:500]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    # The system's own words for an errno; never the file's name.
    system = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
    return f"{type(error).__name__}{system}{place}"[:500]
