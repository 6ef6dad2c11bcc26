from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pe_triage.errors import InvalidInstanceError, PermanentError, SpoolError
from pe_triage.receive.files import RealFiles
from pe_triage.receive.part10 import FileMetaTemplate, dataset_offset
from pe_triage.receive.spool import (
    AssociationEvent,
    EventRecord,
    Filed,
    Spool,
    count_incoming,
    new_boot_id,
)
from pe_triage.receive.storing import FreeSpace, StoreService

BOOT = new_boot_id(datetime(2026, 1, 2, tzinfo=UTC), b"\x01\x02\x03\x04")
SOP = "1.2.3.4.5"


def dataset_bytes(sop: str = SOP) -> bytes:
    from pydicom.filebase import DicomFileLike

    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = sop
    ds.PatientName = "Planted^Name"
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.4"
    ds.Rows = ds.Columns = 4
    ds.BitsAllocated = 16
    ds.SamplesPerPixel = 1
    ds.PixelData = bytes(32)
    ds["PixelData"].VR = "OW"
    stream = BytesIO()
    file = DicomFileLike(stream)
    file.is_implicit_VR, file.is_little_endian = False, True
    write_dataset(file, ds)
    return stream.getvalue()


def header(sop: str = SOP) -> bytes:
    template = FileMetaTemplate(
        transfer_syntax_uid=str(ExplicitVRLittleEndian), calling_aet="SCANNER"
    )
    return template.header(sop_class_uid=str(CTImageStorage), sop_instance_uid=sop)


