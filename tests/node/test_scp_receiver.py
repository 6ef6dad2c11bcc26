"""The receiver before real peers: DCMTK's storescu and echoscu, pynetdicom, and bare sockets."""

from __future__ import annotations

import hashlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE

from pe_triage.addresses import parse_accept_from
from pe_triage.receive.part10 import dataset_offset
from pe_triage.receive.server import ReceiverOptions, listen, run_receiver
from pe_triage.receive.spool import AssociationEvent, Spool
from tests.support.peers import dcmtk_environment, require_program


@dataclass
class Receiver:
    port: int
    root: Path
    stop: threading.Event
    thread: threading.Thread

    def spool(self) -> Spool:
        return Spool(self.root)

    def instances(self) -> list[Path]:
        return [e.path for e in self.spool().incoming_entries() if not e.is_event]

    def events(self) -> list[AssociationEvent]:
        found = [Spool.read_event(e.path) for e in self.spool().incoming_entries() if e.is_event]
        return [record.event for record in found if record]


@contextmanager
def receiver(root: Path, **changes: Any) -> Iterator[Receiver]:
    options = replace(
        ReceiverOptions(aet="PETRIAGE", spool_root=root, min_free_bytes=0, drain_s=2.0), **changes
    )
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=run_receiver, args=(listener, options, ready.set, stop))
    thread.start()
    assert ready.wait(10)
    try:
        yield Receiver(port, root, stop, thread)
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Receiver]:
    with receiver(tmp_path / "spool") as running:
        yield running


OPAQUE = frozenset({JPEG2000Lossless, JPEGLosslessSV1, JPEGBaseline8Bit})
"""Without an encoder at hand: the fragments are opaque to a receiver anyway."""


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def make_ct(study: str, number: int = 1, side: int = 64) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid(prefix=None)
    ds.StudyInstanceUID = study
    ds.SeriesInstanceUID = study + ".1"
    ds.PatientName = "Planted^Name"
    ds.PatientID = "PLANTED-1"
    ds.Modality = "CT"
    ds.InstanceNumber = number
    item = Dataset()
    item.CodeValue = "T-1"
    item.CodeMeaning = "x"
    ds.AnatomicRegionSequence = [item]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows = ds.Columns = side
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 0
    rng = np.random.default_rng(number)
    ds.PixelData = rng.integers(0, 4000, (side, side), dtype=np.uint16).tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def save(ds: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    if syntax in OPAQUE:
        ds.PixelData = encapsulate([b"\xff\xd8\xff" + bytes(range(200)) + b"\xff\xd9"])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    elif syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


def dataset_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()[dataset_offset(path) :]).hexdigest()


