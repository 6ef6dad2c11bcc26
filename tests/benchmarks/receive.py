"""Instances received per second, durable, beside what others receive.

    python tests/benchmarks/receive.py [--quick] [--receivers N] [--rounds 3] [--dir DIRECTORY]

All are sent 512² CT-like instances of 525 kB by DCMTK's storescu with TCP_NODELAY=1, over one
association and over four at once, each with instances of its own, in turn, on the file system of
DIRECTORY. The figure is instances over the wall time of the senders, association set-up included;
the median of the rounds is printed as JSON, and pe-triage's ratio to each:

- ``storescp``: DCMTK's, ``--fork``, which syncs nothing;
- ``pynetdicom``: its documentation's storage SCP, which writes the encoded data set and syncs
  nothing;
- ``orthanc``: Debian's, with the file sync that it has by default (``SyncStorageArea``);
- ``storescp_durable``: DCMTK's on an ext4 of its own, mounted with ``sync,dirsync``: there the
  system makes every write durable before it returns. ``pe_triage_loop`` stands beside it: this
  node on an ext4 of the same kind, mounted as usual, since it syncs by itself. Both lie in loop
  images, for which one has to be root.

What is not installed or not allowed is left out, with the reason in ``left_out``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pe_triage.logs import setup_logging
from pe_triage.receive.server import ReceiverOptions, listen, run_receiver
from tests.support.orthanc import Orthanc
from tests.support.peers import dcmtk_environment, find_program
from tests.support.postgres import free_port

IMAGE_BYTES = 3 << 30
"""Size of a loop image; sparse."""

Receiver = Callable[[Path], Any]
"""Directory to a context manager of a port."""


def write_instances(folder: Path, count: int, seed: int) -> None:
    study, series = generate_uid(), generate_uid()
    rng = np.random.default_rng(seed)
    for number in range(count):
        ds = Dataset()
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.PatientID = f"BENCHMARK-{seed}"
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


def send(port: int, folders: Sequence[Path], count: int) -> float:
    """Instances per second over one association for each folder."""
    program = find_program("storescu")
    assert program is not None
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [program, "-R", "+sd", "-aec", "PETRIAGE", "127.0.0.1", str(port), str(folder)],
            env=dcmtk_environment(), stdout=subprocess.DEVNULL,
        )
        for folder in folders
    ]  # fmt: skip
    assert all(process.wait() == 0 for process in running)
    return count * len(folders) / (time.perf_counter() - started)


# ------------------------------------------------------------------ who receives


@contextmanager
def dcmtk(work: Path) -> Iterator[int]:
    program, port = find_program("storescp"), free_port()
    assert program is not None
    command = [program, "--fork", "+uf", "-od", str(work), str(port)]
    with subprocess.Popen(command, env=dcmtk_environment(), stderr=subprocess.DEVNULL) as process:
        wait_open(port)
        yield port
        process.terminate()


def plain_pynetdicom(port: int, work: Path, ready: Any) -> None:
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    def store(event: evt.Event) -> int:
        request: Any = event.request
        (work / str(request.AffectedSOPInstanceUID)).write_bytes(event.encoded_dataset())
        return 0x0000

    ae = AE()
    ae.supported_contexts = AllStoragePresentationContexts
    ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    ready.set()
    signal.pause()


@contextmanager
def pynetdicom(work: Path) -> Iterator[int]:
    context, port = multiprocessing.get_context("spawn"), free_port()
    ready = context.Event()
    process = context.Process(target=plain_pynetdicom, args=(port, work, ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield port
    process.terminate()
    process.join()


@contextmanager
def orthanc(work: Path) -> Iterator[int]:
    server = Orthanc(work / "orthanc")
    settings = work / "orthanc" / "orthanc.json"
    document = json.loads(settings.read_text())
    document |= {"SyncStorageArea": True, "DicomCheckCalledAet": False}
    settings.write_text(json.dumps(document))
    with server:
        server.start()
        yield server.dicom_port


def receive(listener: socket.socket, root: Path, ready: Any) -> None:
    setup_logging(level="WARNING")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run_receiver(listener, ReceiverOptions(aet="PETRIAGE", spool_root=root), ready.set, stop)


@contextmanager
def ours(work: Path, *, receivers: int) -> Iterator[int]:
    listener = listen("127.0.0.1", 0)
    context = multiprocessing.get_context("spawn")
    readies = [context.Event() for _ in range(receivers)]
    processes = [
        context.Process(target=receive, args=(listener, work, ready), daemon=True)
        for ready in readies
    ]
    for process in processes:
        process.start()
    assert all(ready.wait(60) for ready in readies)
    port = listener.getsockname()[1]
    listener.close()
    yield port
    for process in processes:
        process.terminate()
        process.join()


def wait_open(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def loop_mount(work: Path, name: str, *options: str) -> Iterator[Path]:
    """Make an ext4 in a file of `work`, mounted there for as long as the block runs."""
    image, place = work / f"{name}.img", work / name
    place.mkdir()
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    subprocess.run(
        ["mount", "-o", ",".join(("loop", *options)), str(image), str(place)], check=True
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        image.unlink()


# ------------------------------------------------------------------ the comparison


def measure(receiver: Receiver, where: Path, folders: Sequence[Path], count: int) -> float:
    place = Path(tempfile.mkdtemp(dir=where))
    with receiver(place) as port:
        rate = send(port, folders, count)
    stored = sum(len(names) for _, _, names in os.walk(place))
    assert stored >= count * len(folders), "not everything was stored"
    shutil.rmtree(place)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 instances, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--receivers", type=int, default=1, help="of pe-triage")
    parser.add_argument("--dir", type=Path, default=None)
    options = parser.parse_args()
    count, rounds = (100, 1) if options.quick else (300, options.rounds)
    if not (find_program("storescu") and find_program("storescp")):
        sys.exit("DCMTK is not installed; the Debian package dcmtk brings it")
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir)))
        folders = [work / f"in-{n}" for n in range(4)]
        for seed, folder in enumerate(folders):
            folder.mkdir()
            write_instances(folder, count, seed)
        node = partial(ours, receivers=options.receivers)
        sides: dict[str, tuple[Receiver, Path]] = {
            "pe_triage": (node, work),
            "storescp": (dcmtk, work),
            "pynetdicom": (pynetdicom, work),
        }
        if find_program("Orthanc") is None:
            left_out["orthanc"] = "not installed; the Debian package orthanc brings it"
        else:
            sides["orthanc"] = (orthanc, work)
        try:
            sides["storescp_durable"] = (
                dcmtk, stack.enter_context(loop_mount(work, "durable", "sync", "dirsync")),
            )  # fmt: skip
            sides["pe_triage_loop"] = (node, stack.enter_context(loop_mount(work, "usual")))
        except (OSError, subprocess.CalledProcessError) as error:
            sides.pop("storescp_durable", None)
            left_out["storescp_durable"] = f"no loop mount: {error}"
        for associations in (1, 4):
            taken = folders[:associations]
            runs: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, (receiver, where) in sides.items():
                    runs[name].append(measure(receiver, where, taken, count))
            rate = {name: statistics.median(found) for name, found in runs.items()}
            ratios = {
                name: round(rate["pe_triage"] / value, 2)
                for name, value in rate.items()
                if not name.startswith("pe_triage") and name != "storescp_durable"
            }
            if "pe_triage_loop" in rate:
                ratios["storescp_durable"] = round(
                    rate["pe_triage_loop"] / rate["storescp_durable"], 2
                )
            print(
                json.dumps(
                    {
                        "associations": associations,
                        "receivers": options.receivers,
                        "rounds": rounds,
                        "per_s": {name: round(value) for name, value in rate.items()},
                        "ratio": ratios,
                        "left_out": left_out,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