class Recorder(RealFiles):
    """Real files that note each step and fail where told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fail: dict[str, int] = {}

    def _step(self, name: str, what: str = "") -> None:
        self.steps.append(f"{name} {what}".strip())
        if name in self.fail:
            code = self.fail[name]
            raise OSError(code, os.strerror(code))

    def write_new(self, path: Path, parts: Sequence[Any]) -> int:
        if "write" in self.fail:
            # The disk is full half way through.
            path.write_bytes(bytes(parts[0])[:10])
        self._step("write", path.suffix)
        return super().write_new(path, parts)

    def fsync(self, descriptor: int) -> None:
        self._step("fsync")
        super().fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", f"{source.suffix}->{target.suffix}")
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._step("link")
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        self._step("unlink", path.suffix)
        super().unlink(path)

    def fsync_directory(self, directory: Path) -> None:
        self._step("fsync_directory", directory.name)
        super().fsync_directory(directory)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def spool(tmp_path: Path, recorder: Recorder) -> Spool:
    spool = Spool(tmp_path / "spool", boot_id=BOOT, files=recorder)
    recorder.steps.clear()
    return spool


def put(spool: Spool, sop: str = SOP, association: int = 1, sequence: int = 1) -> Path:
    return spool.store(
        [header(sop), dataset_bytes(sop)], association=association, sequence=sequence
    )


def test_order_is_write_fsync_rename_fsync_directory(spool: Spool, recorder: Recorder) -> None:
    put(spool)
    assert recorder.steps == [
        "write .part",
        "fsync",
        "rename .part->.dcm",
        "fsync_directory incoming",
    ]


def test_stored_file_is_part_10_around_the_same_bytes(spool: Spool) -> None:
    path = put(spool)
    raw = path.read_bytes()
    assert raw[:132] == b"\0" * 128 + b"DICM"
    assert raw.endswith(dataset_bytes())
    assert dataset_offset(path) == len(raw) - len(dataset_bytes())
    ds = dcmread(path)
    meta = ds.file_meta
    assert meta.MediaStorageSOPInstanceUID == SOP
    assert meta.MediaStorageSOPClassUID == CTImageStorage
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.SourceApplicationEntityTitle == "SCANNER"
    assert meta.ImplementationClassUID.is_valid
    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert meta.FileMetaInformationGroupLength == dataset_offset(path) - 144
    assert Spool.digest(path) == hashlib.sha256(dataset_bytes()).hexdigest()
    assert SOP not in str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("write", errno.ENOSPC),
        ("write", errno.EIO),
        ("fsync", errno.EIO),
        ("rename", errno.EIO),
        ("fsync_directory", errno.EIO),
    ],
)
def test_failure_at_each_step_leaves_nothing(
    spool: Spool, recorder: Recorder, step: str, code: int
) -> None:
    recorder.fail = {step: code}
    with pytest.raises(SpoolError, match=os.strerror(code)):
        put(spool)
    assert list(spool.incoming.iterdir()) == []
    # A failed fsync is never tried again.
    assert sum(s.split()[0] == step for s in recorder.steps) == 1
    recorder.fail = {}
    assert put(spool, sequence=2).exists()


def test_the_store_service_answers_failures(spool: Spool, recorder: Recorder) -> None:
    session = StoreService(spool).open_association(calling_aet="SCANNER", host="127.0.0.1")

    def store(sop: str = SOP, data: bytes | None = None) -> int:
        return session.store(
            dataset_bytes() if data is None else data,
            transfer_syntax_uid=str(ExplicitVRLittleEndian),
            sop_class_uid=str(CTImageStorage),
            sop_instance_uid=sop,
        ).status

    assert store() == 0
    for step, code in (("write", errno.ENOSPC), ("fsync", errno.EIO), ("fsync_directory", 5)):
        recorder.fail = {step: code}
        assert store() == 0xA700
    recorder.fail = {}
    assert store(sop="9.9") == 0xA900
    assert store(data=dataset_bytes()[:-1]) == 0xC000

    class Broken(Recorder):
        def write_new(self, path: Path, parts: Sequence[Any]) -> int:
            raise RuntimeError("planted")

    spool._files = Broken()
    assert store() == 0xC001
    spool._files = recorder
    session.close(released=True)
    session.close(released=False)
    events = [e for e in spool.incoming_entries() if e.is_event]
    records = [Spool.read_event(e.path) for e in events]
    assert [r.event for r in records if r] == [AssociationEvent.OPENED, AssociationEvent.RELEASED]
    assert records[1] is not None
    assert records[1].instances == {"1.2.3": 1}
    assert records[1].calling_aet == "SCANNER"
    assert len([e for e in spool.incoming_entries() if not e.is_event]) == 1


def test_low_space_is_answered_before_the_disk_is_full(spool: Spool) -> None:
    asked: list[str] = []
    clock = [0.0]
    free = [10_000]

    def statvfs(path: str) -> Any:
        asked.append(path)
        return type("Found", (), {"f_bavail": free[0], "f_frsize": 1})()

    space = FreeSpace(str(spool.incoming), clock_s=lambda: clock[0], statvfs=statvfs)
    service = StoreService(spool, min_free_bytes=5000, free_space=space)
    for _ in range(10):
        service.check_space()
    assert len(asked) == 1
    free[0] = 4999
    service.check_space()
    clock[0] = 1.0
    with pytest.raises(SpoolError, match="below the configured floor"):
        service.check_space()
    free[0], clock[0] = 6250, 2.0
    service.check_space()


@pytest.mark.parametrize(("resume", "enough"), [(None, 6250), (5500, 5500)])
def test_what_began_to_refuse_takes_again_only_once_there_is_room_for_more(
    spool: Spool, resume: int | None, enough: int
) -> None:
    """At the floor itself every other image of a study would be refused, as each makes room."""
    found = SimpleNamespace(f_bavail=4999, f_frsize=1)
    space = FreeSpace(str(spool.incoming), interval_s=0, statvfs=lambda _path: found)
    service = StoreService(spool, min_free_bytes=5000, resume_free_bytes=resume, free_space=space)
    for free, refused in (
        (5000, False),
        (4999, True),
        (5000, True),
        (enough - 1, True),
        (enough, False),
        (5000, False),
        (4999, True),
    ):
        found.f_bavail = free
        with pytest.raises(SpoolError, match="floor") if refused else nullcontext():
            service.check_space()


def test_inodes_recover_by_a_margin_too(spool: Spool) -> None:
    found = SimpleNamespace(f_bavail=10**9, f_frsize=1, f_files=10**6, f_favail=0)
    space = FreeSpace(str(spool.incoming), interval_s=0, statvfs=lambda _path: found)
    service = StoreService(spool, min_free_bytes=5000, free_space=space)
    for left, refused in ((1000, False), (999, True), (1249, True), (1250, False), (1000, False)):
        found.f_favail = left
        with pytest.raises(SpoolError, match="floor") if refused else nullcontext():
            service.check_space()


@pytest.mark.parametrize(
    ("files", "left", "full"), [(0, 0, False), (10**6, 999, True), (10**6, 1000, False)]
)
def test_a_disk_without_inodes_is_full(spool: Spool, files: int, left: int, full: bool) -> None:
    found = SimpleNamespace(f_bavail=10**9, f_frsize=1, f_files=files, f_favail=left)
    space = FreeSpace(str(spool.incoming), statvfs=lambda _path: found)
    service = StoreService(spool, min_free_bytes=5000, free_space=space)
    with pytest.raises(SpoolError, match="floor") if full else nullcontext():
        service.check_space()


def test_entries_sort_by_arrival_and_ignore_strangers(spool: Spool) -> None:
    paths = [
        put(spool, association=association, sequence=sequence)
        for association, sequence in ((1, 9), (2, 1), (1, 10), (1, 1), (10, 1), (9, 1))
    ]
    (spool.incoming / "x.dcm").touch()
    (spool.incoming / "left.dcm.part").touch()
    entries = spool.incoming_entries()
    assert [e.path for e in entries] == [paths[i] for i in (3, 0, 2, 1, 5, 4)]
    assert entries[0].association_id == f"{BOOT}-00000001"
    assert entries[0].sequence == 1
    earlier = new_boot_id(datetime(2026, 1, 1, tzinfo=UTC), b"\xff\xff\xff\xff")
    assert earlier < BOOT


def test_what_waits_for_the_indexer_is_counted(spool: Spool, tmp_path: Path) -> None:
    assert count_incoming(spool.root) == 0
    paths = [put(spool, sequence=n) for n in (1, 2, 3)]
    (spool.incoming / "17961-00000001-000000009.dcm.part").touch()
    record = EventRecord(
        event=AssociationEvent.RELEASED, calling_aet="A", host="h", at=datetime.now(UTC)
    )
    spool.record_event(record, association=1, sequence=4)
    assert count_incoming(spool.root) == 3
    spool.forget(paths[0])
    assert count_incoming(spool.root) == 2
    assert count_incoming(tmp_path / "none") == 0


def test_a_closing_event_never_overtakes_its_instances(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance's name was created before the event's, but the scan had passed its place."""
    put(spool, sequence=1)
    record = EventRecord(
        event=AssociationEvent.RELEASED, calling_aet="A", host="h", at=datetime.now(UTC)
    )
    spool.record_event(record, association=1, sequence=3)
    put(spool, sequence=2)
    put(spool, association=2, sequence=1)
    spool.record_event(record, association=2, sequence=2)
    whole = Spool._names
    calls: list[int] = []

    def partial(self: Spool) -> list[str]:
        calls.append(1)
        names = whole(self)
        if len(calls) == 1:
            return [n for n in names if "-000000002." not in n and "-00000002-" not in n]
        return names

    monkeypatch.setattr(Spool, "_names", partial)
    entries = spool.incoming_entries()
    assert [(e.association_id[-1], e.sequence, e.is_event) for e in entries] == [
        ("1", 1, False),
        ("1", 2, False),
        ("1", 3, True),
        ("2", 1, False),
    ]


