"""Where the time of each hot path goes: a table of functions and a flame graph for each.

    pip install 'py-spy>=0.4'
    python -m tests.benchmarks.profiles --out DIR [--quick] [--study DIR] [--only PATH ...]

Each path runs again and again in a process of its own, warm, and py-spy samples it:

- ``receive``: a receiver, which one association of storescu keeps busy with 525 kB instances;
- ``load``: 300 files of 512² to a volume, and that to the encoder's images (windows, resize);
- ``stage1``: the encoder alone, by what it computes, as OpenVINO itself counts it (its threads run
  no Python, so py-spy sees none of them);
- ``answer``: what is left of a run when the embeddings are there: stage 2, Grad-CAM of the key
  slices, structured report and pictures, result files;
- ``claim``: a job claimed and ended, on SQLite whose commits wait for the disk.

DIR gets ``PATH.txt``, the table, and ``PATH.svg``, the flame graph, which a browser opens (of
``stage1`` there is none). Samples count threads that run, are ready to, or wait for a disk, not
those that wait for a peer or a lock; what runs below Python in a function counts as that
function's. The head of a table gives the processor time of one round, which other work on the
machine changes less. py-spy must be allowed to read another process of the same user (Linux:
CAP_SYS_PTRACE, or kernel.yama.ptrace_scope 0 or 1; the sampled process permits it where scope 1 is
set).
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import Outcome, Priority, ReceivedInstance, StudyState
from pe_triage.logs import setup_logging
from pe_triage.phantom import generate_study, write_study
from pe_triage.resources import demonstration_bundle
from tests.support.peers import dcmtk_environment, find_program

RATE = 200
"""Samples a second."""
SHOWN = 25
"""Functions in a table."""
READY_S = 900.0
PR_SET_PTRACER, ANY = 0x59616D61, ctypes.c_ulong(-1)

Round = tuple[Callable[[], None], str]
"""What is done again and again, and its name."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of the study that the paths work on; or the folder that holds one."""

    slices: int
    size: int
    folder: Path | None = None


# ------------------------------------------------------------------ the paths


@contextmanager
def receive(scratch: Path, _size: Size) -> Iterator[Round]:
    """One association at a time to a receiver in this process; its indexer is this round's end."""
    from pe_triage.receive.server import ReceiverOptions, listen, run_receiver
    from tests.benchmarks.receive import write_instances

    folder, spool = scratch / "instances", scratch / "spool"
    folder.mkdir()
    write_instances(folder, 50, seed=1)
    listener = listen("127.0.0.1", 0)
    storescu = find_program("storescu")
    assert storescu is not None
    ready, stop = threading.Event(), threading.Event()
    serving = threading.Thread(
        target=run_receiver,
        args=(listener, ReceiverOptions(aet="PETRIAGE", spool_root=spool)),
        kwargs={"on_ready": ready.set, "stop": stop, "on_turn": lambda: None},
    )
    port = listener.getsockname()[1]
    serving.start()
    assert ready.wait(60)

    def send() -> None:
        subprocess.run(
            [storescu, "-R", "+sd", "-aec", "PETRIAGE", "127.0.0.1", str(port), str(folder)],
            env=dcmtk_environment(), check=True,
        )  # fmt: skip
        for path in (spool / "incoming").iterdir():
            path.unlink(missing_ok=True)  # an event may be getting its name

    try:
        yield send, "50 instances of 525 kB"
    finally:
        stop.set()
        serving.join()


def phantom(scratch: Path, size: Size) -> list[ReceivedInstance]:
    """The instances of a study that was received."""
    from pe_triage.cli.analyze import read_folder

    if size.folder is not None:
        return read_folder(size.folder)
    study = generate_study(
        0, "pe-acute", size=size.size, n_slices=size.slices, coverage_mm=(-140.0, 100.0)
    )
    return read_folder(write_study(study, scratch / "phantom", mask=False).dicom_dir)


def described(instances: list[ReceivedInstance]) -> str:
    """How large a study is."""
    facts = instances[0].facts
    return f"{len(instances)} images of {facts.rows} x {facts.columns}"


@contextmanager
def load(scratch: Path, size: Size) -> Iterator[Round]:
    """Files to a volume, and the volume to images, a batch at a time as stage 1 takes them."""
    from pe_triage.imaging.volume import load_volume
    from pe_triage.infer.predictor import Predictor

    instances = phantom(scratch, size)
    predictor = Predictor(demonstration_bundle(), "cpu")
    step = predictor.runtime.batch_size

    def once() -> None:
        hu_zyx = load_volume(instances).hu_zyx
        for at in range(0, len(hu_zyx), step):
            predictor.images(hu_zyx[at : at + step])

    yield once, f"{described(instances)} read"


