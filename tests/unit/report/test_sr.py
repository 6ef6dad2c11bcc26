"""The structured report: what it says, that it reads back equal, that it is reproducible."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta, timezone
from io import BytesIO
from types import MappingProxyType

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr.coding import Code

from pe_triage.domain import EXAM_LABELS, INTENDED_USE_WORDS, Outcome, Priority, ResultKind
from pe_triage.errors import InputError, PermanentError
from pe_triage.report import ReportSettings, read_sr
from pe_triage.report.concepts import LABEL_CONCEPTS
from pe_triage.report.places import has_place, source_outline, source_point
from pe_triage.report.uids import derive_uid, device_uid


def code_document(code):
    return {"value": code.value, "scheme": code.scheme_designator, "meaning": code.meaning}


def written(tmp_path, results):
    path = tmp_path / "sr.dcm"
    path.write_bytes(results.objects[0].encoded)
    return path


def test_every_number_code_and_reference_is_read_back_equal(case, tmp_path):
    name, scene, result = case.name, case.scene, case.result
    document = read_sr(written(tmp_path, case.results))
    assert document["study_uid"] == scene.study.study_uid
    assert document["run"] == 1
    assert document["outcome"] == result.outcome.value
    assert document["state"] == ("NOT_EVALUATED" if name == "not-evaluated" else "DONE")
    assert document["reason"] == result.reason
    assert document["series_choice"] == result.series_choice
    assert document["priority"] == (result.priority.value if result.priority else None)
    assert document["series_uid"] == result.series_uid
    assert document["instances"] == len(result.sop_instance_uids)
    prediction = result.prediction
    if prediction is None:
        assert document["exam"] is document["findings"] is document["pe_probability"] is None
        assert document["slices"] == []
    else:
        assert document["exam"] == prediction.exam_probability
        assert list(document["exam"]) == list(EXAM_LABELS)
        assert document["pe_probability"] == prediction.pe_probability
        assert document["findings"] == {k: v.value for k, v in prediction.findings.items()}
        assert document["thresholds"] == prediction.thresholds
    assert [
        (s["sop_instance_uid"], s["probability"], s["attention"]) for s in document["slices"]
    ] == [(k.sop_instance_uid, k.probability, k.attention) for k in result.key_slices]
    for entry, key in zip(document["slices"], result.key_slices, strict=True):
        assert np.allclose(entry["point"], source_point(key, scene.volume), atol=1e-4)
        assert np.allclose(entry["outline"], source_outline(key, scene.volume), atol=1e-4)
    calibrated = prediction is not None and prediction.model.calibrated
    if calibrated:
        assert document["certainty_percent"] == {
            "pe": prediction.pe_probability * 100,
            **{k: v * 100 for k, v in prediction.exam_probability.items()},
        }
    else:
        assert document["certainty_percent"] is None
    assert [s["certainty_percent"] for s in document["slices"]] == [
        k.probability * 100 if calibrated else None for k in result.key_slices
    ]
    assert document["policy"] == scene.settings.policy.document()
    expected = scene.settings.priority_codes[result.priority] if result.priority else None
    assert document["priority_code"] == (code_document(expected) if expected else None)
    if prediction is not None:
        assert document["codes"] == {
            label: {
                "findings": [code_document(f) for f in concept.findings],
                "site": code_document(concept.site) if concept.site else None,
            }
            for label, concept in LABEL_CONCEPTS.items()
        }
    assert document["intended_use"] == (
        INTENDED_USE_WORDS[result.model.intended_use] if result.model else None
    )
    assert document["device_uid"] == device_uid(
        result.model.sha256 if result.model else None, scene.settings.software_version
    )
    lowest = next(iter(scene.headers))
    assert document["evidence"] == list(result.sop_instance_uids or (lowest,))
    assert document["predecessors"] == document["requests"] == []
    if result.model is None:
        assert document["model"] is None
    else:
        assert document["model"] == {
            "name": result.model.name,
            "version": result.model.version,
            "sha256": result.model.sha256,
            "intended_use": result.model.intended_use.value,
        }
    assert "does not exclude PE" in document["notice"]
    json.dumps(document)


def test_highdicom_reads_every_report(case, tmp_path):
    result = case.result
    report = hd.sr.srread(written(tmp_path, case.results))
    assert isinstance(report, hd.sr.Comprehensive3DSR)
    content = report.content
    placed = sum(has_place(key) for key in result.key_slices)
    # The peak and the outline of each.
    assert len(content.get_planar_roi_measurement_groups()) == 2 * placed
    labels = len(EXAM_LABELS) if result.prediction else 0
    assert len(content.get_image_measurement_groups()) == 1 + labels
    assert (report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag) == (
        "COMPLETE", "PRELIMINARY", "UNVERIFIED",
    )  # fmt: skip


def test_what_is_known_of_ihe_air_is_met_by_every_report(case, tmp_path):
    """Line by line what docs/conformance.md calls met in its table of AIR requirements."""
    ds = pydicom.dcmread(written(tmp_path, case.results))
    (template,) = ds.ContentTemplateSequence
    assert (ds.SOPClassUID.name, template.MappingResource, template.TemplateIdentifier) == (
        "Comprehensive 3D SR Storage", "DCMR", "1500",
    )  # fmt: skip
    assert code_of(ds.ConceptNameCodeSequence[0]) == ("126000", "DCM")
    reported = [i for i in walk(ds) if code_of(i.ConceptNameCodeSequence[0]) == ("121058", "DCM")]
    assert [code_of(i.ConceptCodeSequence[0]) for i in reported] == [("25045-6", "LN")]
    (equipment,) = ds.ContributingEquipmentSequence
    assert code_of(equipment.PurposeOfReferenceCodeSequence[0]) == ("109102", "DCM")
    model = case.result.model
    assert equipment.Manufacturer == "pe-triage"
    assert equipment.ManufacturerModelName == (model.name if model else "pe-triage")
    assert equipment.SoftwareVersions
    assert equipment.DeviceUID == device_uid(
        model.sha256 if model else None, case.scene.settings.software_version
    )
    assert (ds.VerificationFlag, "VerifyingObserverSequence" in ds) == ("UNVERIFIED", False)
    groups = [i for i in walk(ds) if code_of(i.ConceptNameCodeSequence[0]) == ("125007", "DCM")]
    assert groups
    for group in groups:
        names = [code_of(i.ConceptNameCodeSequence[0]) for i in group.ContentSequence]
        assert names.count(("112039", "DCM")) == names.count(("112040", "DCM")) == 1
    kinds = {i.get("ValueType") for i in walk(ds)}
    assert {"CODE", "TEXT", "UIDREF"} <= kinds
    assert ("NUM" in kinds) is (case.result.prediction is not None)
    assert (kinds >= {"SCOORD", "IMAGE"}) is bool(case.result.key_slices)


def code_of(item):
    return item.CodeValue, item.CodingSchemeDesignator


def walk(item):
    yield item
    for child in item.get("ContentSequence", ()):
        yield from walk(child)


def texts(ds):
    return [str(i.TextValue) for i in walk(ds) if i.get("ValueType") == "TEXT"]


def test_uncalibrated_scores_are_not_called_certainty(cases, tmp_path):
    def names(calibrated):
        case = cases("positive" if calibrated else "positive-uncalibrated")
        ds = pydicom.dcmread(written(tmp_path, case.results))
        return [
            i.ConceptNameCodeSequence[0].CodeValue for i in walk(ds) if i.get("ValueType") == "NUM"
        ]

    assert "111012" not in names(calibrated=False)
    assert names(calibrated=True).count("111012") == 1 + len(EXAM_LABELS) + 3


def test_every_group_and_measurement_names_the_algorithm(positive, tmp_path):
    ds = pydicom.dcmread(written(tmp_path, positive.results))
    for item in walk(ds):
        concept = item.ConceptNameCodeSequence[0].CodeValue
        number = item.get("ValueType") == "NUM" and item.RelationshipType == "CONTAINS"
        if number or concept == "125007":
            names = [c.ConceptNameCodeSequence[0].CodeValue for c in item.ContentSequence]
            assert {"111001", "111003"} <= set(names)


def test_withheld_prediction_leaves_no_number(scene, tmp_path):
    from pe_triage.domain import IntendedUse

    result = scene.result(use=IntendedUse.DEMONSTRATION, quality_control=False)
    ds = pydicom.dcmread(written(tmp_path, scene.report(result)))
    assert not [i for i in walk(ds) if i.get("ValueType") == "NUM"]
    assert not any("threshold" in text for text in texts(ds))
    assert any("no clinical use" in text for text in texts(ds))


def test_evidence_lists_every_analysed_image(scene, tmp_path):
    keys = {k.sop_instance_uid for k in scene.keys(3)}
    few = {uid: ds for uid, ds in scene.headers.items() if uid in keys}
    report = hd.sr.srread(written(tmp_path, scene.report(scene.result(), headers=few)))
    listed = [str(entry[2]) for entry in report.get_evidence()]
    assert listed == list(scene.volume.sop_instance_uids)


@pytest.mark.parametrize("name", ["positive", "not-evaluated"])
def test_same_inputs_same_bytes_whenever_built(cases, name):
    case = cases(name)
    scene, result = case.scene, case.result
    first = case.results
    again = scene.build(result, headers=dict(reversed(scene.headers.items())))
    assert [o.encoded for o in first.objects] == [o.encoded for o in again.objects]


def test_a_second_run_makes_new_objects_that_name_the_first(positive, tmp_path):
    scene, first = positive.scene, positive.results
    earlier = pydicom.dcmread(BytesIO(first.objects[0].encoded))
    study = replace(scene.study, run=2)
    second = scene.build(positive.result, study=study, predecessors=[earlier])
    mine = {o.sop_instance_uid for o in first.objects} | {o.series_uid for o in first.objects}
    other = {o.sop_instance_uid for o in second.objects} | {o.series_uid for o in second.objects}
    assert not mine & other
    document = read_sr(written(tmp_path, second))
    assert document["predecessors"] == [first.objects[0].sop_instance_uid]
    assert document["run"] == 2


def test_the_site_maps_priorities_and_the_report_still_reads_back(scene, tmp_path):
    acr = MappingProxyType(
        {
            Priority.HIGH: Code("RID49480", "RADLEX", "ACR Category 1 Actionable Finding"),
            Priority.MEDIUM: Code("RID49481", "RADLEX", "ACR Category 2 Actionable Finding"),
            Priority.LOW: Code("RID49482", "RADLEX", "ACR Category 3 Actionable Finding"),
        }
    )
    settings = ReportSettings(priority_codes=acr)
    path = written(tmp_path, scene.report(scene.result(), settings=settings))
    assert read_sr(path)["priority"] == "HIGH"
    values = [
        i.ConceptCodeSequence[0].CodeValue
        for i in walk(pydicom.dcmread(path))
        if i.get("ValueType") == "CODE" and i.ConceptNameCodeSequence[0].CodeValue == "260870009"
    ]
    assert values == ["RID49480"]


def test_the_choice_of_series_is_read_back(scene, tmp_path):
    words = "best of 3 eligible series: soft kernel B30f (the next: slices of 5.00 mm), 200 slices"
    result = replace(scene.result(), series_choice=words)
    assert read_sr(written(tmp_path, scene.report(result)))["series_choice"] == words
    assert read_sr(written(tmp_path, scene.report(scene.result())))["series_choice"] is None


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="LOW"):
        ReportSettings(priority_codes={p: Code("1", "99X", "x") for p in list(Priority)[:2]})
    with pytest.raises(ValueError, match="burned_in"):
        ReportSettings(burned_in_annotation="MAYBE")


def test_device_uid_changes_with_the_weights(positive):
    scene, result = positive.scene, positive.result
    other = replace(result, model=replace(result.model, sha256="ef" * 32))

    def device(item):
        ds = pydicom.dcmread(BytesIO(item.encoded))
        (equipment,) = ds.ContributingEquipmentSequence
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        return str(equipment.DeviceUID)

    mine = {device(o) for o in positive.results.objects}
    assert mine == {device_uid("ab" * 32, scene.settings.software_version)}
    assert not mine & {device(o) for o in scene.report(other).objects}


def test_times_follow_the_zone_that_the_source_names(scene, tmp_path):
    for ds in scene.headers.values():
        ds.TimezoneOffsetFromUTC = "-0330"
    ds = pydicom.dcmread(written(tmp_path, scene.report(scene.result("NEGATIVE"))))
    assert (ds.ContentDate, ds.ContentTime) == ("20240506", "033809.123456")
    assert ds.TimezoneOffsetFromUTC == "-0330"


def test_without_a_zone_the_wall_clock_is_written(scene, tmp_path):
    from datetime import datetime

    now = datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=9)))
    ds = pydicom.dcmread(written(tmp_path, scene.report(scene.result("NEGATIVE"), now=now)))
    assert (ds.ContentDate, ds.ContentTime[:6]) == ("20240102", "030405")
    with pytest.raises(ValueError, match="aware"):
        scene.report(scene.result("NEGATIVE"), now=now.replace(tzinfo=None))


@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True), (True, True)])
def test_the_point_lies_on_the_source_image(scene, flip):
    volume = replace(scene.volume, source_flip_yx=flip)
    rows, columns = volume.hu_zyx.shape[1:]
    key = replace(scene.keys(1)[0], peak_yx=(10.0, 20.0))
    x, y = source_point(key, volume)
    assert x == (columns - 1 - 20 if flip[1] else 20) + 0.5
    assert y == (rows - 1 - 10 if flip[0] else 10) + 0.5


def test_an_empty_heatmap_marks_no_place(scene, tmp_path):
    result = scene.result(keys=2)
    blank = replace(result.key_slices[0], heatmap_yx=np.zeros((8, 8), np.float32))
    result = replace(result, key_slices=(blank, result.key_slices[1]))
    slices = read_sr(written(tmp_path, scene.report(result)))["slices"]
    assert [s["point"] is None for s in slices] == [True, False]


def test_a_report_needs_little_of_the_header(scene, tmp_path):
    bare = pydicom.Dataset()
    bare.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    bare.SOPInstanceUID, bare.SeriesInstanceUID = "1.2.3.4", "1.2.3"
    bare.StudyInstanceUID = scene.study.study_uid
    bare.PatientID, bare.IssuerOfPatientID = "ID-4711", "HOSP"
    results = scene.build(scene.result("NOT_EVALUATED"), headers={"1.2.3.4": bare}, volume=None)
    assert [o.kind for o in results.objects] == [ResultKind.SR, ResultKind.SUMMARY]
    assert read_sr(written(tmp_path, results))["outcome"] == "NOT_EVALUATED"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: replace(r, priority=None),
        lambda r: replace(r, prediction=None),
        lambda r: replace(r, outcome=Outcome.NEGATIVE),
        lambda r: replace(r, outcome=Outcome.NOT_EVALUATED, priority=None),
        lambda r: replace(r, key_slices=(replace(r.key_slices[0], z=r.key_slices[0].z + 1),)),
        lambda r: replace(r, key_slices=(replace(r.key_slices[0], sop_instance_uid="1.9"),)),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(scene, spoil):
    with pytest.raises(PermanentError):
        scene.build(spoil(scene.result()))


def test_no_header_is_refused(scene):
    with pytest.raises(PermanentError, match="no image header"):
        scene.build(scene.result("NOT_EVALUATED"), headers={})


@pytest.mark.parametrize("content", [b"", b"not DICOM", b"\0" * 128 + b"DICM"])
def test_read_sr_says_what_is_wrong(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(InputError, match="x"):
        read_sr(path)
    with pytest.raises(InputError, match="cannot read"):
        read_sr(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot read"):
        read_sr(tmp_path)


def test_read_sr_refuses_other_objects_and_damaged_reports(positive, tmp_path):
    results = positive.results
    path = tmp_path / "capture.dcm"
    for other in results.objects[1:4]:  # narrative, summary, key objects
        path.write_bytes(other.encoded)
        with pytest.raises(InputError, match="not a structured report of pe-triage"):
            read_sr(path)
    path.write_bytes(results.objects[2].encoded)
    with pytest.raises(InputError, match="not a structured report of pe-triage"):
        read_sr(path)
    path.write_bytes(results.objects[0].encoded[:20000])
    with pytest.raises(InputError):
        read_sr(path)


@given(
    parts=st.lists(
        st.tuples(st.text(), st.text(), st.integers(1, 9), st.text()), unique=True, max_size=8
    )
)
def test_derived_uids_are_valid_and_distinct(parts):
    uids = [derive_uid(*p) for p in parts]
    assert len(set(uids)) == len({(a, b or "no-model", c, d) for a, b, c, d in parts})
    for uid in uids:
        assert pydicom.uid.UID(uid).is_valid
        assert len(uid) <= 64
        assert uid == derive_uid(*parts[uids.index(uid)])


def test_the_zone_is_always_written_and_holds_for_the_result_times(scene, tmp_path):
    from datetime import datetime

    now = datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=9)))
    for item in scene.build(scene.result("POSITIVE"), now=now).objects:
        ds = pydicom.dcmread(BytesIO(item.encoded))
        assert (ds.ContentDate, ds.ContentTime[:6]) == ("20240102", "030405")
        assert ds.TimezoneOffsetFromUTC == "+0900"
        assert (ds.StudyDate, ds.StudyTime) == ("20240506", "070000")
