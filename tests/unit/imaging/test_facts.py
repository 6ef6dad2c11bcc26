from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence, dcmread
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pe_triage.domain import InstanceFacts
from pe_triage.errors import InvalidInstanceError
from pe_triage.imaging.facts import facts_from_json, facts_to_json, read_instance

PIXELS = np.arange(48, dtype=np.int16).reshape(6, 8)

EXPLICIT_META = b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x14\x00" + b"1.2.840.10008.1.2.1\0"


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One explicit VR little endian element of a short VR, value as given."""
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


UIDS = {
    0x00080016: b"1.2.840.10008.5.1.4.1.1.2\0",
    0x00080018: b"1.2.3.4\0",
    0x0020000D: b"1.2.3\0",
    0x0020000E: b"1.2.3.1\0",
}


def raw_file(path: Path, elements: dict[int, tuple[bytes, bytes]]) -> Path:
    """A file of the four UIDs and `elements`, encoded by hand so that nothing corrects them."""
    every = {tag: (b"UI", value) for tag, value in UIDS.items()} | elements
    body = b"".join(element(tag, *every[tag]) for tag in sorted(every))
    path.write_bytes(EXPLICIT_META + body)
    return path


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_header_is_read_in_each_encoding(tmp_path, ct_writer, syntax):
    path = ct_writer(
        tmp_path / "a.dcm",
        PIXELS,
        transfer_syntax=syntax,
        PatientID="P1",
        IssuerOfPatientID="HOSP",
        PatientAge="058Y",
        ConvolutionKernel=["I30f", "3"],
        QualityControlImage="YES",
        NumberOfFrames=1,
        GantryDetectorTilt=0.5,
        SeriesDescription="CTPA 1.0",
        ContrastBolusAgent="X",
        FrameOfReferenceUID="1.2.9",
    )
    record = read_instance(path)
    assert record.transfer_syntax_uid == syntax
    assert (record.study_uid, record.series_uid) == ("1.2.3", "1.2.3.1")
    assert (record.identity.patient_id, record.identity.issuer) == ("P1", "HOSP")
    facts = record.facts
    assert facts.rows == 6
    assert facts.columns == 8
    assert facts.pixel_representation == 1
    assert facts.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert facts.kernel == ("I30f", "3")
    assert facts.pixel_spacing_mm == (0.7, 0.8)
    assert facts.patient_age_years == 58
    assert facts.quality_control is True
    assert facts.rescale_intercept == -1024
    assert facts.gantry_tilt_deg == 0.5
    assert facts.frame_of_reference_uid == "1.2.9"
    assert facts_from_json(json.loads(json.dumps(facts_to_json(facts)))) == facts


@pytest.mark.parametrize(
    ("tag", "vr", "value", "name"),
    [
        (0x00180050, b"DS", b"1,25", "slice_thickness_mm"),
        (0x00180050, b"DS", b"", "slice_thickness_mm"),
        (0x00180050, b"DS", b"1\\2 ", "slice_thickness_mm"),
        (0x00180050, b"DS", b"nan ", "slice_thickness_mm"),
        (0x00180050, b"DS", b"1e999 ", "slice_thickness_mm"),
        (0x00180050, b"DS", b"1_0 ", "slice_thickness_mm"),
        (0x00180050, b"DS", b"\xff\xfe", "slice_thickness_mm"),
        (0x00200013, b"IS", b"7.5 ", "instance_number"),
        (0x00200013, b"IS", b"seven ", "instance_number"),
        (0x00280030, b"DS", b"0.7 ", "pixel_spacing_mm"),
        (0x00200032, b"DS", b"1\\2\\3\\4 ", "image_position_mm"),
        (0x00280010, b"US", b"\x01", "rows"),
        (0x00280010, b"LO", b"12", "rows"),
        (0x00101010, b"AS", b"58  ", "patient_age_years"),
        (0x00081030, b"LO", b"  ", "study_description"),
    ],
)
def test_malformed_values_become_none(tmp_path, tag, vr, value, name):
    record = read_instance(raw_file(tmp_path / "a.dcm", {tag: (vr, value)}))
    assert getattr(record.facts, name) is None


def test_text_is_clean_and_bounded(tmp_path):
    text = b"A\x00B\x1b[31m\r\nC" + b"x" * 1000
    record = read_instance(raw_file(tmp_path / "a.dcm", {0x0008103E: (b"LO", text)}))
    description = record.facts.series_description
    assert description is not None
    assert len(description) == 256
    assert description.isprintable()
    assert description.startswith("AB[31m")


def test_other_character_sets_are_decoded(tmp_path, ct_writer):
    path = ct_writer(
        tmp_path / "a.dcm", PIXELS, SpecificCharacterSet="ISO_IR 192", PatientID="Ü-Ł-患者"
    )
    assert read_instance(path).identity.patient_id == "Ü-Ł-患者"
    bad = {0x00080005: (b"CS", b"NO SUCH "), 0x0008103E: (b"LO", b"B\xfcrste")}
    facts = read_instance(raw_file(tmp_path / "b.dcm", bad)).facts
    assert facts.series_description is not None
    assert facts.series_description.startswith("B")


def test_two_long_patient_ids_cannot_become_one(tmp_path):
    with pytest.raises(InvalidInstanceError, match="Patient ID") as caught:
        read_instance(raw_file(tmp_path / "a.dcm", {0x00100020: (b"LO", b"9" * 400)}))
    assert "999" not in str(caught.value)


def test_age_falls_back_to_birth_date_which_is_not_kept(tmp_path, ct_writer):
    path = ct_writer(tmp_path / "a.dcm", PIXELS, PatientBirthDate="20100101", StudyDate="20260101")
    record = read_instance(path)
    assert record.facts.patient_age_years == pytest.approx(16, abs=0.02)
    assert "2010" not in repr(record)


@pytest.mark.parametrize(
    ("tag", "value", "seconds"),
    [
        (0x00080032, b"101500.25 ", 36900.25),
        (0x00080032, b"10:15:00", 36900.0),
        (0x00080032, b"1015", None),
        (0x00080032, b"251500", None),
        (0x0008002A, b"20260101101500.5+0100 ", 36900.5),
        (0x0008002A, b"20260101", None),
    ],
)
def test_the_time_of_acquisition(tmp_path, tag, value, seconds):
    vr = b"TM" if tag == 0x00080032 else b"DT"
    facts = read_instance(raw_file(tmp_path / "a.dcm", {tag: (vr, value)})).facts
    assert facts.acquisition_time_s == seconds


@pytest.mark.parametrize("tag", sorted(UIDS))
@pytest.mark.parametrize("value", [None, b"", b"1.2.x ", b"1" * 70])
def test_missing_or_malformed_uid_is_refused(tmp_path, tag, value):
    path = raw_file(tmp_path / "a.dcm", {tag: (b"UI", value or b"")})
    with pytest.raises(InvalidInstanceError, match="missing or malformed"):
        read_instance(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a DICOM file"),
        (b"hello" * 100, "not a DICOM file"),
        (b"\0" * 128 + b"DICM", "no transfer syntax"),
        (EXPLICIT_META + b"\x08\x00\x16\x00UI\xff\x00123", "truncated"),
        (EXPLICIT_META + b"\x08\x00\x16\x00\x04\x00\x00\x00abcd", "stated transfer syntax"),
        (EXPLICIT_META.replace(b"1.2.1\0", b"1.2.1\0"), "SOP Class UID"),
        (
            b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x16\x00" + b"1.2.840.10008.1.2.1.99",
            "deflated",
        ),
    ],
)
def test_what_is_not_dicom_is_one_clear_line(tmp_path, content, words):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with pytest.raises(InvalidInstanceError, match=words) as caught:
        read_instance(path)
    assert "\n" not in str(caught.value)


def nested(depth: int, *, undefined: bool) -> Dataset:
    ds = Dataset()
    ds.CodeValue = "x"
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedStudySequence = Sequence([ds])
        outer["ReferencedStudySequence"].is_undefined_length = undefined
        ds.is_undefined_length_sequence_item = undefined
        ds = outer
    return ds


def undefined_nest(depth: int) -> bytes:
    start = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return start * depth + end * depth


@pytest.mark.parametrize("depth", [1, 5, 60])
def test_nested_sequences_are_stepped_over(tmp_path, depth):
    path = tmp_path / "a.dcm"
    body = (
        element(0x00080016, b"UI", UIDS[0x00080016])
        + element(0x00080018, b"UI", UIDS[0x00080018])
        + undefined_nest(depth)
        + element(0x0020000D, b"UI", UIDS[0x0020000D])
        + element(0x0020000E, b"UI", UIDS[0x0020000E])
    )
    path.write_bytes(EXPLICIT_META + body)
    assert read_instance(path).series_uid == "1.2.3.1"


def test_a_bomb_of_sequences_is_refused(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(EXPLICIT_META + undefined_nest(5000))
    with pytest.raises(InvalidInstanceError, match="nested too deeply"):
        read_instance(path)


def test_values_inside_sequences_are_not_taken_for_the_instances_own(tmp_path, ct_writer):
    item = Dataset()
    item.PatientID = "OTHER"
    item.SeriesInstanceUID = "9.9.9"
    path = ct_writer(tmp_path / "a.dcm", PIXELS, ReferencedStudySequence=Sequence([item]))
    record = read_instance(path)
    assert record.identity.patient_id == "P1"
    assert record.series_uid == "1.2.3.1"


def test_facts_json_ignores_unknown_keys():
    facts = InstanceFacts(modality="CT", image_type=("A", "B"), rows=4)
    document = facts_to_json(facts) | {"from_the_future": 1}
    assert facts_from_json(document) == facts
    assert facts_from_json({}) == InstanceFacts()
    assert facts_to_json(replace(facts, quality_control=True))["quality_control"] is True


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, ct_writer, data):
    path = tmp_path / "good.dcm"
    if not path.exists():
        ct_writer(path, PIXELS, ReferencedStudySequence=Sequence([nested(3, undefined=True)]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(bytes(content[: cut if data.draw(st.booleans()) else None]))
    try:
        record = read_instance(bad)
    except InvalidInstanceError as error:
        refusal = str(error)
        assert "\n" not in refusal
    else:
        assert record.study_uid
        json.dumps(facts_to_json(record.facts))


def test_agrees_with_pydicom_on_real_headers(real_ct):
    paths = sorted(real_ct.glob("c*/*.dcm"))
    assert len(paths) > 100
    for path in paths[::5]:
        ds = dcmread(path, stop_before_pixels=True)
        record = read_instance(path)
        assert record.sop_instance_uid == ds.SOPInstanceUID
        assert record.identity.patient_id == ds.PatientID
        assert record.facts.slice_thickness_mm == float(ds.SliceThickness)
        assert list(record.facts.image_position_mm or ()) == [
            float(v) for v in ds.ImagePositionPatient
        ]
        assert record.facts.rows == ds.Rows
        assert record.facts.protocol_name == ds.ProtocolName.strip()


def test_pixel_data_are_not_read(tmp_path, ct_writer, monkeypatch):
    path = ct_writer(tmp_path / "a.dcm", np.zeros((1024, 1024), np.int16))
    taken = []
    real = io.FileIO.readinto

    class Counting(io.FileIO):
        def readinto(self, buffer):
            taken.append(count := real(self, buffer))
            return count

    monkeypatch.setattr("pe_triage.imaging.elements.FileIO", Counting)
    read_instance(path)
    assert 0 < sum(taken) <= 128 * 1024


def test_a_uid_of_one_component_is_read_as_it_is_accepted(tmp_path):
    path = raw_file(tmp_path / "a.dcm", {0x0020000D: (b"UI", b"12345\0")})
    assert read_instance(path).study_uid == "12345"


def test_a_refused_file_still_says_which_study_it_is_of(tmp_path):
    long = raw_file(tmp_path / "a.dcm", {0x00100020: (b"LO", b"7" * 300)})
    nameless = raw_file(tmp_path / "b.dcm", {0x0020000E: (b"UI", b"x\0")})
    for path in (long, nameless):
        with pytest.raises(InvalidInstanceError) as caught:
            read_instance(path)
        assert caught.value.study_uid == "1.2.3"
        assert caught.value.sop_instance_uid == "1.2.3.4"
