"""Seconds from the last image to the delivered result, and peak memory of each process.

    python tests/benchmarks/walk.py [--quick] [--slices 300] [--size 512] [--threads 2]

A phantom study is sent by DCMTK's storescu, back to back over one association, to ``pe-triage
serve`` with the built-in network; the results go to DCMTK's storescp. The clock starts when the
last image was received and stops when the last result object was accepted, both as the node
records them. Beside it, in the same run: the grace time that the node waits by default, and the
same study through ``Predictor.predict`` alone. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.phantom import generate_study, write_study
from tests.support.node import RunningNode
from tests.support.peers import dcmtk_environment, find_program
from tests.support.postgres import free_port


def peak_mib(pid: int) -> float:
    """Peak resident set (VmHWM) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def process_name(process: psutil.Process) -> str:
    """Role of a node's process, by what it has open."""
    libraries = {Path(m.path).name for m in process.memory_maps()}
    return "worker" if any(name.startswith("libtorch_cpu") for name in libraries) else "light"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="90 slices of 256 x 256")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--studies", type=int, default=2, help="sent one after the other")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.quick:
        options.slices, options.size, options.studies = 90, 256, 1
    storescu, storescp = find_program("storescu"), find_program("storescp")
    if storescu is None or storescp is None:
        sys.exit("DCMTK is not installed; the Debian package dcmtk brings it")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        studies = [
            write_study(
                generate_study(
                    seed, "pe-acute", size=options.size, n_slices=options.slices,
                    coverage_mm=(-140.0, 100.0),
                ),
                root / f"phantom-{seed}", mask=False,
            )
            for seed in range(options.studies)
        ]  # fmt: skip
        (root / "inbox").mkdir()
        port = free_port()
        pacs = subprocess.Popen(
            [storescp, "-od", str(root / "inbox"), "-aet", "PACS", "+xa", str(port)],
            env=dcmtk_environment(),
        )
        runs = []
        peaks: dict[str, float] = {}
        try:
            flags = ["--send-to", f"PACS@127.0.0.1:{port}"]
            with RunningNode(root / "node", *flags) as node:
                for study in studies:
                    started = time.monotonic()
                    subprocess.run(
                        [storescu, "-aec", "PETRIAGE", "127.0.0.1", str(node.port), "+sd",
                         str(study.dicom_dir)],
                        env=dcmtk_environment(), check=True,
                    )  # fmt: skip
                    sent_s = time.monotonic() - started
                    doc = node.wait_ended(study.study_uid, timeout_s=600)
                    job = [e for e in node.events("job.finished")
                           if e["study_uid"] == study.study_uid][-1]  # fmt: skip
                    runs.append(
                        {
                            "received_per_s": round(options.slices / sent_s, 1),
                            "last_image_to_delivered_s": round(doc["latency_s"], 2),
                            "analysis_s": job["seconds"],
                            "result_objects": len(doc["results"]),
                        }
                    )
                assert node.process is not None
                tree = psutil.Process(node.process.pid)
                for process in [tree, *tree.children(recursive=True)]:
                    role = "supervisor" if process == tree else process_name(process)
                    peaks[role] = max(peaks.get(role, 0), round(peak_mib(process.pid)))
        finally:
            pacs.terminate()
            pacs.wait()
    print(
        json.dumps(
            {
                "slices": options.slices,
                "size": options.size,
                "cores": psutil.cpu_count(),
                "grace_s": 2.0,
                "runs": runs,
                "peak_mib": peaks,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
