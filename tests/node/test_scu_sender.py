"""The sender before real peers (DCMTK's storescp) and scripted ones that answer any status."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, build_context, evt

from pe_triage.deliver.echo import echo
from pe_triage.deliver.requestor import RequestorOptions
from pe_triage.deliver.statuses import Verdict
from pe_triage.deliver.store_scu import DicomSender, Sent
from pe_triage.domain import Delivery, DeliveryState, Destination, ResultKind
from pe_triage.errors import RetryableDeliveryError
from pe_triage.receive.part10 import dataset_offset
from tests.support.peers import dcmtk_environment, require_program

SR = "1.2.840.10008.5.1.4.1.1.88.34"
SC = str(SecondaryCaptureImageStorage)
QUICK = RequestorOptions(connect_timeout_s=2, acse_timeout_s=2, dimse_timeout_s=2)
SENDER = DicomSender("PETRIAGE", QUICK)


def make_object(
    folder: Path,
    number: int,
    sop_class: str = SC,
    syntax: UID = ExplicitVRLittleEndian,
    side: int = 32,
) -> Delivery:
    ds = Dataset()
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = f"1.2.3.{number}"
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.1"
    ds.PatientName = "Planted^Name"
    ds.InstanceNumber = number
    if sop_class == SC:
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.Rows = ds.Columns = side
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit = 7
        ds.PixelRepresentation = 0
        ds.PixelData = np.random.default_rng(number).bytes(side * side)
        ds["PixelData"].VR = "OB"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
    path = folder / f"{number}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return Delivery(
        delivery_id=number,
        study_uid="1.2.3",
        destination="PACS",
        kind=ResultKind.SUMMARY,
        sop_class_uid=sop_class,
        sop_instance_uid=f"1.2.3.{number}",
        path=path,
        state=DeliveryState.PENDING,
        attempts=0,
    )


@contextmanager
def scripted(
    handler: Callable[[evt.Event], int | Dataset],
    *,
    contexts: tuple[tuple[str, str], ...] = (
        (SC, ExplicitVRLittleEndian),
        (SR, ExplicitVRLittleEndian),
    ),
    **settings: Any,
) -> Iterator[Destination]:
    ae = AE(ae_title="PACS")
    for sop_class, syntax in contexts:
        ae.add_supported_context(sop_class, syntax)
    ae.add_supported_context("1.2.840.10008.1.1")
    for name, value in settings.items():
        setattr(ae, name, value)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handler)]
    )
    assert server is not None
    try:
        yield Destination(aet="PACS", host="127.0.0.1", port=server.server_address[1])
    finally:
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def outcomes(destination: Destination, deliveries: list[Delivery]) -> dict[int, Sent]:
    found = list(SENDER.send(destination, deliveries))
    assert len(found) == len(deliveries), "one outcome for each delivery"
    assert all("Planted" not in (sent.error or "") for _, sent in found)
    assert all("\n" not in (sent.error or "") for _, sent in found)
    return dict(found)


def test_every_status_is_classified(tmp_path: Path) -> None:
    statuses = {
        1: (0x0000, Verdict.SENT), 2: (0xB000, Verdict.WARNING), 3: (0xB006, Verdict.WARNING),
        4: (0xB007, Verdict.WARNING), 5: (0x0122, Verdict.PARK), 6: (0xA900, Verdict.PARK),
        7: (0xC000, Verdict.PARK), 8: (0xCFFF, Verdict.PARK), 9: (0xA700, Verdict.RETRY),
        10: (0xA7FF, Verdict.RETRY), 11: (0x0110, Verdict.RETRY), 12: (0xABCD, Verdict.RETRY),
    }  # fmt: skip

    def answer(event: evt.Event) -> Dataset:
        status = Dataset()
        status.Status = statuses[event.message_id][0]
        if event.message_id == 9:
            status.ErrorComment = "PatientID 4711 refused"
        return status

    deliveries = [make_object(tmp_path, number) for number in statuses]
    with scripted(answer) as destination:
        found = outcomes(destination, deliveries)
    for number, (status, verdict) in statuses.items():
        sent = found[number]
        assert (sent.verdict, sent.status) == (verdict, status), f"{status:04X}"
        assert (sent.error is None) == (verdict is Verdict.SENT)
    # A peer's free text may quote the patient.
    assert "4711" not in (found[9].error or "")
    assert "A700" in (found[9].error or "")


def test_sent_twice_is_the_same_bytes_twice(tmp_path: Path) -> None:
    received: list[bytes] = []

    def keep(event: evt.Event) -> int:
        received.append(event.request.DataSet.getvalue())
        return 0

    large = make_object(tmp_path, 1, side=2000)
    report = make_object(tmp_path, 2, SR)
    with scripted(keep, maximum_pdu_size=16384) as destination:
        for _ in range(2):
            found = outcomes(destination, [large, report])
            assert [s.verdict for s in found.values()] == [Verdict.SENT] * 2
    raw = [d.path.read_bytes()[dataset_offset(d.path) :] for d in (large, report)]
    assert received == raw * 2


def test_implicit_only_peer_gets_implicit(tmp_path: Path) -> None:
    received: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        assert event.context.transfer_syntax == ImplicitVRLittleEndian
        received.append(event.dataset)
        return 0

    delivery = make_object(tmp_path, 1)
    with scripted(keep, contexts=((SC, ImplicitVRLittleEndian),)) as destination:
        assert outcomes(destination, [delivery])[1].verdict is Verdict.SENT
    sent = dcmread(delivery.path)
    assert received[0].SOPInstanceUID == sent.SOPInstanceUID
    assert received[0].PixelData == sent.PixelData


def test_compressed_object_to_a_peer_that_refuses_it(tmp_path: Path) -> None:
    delivery = make_object(tmp_path, 1, syntax=RLELossless)
    with scripted(lambda _: 0, contexts=((SC, RLELossless),)) as destination:
        assert outcomes(destination, [delivery])[1].verdict is Verdict.SENT
    with scripted(lambda _: 0) as destination:
        assert outcomes(destination, [delivery])[1].verdict is Verdict.PARK


def test_a_refused_context_parks_that_object_and_sends_the_rest(tmp_path: Path) -> None:
    deliveries = [make_object(tmp_path, 1), make_object(tmp_path, 2, SR), make_object(tmp_path, 3)]
    with scripted(lambda _: 0, contexts=((SC, ExplicitVRLittleEndian),)) as destination:
        found = outcomes(destination, deliveries)
    assert [found[n].verdict for n in (1, 2, 3)] == [Verdict.SENT, Verdict.PARK, Verdict.SENT]
    assert "Comprehensive 3D SR" in (found[2].error or "")


def test_nothing_accepted_parks(tmp_path: Path) -> None:
    with scripted(lambda _: 0, contexts=((SC, ExplicitVRLittleEndian),)) as destination:
        found = outcomes(destination, [make_object(tmp_path, 1, SR)])
    assert found[1].verdict is Verdict.PARK
    assert "accepted none" in (found[1].error or "")


def test_no_connection_is_retried_in_one_line(tmp_path: Path) -> None:
    deliveries = [make_object(tmp_path, 1), make_object(tmp_path, 2)]
    for host, words in (
        ("127.0.0.1", "connection refused"),
        ("no-such-host.invalid", "unknown host"),
    ):
        found = outcomes(Destination(aet="PACS", host=host, port=free_port()), deliveries)
        assert [s.verdict for s in found.values()] == [Verdict.RETRY] * 2
        assert all(words in (s.error or "") for s in found.values())


def test_rejected_associations(tmp_path: Path) -> None:
    deliveries = [make_object(tmp_path, 1)]
    with scripted(lambda _: 0, require_called_aet=True) as destination:
        wrong = Destination(aet="WRONG", host=destination.host, port=destination.port)
        found = outcomes(wrong, deliveries)
        # An administrator enters the title the next morning.
        assert found[1].verdict is Verdict.RETRY
        assert "called ae title not recognised" in (found[1].error or "")
    with scripted(lambda _: 0, maximum_associations=1) as destination:
        holder = AE(ae_title="HOLDER").associate(
            destination.host, destination.port, [build_context(SC, ExplicitVRLittleEndian)]
        )
        assert holder.is_established
        found = outcomes(destination, deliveries)
        holder.release()
        assert found[1].verdict is Verdict.RETRY
        assert "limit exceeded" in (found[1].error or "")


def test_an_object_that_ends_the_association_does_not_hold_up_the_others(tmp_path: Path) -> None:
    def abort_on_two(event: evt.Event) -> int:
        if event.request.AffectedSOPInstanceUID == "1.2.3.2":
            event.assoc.abort()
        return 0

    deliveries = [make_object(tmp_path, n) for n in (1, 2, 3, 4)]
    with scripted(abort_on_two) as destination:
        found = outcomes(destination, deliveries)
    assert [found[n].verdict for n in (1, 2, 3, 4)] == [
        Verdict.SENT, Verdict.RETRY, Verdict.SENT, Verdict.SENT,
    ]  # fmt: skip
    assert "aborted" in (found[2].error or "")

    def always(event: evt.Event) -> int:
        event.assoc.abort()
        return 0

    with scripted(always) as destination:
        found = outcomes(destination, deliveries)
    assert {s.verdict for s in found.values()} == {Verdict.RETRY}


def test_a_silent_peer_is_left_after_the_timeout(tmp_path: Path) -> None:
    def sleep(_: evt.Event) -> int:
        time.sleep(3.5)
        return 0

    started = time.monotonic()
    with scripted(sleep) as destination:
        found = outcomes(destination, [make_object(tmp_path, 1)])
        assert found[1].verdict is Verdict.RETRY
        assert "no answer to C-STORE within 2 s" in (found[1].error or "")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        found = outcomes(Destination(aet="X", host="127.0.0.1", port=port), [
            make_object(tmp_path, 1)
        ])  # fmt: skip
        assert found[1].verdict is Verdict.RETRY
        assert "no answer to the association request within 2 s" in (found[1].error or "")
    assert time.monotonic() - started < 15


def test_unreadable_files_are_parked_and_the_rest_sent(tmp_path: Path) -> None:
    deliveries = [make_object(tmp_path, n) for n in (1, 2, 3, 4)]
    deliveries[0].path.unlink()
    deliveries[1].path.write_bytes(b"not DICOM")
    deliveries[2].path.write_bytes(deliveries[3].path.read_bytes())
    with scripted(lambda _: 0) as destination:
        found = outcomes(destination, deliveries)
    assert [found[n].verdict for n in (1, 2, 3, 4)] == [Verdict.PARK] * 3 + [Verdict.SENT]
    assert "no longer exists" in (found[1].error or "")
    assert "not a DICOM file" in (found[2].error or "")
    assert "another object" in (found[3].error or "")
    assert outcomes(destination, []) == {}


def test_dcmtk_storescp_receives_the_same_objects(tmp_path: Path) -> None:
    program = require_program("storescp", "dcmtk")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    port = free_port()
    with subprocess.Popen(
        [program, "-aet", "PACS", "-od", str(inbox), "+B", str(port)], env=dcmtk_environment()
    ) as process:
        destination = Destination(aet="PACS", host="127.0.0.1", port=port)
        try:
            for _ in range(100):
                try:
                    echo(destination, calling_aet="PETRIAGE", timeout_s=2)
                    break
                except RetryableDeliveryError:
                    time.sleep(0.05)
            deliveries = [make_object(tmp_path, n) for n in range(1, 4)]
            found = outcomes(destination, deliveries)
            assert {s.verdict for s in found.values()} == {Verdict.SENT}
        finally:
            process.terminate()
    stored = {hashlib.sha256(p.read_bytes()[dataset_offset(p) :]).hexdigest()
              for p in inbox.iterdir()}  # fmt: skip
    sent = {hashlib.sha256(d.path.read_bytes()[dataset_offset(d.path) :]).hexdigest()
            for d in deliveries}  # fmt: skip
    assert stored == sent


def test_echo_says_what_is_wrong() -> None:
    with scripted(lambda _: 0, require_called_aet=True) as destination:
        echo(destination, calling_aet="PETRIAGE", timeout_s=3)
        wrong = Destination(aet="WRONG", host="127.0.0.1", port=destination.port)
        with pytest.raises(RetryableDeliveryError, match="called ae title not recognised"):
            echo(wrong, calling_aet="PETRIAGE", timeout_s=3)
    with pytest.raises(RetryableDeliveryError, match="connection refused"):
        echo(Destination(aet="X", host="127.0.0.1", port=free_port()), calling_aet="A", timeout_s=2)
    with pytest.raises(RetryableDeliveryError, match="unknown host"):
        echo(Destination(aet="X", host="no-such-host.invalid", port=1), calling_aet="A")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = Destination(aet="X", host="127.0.0.1", port=mute.getsockname()[1])
        with pytest.raises(RetryableDeliveryError, match="no answer to the association request"):
            echo(silent, calling_aet="A", timeout_s=1)