def storescu(port: int, *arguments: str, aec: str = "PETRIAGE") -> subprocess.CompletedProcess[str]:
    program = require_program("storescu", "dcmtk")
    return subprocess.run(
        [program, "-v", "-aec", aec, "-aet", "SCANNER", *arguments[:-1], "127.0.0.1", str(port),
         arguments[-1]],
        env=dcmtk_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# -------------------------------------------------------------------- what is stored


@pytest.mark.parametrize(
    ("syntax", "flags"),
    [
        (ImplicitVRLittleEndian, ("-xi",)),
        (ExplicitVRLittleEndian, ("-xe",)),
        (ExplicitVRBigEndian, ("-xb",)),
        (RLELossless, ("-xr",)),
        (JPEGLSLossless, ("-xt",)),
        (JPEG2000Lossless, ("-xv",)),
        (JPEGLosslessSV1, ("-xs",)),
        (JPEGBaseline8Bit, ("-xy",)),
    ],
)
def test_data_sets_are_stored_byte_exact(
    node: Receiver, tmp_path: Path, syntax: UID, flags: tuple[str, ...]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sources = [save(make_ct("1.2.3", n), folder / f"{n}.dcm", syntax) for n in range(1, 4)]
    done = storescu(node.port, "-R", *flags, "+sd", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    stored = node.instances()
    assert sorted(map(dataset_digest, stored)) == sorted(map(dataset_digest, sources))
    for path in stored:
        meta = dcmread(path).file_meta
        assert meta.TransferSyntaxUID == syntax
        assert meta.SourceApplicationEntityTitle == "SCANNER"
        assert path.read_bytes()[:128] == bytes(128)
    until(lambda: node.events() == [AssociationEvent.OPENED, AssociationEvent.RELEASED])
    names = " ".join(p.name for p in stored)
    assert all(dcmread(p).SOPInstanceUID not in names for p in stored)


def send(port: int, objects: list[Dataset], syntax: UID = ExplicitVRLittleEndian) -> list[int]:
    ae = AE(ae_title="SCANNER")
    association = ae.associate(
        "127.0.0.1", port, [build_context(CTImageStorage, syntax)], ae_title="PETRIAGE"
    )
    assert association.is_established
    try:
        return [int(association.send_c_store(ds).Status) for ds in objects]
    finally:
        association.release()


def test_deflated_and_high_throughput_jpeg_2000_are_refused(node: Receiver) -> None:
    """Each context apart, with result 4: a sender that also offers another syntax goes on."""
    ae = AE(ae_title="SCANNER")
    association = ae.associate(
        "127.0.0.1",
        node.port,
        [
            build_context(CTImageStorage, DeflatedExplicitVRLittleEndian),
            build_context("1.2.840.10008.1.1"),
            build_context("1.3.12.2.1107.5.9.1", ImplicitVRLittleEndian),
            build_context("1.2.840.10008.5.1.4.1.2.2.1"),
            build_context(CTImageStorage, [ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
            build_context(CTImageStorage, ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202"]),
            build_context(CTImageStorage, "1.2.840.10008.1.2.4.203"),
        ],
        ae_title="PETRIAGE",
    )
    assert association.is_established
    accepted = {c.context_id: c.transfer_syntax[0] for c in association.accepted_contexts}
    assert sorted(accepted) == [3, 5, 9]
    refused = {c.context_id: c.result for c in association.rejected_contexts}
    # PS3.8 Table 9-18: 3 abstract syntax not supported, 4 transfer syntaxes not supported.
    assert refused == {1: 4, 7: 3, 11: 4, 13: 4}
    assert accepted[9] == ExplicitVRLittleEndian
    assert association.send_c_echo().Status == 0
    association.release()


def test_128_contexts_are_all_accepted(node: Receiver, tmp_path: Path) -> None:
    """storescu without -R proposes every storage class it knows."""
    source = save(make_ct("1.2.3"), tmp_path / "a.dcm")
    done = storescu(node.port, "-d", str(source))
    assert done.returncode == 0
    assert "Rejected" not in done.stdout + done.stderr
    assert len(node.instances()) == 1


# -------------------------------------------------------------------- what is refused


def raw_store(
    port: int, data: bytes, *, sop_class: str = CTImageStorage, sop_instance: str = "1.2.3.4"
) -> tuple[int, str]:
    """C-STORE of arbitrary bytes."""
    ae = AE(ae_title="SCANNER")
    association = ae.associate(
        "127.0.0.1", port, [build_context(CTImageStorage, ExplicitVRLittleEndian)],
        ae_title="PETRIAGE",
    )  # fmt: skip
    assert association.is_established
    from io import BytesIO

    request = C_STORE()
    request.MessageID = 7
    request.AffectedSOPClassUID = sop_class
    request.AffectedSOPInstanceUID = sop_instance
    request.Priority = 2
    request.DataSet = BytesIO(data)
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, 1)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    assert isinstance(response, C_STORE)
    assert response.MessageIDBeingRespondedTo == 7
    return int(response.Status or 0), str(response.ErrorComment or "")


def encoded(ds: Dataset, tmp_path: Path) -> bytes:
    path = save(ds, tmp_path / "encoded.dcm")
    return path.read_bytes()[dataset_offset(path) :]


def test_truncated_and_mismatched_instances(
    node: Receiver, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ds = make_ct("1.2.3")
    data = encoded(ds, tmp_path)
    uid = str(ds.SOPInstanceUID)
    assert raw_store(node.port, data, sop_instance=uid) == (0x0000, "")
    status, comment = raw_store(node.port, data[:-100], sop_instance=uid)
    assert (status, "truncated" in comment) == (0xC000, True)
    assert raw_store(node.port, data, sop_instance="1.9")[0] == 0xA900
    status, _ = raw_store(node.port, data, sop_instance=uid, sop_class="1.2.840.10008.5.1.4.1.1.4")
    assert status == 0xA900
    assert raw_store(node.port, b"\0" * 64, sop_instance=uid)[0] == 0xC000
    assert len(node.instances()) == 1
    assert list(node.spool().incoming.glob("*.part")) == []
    output = capfd.readouterr()
    assert "Planted" not in output.out + output.err
    assert "PLANTED" not in output.out + output.err


def test_truncated_file_by_storescu(node: Receiver, tmp_path: Path) -> None:
    whole = save(make_ct("1.2.3"), tmp_path / "whole.dcm")
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:-500])
    done = storescu(node.port, "-R", str(cut))
    assert done.returncode != 0 or not node.instances()
    assert node.instances() == []


def test_an_object_above_the_limit_is_refused_and_the_association_goes_on(tmp_path: Path) -> None:
    with receiver(tmp_path / "spool", max_object_bytes=20_000) as node:
        large, small = make_ct("1.2.3", side=128), make_ct("1.2.3", side=64)
        assert send(node.port, [large, small, large]) == [0xA700, 0x0000, 0xA700]


def test_a_full_disk_is_answered_a700(tmp_path: Path) -> None:
    with receiver(tmp_path / "spool", min_free_bytes=1 << 62) as node:
        assert send(node.port, [make_ct("1.2.3")]) == [0xA700]
        assert node.instances() == []


# -------------------------------------------------------------------- who may come in


def test_access_rules_at_the_association(tmp_path: Path) -> None:
    source = save(make_ct("1.2.3"), tmp_path / "a.dcm")
    with receiver(tmp_path / "spool") as node:
        done = storescu(node.port, "-R", str(source), aec="WRONG")
        assert done.returncode != 0
        assert "Called AE Title Not Recognized" in done.stdout + done.stderr
    with receiver(tmp_path / "spool2", accept_from=(parse_accept_from("OTHER"),)) as node:
        done = storescu(node.port, "-R", str(source))
        assert "Calling AE Title Not Recognized" in done.stdout + done.stderr
        assert node.instances() == []
    with receiver(tmp_path / "spool3", accept_from=(parse_accept_from("SCANNER@127.0.0.1"),)) as n:
        assert storescu(n.port, "-R", str(source)).returncode == 0
        assert len(n.instances()) == 1


def test_echo(node: Receiver) -> None:
    program = require_program("echoscu", "dcmtk")
    done = subprocess.run(
        [program, "-aec", "PETRIAGE", "--repeat", "3", "127.0.0.1", str(node.port)],
        env=dcmtk_environment(), timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0


def test_past_the_limit_requests_are_rejected_as_transient(tmp_path: Path) -> None:
    with receiver(tmp_path / "spool", max_associations=2) as node:
        ae = AE(ae_title="SCANNER")
        contexts = [build_context(CTImageStorage)]
        held = [ae.associate("127.0.0.1", node.port, contexts, ae_title="PETRIAGE") for _ in "ab"]
        assert all(a.is_established for a in held)
        third = ae.associate("127.0.0.1", node.port, contexts, ae_title="PETRIAGE")
        assert third.is_rejected
        assert third.acceptor.primitive is not None
        assert (third.acceptor.primitive.result, third.acceptor.primitive.result_source) == (2, 3)
        assert third.acceptor.primitive.diagnostic == 2
        for association in held:
            association.release()

        def freed() -> bool:
            again = ae.associate("127.0.0.1", node.port, contexts, ae_title="PETRIAGE")
            established = again.is_established
            if established:
                again.release()
            return established

        until(freed)


# -------------------------------------------------------------------- associations


def test_four_associations_at_once(node: Receiver, tmp_path: Path) -> None:
    program = require_program("storescu", "dcmtk")
    wanted = []
    running = []
    for sender in range(4):
        folder = tmp_path / f"in{sender}"
        folder.mkdir()
        wanted += [
            dataset_digest(save(make_ct(f"1.2.{sender}", n), folder / f"{n}.dcm"))
            for n in range(25)
        ]
        command = [program, "-R", "-aec", "PETRIAGE", "+sd", "127.0.0.1", str(node.port), folder]
        running.append(subprocess.Popen(command, env=dcmtk_environment()))
    assert [process.wait(60) for process in running] == [0, 0, 0, 0]
    assert sorted(map(dataset_digest, node.instances())) == sorted(wanted)
    until(lambda: node.events().count(AssociationEvent.RELEASED) == 4)
    released = [
        record
        for e in node.spool().incoming_entries()
        if e.is_event
        and (record := Spool.read_event(e.path))
        and record.event is AssociationEvent.RELEASED
    ]
    assert sorted(n for r in released for n in r.instances.values()) == [25] * 4


def test_an_aborted_association_leaves_what_was_acknowledged_and_no_temporary(
    node: Receiver,
) -> None:
    ae = AE(ae_title="SCANNER")
    contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
    association = ae.associate("127.0.0.1", node.port, contexts, ae_title="PETRIAGE")
    assert association.send_c_store(make_ct("1.2.3")).Status == 0
    association.abort()
    until(lambda: node.events() == [AssociationEvent.OPENED, AssociationEvent.ABORTED])
    assert len(node.instances()) == 1
    assert list(node.spool().incoming.glob("*.part")) == []


def established_socket(port: int) -> socket.socket:
    """Negotiate with pynetdicom, then take its connection over."""
    ae = AE(ae_title="SCANNER")
    contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
    association = ae.associate("127.0.0.1", port, contexts, ae_title="PETRIAGE")
    assert association.is_established
    assert association.dul.socket is not None
    assert association.dul.socket.socket is not None
    connection = association.dul.socket.socket
    association._kill = True
    association.dul.kill_dul()
    association.dul.join()
    association.join()
    copy = socket.socket(fileno=connection.detach())
    copy.settimeout(10)
    return copy


def pdu(*values: tuple[int, bytes]) -> bytes:
    items = b"".join(struct.pack(">IBB", len(b) + 2, 1, control) + b for control, b in values)
    return struct.pack(">BxI", 4, len(items)) + items


def command(sop: str) -> bytes:
    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHI", 0, number, len(value)) + value

    return b"".join(
        (
            element(0x0002, str(CTImageStorage).encode()),
            element(0x0100, b"\x01\x00"),
            element(0x0110, b"\x05\x00"),
            element(0x0700, b"\x00\x00"),
            element(0x0800, b"\x00\x00"),
            element(0x1000, sop.encode()),
        )
    )


def test_fragments_of_any_size_make_the_same_object(node: Receiver, tmp_path: Path) -> None:
    ds = make_ct("1.2.3", side=8)
    data = encoded(ds, tmp_path)
    uid = str(ds.SOPInstanceUID)
    rng = np.random.default_rng(3)
    with established_socket(node.port) as connection:
        for round_ in range(3):
            pieces = []
            at = 0
            while at < len(data):
                size = int(rng.integers(0, 60))
                last = at + size >= len(data)
                pieces.append((0x02 if last else 0x00, data[at : at + size]))
                at += size
            head = command(uid)
            stream = pdu((0x01, head[:9])) + pdu((0x03, head[9:]), *pieces[:5])
            for piece in pieces[5:]:
                stream += pdu(piece)
            step = (1, 7, 100_000)[round_]
            for start in range(0, len(stream), step):
                connection.sendall(stream[start : start + step])
            answer = connection.recv(4096)
            assert struct.pack("<HHIH", 0, 0x0900, 2, 0) in answer
    assert [dcmread(p).file_meta.MediaStorageSOPInstanceUID for p in node.instances()] == [uid] * 3
    assert {hashlib.sha256(data).hexdigest()} == {dataset_digest(p) for p in node.instances()}


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">BxI", 4, 0xFFFFFFF0) + b"x" * 100,
        struct.pack(">BxI", 4, 3) + b"x" * 100,
        struct.pack(">BxI", 4, 100) + struct.pack(">I", 1) + b"x" * 96,
        struct.pack(">BxI", 4, 100) + struct.pack(">I", 200) + b"x" * 96,
        pdu((0x00, b"data without a command")),
        pdu((0x03, b"no command set at all")),
        pdu((0x03, command("not a uid"))),
        pdu((0x03, command("1.2.3")), (0x03, command("1.2.3"))),
        pdu((0x03, command("1.2.3"))).replace(b"\x01\x03", b"\x09\x03", 1),
        pdu(*[(0x01, b"x" * 1000)] * 70),
        struct.pack(">BxI", 1, 100) + b"x" * 100,
    ],
)
def test_nonsense_ends_its_own_association_only(node: Receiver, stream: bytes) -> None:
    connection = established_socket(node.port)
    with connection:
        connection.sendall(stream)
        answer = b""
        with suppress(ConnectionResetError):
            while chunk := connection.recv(4096):
                answer += chunk
        assert answer[:1] in (b"\x07", b"")
    until(lambda: AssociationEvent.ABORTED in node.events())
    assert send(node.port, [make_ct("1.2.3")]) == [0]


def test_slow_and_silent_peers_are_cut_off(tmp_path: Path) -> None:
    with receiver(tmp_path / "spool", network_timeout_s=1.0, acse_timeout_s=1.0) as node:
        silent = established_socket(node.port)
        half = established_socket(node.port)
        half.sendall(pdu((0x03, command("1.2.3")))[:-5])
        unspoken = socket.create_connection(("127.0.0.1", node.port))
        unspoken.settimeout(10)
        trickle = established_socket(node.port)
        started = time.monotonic()
        with suppress(OSError):
            trickle.sendall(pdu((0x03, command("1.2.3"))))
            while time.monotonic() - started < 8:
                trickle.sendall(pdu((0x00, b"xx")))
                time.sleep(0.1)
        assert time.monotonic() - started < 8
        for connection in (silent, half, unspoken, trickle):
            with connection, suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
        assert time.monotonic() - started < 12
        assert send(node.port, [make_ct("1.2.3")]) == [0]


def test_two_receivers_share_one_socket_and_survive_each_other(tmp_path: Path) -> None:
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    options = ReceiverOptions(
        aet="PETRIAGE", spool_root=tmp_path / "spool", min_free_bytes=0, drain_s=1.0
    )
    stops = []
    threads = []
    for _ in range(2):
        ready, stop = threading.Event(), threading.Event()
        thread = threading.Thread(
            target=run_receiver, args=(listener.dup(), options, ready.set, stop)
        )
        thread.start()
        assert ready.wait(10)
        stops.append(stop)
        threads.append(thread)
    try:
        for number in range(6):
            assert send(port, [make_ct("1.2.3", number)]) == [0]
        stops[0].set()
        threads[0].join(10)
        assert not threads[0].is_alive()
        for number in range(6):
            assert send(port, [make_ct("1.2.3", number)]) == [0]
        # With no receiver at all, a connection waits for the next one instead of being refused.
        stops[1].set()
        threads[1].join(10)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    finally:
        for stop, thread in zip(stops, threads, strict=True):
            stop.set()
            thread.join(10)
        listener.close()


def test_draining_finishes_what_runs_and_aborts_what_hangs(tmp_path: Path) -> None:
    ds = make_ct("1.2.3", side=8)
    data = encoded(ds, tmp_path)
    with receiver(tmp_path / "spool", drain_s=1.5) as node:
        busy = established_socket(node.port)
        hanging = established_socket(node.port)
        busy.sendall(pdu((0x03, command(str(ds.SOPInstanceUID)))))
        node.stop.set()
        time.sleep(0.4)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", node.port), timeout=2)
        busy.sendall(pdu((0x02, data)))
        assert struct.pack("<HHIH", 0, 0x0900, 2, 0) in busy.recv(4096)
        with hanging, busy:
            assert hanging.recv(100)[:1] == b"\x07"
        node.thread.join(10)
        assert not node.thread.is_alive()
        assert len(node.instances()) == 1


def test_many_small_associations_leave_no_threads_or_descriptors(tmp_path: Path) -> None:
    """Probes of a load balancer, and senders that come and go; none holds one of the places."""
    with receiver(tmp_path / "spool", max_associations=20) as node:

        def descriptors() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        assert send(node.port, [make_ct("1.2.3")]) == [0]
        time.sleep(0.3)
        threads_before, descriptors_before = threading.active_count(), descriptors()
        for _ in range(10):
            for _ in range(15):
                socket.create_connection(("127.0.0.1", node.port)).close()
            time.sleep(0.1)
            assert send(node.port, [make_ct("1.2.3")]) == [0]
        until(lambda: threading.active_count() <= threads_before)
        until(lambda: descriptors() <= descriptors_before)


def test_the_answer_comes_after_the_sync(node: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    from pe_triage.receive import files
    from pe_triage.receive import upper_layer as layer

    steps: list[str] = []

    def note(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **keywords: Any) -> Any:
            steps.append(name)
            return original(*arguments, **keywords)

        return noted

    for name in ("write_new", "fsync", "rename", "fsync_directory"):
        original = getattr(files.RealFiles, name)
        monkeypatch.setattr(files.RealFiles, name, note(name, original))
    monkeypatch.setattr(layer, "store_response", note("answer", layer.store_response))
    assert send(node.port, [make_ct("1.2.3")]) == [0]
    stored = steps[steps.index("fsync") - 1 :]
    assert stored[:5] == ["write_new", "fsync", "rename", "fsync_directory", "answer"]