def test_events_survive_the_round_trip_and_bad_ones_are_none(spool: Spool) -> None:
    record = EventRecord(
        event=AssociationEvent.ABORTED,
        calling_aet="SCANNER",
        host="10.0.0.1",
        at=datetime(2026, 3, 1, tzinfo=UTC),
        instances={"1.2": 3},
    )
    path = spool.record_event(record, association=4, sequence=7)
    assert Spool.read_event(path) == record
    for content in (b"", b"{}", b"[]", b"\xff", b'{"event": "opened"}', b"null"):
        path.write_bytes(content)
        assert Spool.read_event(path) is None
    assert Spool.read_event(path.with_name("absent")) is None


def test_filing_away_is_durable_idempotent_and_never_overwrites(
    spool: Spool, recorder: Recorder
) -> None:
    incoming = put(spool)
    final = spool.final_path("1.2.3", SOP)
    assert SOP not in str(final)
    assert "1.2.3" not in final.name
    assert final != spool.final_path("1.2.3", "1.2.3.4.6")
    recorder.steps.clear()
    assert spool.file_away(incoming, final) is Filed.NEW
    assert recorder.steps == [
        "fsync_directory studies",
        f"fsync_directory {final.parent.parent.name}",
        "link",
        f"fsync_directory {final.parent.name}",
    ]
    assert spool.file_away(incoming, final) is Filed.SAME
    spool.forget(incoming)
    spool.forget(incoming)
    assert spool.incoming_entries() == []
    # The same data set from another sender: file meta differs, the data set does not.
    again = spool.store(
        [
            FileMetaTemplate(
                transfer_syntax_uid=str(ExplicitVRLittleEndian), calling_aet="OTHER"
            ).header(sop_class_uid=str(CTImageStorage), sop_instance_uid=SOP),
            dataset_bytes(),
        ],
        association=2,
        sequence=1,
    )
    assert spool.file_away(again, final) is Filed.SAME
    changed = spool.store([header(), dataset_bytes() + b"xxxx"], association=2, sequence=2)
    before = final.read_bytes()
    assert spool.file_away(changed, final) is Filed.DIFFERENT
    assert final.read_bytes() == before
    aside = spool.set_aside(changed, "same-uid-other-bytes")
    assert aside.parent == spool.quarantine / "same-uid-other-bytes"
    assert aside.read_bytes().endswith(b"xxxx")
    assert not changed.exists()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV])