@contextmanager
def answer(scratch: Path, size: Size) -> Iterator[Round]:
    """A run of a study whose slices were encoded, and whose volume was measured, before."""
    from pe_triage.infer.predictor import Predictor
    from pe_triage.node.analysis import AnalysisOptions, analyse_study
    from pe_triage.node.files import write_results
    from pe_triage.node.work import StudyWork
    from pe_triage.report.settings import ReportSettings

    instances = phantom(scratch, size)
    predictor = Predictor(demonstration_bundle(), "cpu")
    options = AnalysisOptions(rules=EligibilityRules(), report=ReportSettings())
    before = StudyWork(instances, predictor, options.rules)
    selection = before.selection(lambda: None)
    assert selection.volume is not None
    features = before.inference(selection.volume, lambda: None).feat_zd
    written = 0

    def once() -> None:
        nonlocal written
        work = StudyWork(instances, predictor, options.rules)
        work._selection = selection
        # What predicting is when nothing is left to encode.
        predictor._embed = lambda *_: features  # type: ignore[method-assign]
        try:
            analysis = analyse_study(
                study_uid=instances[0].study_uid,
                run=1,
                identity=instances[0].identity,
                instances=instances,
                predictor=predictor,
                options=options,
                predecessors=(),
                now=datetime(2026, 12, 1, 8, 0, tzinfo=UTC),
                beat=lambda: None,
                work=work,
            )
        finally:
            del predictor._embed
        written += 1
        write_results(scratch / "results" / str(written), analysis.objects)

    yield once, f"one run of {described(instances)}"


@contextmanager
def claim(scratch: Path, _size: Size) -> Iterator[Round]:
    """One of many waiting jobs is claimed, and ended without results."""
    from pe_triage.store.engine import open_engine
    from pe_triage.store.jobs import JobQueue
    from pe_triage.store.migrate import upgrade
    from tests.support.many_studies import fill
    from tests.support.store import EMPTY_ANSWER

    url = f"sqlite:///{scratch / 'queue.sqlite3'}"
    upgrade(url)
    engine = open_engine(url)
    fill(engine, 20_000, queued=20_000)
    queue = JobQueue(engine)

    def once() -> None:
        for _ in range(20):
            job = queue.claim("profile/worker-1/1/", 30.0)
            assert job is not None
            queue.finish(
                job, state=StudyState.DONE, outcome=Outcome.NEGATIVE, reason=None,
                priority=Priority.LOW, document=EMPTY_ANSWER, model_sha256="ab" * 32, results=(),
                routes=(),
            )  # fmt: skip

    yield once, "20 jobs of 20,000"
    engine.dispose()


PATHS = {"receive": receive, "load": load, "answer": answer, "claim": claim}


OF_ALL_THREADS = {"receive": "StoreUpperLayer.run_reactor"}
"""Where a path has threads beside it: what the stacks that count have in them."""


def work(name: str, scratch: Path, size: Size) -> None:
    """Run one path until stdin ends; says when it is warm, and what a round took."""
    setup_logging(level="ERROR")
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
    over = threading.Event()
    with PATHS[name](scratch, size) as (once, words):
        once()
        print("ready", flush=True)
        threading.Thread(target=_wait_for_the_end, args=(over,), daemon=True).start()
        rounds, used = 0, time.process_time()
        while not over.is_set():
            once()
            rounds += 1
        used = time.process_time() - used
    used /= max(1, rounds)
    print(json.dumps({"rounds": rounds, "processor_s": round(used, 3), "round": words}))
    sys.stdout.flush()


_WATCHING = "_wait_for_the_end"


def _wait_for_the_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


# ------------------------------------------------------------------ the sampling


def find_py_spy() -> str | None:
    """py-spy of this environment, or of the system."""
    own = Path(sysconfig.get_path("scripts")) / "py-spy"
    return str(own) if own.is_file() else shutil.which("py-spy")


