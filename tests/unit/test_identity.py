"""Every reader of a header must come to the same patient, whatever the header looks like."""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from pe_triage.domain import Delivery, DeliveryState, PatientIdentity, ResultKind
from pe_triage.errors import PermanentError
from pe_triage.identity import comparable, identity_of
from pe_triage.imaging.facts import read_instance
from pe_triage.node.deliverer import Deliverer
from pe_triage.report.headers import apply_headers
from pe_triage.report.study import StudyContext, check_belongs

META = b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x14\x00" + b"1.2.840.10008.1.2.1\0"
UIDS = {
    0x00080016: b"1.2.840.10008.5.1.4.1.1.2\0",
    0x00080018: b"1.2.3.4\0",
    0x0020000D: b"1.2.3\0",
    0x0020000E: b"1.2.3.1\0",
}
ODD = {
    "leading spaces": b"  4711  ",
    "backslash": b"47\\11 ",
    "backslash and spaces": b" 47 \\ 11",
    "trailing backslash": b"4711\\\\",
    "tab": b"\t47\t11 ",
    "inner NUL": b"47\x0011 ",
    "zero-width space": "47\u200b11".encode(),
    "no-break space": "\u00a04711".encode(),
    "empty": b"",
    "only spaces": b"    ",
    "escape": b"47\x1b11 ",
}


def received(folder: Path, patient_id: bytes, issuer: bytes, charset: bytes) -> Path:
    every = {tag: (b"UI", value) for tag, value in UIDS.items()}
    every |= {0x00080005: (b"CS", charset), 0x00100020: (b"LO", patient_id)}
    every[0x00100021] = (b"LO", issuer)
    body = b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, every[tag][0], len(every[tag][1]))
        + every[tag][1]
        for tag in sorted(every)
    )
    path = folder / "received.dcm"
    path.write_bytes(META + body)
    return path


def problem_on_delivery(source: Dataset, identity: PatientIdentity, folder: Path) -> str | None:
    """What the check before sending says of a result made for `source`."""
    result = Dataset()
    apply_headers(source, result)
    result.SOPClassUID, result.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", "1.9"
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dcmwrite(buffer, result, enforce_file_format=True)
    path = folder / "result.dcm"
    path.write_bytes(buffer.getvalue())
    studies: Any = SimpleNamespace(get=lambda _uid: SimpleNamespace(identity=identity))
    nothing: Any = SimpleNamespace()
    deliverer = Deliverer("PACS", outbox=nothing, studies=studies, send=nothing, jitter=lambda: 0.5)
    problem, _ = deliverer._identity_problem(
        Delivery(
            delivery_id=1,
            study_uid="1.2.3",
            destination="PACS",
            kind=ResultKind.SR,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
            sop_instance_uid="1.9",
            path=path,
            state=DeliveryState.PENDING,
            attempts=0,
        )
    )
    return problem


def check_all_readers(folder: Path, patient_id: bytes, issuer: bytes, charset: bytes) -> None:
    path = received(folder, patient_id, issuer, charset)
    frozen = read_instance(path).identity
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = dcmread(path)
        study = StudyContext(study_uid="1.2.3", run=1, manifest_digest="d", identity=frozen)
        check_belongs(source, study, "image")
        assert problem_on_delivery(source, frozen, folder) is None


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("charset", [b"", b"ISO_IR 192"])
def test_an_odd_identifier_is_the_same_patient_everywhere(tmp_path, name, charset):
    check_all_readers(tmp_path, ODD[name], b"A\\B ", charset)
    check_all_readers(tmp_path, b"4711", ODD[name], charset)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    value=st.text(st.sampled_from("47 \\\t\0\x1b\x7f\u200b\u00a0\u00e4Ж"), max_size=8),
    issuer=st.text(st.sampled_from("A \\\u200b"), max_size=4),
)
def test_any_identifier_is_the_same_patient_everywhere(tmp_path, value, issuer):
    check_all_readers(tmp_path, value.encode(), issuer.encode(), b"ISO_IR 192")


def test_another_patient_is_still_another(tmp_path):
    path = received(tmp_path, b" 4711 ", b"HOSP", b"ISO_IR 192")
    source, other = dcmread(path), identity_of("4712", "HOSP")
    study = StudyContext(study_uid="1.2.3", run=1, manifest_digest="d", identity=other)
    with pytest.raises(PermanentError, match="another patient"):
        check_belongs(source, study, "image")
    assert "not that of its study" in (problem_on_delivery(source, other, tmp_path) or "")


@pytest.mark.parametrize("case", [("47 11", "4711"), ("4711", "04711"), ("a1", "A1")])
def test_visible_differences_count(case):
    assert comparable(case[0]) != comparable(case[1])
