"""Slices encoded while their study still arrives: the answer has the same bits, only sooner."""

from __future__ import annotations

import dataclasses
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import Job, ReceivedInstance
from pe_triage.imaging import volume as volume_module
from pe_triage.imaging.facts import facts_to_json
from pe_triage.imaging.volume import load_volume
from pe_triage.infer.background import LAST
from pe_triage.infer.predictor import Predictor
from pe_triage.infer.recall import CHECKED
from pe_triage.node import ahead as ahead_module
from pe_triage.node import analysis as analysis_module
from pe_triage.node import spare as spare_module
from pe_triage.node.ahead import BATCH, BEHIND, SILENT_MIN_S, SILENT_S, Ahead, make_ahead
from pe_triage.node.analysis import Analysis, AnalysisOptions, analyse_study, prepare_answer
from pe_triage.node.files import to_received
from pe_triage.node.work import FilesRead, StudyWork
from pe_triage.node.worker import Worker, WorkerOptions
from pe_triage.report.settings import ReportSettings
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import upgrade
from pe_triage.store.studies import CorrectedPatient
from tests.node.conftest import QUICK, NewStudy, storescu
from tests.support.node import RunningNode, wait_for
from tests.support.store import StoreUnderTest, received_file

pytestmark = pytest.mark.usefixtures("fresh_logs")


NOW = datetime(2026, 12, 1, 8, 0, tzinfo=UTC)


def tasks() -> dict[int, int]:
    """Nice value of each thread of this process."""
    return {
        int(path.name): os.getpriority(os.PRIO_PROCESS, int(path.name))
        for path in Path("/proc/self/task").iterdir()
    }


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Path) -> Predictor:
    """As a worker has it; the tests give it a memory and take it away."""
    return Predictor(tiny_bundle, "cpu", runtime="openvino", threads=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreUnderTest]:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    url = f"sqlite:///{data_dir / 'pe-triage.sqlite3'}"
    upgrade(url)
    engine = open_engine(url)
    yield StoreUnderTest(engine=engine, url=url, data_dir=data_dir)
    engine.dispose()