def record(py_spy: str, pid: int, seconds: int, out: Path, kind: str) -> None:
    """Sample a process for so long."""
    subprocess.run(
        [py_spy, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(RATE),
         # Without stopping it, which would wake every thread that waits.
         "--nonblocking", "--function", "--format", kind, "--output", str(out)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def short(frame: str) -> str:
    """``function (module)`` without the place of this machine's files."""
    found = re.fullmatch(r"(.*) \((.*)\)", frame)
    if found is None:
        return frame
    function, path = found.groups()
    parts = Path(path.partition(":")[0]).with_suffix("").parts
    for root in ("site-packages", "pe_triage", "tests"):
        if root in parts:
            at = parts.index(root) + (root == "site-packages")
            return f"{function} ({'/'.join(parts[at:])})"
    return f"{function} ({parts[-1] if path.startswith('/') else '/'.join(parts)})"


def table(stacks: Iterable[str], among: str = "") -> str:
    """Functions by the part of the samples with `among` that they, or what they called, were in."""
    own: collections.Counter[str] = collections.Counter()
    whole: collections.Counter[str] = collections.Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        if among not in stack or _WATCHING in stack:
            continue
        frames = [short(frame) for frame in stack.split(";") if frame]
        if not frames:
            continue  # caught between two functions
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    total = sum(own.values())
    if not total:
        return "no samples"

    def rows(counter: collections.Counter[str]) -> list[str]:
        return [f"{100 * n / total:6.1f} %  {frame}" for frame, n in counter.most_common(SHOWN)]

    lines = [f"{total} samples", "", "In the function itself:", *rows(own)]
    lines += ["", "In it and in what it calls:", *rows(whole)]
    return "\n".join(lines)


def profile(name: str, py_spy: str, out: Path, size: Size, seconds: int) -> None:
    """Table and flame graph of one path."""
    command = [sys.executable, "-m", "tests.benchmarks.profiles", "--work", name]
    command += ["--slices", str(size.slices), "--size", str(size.size)]
    command += [] if size.folder is None else ["--study", str(size.folder)]
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        process = subprocess.Popen(
            [*command, "--out", scratch],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline().strip() != "ready":
                sys.exit(f"{name}: the path did not start")
            raw = Path(scratch) / "stacks.txt"
            record(py_spy, process.pid, seconds, raw, "raw")
            record(py_spy, process.pid, seconds, out / f"{name}.svg", "flamegraph")
            process.stdin.close()
            said = json.loads(process.stdout.readlines()[-1])
            text = table(raw.read_text().splitlines(), OF_ALL_THREADS.get(name, ""))
        finally:
            process.kill()
            process.wait()
    head = f"{name}: {said['processor_s']} s of processor for {said['round']}"
    (out / f"{name}.txt").write_text(f"{head} ({said['rounds']} rounds)\n{text}\n")
    graph = out / f"{name}.svg"
    # The title is py-spy's command line, with the places of this machine.
    drawn = re.sub(r"py-spy record [^<]*|[^<>]*/py-spy [^<]*", name, graph.read_text())
    # A sample taken while a name was being written may hold what XML does not allow.
    graph.write_text(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", drawn))


# ------------------------------------------------------------------ stage 1


def stage_one(out: Path, seconds: int) -> None:
    """OpenVINO's own counters of the demonstration bundle's encoder, one slice on one thread."""
    import numpy as np
    import torch

    from pe_triage.infer.openvino_runtime import _convert, _import_openvino, probe_units
    from pe_triage.model.bundle import load_bundle

    bundle = load_bundle(demonstration_bundle())
    spec = bundle.card.spec
    shape = (spec.channels, spec.size, spec.size)
    openvino = _import_openvino()
    encoder = bundle.network.encoder.to(memory_format=torch.contiguous_format)
    compiled = openvino.Core().compile_model(
        _convert(openvino, encoder, shape),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": 1,
            "PERF_COUNT": True,
        },
    )
    request = compiled.create_infer_request()
    images = np.ascontiguousarray(probe_units(shape)[:1])
    request.infer([images])
    by_kind: collections.Counter[str] = collections.Counter()
    by_node: collections.Counter[str] = collections.Counter()
    rounds, used, until_s = 0, time.process_time(), time.monotonic() + seconds
    while rounds < 3 or time.monotonic() < until_s:
        request.infer([images])
        rounds += 1
        for node in request.get_profiling_info():
            took = node.cpu_time.total_seconds()
            by_kind[f"{node.node_type} ({node.exec_type})"] += took
            by_node[f"{node.node_name} ({node.node_type})"] += took
    used = (time.process_time() - used) / rounds
    total = sum(by_kind.values())

    def rows(counter: collections.Counter[str]) -> list[str]:
        return [
            f"{100 * took / total:6.1f} %  {1000 * used * took / total:7.2f} ms  {name}"
            for name, took in counter.most_common(SHOWN)
            if took > 0.0005 * total
        ]

    lines = [
        f"stage1: {1000 * used:.1f} ms of processor for one slice ({rounds} slices)",
        "", "By what is computed:", *rows(by_kind),
        "", "The dearest layers:", *rows(by_node),
    ]  # fmt: skip
    (out / "stage1.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="90 slices of 256², 3 s of samples")
    parser.add_argument("--seconds", type=int, default=20, help="of samples, twice for each path")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--study", type=Path, help="folder of one study, in place of a phantom")
    parser.add_argument("--only", nargs="+", choices=[*PATHS, "stage1"], default=[*PATHS, "stage1"])
    parser.add_argument("--work", choices=list(PATHS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.slices, options.size, options.seconds = 90, 256, 3
    size = Size(slices=options.slices, size=options.size, folder=options.study)
    if options.work is not None:
        work(options.work, options.out, size)
        # Threads of a path may still sleep; there is nothing to put in order.
        os._exit(0)
    py_spy = find_py_spy()
    if py_spy is None:
        sys.exit("py-spy is not installed: pip install 'py-spy>=0.4'")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if name == "stage1":
            stage_one(options.out, options.seconds)
        else:
            profile(name, py_spy, options.out, size, options.seconds)
        print((options.out / f"{name}.txt").read_text())


if __name__ == "__main__":
    main()
