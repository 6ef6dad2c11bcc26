"""Patient and study attributes reach the result exactly, whatever the source's character set."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from pe_triage.domain import PatientIdentity
from pe_triage.errors import PermanentError
from pe_triage.report import ReportSettings
from pe_triage.report.headers import COPIED, apply_headers
from tests.unit.report.conftest import NAMES, as_received


@pytest.mark.parametrize("kind", NAMES)
def test_text_survives_every_character_set(scene, kind, tmp_path):
    charset, name, words = NAMES[kind]
    headers = {}
    for uid, ds in scene.headers.items():
        ds.PatientName = name
        ds.StudyDescription = words
        ds.ReferringPhysicianName = name
        other = Dataset()
        other.PatientID = "OTHER"
        other.IssuerOfPatientID = words
        ds.OtherPatientIDsSequence = [other]
        headers[uid] = as_received(ds, charset)
    settings = ReportSettings(narrative=True)
    results = scene.build(scene.result("NOT_EVALUATED"), headers=headers, settings=settings)
    for item in results.objects:
        path = tmp_path / f"{item.label}.dcm"
        path.write_bytes(item.encoded)
        ds = pydicom.dcmread(path)
        assert ds.SpecificCharacterSet == "ISO_IR 192"
        assert str(ds.PatientName) == name
        assert str(ds.ReferringPhysicianName) == name
        assert ds.StudyDescription == words
        assert ds.OtherPatientIDsSequence[0].IssuerOfPatientID == words
        assert name.partition("^")[0].encode() in item.encoded


def test_everything_on_the_list_is_copied_and_nothing_else(scene):
    source = next(iter(scene.headers.values()))
    source.PatientAge = "074Y"
    source.PatientSize = "1.7250"
    source.TimezoneOffsetFromUTC = "+0530"
    source.InstitutionName = "the scanner's hospital"
    source.ProtocolName = "not ours"
    target = Dataset()
    target.PatientWeight = "70"
    target.PatientName = "Wrong^Name"
    apply_headers(source, target)
    assert target.PatientSize.original_string == "1.7250"
    assert target.AccessionNumber == "ACC7"
    assert "PatientWeight" not in target
    assert {e.keyword for e in target} <= {*COPIED, "SpecificCharacterSet"}


def test_absent_attributes_are_written_empty():
    source = Dataset()
    source.PatientID = "1"
    target = Dataset()
    apply_headers(source, target)
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyID"):
        assert keyword in target
        assert not target.get(keyword)


def test_odd_values_are_copied_as_they_are(scene):
    odd = {
        "PatientSex": "female",
        "PatientBirthDate": "1950.01.02",
        "StudyDate": "not a date",
        "AccessionNumber": "A" * 30,
        "PatientAge": "74",
    }
    for ds in scene.headers.values():
        for keyword, value in odd.items():
            vr = dictionary_VR(keyword)
            ds[keyword] = pydicom.DataElement(keyword, vr, value, validation_mode=0)
    for item in scene.build(scene.result("NOT_EVALUATED")).objects:
        ds = pydicom.dcmread(BytesIO(item.encoded))
        for keyword, value in odd.items():
            assert ds.get_item(keyword).value.decode().strip() == value


def test_a_mangled_identifier_is_refused(scene):
    source = next(iter(scene.headers.values()))
    source.PatientID = "Ж1"
    source = as_received(source, "ISO_IR 192")
    raw = source.get_item("PatientID")
    source[raw.tag] = raw._replace(value=b"\xd0 1 ")
    with pytest.raises(PermanentError, match="PatientID cannot be decoded"):
        apply_headers(source, Dataset())


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyInstanceUID", "1.2.3"),
        ("PatientID", "ID-4712"),
        ("IssuerOfPatientID", "OTHER"),
    ],
)
def test_the_wrong_patient_or_study_is_refused(scene, keyword, value):
    last = list(scene.headers.values())[-1]
    setattr(last, keyword, value)
    with pytest.raises(PermanentError) as caught:
        scene.build(scene.result("NOT_EVALUATED"))
    assert "4711" not in str(caught.value)
    assert "4712" not in str(caught.value)


def test_a_predecessor_of_another_patient_is_refused(scene, positive):
    earlier = pydicom.dcmread(BytesIO(positive.results.objects[0].encoded))
    earlier.PatientID = "somebody else"
    with pytest.raises(PermanentError, match="earlier report"):
        scene.build(scene.result(), predecessors=[earlier])


def test_no_identifier_at_all_is_an_identity_too(scene):
    for ds in scene.headers.values():
        ds.PatientID = ""
        del ds.IssuerOfPatientID
    study = replace(scene.study, identity=PatientIdentity(patient_id=""))
    report = scene.build(scene.result("NOT_EVALUATED"), study=study).objects[0]
    ds = pydicom.dcmread(BytesIO(report.encoded))
    assert not ds.PatientID


@pytest.mark.parametrize(
    ("keyword", "raw"),
    [
        ("PatientWeight", b"80 kg "),
        ("PatientSize", b"1,80"),
        ("PatientAge", b"old!"),
        ("TimezoneOffsetFromUTC", b"+9999 "),
        ("TimezoneOffsetFromUTC", b"+0575 "),
        ("TimezoneOffsetFromUTC", b"-1400 "),
        ("OtherPatientIDsSequence", b"no sequence "),
    ],
)
def test_a_malformed_optional_value_costs_no_result(scene, keyword, raw):
    headers = {}
    for uid, ds in scene.headers.items():
        ds = as_received(ds, "ISO_IR 100")
        tag = pydicom.tag.Tag(keyword)
        vr = dictionary_VR(keyword)
        ds[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(raw), raw, 0, False, True)
        headers[uid] = ds
    for item in scene.build(scene.result("NOT_EVALUATED"), headers=headers).objects:
        ds = pydicom.dcmread(BytesIO(item.encoded))
        assert ds.PatientID == "ID-4711"
        assert str(ds.PatientName) == "Test^Patient"
        if keyword != "PatientAge":
            assert raw.strip() not in item.encoded


def test_a_malformed_value_inside_an_item_leaves_the_rest_of_it():
    good = Dataset()
    good.PatientID = "OTHER"
    tag = pydicom.tag.Tag("PatientWeight")
    good[tag] = pydicom.dataelem.RawDataElement(tag, "DS", 6, b"80 kg ", 0, False, True)
    source, target = Dataset(), Dataset()
    source.PatientID = "1"
    source.OtherPatientIDsSequence = [good]
    apply_headers(source, target)
    (item,) = target.OtherPatientIDsSequence
    assert item.PatientID == "OTHER"
    assert "PatientWeight" not in item
