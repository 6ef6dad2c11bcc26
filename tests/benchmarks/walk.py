"""Seconds from the last image to the delivered result, and peak memory of each process.

    python tests/benchmarks/walk.py [--quick] [--slices 300 1000] [--size 512] [--pace 20]
                                    [--untrained] [--plain | --ahead-only]

A phantom study is sent to ``pe-triage serve`` with the demonstration bundle (with --untrained:
random weights of EfficientNet-B0 at 256 x 256), over one association: by
DCMTK's storescu, back to back, or with ``--pace`` by pynetdicom at so many images a second, as a
scanner does. The results go to DCMTK's storescp. The clock starts when the last image was
received, and again when the node knew that the study was complete (``study.complete``), and stops
when the last result object was accepted, all as the node records them. Each study is sent to a node
that works ahead of a study's end and to one that does not, in turn; with ``--plain`` also to one
that receives all and then encodes with PyTorch. Several ``--slices`` give studies of each size to
nodes of their own, and how the larger compares with the smallest. Prints JSON.

With ``--pace`` the waits for single answers to C-STORE are given too, the sender's own work
included, and how long the receiver had a processor meanwhile, and waited for one: whether an answer
waited for the machine or for the disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from pydicom import dcmread
from pynetdicom import AE, build_context

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.model.builtin import materialize_untrained
from pe_triage.phantom import generate_study, write_study
from tests.support.node import RunningNode, wait_for
from tests.support.peers import dcmtk_environment, find_program
from tests.support.postgres import free_port
from tests.support.processes import roles_of


def peak_mib(pid: int) -> float:
    """Peak resident set (VmHWM) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def is_ready(node: RunningNode) -> bool:
    """Whether the worker has made all that it works with, what it works ahead with included."""
    return any(e["process"].startswith("worker") for e in node.events("process.ready"))


def processor_of(pid: int) -> tuple[float, float]:
    """Seconds that a process's living threads had a processor, and that they waited for one."""
    used = waited = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            fields = (thread / "schedstat").read_text().split()
            used, waited = used + int(fields[0]), waited + int(fields[1])
    return used / 1e9, waited / 1e9


