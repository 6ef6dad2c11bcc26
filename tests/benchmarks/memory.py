"""Memory of each process of a node while many studies pass through it.

    python tests/benchmarks/memory.py [--quick] [--studies 200] [--ahead]

Small studies (60 slices of 256 x 256) go one after the other to ``pe-triage serve`` with an
untrained network on 64 x 64 pixels, which is the real predictor on a short way; each is delivered
to DCMTK's storescp before the next one is sent. Prints the resident memory of each process, after
every tenth part of the studies, as JSON, and by how much the second half grew: MiB between the
median of the third and of the last quarter.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.model.builtin import materialize_untrained
from pe_triage.model.spec import ATTENTION_BILSTM
from pe_triage.phantom import generate_study, write_study
from tests.support.node import RunningNode, wait_for
from tests.support.peers import dcmtk_environment, find_program
from tests.support.postgres import free_port
from tests.support.processes import roles_of


def new_study(phantom: Path, folder: Path) -> str:
    """Write the phantom once more as a study of its own; its UID."""
    folder.mkdir(exist_ok=True)
    study_uid, series_uid = generate_uid(), generate_uid()
    for path in sorted(phantom.iterdir()):
        ds = dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.save_as(folder / path.name, enforce_file_format=True)
    return study_uid


def resident(node: RunningNode) -> dict[str, float]:
    """MiB by role."""
    assert node.process is not None
    return {
        role: sum(process.memory_info().rss for process in processes) / 2**20
        for role, processes in roles_of(node.process.pid).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 studies")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--ahead", action="store_true", help="work on studies that still arrive")
    options = parser.parse_args()
    count = 20 if options.quick else options.studies
    storescu, storescp = find_program("storescu"), find_program("storescp")
    if storescu is None or storescp is None:
        sys.exit("DCMTK is not installed; the Debian package dcmtk brings it")
    taken: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        study = generate_study(5, "pe-acute", size=256, n_slices=60, coverage_mm=(-110.0, 50.0))
        phantom = write_study(study, root / "phantom", mask=False).dicom_dir
        bundle = materialize_untrained(
            root / "bundle", dataclasses.replace(ATTENTION_BILSTM, size=64)
        )
        port = free_port()
        pacs = subprocess.Popen(
            [storescp, "--ignore", "-aet", "PACS", "+xa", str(port)], env=dcmtk_environment()
        )
        settings = {
            "grace_s": 0.1, "min_free_mb": 1, "ahead": options.ahead, "model": str(bundle),
        }  # fmt: skip
        flags = ("--send-to", f"PACS@127.0.0.1:{port}")
        try:
            with RunningNode(root / "node", *flags, settings=settings) as node:
                wait_for(lambda: node.events("model.loaded"), 120, "a worker")
                for _ in range(count):
                    study_uid = new_study(phantom, root / "study")
                    subprocess.run(
                        [storescu, "-aec", "PETRIAGE", "127.0.0.1", str(node.port), "+sd",
                         str(root / "study")],
                        env=dcmtk_environment(), check=True,
                    )  # fmt: skip
                    doc = node.wait_ended(study_uid, timeout_s=300)
                    assert doc["state"] == "DONE", doc["reason"]
                    taken.append(resident(node))
        finally:
            pacs.terminate()
            pacs.wait()
    quarter = len(taken) // 4
    roles = taken[-1].keys()
    grown = {
        role: round(
            statistics.median(t[role] for t in taken[-quarter:])
            - statistics.median(t.get(role, 0.0) for t in taken[-2 * quarter : -quarter]),
            1,
        )
        for role in roles
    }
    print(
        json.dumps(
            {
                "studies": count,
                "ahead": options.ahead,
                "resident_mib": [
                    {role: round(value) for role, value in row.items()}
                    for row in taken[:: max(1, count // 10)]
                ],
                "second_half_grew_mib": grown,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
