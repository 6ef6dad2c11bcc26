"""Instances received per second, durable, beside DCMTK's storescp (which does not sync).

    python tests/benchmarks/receive.py [--quick] [--receivers N] [--dir DIRECTORY]

Both are sent the same 512² CT-like instances of 525 kB by DCMTK's storescu with TCP_NODELAY=1,
over one association and over four, in turn, on the file system of DIRECTORY. The figure is the
wall time of the senders, association set-up included. Medians are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.logs import setup_logging
from pe_triage.receive.server import ReceiverOptions, listen, run_receiver
from tests.support.peers import dcmtk_environment, find_program


def write_instances(folder: Path, count: int) -> None:
    study = generate_uid()
    rng = np.random.default_rng(0)
    for number in range(count):
        ds = Dataset()
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f"{study}.1"[:64]
        ds.Modality = "CT"
        for element in range(60):
            ds.add_new(0x00091010 + element, "LO", f"value {element}")
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.Rows = ds.Columns = 512
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 0
        ds.PixelData = rng.integers(0, 3000, (512, 512), dtype=np.uint16).tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def send(port: int, folder: Path, count: int, associations: int) -> float:
    program = find_program("storescu")
    assert program is not None, "storescu is not installed; the Debian package dcmtk brings it"
    command = [program, "-R", "+sd", "-aec", "PETRIAGE", "127.0.0.1", str(port), str(folder)]
    started = time.perf_counter()
    running = [
        subprocess.Popen(command, env=dcmtk_environment(), stdout=subprocess.DEVNULL)
        for _ in range(associations)
    ]
    assert all(process.wait() == 0 for process in running)
    return count * associations / (time.perf_counter() - started)


def dcmtk(work: Path, folder: Path, count: int, associations: int) -> float:
    program = find_program("storescp")
    assert program is not None, "storescp is not installed; the Debian package dcmtk brings it"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = Path(tempfile.mkdtemp(dir=work))
    command = [program, "--fork", "+uf", "-od", str(out), str(port)]
    with subprocess.Popen(command, env=dcmtk_environment(), stderr=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        rate = send(port, folder, count, associations)
        process.terminate()
    shutil.rmtree(out)
    return rate


def receive(listener: socket.socket, root: Path, ready: threading.Event) -> None:
    setup_logging(level="WARNING")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run_receiver(listener, ReceiverOptions(aet="PETRIAGE", spool_root=root), ready.set, stop)


def ours(work: Path, folder: Path, count: int, associations: int, receivers: int) -> float:
    root = Path(tempfile.mkdtemp(dir=work))
    listener = listen("127.0.0.1", 0)
    context = multiprocessing.get_context("spawn")
    readies = [context.Event() for _ in range(receivers)]
    processes = [context.Process(target=receive, args=(listener, root, ready)) for ready in readies]
    for process in processes:
        process.start()
    assert all(ready.wait(30) for ready in readies)
    port = listener.getsockname()[1]
    listener.close()
    rate = send(port, folder, count, associations)
    for process in processes:
        process.terminate()
        process.join()
    assert len(list((root / "incoming").glob("*.dcm"))) == count * associations
    shutil.rmtree(root)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer instances, one round")
    parser.add_argument("--receivers", type=int, default=1)
    parser.add_argument("--dir", type=Path, default=None)
    arguments = parser.parse_args()
    count, rounds = (100, 1) if arguments.quick else (300, 3)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        work = Path(name)
        folder = work / "in"
        folder.mkdir()
        write_instances(folder, count)
        for associations in (1, 4):
            pairs = [
                (
                    dcmtk(work, folder, count, associations),
                    ours(work, folder, count, associations, arguments.receivers),
                )
                for _ in range(rounds)
            ]
            peer, node = (statistics.median(side) for side in zip(*pairs, strict=True))
            print(
                json.dumps(
                    {
                        "associations": associations,
                        "receivers": arguments.receivers,
                        "dcmtk_storescp_per_s": round(peer),
                        "pe_triage_per_s": round(node),
                        "ratio": round(node / peer, 2),
                    }
                )
            )


if __name__ == "__main__":
    main()