def send_at_pace(
    node: RunningNode, receiver: int, folder: Path, images_per_s: float
) -> dict[str, float]:
    """C-STORE of a folder's files over one association; the waits for answers, seconds."""
    files = sorted(folder.iterdir())
    context = build_context(dcmread(files[0], stop_before_pixels=True).SOPClassUID)
    association = AE(ae_title="SCANNER").associate(
        "127.0.0.1", node.port, [context], ae_title="PETRIAGE"
    )
    assert association.is_established
    had_s, waited_s = processor_of(receiver)
    started, waits = time.monotonic(), []
    try:
        for n, path in enumerate(files):
            time.sleep(max(0.0, started + n / images_per_s - time.monotonic()))
            asked = time.monotonic()
            status = association.send_c_store(path)
            waits.append(time.monotonic() - asked)
            assert status.Status == 0x0000
        # While the association's thread lives: the kernel forgets what a thread waited.
        then_had_s, then_waited_s = processor_of(receiver)
    finally:
        association.release()
    waits.sort()
    return {
        "median_answer_s": round(waits[len(waits) // 2], 3),
        "p99_answer_s": round(waits[int(0.99 * len(waits))], 3),
        "longest_answer_s": round(waits[-1], 3),
        "receiver_had_processor_s": round(then_had_s - had_s, 2),
        "receiver_waited_for_processor_s": round(then_waited_s - waited_s, 2),
    }


def seconds_of(node: RunningNode, study_uid: str, doc: dict[str, Any]) -> dict[str, float]:
    """When it was known to be complete, to when its results had been accepted."""
    (complete,) = [e for e in node.events("study.complete") if e["study_uid"] == study_uid]
    delivered = datetime.fromisoformat(doc["delivered_at"])
    known = datetime.fromisoformat(complete["timestamp"])
    return {"complete_to_delivered_s": round((delivered - known).total_seconds(), 2)}


def measure(
    place: Path,
    studies: list[Any],
    storescu: str,
    port: int,
    mode: Mapping[str, Any],
    slices: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Send every study to a fresh node, one after the other."""
    runs: list[dict[str, Any]] = []
    peaks: dict[str, float] = {}
    settings = {**mode, "threads": options.threads}
    if options.untrained:
        settings["model"] = str(materialize_untrained(place / "bundles"))
    with RunningNode(
        place / "node", "--send-to", f"PACS@127.0.0.1:{port}", settings=settings
    ) as node:
        wait_for(lambda: is_ready(node), 300, "a worker")
        assert node.process is not None
        (receiver,) = (process.pid for process in roles_of(node.process.pid)["receiver"])
        for study in studies:
            started = time.monotonic()
            run: dict[str, Any] = {}
            if options.pace:
                run |= send_at_pace(node, receiver, study.dicom_dir, options.pace)
            else:
                subprocess.run(
                    [storescu, "-aec", "PETRIAGE", "127.0.0.1", str(node.port), "+sd",
                     str(study.dicom_dir)],
                    env=dcmtk_environment(), check=True,
                )  # fmt: skip
            run["received_per_s"] = round(slices / (time.monotonic() - started), 1)
            doc = node.wait_ended(study.study_uid, timeout_s=600)
            job = [e for e in node.events("job.finished") if e["study_uid"] == study.study_uid][-1]
            used = [e["kept"] for e in node.events("ahead.used")]
            runs.append(
                run
                | {
                    "last_image_to_delivered_s": round(doc["latency_s"], 2),
                    **seconds_of(node, study.study_uid, doc),
                    "analysis_s": job["seconds"],
                    "slices_ahead": used[-1] if used and mode["ahead"] else 0,
                    "result_objects": len(doc["results"]),
                }
            )
        for role, processes in roles_of(node.process.pid).items():
            peaks[role] = round(sum(peak_mib(process.pid) for process in processes))
        # More than they have together: each counts what they share.
        peaks["sum"] = sum(peaks.values())
    return {"runs": runs, "peak_mib": peaks}


MODES: Mapping[str, Mapping[str, Any]] = {
    "ahead": {"ahead": True},
    "not ahead": {"ahead": False},
    "plain": {"ahead": False, "runtime": "pytorch"},
}


def coverage_mm(slices: int) -> tuple[float, float]:
    """A chest's, or as much more as slices of 0.35 mm need."""
    half_mm = max(120.0, 0.175 * slices)
    return -20.0 - half_mm, -20.0 + half_mm


def compared(by_slices: Mapping[int, Any]) -> dict[int, float]:
    """Seconds from the complete study to its delivery, last of each node, over the smallest's."""
    seconds = {n: of["runs"][-1]["complete_to_delivered_s"] for n, of in by_slices.items()}
    return {n: round(s / seconds[min(seconds)], 2) for n, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="90 slices of 256 x 256")
    parser.add_argument("--slices", type=int, nargs="+", default=[300])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--studies", type=int, default=2, help="sent one after the other")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.0, help="images a second; 0: back to back")
    parser.add_argument("--plain", action="store_true", help="PyTorch after the last image, too")
    parser.add_argument("--ahead-only", action="store_true", help="only the node as it ships")
    parser.add_argument("--untrained", action="store_true", help="EfficientNet-B0 at 256 x 256")
    options = parser.parse_args()
    if options.quick:
        options.slices, options.size, options.studies = [90], 256, 1
    storescu, storescp = find_program("storescu"), find_program("storescp")
    if storescu is None or storescp is None:
        sys.exit("DCMTK is not installed; the Debian package dcmtk brings it")
    modes = MODES if options.plain else {k: v for k, v in MODES.items() if k != "plain"}
    if options.ahead_only:
        modes = {"ahead": MODES["ahead"]}
    measured: dict[str, dict[int, Any]] = {mode: {} for mode in modes}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "inbox").mkdir()
        port = free_port()
        pacs = subprocess.Popen(
            [storescp, "-od", str(root / "inbox"), "-aet", "PACS", "+xa", str(port)],
            env=dcmtk_environment(), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for slices in options.slices:
                studies = [
                    write_study(
                        generate_study(
                            seed, "pe-acute", size=options.size, n_slices=slices,
                            coverage_mm=coverage_mm(slices),
                        ),
                        root / f"phantom-{slices}-{seed}", mask=False,
                    )
                    for seed in range(options.studies)
                ]  # fmt: skip
                for mode, settings in modes.items():
                    place = root / f"{mode.replace(' ', '-')}-{slices}"
                    measured[mode][slices] = measure(
                        place, studies, storescu, port, settings, slices, options
                    )
                    print(mode, slices, json.dumps(measured[mode][slices]), file=sys.stderr)
                    shutil.rmtree(place)
        finally:
            pacs.terminate()
            pacs.wait()
    print(
        json.dumps(
            {
                "size": options.size,
                "cores": psutil.cpu_count(),
                "grace_s": 2.0,
                "images_per_s": options.pace or "back to back",
                "slices": measured,
                "times_the_smallest": {
                    mode: compared(of) for mode, of in measured.items() if len(of) > 1
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
