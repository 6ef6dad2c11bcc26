"""Work on a study that still arrives: an idle worker encodes slices that have come, and prepares.

Embeddings are kept by content (`infer.recall`) and found again when the study is complete. Once
nothing new has come for a moment, the worker does the other steps of the analysis as well, as if
this were all, and hands them to the run if that is about the very same images (`node.work`); while
the node waits out its grace time there is nothing else to do. So nothing here can change an answer,
and whatever goes wrong here costs time alone.

A thread of its own does it, which rests while the worker has a job, while images come faster than
scanners make them (a study that is sent from a disk needs the processor for being received), and
while others want the processor. How fast images come, and whether any still do, is asked of the
spool too: on a busy machine the database learns of them late. Slices are encoded on all cores but
one, so that whatever else the node does finds a core, and on all where it falls behind, by threads
that stand behind all others (`infer.background`).

Header rules come first: only what a run would choose of the series that have come so far is read.
Enhanced CT images come whole and are left to the run.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from sqlalchemy import Engine

from pe_triage.assemble.early import worth_reading
from pe_triage.assemble.eligibility import EligibilityRules
from pe_triage.domain import ReceivedInstance
from pe_triage.errors import ImagingError
from pe_triage.imaging.decoded import DecodedSlices
from pe_triage.imaging.geometry import InPlane, in_plane
from pe_triage.imaging.pixels import decode_hu
from pe_triage.infer.background import background_runtime
from pe_triage.infer.predictor import Predictor
from pe_triage.infer.recall import Claim, Key, Recall
from pe_triage.infer.runtime import SliceRuntime
from pe_triage.logs import get_logger
from pe_triage.node.files import to_received
from pe_triage.node.preparing import Preparing, Write
from pe_triage.node.source_headers import read_header
from pe_triage.node.spare import Effort, Pace, Seldom
from pe_triage.node.work import FilesRead, StudyWork
from pe_triage.stack import analyse_stack
from pe_triage.store.arriving import Arriving
from pe_triage.store.notices import Bell, Topic, looking

DIRECTORY = "ahead"
"""Within the data directory."""
LOOK_S = 0.2
"""How often it is looked for new slices of studies that arrive."""
ASK_S = 0.5
"""How often at most a preparation asks whether its study has grown."""
BATCH = 4
"""Slices at once: a job or a stop waits for no more than these."""
BEHIND = 4
"""Slices of a series that wait to be encoded, beyond which no core is left free."""
TURN_S = 0.5
"""Slices are encoded for so long before it is looked again how fast images come."""
SILENT_S, SILENT_MIN_S = 0.6, 0.3
"""Nothing new for so long, and a study is prepared; scanners pause for less between two images."""
INTERVALS = 6
"""So many times as long as between two of its images on average is silence, within those bounds."""
REST_S, REST_MAX_S = 1.0, 10.0
"""How long nothing is done then; twice as long each time that it is found so again."""
KEPT_BYTES = 768 << 20
"""Decoded slices of all studies that arrive: 1,500 of 512 x 512; any beyond are read again."""
PREPARATIONS = 3
"""Of one study at most: a sender that pauses often must not cost a run at each pause."""
DROP_S = 5.0
"""How often during jobs it is looked for what may be let go: they need the memory."""
SWEEP_S = 60.0
RETRY_MAX_S = 300.0
JOIN_S = 10.0

Prepare = Callable[[NDArray[np.int16]], NDArray[np.float32]]


def make_ahead(
    predictor: Predictor,
    *,
    engine: Engine,
    rules: EligibilityRules,
    data_dir: Path,
    min_free_bytes: int,
    key_slices: int,
    store_dir: Path | None = None,
    waiting: Callable[[], int] = lambda: 0,
    answer: Write = lambda _work, _images: None,
    bell: Bell | None = None,
) -> Ahead | None:
    """Let a worker work ahead; None, with an event that says why, where that is not possible.

    To be called while the process starts (`background_runtime`).
    """
    log = get_logger()
    if not predictor.card.spec.is_plain_slices:
        log.info("ahead.off", reason="this model sees more than one slice at a time")
        return None
    reason = "what runs stage 1 gives a slice other bits in other company"
    runtime: SliceRuntime | None = None
    try:
        runtime = background_runtime(predictor)
    except Exception as error:  # noqa: BLE001 - a worker that answers is not to be lost over this
        reason = f"its runtime could not be made ({type(error).__name__})"
    if runtime is None:
        log.info("ahead.off", reason=reason, runtime=predictor.runtime.info.name)
        return None
    return Ahead(
        arriving=Arriving(engine),
        recall=predictor.remember(data_dir / DIRECTORY),
        runtime=runtime,
        prepare=predictor.images,
        preparing=Preparing(
            lambda images, read: StudyWork(images, predictor, rules, read),
            key_slices,
            answer,
        ),
        rules=rules,
        data_dir=store_dir or data_dir,
        min_free_bytes=min_free_bytes,
        kept_in=data_dir,
        waiting=waiting,
        bell=bell,
    )


@dataclass(kw_only=True)
class _Series:
    images: list[ReceivedInstance] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """SOP Instance UIDs that need no further look."""
    kept: set[Key] = field(default_factory=set)
    claim: Claim | None = None


@dataclass(kw_only=True)
class _Study:
    read: FilesRead
    """Of the slices that were encoded: reading a long study's takes seconds at its end."""
    last: int = 0
    images: int = 0
    wanted: tuple[str, ...] = ()
    """Series worth reading, of what had come at the last look that brought something."""
    series: dict[str, _Series] = field(default_factory=dict)
    looked_s: float = 0.0
    """When a look first brought something, on the monotonic clock."""
    at_first: int = 0
    """Images that it brought."""
    grew_s: float = 0.0
    """When a look last brought something."""
    multi_frame: bool = False
    prepared_at: int = 0
    """Images that the last preparation was made of."""
    preparations: int = 0

    @property
    def silence_s(self) -> float:
        """For how long nothing must come before it is prepared."""
        new = self.images - self.at_first
        if new <= 0:
            return SILENT_S
        paused_s = INTERVALS * (self.grew_s - self.looked_s) / new
        # Between two series a scanner may pause for longer: then the next pause must be longer.
        return min(SILENT_S, max(SILENT_MIN_S, paused_s)) * (1 << self.preparations)


