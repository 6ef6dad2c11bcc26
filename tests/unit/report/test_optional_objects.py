"""What is made only where a site asks for it: narrative, key objects, parametric map; tables."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from io import BytesIO

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from pe_triage.domain import NOTICE, Decision, Priority
from pe_triage.errors import ConfigurationError
from pe_triage.report import ReportSettings, TriagePolicy, read_sr
from pe_triage.report.places import heat_in_source


def opened(results, label):
    (item,) = (o for o in results.objects if o.label == label)
    return pydicom.dcmread(BytesIO(item.encoded))


def walk(item):
    yield item
    for child in item.get("ContentSequence", ()):
        yield from walk(child)


def words(ds):
    return "\n".join(str(i.TextValue) for i in walk(ds) if i.get("ValueType") == "TEXT")


def test_the_narrative_says_everything_in_words(case):
    ds = opened(case.results, "narrative")
    result, said = case.result, words(ds)
    assert NOTICE in said
    assert "Priority policy default-1" in said
    assert f"Priority: {result.priority.value if result.priority else 'none assigned'}." in said
    if result.reason:
        assert f"Reason: {result.reason}." in said
    assert ("Series chosen: " in said) is (result.series_choice is not None)
    if result.prediction is None:
        assert "score" not in said
        assert "probability" not in said
    else:
        kind = "calibrated probability" if result.model.calibrated else "score"
        assert f"Pulmonary embolism: {kind} {result.prediction.pe_probability:.3f}" in said
        assert "Right-sided pulmonary embolism: " in said
    images = [i for i in walk(ds) if i.get("ValueType") == "IMAGE"]
    assert [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in images] == [
        k.sop_instance_uid for k in result.key_slices
    ]
    assert (ds.CompletionFlag, ds.VerificationFlag) == ("COMPLETE", "UNVERIFIED")


def test_the_narrative_is_an_enhanced_sr_in_its_own_series(case):
    report, narrative = opened(case.results, "sr"), opened(case.results, "narrative")
    assert narrative.SOPClassUID.name == "Enhanced SR Storage"
    for keyword in ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription"):
        assert narrative[keyword].value != report[keyword].value


@pytest.mark.parametrize("choice", [True, False, "unmarked"])
@pytest.mark.parametrize("kind", ["POSITIVE", "NEGATIVE", "NOT_EVALUATED"])
def test_a_narrative_always_never_or_where_nothing_is_marked(scene, kind, choice, monkeypatch):
    monkeypatch.setattr("pe_triage.report.results.build_captures", lambda **_: [])
    settings = ReportSettings.from_table({"narrative": choice})
    results = scene.build(scene.result(kind, keys=1), settings=settings)
    made = [item.label for item in results.objects]
    wanted = choice if choice != "unmarked" else kind != "POSITIVE"
    assert made == (["sr", "narrative"] if wanted else ["sr"])


def test_key_objects_reference_the_key_slices(positive):
    ds = opened(positive.results, "key-objects")
    assert ds.ConceptNameCodeSequence[0].CodeMeaning == "Of Interest"
    images = [i for i in ds.ContentSequence if i.ValueType == "IMAGE"]
    assert [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in images] == [
        k.sop_instance_uid for k in positive.result.key_slices
    ]
    assert not any("ConceptNameCodeSequence" in i for i in images)
    assert NOTICE in words(ds)


def test_the_map_holds_the_heatmaps_on_their_slices(positive):
    scene, result = positive.scene, positive.result
    ds = opened(positive.results, "parametric-map")
    frames = ds.pixel_array
    assert frames.dtype == np.float32
    mapping = ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("130403", "DCM")
    seen = set()
    for frame, group in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        (key,) = (
            k
            for k in result.key_slices
            if scene.headers[k.sop_instance_uid].ImagePositionPatient == position
        )
        seen.add(key.sop_instance_uid)
        assert np.array_equal(frame, heat_in_source(key, scene.volume).astype(np.float32))
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == key.sop_instance_uid
    assert seen == {k.sop_instance_uid for k in result.key_slices}
    header = next(iter(scene.headers.values()))
    assert ds.FrameOfReferenceUID == header.FrameOfReferenceUID
    pixel_measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert pixel_measures.PixelSpacing == header.PixelSpacing


def test_a_map_needs_a_place_and_geometry(scene):
    scene.settings = ReportSettings(parametric_map=True)
    result = scene.result(keys=1)
    (key,) = result.key_slices
    blank = replace(key, heatmap_yx=np.zeros((4, 4), np.float32))
    labels = [o.label for o in scene.build(replace(result, key_slices=(blank,))).objects]
    assert "parametric-map" not in labels
    del scene.headers[key.sop_instance_uid].FrameOfReferenceUID
    assert "parametric-map" not in [o.label for o in scene.build(result).objects]


def test_requests_of_the_images_are_named(scene, tmp_path):
    for ds in scene.headers.values():
        item = Dataset()
        item.RequestedProcedureID = "RP-1"
        item.ScheduledProcedureStepID = "SPS-1"
        item.RequestedProcedureDescription = "CT Lungenarterien für Ärzte"
        ds.RequestAttributesSequence = [item]
    path = tmp_path / "sr.dcm"
    path.write_bytes(scene.report(scene.result("NOT_EVALUATED")).objects[0].encoded)
    document = read_sr(path)
    assert document["requests"] == [{"accession_number": "ACC7", "requested_procedure_id": "RP-1"}]
    (request,) = pydicom.dcmread(path).ReferencedRequestSequence
    assert request.RequestedProcedureDescription == "CT Lungenarterien für Ärzte"
    assert request.StudyInstanceUID == scene.study.study_uid


@pytest.mark.parametrize("blank", [(), (0,), (1, 2)])
def test_groups_of_the_exam_share_what_is_tracked(scene, blank):
    """OHIF opens nothing where a group of its own has no region (docs/viewers.md)."""
    result = scene.result()
    keys = tuple(
        replace(key, heatmap_yx=np.zeros((4, 4), np.float32)) if i in blank else key
        for i, key in enumerate(result.key_slices)
    )
    (item,) = scene.report(replace(result, key_slices=keys)).objects
    content = hd.sr.srread(BytesIO(item.encoded)).content
    planar = content.get_planar_roi_measurement_groups()
    other = content.get_image_measurement_groups()
    assert {g.tracking_uid for g in other} == {planar[0].tracking_uid}
    assert len({g.tracking_uid for g in planar}) == len(keys) - len(blank)


SITE = """
[policy]
name = "site-2"
fallback = "MEDIUM"
fallback_words = "PE, not central"
[[policy.rules]]
name = "saddle-side"
priority = "HIGH"
words = "central or both sides"
any_present = ["central_pe"]
[[policy.rules]]
name = "both"
priority = "HIGH"
words = "both sides"
all_present = ["leftsided_pe", "rightsided_pe"]
[report]
key_objects = true
parametric_map = true
narrative = true
burned_in_annotation = true
series_number = 700
institution = "St. Anna"
[report.priority_codes]
HIGH = {value = "RID49480", scheme = "RADLEX", meaning = "ACR Category 1 Actionable Finding"}
MEDIUM = {value = "RID49481", scheme = "RADLEX", meaning = "ACR Category 2 Actionable Finding"}
LOW = {value = "RID49482", scheme = "RADLEX", meaning = "ACR Category 3 Actionable Finding"}
"""


def test_policy_and_settings_from_a_file(scene, tmp_path):
    tables = tomllib.loads(SITE)
    policy = TriagePolicy.from_table(tables["policy"])
    settings = ReportSettings.from_table(tables["report"], policy=policy)
    present = dict.fromkeys(("leftsided_pe", "rightsided_pe"), Decision.PRESENT)
    assert policy.priority_of(present) == (Priority.HIGH, "both sides")
    assert policy.priority_of({}) == (Priority.MEDIUM, "PE, not central")
    assert settings.burned_in_annotation == "YES"
    assert settings.institution_name == "St. Anna"
    scene.settings = settings
    path = tmp_path / "sr.dcm"
    path.write_bytes(scene.report(scene.result(keys=1)).objects[0].encoded)
    document = read_sr(path)
    assert document["policy"] == policy.document()
    assert document["policy"]["name"] == "site-2"
    assert document["priority"] == "HIGH"
    assert document["priority_code"]["value"] == "RID49480"
    assert pydicom.dcmread(path).SeriesNumber == 700


def test_empty_tables_are_the_defaults():
    assert TriagePolicy.from_table({}) == TriagePolicy()
    assert ReportSettings.from_table({}) == ReportSettings()
    TriagePolicy().check()


RULE = {"name": "r", "priority": "HIGH", "words": "w", "any_present": ["central_pe"]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"nmae": "x"}, r"^policy\.nmae: unknown key; known: name"),
        ({"name": 3}, r"^policy\.name: a text was expected, not 3"),
        ({"name": "x", "fallback": "URGENT"}, r"^policy\.fallback: 'URGENT' is none of HIGH, "),
        ({"name": "x", "fallback": "LOW"}, r"^policy\.fallback: LOW would lower every positive"),
        ({"fallback": "HIGH"}, r"^policy\.name: a policy of the site's own needs a name"),
        ({"name": "default-1", "rules": [RULE]}, r"^policy\.name: 'default-1' names the built-in"),
        ({"name": "x", "rules": {}}, r"^policy\.rules: a list of tables"),
        ({"name": "x", "rules": ["high"]}, r"^policy\.rules\[0\]: a table was expected"),
        ({"name": "x", "rules": [RULE, RULE]}, r"^policy\.rules\[1\]\.name: 'r' stands twice"),
        ({"name": "x", "rules": [RULE | {"if": 1}]}, r"^policy\.rules\[0\]\.if: unknown key"),
        (
            {"name": "x", "rules": [RULE | {"any_present": ["centralpe"]}]},
            r"^policy\.rules\[0\]\.any_present: unknown label 'centralpe'",
        ),
        (
            {"name": "x", "rules": [{k: v for k, v in RULE.items() if k != "words"}]},
            r"^policy\.rules\[0\]\.words: is missing",
        ),
        (
            {"name": "x", "rules": [RULE | {"any_present": []}]},
            r"^policy\.rules\[0\]: a rule needs a condition",
        ),
        (
            {"name": "x", "rules": [
                {"name": "r", "priority": "HIGH", "words": "w", "all_absent": ["chronic_pe"]},
            ]},
            r"^policy\.rules: a positive would fall from HIGH to MEDIUM because chronic_pe",
        ),
    ],
)  # fmt: skip
def test_a_bad_policy_is_one_line_that_names_the_key(table, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        TriagePolicy.from_table(table)
    assert "\n" not in str(caught.value)


CODE = {"value": "1", "scheme": "99X", "meaning": "m"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"keyobjects": True}, r"^report\.keyobjects: unknown key; known: narrative"),
        ({"narrative": "yes"}, r"^report\.narrative: true, false or \"unmarked\" was expected"),
        ({"narrative": 1}, r"^report\.narrative: true, false or \"unmarked\" was expected"),
        ({"key_objects": 1}, r"^report\.key_objects: true or false was expected, not 1"),
        ({"series_number": 0}, r"^report\.series_number: a whole number from 1"),
        ({"series_number": True}, r"^report\.series_number: a whole number from 1"),
        ({"institution": "a\\b"}, r"^report\.institution: at most 64 printable"),
        ({"station": "x" * 17}, r"^report\.station: at most 16 printable"),
        ({"priority_codes": {"HIGH": CODE}}, r"^report\.priority_codes\.MEDIUM: is missing"),
        (
            {"priority_codes": dict.fromkeys(("HIGH", "MEDIUM", "LOW", "STAT"), CODE)},
            r"^report\.priority_codes\.STAT: unknown key",
        ),
        (
            {"procedure_reported": {"value": "1", "scheme": "99X"}},
            r"^report\.procedure_reported\.meaning: is missing",
        ),
        (
            {"procedure_reported": CODE | {"value": "x" * 17}},
            r"^report\.procedure_reported\.value: at most 16",
        ),
    ],
)
def test_a_bad_report_table_is_one_line_that_names_the_key(table, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        ReportSettings.from_table(table)
    assert "\n" not in str(caught.value)