class Spy:
    """A runtime that counts; `before` is called before each batch."""

    def __init__(self, runtime: Any, before: Callable[[], None] = lambda: None) -> None:
        self.runtime, self.before, self.slices = runtime, before, 0
        self.info = runtime.info
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def embed(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.before()
        self.slices += len(images)
        self.batches.append(len(images))
        return self.runtime.embed(images)  # type: ignore[no-any-return]


Make = Callable[[], Ahead]


@pytest.fixture
def make(
    predictor: Predictor, store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Make what works ahead on `store`; stage 1 is doubled once for all of this module's tests."""
    if "runtime" not in DOUBLED:
        DOUBLED["runtime"] = ahead_module.background_runtime(predictor)

    def new() -> Ahead:
        with monkeypatch.context() as patch:
            patch.setattr(ahead_module, "background_runtime", lambda _: Spy(DOUBLED["runtime"]))
            made = make_ahead(
                predictor,
                engine=store.engine,
                rules=EligibilityRules(),
                data_dir=store.data_dir,
                min_free_bytes=0,
                key_slices=5,
            )
        assert made is not None
        return made

    yield new
    predictor._recall = None


DOUBLED: dict[str, Any] = {}


def arrive(store: StoreUnderTest, files: Sequence[Path]) -> None:
    instances = [received_file(path) for path in files]
    store.studies.record([(i, facts_to_json(i.facts), "assoc-1") for i in instances])


def shuffled(files: Sequence[Path], seed: int = 3) -> list[Path]:
    order = list(files)
    random.Random(seed).shuffle(order)
    return order


def plain_answer(predictor: Predictor, files: Sequence[Path]) -> NDArray[np.float32]:
    """Embeddings of all slices at once, without any memory."""
    return predictor.embed(load_volume([received_file(path) for path in files]))


def answer(
    predictor: Predictor, files: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[NDArray[np.float32], int]:
    """Embeddings that a run sees, and how many slices it encoded."""
    spy = Spy(predictor.runtime)
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "_runtime", spy)
        inference = predictor.predict(load_volume([received_file(path) for path in files]))
    return inference.feat_zd, spy.slices


def test_whatever_the_order_of_arrival_the_bits_are_the_same(
    predictor: Predictor,
    make: Make,
    store: StoreUnderTest,
    new_study: NewStudy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, files = new_study()
    expected = plain_answer(predictor, files)
    ahead, order = make(), shuffled(files)
    for part in (order[:5], order[5:31], order[20:31], order[31:57]):
        arrive(store, part)
        ahead.look()
    assert ahead._runtime.slices == 57  # type: ignore[attr-defined]
    arrive(store, order[57:])
    found, encoded = answer(predictor, files, monkeypatch)
    np.testing.assert_array_equal(found, expected)
    assert encoded == 3 + CHECKED
    # Its run has ended, and the study grows: nothing is left, and all is made again.
    (series_uid,) = {received_file(path).series_uid for path in files}
    ahead.forget([series_uid])
    assert ahead.look() == 60
    found, encoded = answer(predictor, files, monkeypatch)
    np.testing.assert_array_equal(found, expected)
    assert encoded == CHECKED


def test_what_headers_refuse_is_never_read(
    make: Make, store: StoreUnderTest, new_study: NewStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    real = ahead_module.decode_hu

    def decode(path: Path, **more: Any) -> NDArray[np.int16]:
        decoded.append(path)
        return real(path, **more)

    monkeypatch.setattr(ahead_module, "decode_hu", decode)
    _, thick = new_study(SliceThickness="10.0")
    _, derived = new_study(ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    _, scout = new_study(slices=3)
    ahead = make()
    arrive(store, [*thick, *derived, *scout])
    assert ahead.look() == 0
    assert decoded == []
    assert not (store.data_dir / "ahead").exists()
    _, good = new_study()
    arrive(store, shuffled(good)[:20])
    assert ahead.look() == 20
    assert set(decoded) <= set(good)


def test_of_a_studys_series_only_the_one_that_would_be_chosen_is_read(
    make: Make, store: StoreUnderTest, new_study: NewStudy
) -> None:
    study_uid, soft = new_study()
    _, lung = new_study(StudyInstanceUID=study_uid, ConvolutionKernel="B70f")
    ahead = make()
    arrive(store, [*lung, *soft])
    assert ahead.look() == 60
    (series_uid,) = {received_file(path).series_uid for path in soft}
    assert len(ahead._recall.known(series_uid)) == 60


def test_files_that_are_damaged_or_elsewhere_are_left_to_the_run(
    make: Make, store: StoreUnderTest, new_study: NewStudy
) -> None:
    _, files = new_study()
    ahead = make()
    arrive(store, files)
    files[4].write_bytes(files[4].read_bytes()[:-1000])
    files[9].unlink()
    assert ahead.look() == 58
    assert ahead.look() == 0


def test_two_workers_do_not_do_the_same_slices_and_one_takes_over_from_the_other(
    predictor: Predictor,
    make: Make,
    store: StoreUnderTest,
    new_study: NewStudy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, files = new_study()
    expected = plain_answer(predictor, files)
    one, two = make(), make()
    order = shuffled(files)
    arrive(store, order[:30])
    assert (one.look(), two.look()) == (30, 0)
    arrive(store, order[30:])
    one._release()  # it has a job now, or was killed: the kernel lets go of a dead process's locks
    assert two.look() == 30
    assert one.look() == 0
    found, encoded = answer(predictor, files, monkeypatch)
    np.testing.assert_array_equal(found, expected)
    assert encoded == CHECKED


def test_a_job_does_not_wait_for_work_ahead(
    predictor: Predictor, make: Make, store: StoreUnderTest, new_study: NewStudy
) -> None:
    """It begins while a batch is still under way, and none begins until it has ended."""
    _, files = new_study()
    arrive(store, files)
    events: list[str] = []
    in_batch, in_job, batch_may_end, ended = (threading.Event() for _ in range(4))

    def batch() -> None:
        events.append("batch")
        in_batch.set()
        assert batch_may_end.wait(60)

    ahead = make()
    ahead._runtime.before = batch  # type: ignore[attr-defined]
    worker = Worker(
        queue=store.queue,
        studies=store.studies,
        predictor=predictor,
        analysis=None,  # type: ignore[arg-type]
        options=WorkerOptions(
            owner="node/worker-1/1/", data_dir=store.data_dir, routes=(), lease_s=30.0, poll_s=0.01
        ),
        clock=store.clock,
        ahead=ahead,
    )

    def run_job(_job: Job, _heart: Any, _log: Any, _work: Any) -> None:
        events.append("job")
        in_job.set()
        batch_may_end.set()
        # Long enough for several looks, if it looked.
        ended.wait(3 * ahead_module.LOOK_S)
        events.append("end")

    worker._run_job = run_job  # type: ignore[method-assign]
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        assert in_batch.wait(60)
        store.queued("1.2.826.0.1.77")
        assert in_job.wait(60)
        wait_for(lambda: events.count("batch") > 1, message="work ahead goes on after the job")
    finally:
        batch_may_end.set()
        stop.set()
        thread.join(60)
    assert events[:4] == ["batch", "job", "end", "batch"]
    assert BATCH < 60


def test_what_was_prepared_gives_the_same_objects_and_only_for_the_same_images(
    predictor: Predictor,
    make: Make,
    store: StoreUnderTest,
    new_study: NewStudy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study_uid, files = new_study()
    ahead = make()

    def received() -> list[ReceivedInstance]:
        return [to_received(row, store.data_dir) for row in store.studies.instances(study_uid)]

    def analysed(work: StudyWork | None) -> Analysis:
        instances = received()
        return analyse_study(
            study_uid=study_uid,
            run=1,
            identity=instances[0].identity,
            instances=instances,
            predictor=predictor,
            options=AnalysisOptions(rules=EligibilityRules(), report=ReportSettings()),
            predecessors=(),
            now=NOW,
            beat=lambda: None,
            work=work,
        )

    monkeypatch.setattr(ahead_module, "SILENT_S", 3600.0)
    arrive(store, files[:-1])
    for _ in range(2):
        ahead.look()
    assert ahead.prepare_one() is None  # there may be more to come
    monkeypatch.setattr(ahead_module, "SILENT_S", 0.0)
    with monkeypatch.context() as patch:
        # Every slice was decoded, and its key computed, to be encoded.
        patch.setattr(volume_module, "decode_hu", None)
        patch.setattr(ahead._recall, "key", None)
        assert ahead.prepare_one() == study_uid
    assert ahead.prepare_one() is None
    arrive(store, files[-1:])
    with ahead.resting(study_uid) as stale:
        assert stale is not None
        assert not stale.is_of(received())
        late = analysed(stale)
    for _ in range(2):
        ahead.look()
    assert ahead.prepare_one() == study_uid
    with ahead.resting(study_uid) as work, monkeypatch.context() as patch:
        for step in ("predict", "input"):
            patch.setattr(predictor, step, None)
        early = analysed(work)
    predictor._recall = None
    plain = analysed(None)
    facts = received()[0].facts
    assert ahead._slices._bytes == len(files) * 2 * (facts.rows or 0) * (facts.columns or 0)
    monkeypatch.setattr(ahead._arriving, "studies", dict)
    ahead.look()
    assert ahead._slices._bytes == 0
    assert plain.result.prediction is not None
    assert [o.encoded for o in plain.objects.objects] == [o.encoded for o in early.objects.objects]
    assert [o.encoded for o in plain.objects.objects] == [o.encoded for o in late.objects.objects]


def test_an_answer_is_prepared_and_given_to_the_very_question_only(
    predictor: Predictor,
    store: StoreUnderTest,
    new_study: NewStudy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study_uid, files = new_study()
    arrive(store, files)
    images = [to_received(row, store.data_dir) for row in store.studies.instances(study_uid)]
    options = AnalysisOptions(rules=EligibilityRules(), report=ReportSettings())
    last = max(image.received_at for image in images).astimezone()

    def analysed(work: StudyWork | None, **changed: Any) -> Analysis:
        asked: dict[str, Any] = {
            "study_uid": study_uid, "run": 1, "identity": images[0].identity,
            "predecessors": (), "dated_at": last, "options": options,
        }  # fmt: skip
        return analyse_study(
            **asked | changed,
            instances=images[::-1],
            predictor=predictor,
            now=NOW,
            beat=lambda: None,
            work=work,
        )

    def encoded(analysis: Analysis) -> list[bytes]:
        return [item.encoded for item in analysis.objects.objects]

    plain = encoded(analysed(None))
    work = StudyWork(images, predictor, options.rules)
    work.do_everything(options.key_slices, lambda: None)
    prepare_answer(work, images, predictor, options)
    with monkeypatch.context() as patch:
        patch.setattr(analysis_module, "build_results", None)
        assert encoded(analysed(work)) == plain
    earlier = pydicom.dcmread(BytesIO(plain[0]))
    other = replace(options, report=replace(options.report, series_number=7000))
    person = images[0].identity
    renamed = CorrectedPatient(patient_id=person.patient_id, issuer=person.issuer, name="Else^Name")
    changes: list[dict[str, Any]] = [
        {"dated_at": last + timedelta(seconds=1)},
        {"run": 2},
        {"cautions": ("its sender went away",)},
        {"predecessors": [earlier]},
        {"options": other},
        {"corrected": renamed},
    ]
    for changed in changes:
        answered = encoded(analysed(work, **changed))
        assert answered == encoded(analysed(None, **changed)), changed
        # Weights without a meaning have one answer, whatever speaks against the images.
        assert (answered == plain) == ("cautions" in changed), changed


def test_while_images_come_too_fast_nothing_is_done(
    make: Make, store: StoreUnderTest, new_study: NewStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(store, new_study()[1])
    ahead = make()
    asked: list[bool] = []
    fast = True
    monkeypatch.setattr(spare_module.Pace, "is_fast", lambda _: asked.append(fast) or fast)
    with ahead.running(threading.Event()):
        wait_for(lambda: len(asked) > 2, message="looks")
        assert ahead._runtime.slices == 0  # type: ignore[attr-defined]
        fast = False
        wait_for(lambda: ahead._runtime.slices, message="a batch")  # type: ignore[attr-defined]


def test_where_others_want_the_processor_it_rests(
    make: Make, store: StoreUnderTest, new_study: NewStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun batches would stay where receiving wants the processor."""
    _, files = new_study()
    arrive(store, files)
    ahead = make()
    ahead._runtime.before = lambda: time.sleep(2 * spare_module.LOST_S)  # type: ignore[attr-defined]
    for name in ("REST_S", "REST_MAX_S"):
        monkeypatch.setattr(ahead_module, name, 3600.0)
    stop = threading.Event()
    with capture_logs() as events, ahead.running(stop):
        wait_for(lambda: [e for e in events if e["event"] == "ahead.rests"], message="a rest")
        time.sleep(3 * ahead_module.LOOK_S)
        # Another worker may go on.
        assert make().look() == 60 - BATCH
    assert ahead._runtime.slices == BATCH  # type: ignore[attr-defined]


def test_silence_is_several_of_the_studys_own_intervals() -> None:
    def silence_s(images: int, seconds: float) -> float:
        study = ahead_module._Study(read=FilesRead(), looked_s=50.0, at_first=1)
        study.images, study.grew_s = images, 50.0 + seconds
        return study.silence_s

    assert silence_s(1, 0.0) == SILENT_S
    assert silence_s(101, 100 / 20) == pytest.approx(SILENT_MIN_S)
    assert SILENT_MIN_S < silence_s(101, 100 / 14) < SILENT_S
    assert silence_s(101, 100 / 2) == SILENT_S
    assert silence_s(101, 0.1) == SILENT_MIN_S


def test_nothing_is_prepared_while_images_wait_and_what_has_grown_is_left(
    make: Make, store: StoreUnderTest, new_study: NewStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_uid, files = new_study()
    ahead, waiting = make(), 1
    arrive(store, files)
    monkeypatch.setattr(ahead_module, "SILENT_S", 0.0)
    monkeypatch.setattr(ahead, "_waiting", lambda: waiting)
    ahead.look()
    ahead.look()
    assert ahead.prepare_one() is None
    waiting = 0
    # Asked at each piece of the work.
    monkeypatch.setattr(ahead_module, "ASK_S", 0.0)
    with monkeypatch.context() as grown:
        grown.setattr(ahead._arriving, "studies", lambda: {study_uid: len(files) + 1})
        assert ahead.prepare_one() is None
        with ahead.resting(study_uid) as work:
            assert work is None
    arrive(store, new_study(StudyInstanceUID=study_uid, slices=1)[1])
    ahead.look()
    ahead.look()
    assert ahead.prepare_one() == study_uid


def test_it_leaves_a_core_to_the_others_unless_it_falls_behind(
    make: Make, store: StoreUnderTest, new_study: NewStudy, predictor: Predictor
) -> None:
    _, files = new_study()
    ahead = make()
    spy = ahead._runtime
    assert isinstance(spy, Spy)
    spy.info = dataclasses.replace(spy.runtime.info, threads=3)
    few = 2
    arrive(store, files[: BEHIND + BATCH])
    assert ahead.look() == BEHIND + BATCH
    assert spy.batches == [BATCH] + [2] * (BEHIND // 2)
    spy.batches.clear()
    arrive(store, files[BEHIND + BATCH :][:few])
    assert ahead.look() == few
    assert spy.batches == [2]


def test_its_threads_stand_behind_all_others(predictor: Predictor) -> None:
    before = tasks()
    runtime = ahead_module.background_runtime(predictor)
    assert runtime is not None
    after = tasks()
    new = after.keys() - before.keys()
    assert new
    assert {after[thread] for thread in new} == {LAST}
    assert {thread: after[thread] for thread in before if thread in after} == {
        thread: nice for thread, nice in before.items() if thread in after
    }


def test_where_the_bits_could_differ_nothing_is_done_ahead(
    tiny_bundle: Path, store: StoreUnderTest
) -> None:
    values: dict[str, Any] = {
        "engine": store.engine,
        "rules": EligibilityRules(),
        "data_dir": store.data_dir,
        "min_free_bytes": 0,
        "key_slices": 5,
    }
    eager = Predictor(tiny_bundle, "cpu", runtime="pytorch", threads=1)
    with capture_logs() as events:
        assert make_ahead(eager, **values) is None
    assert [e["event"] for e in events] == ["ahead.off"]
    with pytest.raises(ValueError, match="cannot be kept"):
        eager.remember(store.data_dir)
    spec = dataclasses.replace(eager.card.spec, planes=3)
    eager._card = dataclasses.replace(eager.card, spec=spec)
    with capture_logs() as events:
        assert make_ahead(eager, **values) is None
    assert "more than one slice" in events[0]["reason"]


def test_kill_9_while_working_ahead_costs_only_recomputation(
    predictor: Predictor, new_study: NewStudy, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A real node: two parts out of order, its worker killed in between; the same bits."""
    flags = ("--model", tiny_bundle, "--quiet-s", 60, "--log-level", "DEBUG")
    with RunningNode(tmp_path / "node", *flags, settings=QUICK | {"ahead": True}) as node:
        study_uid, files = new_study()
        order, kept = shuffled(files, 8), node.data_dir / "ahead"
        wait_for(lambda: node.events("model.loaded"), 120, "a worker")
        storescu(node, order[:35])
        wait_for(lambda: list(kept.rglob("*.emb")), message="slices kept ahead")
        node.kill_one("worker-1")
        wait_for(lambda: len(node.events("model.loaded")) > 1, 120, "another worker")
        storescu(node, order[35:])
        doc = node.wait_ended(study_uid, delivered=False, timeout_s=120)
        wait_for(lambda: not list(kept.rglob("*.emb")), message="gone with the end of the run")
        assert (doc["state"], doc["run"]) == ("DONE", 1)
        (used,) = node.events("ahead.used")
        assert used["slices"] == 60
        assert used["kept"] > 0
        assert not node.events("ahead.disagrees")
    expected = predictor.predict(load_volume([received_file(path) for path in files])).prediction
    assert [s["probability"] for s in doc["slices"]] == expected.slice_probability_z.tolist()
    assert [s["attention"] for s in doc["slices"]] == expected.attention_z.tolist()