class Ahead:
    """Works ahead for one worker.

    Parameters
    ----------
    arriving
        What has come so far.
    recall
        Where embeddings are kept; the predictor's own (`Predictor.remember`).
    runtime
        Encodes; the bits are those of the predictor's (`background_runtime`).
    prepare
        (slices, rows, columns) Hounsfield units to the encoder's images, as `Predictor.images`.
    preparing
        Does the other steps.
    min_free_bytes
        Nothing is kept while less than this is free: images come first.
    kept_in
        Directory whose free space that is; None: that of the images.
    waiting
        Images that were acknowledged and that the database does not know yet.
    bell
        Wakes it when a study begins to arrive; default: it looks from time to time.
    """

    def __init__(
        self,
        *,
        arriving: Arriving,
        recall: Recall,
        runtime: SliceRuntime,
        prepare: Prepare,
        preparing: Preparing,
        rules: EligibilityRules,
        data_dir: Path,
        min_free_bytes: int = 0,
        kept_in: Path | None = None,
        waiting: Callable[[], int] = lambda: 0,
        bell: Bell | None = None,
    ) -> None:
        self._bell = bell or looking(Topic.ARRIVALS, LOOK_S)
        self._kept_in = kept_in or data_dir
        self._waiting = waiting
        self._arriving = arriving
        self._recall = recall
        self._runtime = runtime
        self._prepare = prepare
        self._preparing = preparing
        self._rules = rules
        self._data_dir = data_dir
        self._min_free_bytes = min_free_bytes
        self._slices = DecodedSlices(KEPT_BYTES)
        self._studies: dict[str, _Study] = {}
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._effort = Effort()
        self._log = get_logger()

    # ---------------------------------------------------------------- its life

    @contextmanager
    def running(self, stop: threading.Event) -> Iterator[None]:
        """Work in a thread of its own until `stop`, or the end of the block."""
        self._stop = stop
        ended = threading.Event()
        thread = threading.Thread(target=self._loop, args=(ended,), name="ahead", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(JOIN_S)

    @contextmanager
    def resting(self, study_uid: str) -> Iterator[StudyWork | None]:
        """Begin nothing while the block runs: the worker has a job, of this study.

        Gives what is prepared of it; a preparation under way is waited for, that of another study
        ends at once.
        """
        # First of all, so that a preparation of this very study is not told to stop.
        self._preparing.expect(study_uid)
        self._idle.clear()
        try:
            with self._preparing.handing_over(study_uid) as work:
                yield work
        finally:
            self._idle.set()

    def forget(self, series_uids: Iterable[str]) -> None:
        """Remove what is kept of these series: their run has its answer."""
        self._recall.forget(series_uids)

    def _loop(self, ended: threading.Event) -> None:
        wait_s: float | None = LOOK_S
        """None: until a study begins to arrive."""
        failures, rests, swept_s, dropped_s = 0, 0, float("-inf"), float("-inf")
        pace = Pace(self._arriving.studies, self._waiting)
        heard = self._bell.heard()

        def stopped() -> bool:
            return ended.is_set() or self._stop.is_set() or not self._idle.is_set()

        def turn_over(effort: Effort, ends_s: float) -> bool:
            return stopped() or effort.is_crowded or time.monotonic() >= ends_s

        while not (ended.is_set() or self._stop.is_set()):
            if wait_s is None:
                self._bell.wait(ended, heard, lambda: None)
            elif ended.wait(wait_s):
                break
            heard, wait_s = self._bell.heard(), LOOK_S
            if not self._idle.is_set():
                self._release()
                if time.monotonic() - dropped_s >= DROP_S:
                    dropped_s = time.monotonic()
                    with suppress(Exception):
                        self._drop_ended(self._arriving.studies())
                continue
            try:
                if time.monotonic() - swept_s >= SWEEP_S:
                    self._recall.sweep()
                    swept_s = time.monotonic()
                if pace.is_fast():
                    self._drop_ended(self._arriving.studies())
                    continue
                self._effort = effort = Effort()
                ends_s = time.monotonic() + TURN_S
                encoded = self.look(partial(turn_over, effort, ends_s))
                if effort.is_crowded:
                    wait_s = min(REST_S * 2.0**rests, REST_MAX_S)
                    rests += 1
                    self._log.debug("ahead.rests", seconds=wait_s)
                    # Another worker may have the processor that this one has not.
                    self._release()
                    continue
                rests = 0 if encoded else rests
                if time.monotonic() < ends_s:
                    self.prepare_one(stopped)
                if encoded:
                    wait_s = 0.0  # meanwhile more has come, or its time was over
                elif self._studies or self._preparing.holds:
                    wait_s = min(LOOK_S, self._ripens_in_s())
                else:
                    wait_s = None
            except Exception as error:  # noqa: BLE001 - only speed is lost; the run does it all
                failures += 1
                wait_s = min(LOOK_S * 2.0**failures, RETRY_MAX_S)
                self._log.warning("ahead.failed", error=type(error).__name__, wait_s=wait_s)
            else:
                failures = 0
        self._release()

    # ---------------------------------------------------------------- its work

    def look(self, interrupted: Callable[[], bool] = lambda: False) -> int:
        """Encode what has come and is not kept yet; returns how many slices were encoded.

        Parameters
        ----------
        interrupted
            Asked between batches; true: leave the rest.
        """
        open_studies = self._arriving.studies()
        self._drop_ended(open_studies)
        for study_uid in open_studies:
            # All of them, whatever interrupts: only where there is none it waits to be told of one.
            self._studies.setdefault(study_uid, _Study(read=FilesRead(slices=self._slices)))
        if not open_studies or not self._has_space():
            return 0
        encoded = 0
        for study_uid, images in open_studies.items():
            if interrupted():
                break
            study = self._studies[study_uid]
            if self._read(study_uid, study, images):
                by_series = {uid: s.images for uid, s in study.series.items()}
                study.wanted = worth_reading(by_series, self._rules) if by_series else ()
            for series_uid in study.wanted:
                series = study.series[series_uid]
                done = self._encode(series_uid, series, study.read, interrupted)
                if done:
                    self._log.debug(
                        "ahead.encoded", study_uid=study_uid, series_uid=series_uid, slices=done
                    )
                encoded += done
        return encoded

    def _drop_ended(self, open_studies: Collection[str]) -> None:
        """Let go of what is held of studies that arrive no more."""
        for gone in self._studies.keys() - set(open_studies):
            study = self._studies.pop(gone)
            self._slices.forget(i.path for s in study.series.values() for i in s.images)
            self._release_study(study)
        self._preparing.drop_unclaimed(open_studies)

    def prepare_one(self, stopped: Callable[[], bool] = lambda: False) -> str | None:
        """Do the steps of an analysis for a study of which nothing new has come; returns its UID.

        Parameters
        ----------
        stopped
            Asked between pieces of the work; true: leave it, unless a run waits for it.
        """
        if self._waiting():
            return None  # images of any study: the database's silence says nothing
        for study_uid, study in self._studies.items():
            if not self._is_ripe(study):
                continue
            study.preparations += 1
            study.prepared_at = study.images
            images = [image for series in study.series.values() for image in series.images]
            grown = Seldom(partial(self._has_grown, study_uid, study.images), ASK_S)
            try:
                done = self._preparing.prepare(
                    study_uid,
                    images,
                    study.read,
                    lambda: stopped() or grown(),  # noqa: B023 - asked within this turn only
                )
            except Exception as error:  # noqa: BLE001 - the run meets it too, and says what it is
                self._log.warning(
                    "ahead.not_prepared", study_uid=study_uid, error=type(error).__name__
                )
                return None
            if not done and not grown():
                # A job came in between; after it there may be time again.
                study.preparations -= 1
                study.prepared_at = 0
            return study_uid if done else None
        return None

    def _has_grown(self, study_uid: str, images: int) -> bool:
        """Whether what is being prepared is no longer all that has come."""
        return self._arriving.studies().get(study_uid, images) != images

    def _ripens_in_s(self) -> float:
        """Time until the next study will have been silent for long enough, if nothing comes."""
        now_s = time.monotonic()
        waits = [s.grew_s + s.silence_s - now_s for s in self._studies.values()]
        return min((wait_s for wait_s in waits if wait_s > 0.0), default=LOOK_S)

    @staticmethod
    def _is_ripe(study: _Study) -> bool:
        return (
            bool(study.wanted)
            and time.monotonic() - study.grew_s >= study.silence_s
            and not study.multi_frame
            and study.preparations < PREPARATIONS
            and study.prepared_at != study.images
            and all(
                i.sop_instance_uid in study.series[uid].seen
                for uid in study.wanted
                for i in study.series[uid].images
            )
        )

    def _has_space(self) -> bool:
        found = os.statvfs(self._kept_in)
        return found.f_bavail * found.f_frsize >= self._min_free_bytes

    def _read(self, study_uid: str, study: _Study, images: int) -> bool:
        """Take over what is new of a study; whether anything was."""
        if images == study.images:
            return False
        arrived = self._arriving.after(study_uid, study.last)
        study.last = arrived.last
        if arrived.instances:
            study.grew_s = time.monotonic()
            if not study.at_first:
                study.looked_s, study.at_first = study.grew_s, len(arrived.instances)
        else:
            study.images = images
        for row in arrived.instances:
            image = to_received(row, self._data_dir)
            if image.facts.frames:
                study.multi_frame = True
            else:
                study.series.setdefault(image.series_uid, _Series()).images.append(image)
        return bool(arrived.instances)

    def _encode(
        self,
        series_uid: str,
        series: _Series,
        read: FilesRead,
        interrupted: Callable[[], bool],
    ) -> int:
        if series.claim is not None and not series.claim.stands:
            # Its run has ended and removed it all, and the study goes on growing.
            series.claim.release()
            series.claim = None
        elif all(i.sop_instance_uid in series.seen for i in series.images):
            return 0
        if series.claim is None:
            series.claim = self._recall.claim(series_uid)
            if series.claim is None:
                return 0
            # Another worker, or an earlier life of this one, may have done a part; and what this
            # one did may be gone.
            known = set(self._recall.known(series_uid))
            if not series.kept <= known:
                series.seen.clear()
            series.kept = known
        todo = [i for i in series.images if i.sop_instance_uid not in series.seen]
        plane = in_plane(analyse_stack(series.images))
        encoded = 0
        for start in range(0, len(todo), BATCH):
            if interrupted():
                break
            batch = todo[start : start + BATCH]
            try:
                with self._effort.counted():
                    encoded += self._encode_batch(
                        series_uid,
                        series,
                        batch,
                        plane,
                        read,
                        behind=len(todo) - start > BEHIND,
                    )
                    for image in batch:
                        # What cannot be read here is said by the run.
                        with suppress(OSError, EOFError, InvalidDicomError):
                            read.headers[image.path] = read_header(image.path)
            except FileNotFoundError:
                break  # removed at this moment: the next look sees it
            series.seen.update(i.sop_instance_uid for i in batch)
        return encoded

    def _encode_batch(
        self,
        series_uid: str,
        series: _Series,
        batch: Sequence[ReceivedInstance],
        plane: InPlane,
        read: FilesRead,
        *,
        behind: bool,
    ) -> int:
        fresh: dict[Key, NDArray[np.int16]] = {}
        for image in batch:
            before = read.slices.get(image.path)
            try:
                hu_yx = (
                    decode_hu(image.path, sop_instance_uid=image.sop_instance_uid)
                    if before is None
                    else before
                )
            except (ImagingError, OSError):
                continue  # of no use here, or not on this machine: the run will say what is wrong
            if hu_yx.shape == (image.facts.rows, image.facts.columns):
                read.slices.keep(image.path, hu_yx)
                hu_yx = np.ascontiguousarray(plane.apply(hu_yx))
                key = self._recall.key(hu_yx)
                read.keys[image.path] = (plane, key)
                fresh[key] = hu_yx
        keys = [key for key in fresh if key not in series.kept]
        if not keys:
            return 0
        images = self._prepare(np.stack([fresh[key] for key in keys]))
        # Each slice in the runtime takes one thread.
        at_once = len(images) if behind else max(1, self._runtime.info.threads - 1)
        embedded = [
            self._runtime.embed(images[at : at + at_once]) for at in range(0, len(images), at_once)
        ]
        self._recall.keep(series_uid, keys, np.concatenate(embedded))
        series.kept.update(keys)
        return len(keys)

    # ---------------------------------------------------------------- its claims

    def _release(self) -> None:
        for study in self._studies.values():
            self._release_study(study)

    def _release_study(self, study: _Study) -> None:
        for series in study.series.values():
            if series.claim is not None:
                series.claim.release()
                series.claim = None