def test_filing_away_without_links(spool: Spool, recorder: Recorder, code: int) -> None:
    incoming = put(spool)
    final = spool.final_path("1.2.3", SOP)
    recorder.fail = {"link": code}
    recorder.steps.clear()
    assert spool.file_away(incoming, final) is Filed.NEW
    assert recorder.steps[-4:] == [
        "unlink .part",
        "fsync",
        "rename .part->.dcm",
        f"fsync_directory {final.parent.name}",
    ]
    assert final.read_bytes() == incoming.read_bytes()
    assert stat.S_IMODE(final.stat().st_mode) == 0o600
    assert spool.file_away(incoming, final) is Filed.SAME
    other = spool.store([header(), dataset_bytes() + b"xxxx"], association=2, sequence=2)
    assert spool.file_away(other, final) is Filed.DIFFERENT


def test_filing_away_fails_aloud(spool: Spool, recorder: Recorder) -> None:
    incoming = put(spool)
    recorder.fail = {"link": errno.ENOSPC}
    with pytest.raises(SpoolError, match="cannot file away"):
        spool.file_away(incoming, spool.final_path("1.2.3", SOP))
    assert incoming.exists()


def test_set_aside_takes_a_free_name_and_checks_the_reason(spool: Spool) -> None:
    first, second = put(spool), put(spool, sequence=2)
    a = spool.set_aside(first, "unreadable")
    second.rename(first)
    b = spool.set_aside(first, "unreadable")
    assert a != b
    assert a.exists()
    assert b.exists()
    for bad in ("", "../x", "Study 1", "x" * 65):
        with pytest.raises(PermanentError):
            spool.set_aside(a, bad)


def test_cleaning_leaves_the_young_and_the_complete(spool: Spool) -> None:
    kept = put(spool)
    left = spool.incoming / "a.dcm.part"
    left.touch()
    deep = spool.final_path("1", "2").with_suffix(".dcm.part")
    deep.parent.mkdir(parents=True)
    deep.touch()
    assert spool.clean_temporary(older_than_s=3600) == 0
    assert spool.clean_temporary() == 2
    assert kept.exists()
    assert not left.exists()
    assert not deep.exists()


def test_what_a_dead_receiver_left_goes_soon_and_what_is_written_never(spool: Spool) -> None:
    spool.lives.announce("receiver-1")
    living = spool.incoming / f"{spool.boot_id}-00000001-000000001.dcm.part"
    dead = spool.incoming / f"{'9' * 21}-00000001-000000001.dcm.part"
    starting = spool.incoming / f"{'8' * 21}-00000001-000000001.dcm.part"
    for path, age_s in ((living, 3600), (dead, 61), (starting, 30)):
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    assert spool.clean_temporary(older_than_s=6 * 3600, living=spool.lives.boots()) == 1
    assert [living.exists(), dead.exists(), starting.exists()] == [True, False, True]


def test_a_command_lives_while_it_says_so(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pe_triage.receive.lives.PASSING_RENEW_S", 0.01)
    (spool.root / "receivers" / "receiver-1").write_text("7" * 21)
    os.utime(spool.root / "receivers" / "receiver-1", (1e9, 1e9))
    with spool.lives.passing("1"):
        announced = spool.root / "receivers" / "retrieve-1"
        for _ in range(2):
            os.utime(announced, (1e9, 1e9))
            until_s = time.monotonic() + 60
            while spool.boot_id not in spool.lives.boots():
                assert time.monotonic() < until_s, "it does not renew what it announced"
        spool.lives.forget(None, older_than_s=3600)
        # A receiver is replaced by its successor, however long it has been there.
        assert spool.lives.boots() == {spool.boot_id, "7" * 21}
    assert spool.lives.boots() == {"7" * 21}


def test_unusable_directories_are_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(SpoolError, match="file"):
        Spool(blocked / "spool")
    for name, content in (
        ("a", b""),
        ("b", b"\0" * 200),
        ("c", b"\0" * 128 + b"DICM" + b"\0" * 20),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InvalidInstanceError):
            dataset_offset(path)
