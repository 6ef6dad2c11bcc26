from __future__ import annotations

import random
from dataclasses import fields

import pytest

from pe_triage.assemble.eligibility import (
    MEASURE_RULES,
    SERIES_RULES,
    EligibilityRules,
    choose_series,
    judge_measures,
    judge_series,
)
from pe_triage.assemble.kernels import LUNG_OR_BONE_KERNELS, Sharpness, sharpness
from pe_triage.domain import PatientIdentity, ReceivedInstance, VolumeMeasures
from pe_triage.errors import ConfigurationError
from pe_triage.imaging.facts import read_instance

RULES = EligibilityRules()
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def judge(instances, rules=RULES):
    return judge_series(instances, rules)


def test_a_ctpa_is_eligible(ct_series):
    verdict = judge(ct_series())
    assert verdict.eligible
    assert verdict.rule is None
    assert verdict.slices == 200


# Header change; rule that refuses; words that name the value found.
CASES = [
    ({"slice_thickness_mm": 8.0}, "slice_thickness", "slice thickness 8.0 mm > 3.0 mm"),
    ({"slice_thickness_mm": 3.1}, "slice_thickness", "slice thickness 3.1 mm > 3.0 mm"),
    ({"slice_thickness_mm": None}, "slice_thickness_missing", "missing on 200 of 200 images"),
    ({"slice_thickness_mm": 0.0}, "slice_thickness_missing", "missing on 200 of 200"),
    ({"modality": "MR"}, "modality", "modality is MR, not CT"),
    ({"modality": None}, "modality", "modality is missing, not CT"),
    (
        {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2.1", "frames_problem": "nothing described"},
        "functional_groups",
        "the frames of the Enhanced CT image cannot be told: nothing described",
    ),
    ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}, "storage_class", "no CT"),
    ({"number_of_frames": 12}, "multi_frame", "12 frames each"),
    ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "localizer", "image type LOCALIZER"),
    (
        {"image_type": ("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE")},
        "image_type",
        r"image type is DERIVED\SECONDARY\REFORMATTED\AVERAGE, not ORIGINAL\PRIMARY\AXIAL",
    ),
    ({"image_type": ()}, "image_type", "image type is missing"),
    ({"image_type": ("ORIGINAL",)}, "image_type", "image type is ORIGINAL,"),
    ({"image_type": ("ORIGINAL", "SECONDARY", "AXIAL")}, "image_type", r"ORIGINAL\SECONDARY"),
    ({"image_type": ("ORIGINAL", "PRIMARY", "CSA")}, "image_type", r"ORIGINAL\PRIMARY\CSA"),
    ({"image_type": ("ORIGINAL", "PRIMARY", "AXIAL", "MIP")}, "image_type", "MIP"),
    ({"series_description": "Thorax MIP 1.0"}, "derived", "says MIP"),
    ({"series_description": "MonoE 40 keV"}, "derived", "says MONOE 40 KEV"),
    ({"series_description": "Iodine map"}, "derived", "says IODINE"),
    ({"image_orientation": CORONAL}, "not_axial", "slices are coronal, not axial"),
    ({"image_orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, "not_axial", "sagittal"),
    ({"gantry_tilt_deg": -12.0}, "gantry_tilt", "gantry tilt 12.0 degrees"),
    ({"image_position_mm": None}, "geometry_missing", "image position (0020,0032) is missing"),
    ({"image_orientation": None}, "geometry_missing", "image orientation (0020,0037) is missing"),
    ({"pixel_spacing_mm": None}, "geometry_missing", "pixel spacing (0028,0030) is missing"),
    ({"rows": None}, "geometry_missing", "image size"),
    ({"pixel_spacing_mm": (0.2, 0.2)}, "pixel_spacing", "0.20 mm is outside"),
    ({"pixel_spacing_mm": (2.5, 2.5)}, "pixel_spacing", "2.50 mm is outside"),
    ({"rows": 128, "columns": 128}, "matrix", "128 x 128 < 256 x 256"),
    ({"rescale_slope": None}, "rescale_missing", "missing on 200 of 200"),
    ({"rescale_intercept": None}, "rescale_missing", "missing on 200 of 200"),
    ({"kernel": ("B70f",)}, "kernel", "kernel B70f is a lung or bone kernel"),
    ({"kernel": ("LUNG",)}, "kernel", "kernel LUNG"),
    ({"kernel": ("Br64d", "3")}, "kernel", "kernel Br64d"),
    ({"patient_age_years": 12.0}, "age", "age 12 years < 18"),
    ({"patient_age_years": 0.5}, "age", "age 0 years < 18"),
]


@pytest.mark.parametrize(("change", "rule", "words"), CASES)
def test_each_header_case_has_its_rule_and_value(ct_series, change, rule, words):
    verdict = judge(ct_series(**change))
    assert not verdict.eligible
    assert verdict.rule == rule
    assert words in (verdict.reason or "")
    assert "P1" not in (verdict.reason or "")


@pytest.mark.parametrize(
    "change",
    [
        {"slice_thickness_mm": 3.0},
        {"patient_age_years": None},
        {"patient_age_years": 18.0},
        {"kernel": ()},
        {"kernel": ("B30f",)},
        {"kernel": ("FC08",)},
        {"gantry_tilt_deg": None},
        {"series_description": None},
        {"series_description": "CTPA bolus tracking 1.0"},
        {"series_description": "Low dose CTPA"},
        {"series_description": "CTPA cor 2.0"},
        {"series_description": "CTPA after scout, pilot study"},
        {"image_type": ("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI")},
        {"image_type": ("ORIGINAL", "PRIMARY")},
        {"body_part": "ABDOMEN"},
        {"contrast_agent": None},
        {"frame_of_reference_uid": None},
    ],
)
def test_what_must_not_refuse(ct_series, change):
    verdict = judge(ct_series(**change))
    assert verdict.eligible, verdict.reason


def test_geometry_cases(ct_series):
    def rule(instances):
        verdict = judge(instances)
        return verdict.rule, verdict.reason

    assert rule(ct_series(30)) == ("slices", "30 slices < 40")
    assert rule(ct_series(60)) == ("coverage", "slices cover 75 mm < 140 mm of the chest")
    assert rule(ct_series(step_mm=4)) == (
        "slice_spacing",
        "slices are 4.00 mm apart, outside 0.2 to 3.0 mm",
    )
    name, reason = rule(ct_series(skip=(77,)))
    assert name == "gap"
    assert "slices are missing: 1 gap(s), the largest 2.5 mm" in reason
    tilted = ct_series(
        each=lambda z: {"image_position_mm": (0.0, 0.3 * z, 1.25 * z)}  # 13.5 degrees
    )
    assert "gantry tilt" in rule(tilted)[1]
    mixed = ct_series(each=lambda z: {"image_orientation": CORONAL} if z == 50 else {})
    assert "oriented differently" in rule(mixed)[1]
    sizes = ct_series(each=lambda z: {"rows": 256} if z == 50 else {})
    assert "256 x 512 and 512 x 512" in rule(sizes)[1]
    # All images at one position, as bolus tracking makes them.
    still = ct_series(each=lambda z: {"image_position_mm": (0.0, 0.0, 40.0)})
    assert rule(still)[0] == "time_series"
    assert "200 images lie at 1 position(s)" in rule(still)[1]
    scout = ct_series(2, series_description="SCOUT_chest")
    assert rule(scout) == ("localizer", "localizer: series description says SCOUT")
    tracking = ct_series(30, series_description="PreMonitoring", step_mm=0)
    assert rule(tracking)[0] == "bolus_tracking"
    two = ct_series(each=lambda z: {"identity": PatientIdentity(patient_id=f"P{z % 2}")})
    assert rule(two) == ("several_owners", "the series holds images of several patients")


@pytest.mark.parametrize("missing", range(1, 119))
def test_each_interior_slice_is_missed(ct_series, missing):
    assert judge(ct_series(120, skip=(missing,))).rule == "gap"


def test_the_order_of_instances_does_not_matter(ct_series):
    instances = ct_series(skip=(9,))
    expected = judge(instances)
    for seed in range(5):
        random.Random(seed).shuffle(instances)
        assert judge(instances) == expected
    with pytest.raises(ValueError, match="exactly one series"):
        judge([])


def test_rule_names_are_unique_and_words_take_their_values():
    names = [r.name for r in (*SERIES_RULES, *MEASURE_RULES)]
    assert len(set(names)) == len(names)


def test_a_site_may_loosen_rules(ct_series):
    loose = EligibilityRules.from_table(
        {"max_slice_thickness_mm": 5, "allow_lung_kernel": True, "min_slices": 20}
    )
    series = ct_series(slice_thickness_mm=5.0, kernel=("B70f",))
    assert judge(series, loose).eligible
    assert loose.max_slice_thickness_mm == 5.0


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"max_slice": 3}, "eligibility.max_slice: unknown key"),
        ({"min_slices": "many"}, "eligibility.min_slices: a number"),
        ({"min_slices": 2.5}, "eligibility.min_slices: a whole number"),
        ({"min_slices": True}, "eligibility.min_slices: a number"),
        ({"max_slice_thickness_mm": -1}, "eligibility.max_slice_thickness_mm: -1 is out of range"),
        ({"max_slice_thickness_mm": float("nan")}, "out of range"),
        ({"allow_derived": 1}, "eligibility.allow_derived: true or false"),
        ({"lung_or_bone_kernels": "B70f"}, "a list of text"),
        ({"lung_or_bone_kernels": ["("]}, "no pattern"),
    ],
)
def test_wrong_settings_name_their_key(table, words):
    with pytest.raises(ConfigurationError) as caught:
        EligibilityRules.from_table(table)
    assert words in str(caught.value)


def test_every_rule_setting_has_a_default_and_is_described():
    for field in fields(EligibilityRules):
        assert field.name in (EligibilityRules.__doc__ or "")
        assert EligibilityRules.from_table({field.name: field.default}) == RULES


@pytest.mark.parametrize(
    ("kernel", "want"),
    [
        ("B70f", Sharpness.SHARP),
        ("B60s", Sharpness.SHARP),
        ("Bl57d", Sharpness.SHARP),
        ("Br64", Sharpness.SHARP),
        ("BONEPLUS", Sharpness.SHARP),
        ("lung", Sharpness.SHARP),
        ("YC", Sharpness.SHARP),
        ("FC51", Sharpness.SHARP),
        ("B40f", Sharpness.SOFT),
        ("I30f", Sharpness.SOFT),
        ("Bv36", Sharpness.SOFT),
        ("Br40d", Sharpness.SOFT),
        ("STANDARD", Sharpness.SOFT),
        ("B", Sharpness.SOFT),
        ("FC08", Sharpness.SOFT),
        ("", Sharpness.UNKNOWN),
        ("PE-TRIAGE", Sharpness.UNKNOWN),
    ],
)
def test_kernels_of_the_vendors(kernel, want):
    assert sharpness((kernel,), LUNG_OR_BONE_KERNELS) is want


def test_the_best_series_is_chosen(ct_series):
    good = judge(ct_series(series="1.1"))
    thicker = judge(ct_series(series="1.2", slice_thickness_mm=2.5))
    shorter = judge(ct_series(150, series="1.3"))
    unknown = judge(ct_series(series="1.4", kernel=()))
    late = judge(ct_series(series="1.5", series_description="venous 1.25"))
    scout = judge(ct_series(2, series="1.6", series_description="scout"))
    every = [scout, late, unknown, shorter, thicker, good]
    choice = choose_series(every)
    assert choice.series_uid == "1.1"
    assert choice.reason == (
        "best of 5 eligible series: 250 mm covered (the next: 188 mm covered), 200 slices"
    )
    assert len(choice.verdicts) == 6
    for seed in range(5):
        random.Random(seed).shuffle(every)
        assert choose_series(every) == choice


def test_when_the_pixels_refuse_the_best_the_next_is_chosen(ct_series):
    choice = choose_series(
        [judge(ct_series(series="1.1")), judge(ct_series(series="1.2", slice_thickness_mm=2.0))]
    )
    assert choice.series_uid == "1.1"
    choice = choice.refused("1.1", "contrast", "too little contrast")
    assert choice.series_uid == "1.2"
    choice = choice.refused("1.2", "slices", "20 slices < 40")
    assert choice.series_uid is None
    assert choice.reason == "too little contrast (closest of 2 series)"


def test_a_tie_is_refused_in_words(ct_series):
    choice = choose_series([judge(ct_series(series="1.1")), judge(ct_series(series="1.2"))])
    assert choice.series_uid is None
    assert choice.reason == "2 series are equally suitable: which one is the CTPA cannot be told"


def test_without_an_eligible_series_the_closest_gives_the_reason(ct_series):
    thick = judge(ct_series(40, series="1.1", step_mm=8, slice_thickness_mm=8.0))
    scout = judge(ct_series(2, series="1.2", series_description="scout"))
    assert choose_series([scout, thick]).reason == (
        "slice thickness 8.0 mm > 3.0 mm (closest of 2 series)"
    )
    assert choose_series([thick]).reason == "slice thickness 8.0 mm > 3.0 mm"
    assert choose_series([]).reason == "the study holds no CT images"


GOOD = {"air_hu": -1000.0, "vessel_hu": 300.0, "lung_fraction": 0.3, "lung_extent_mm": 220.0}


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        ({"vessel_hu": 48.0}, "contrast", "mediastinal vessels: 48 HU < 100 HU"),
        ({"vessel_hu": None}, "vessels_missing", "mediastinum was not found"),
        ({"air_hu": 24.0}, "air", "air measures 24 HU, not about -1000 HU"),
        ({"air_hu": -2024.0}, "air", "air measures -2024 HU"),
        ({"air_hu": None}, "air_missing", "no air was found"),
        ({"lung_extent_mm": 20.0}, "lung_extent", "over 20 mm < 80 mm"),
        ({"lung_fraction": 0.01}, "lung_fraction", "1 % of the chest < 8 %"),
    ],
)
def test_pixel_rules(change, rule, words):
    refusal = judge_measures(VolumeMeasures(**(GOOD | change)), RULES)
    assert refusal is not None
    assert refusal[0] == rule
    assert words in refusal[1]


def test_plausible_pixels_pass():
    assert judge_measures(VolumeMeasures(**GOOD), RULES) is None
    assert judge_measures(VolumeMeasures(**(GOOD | {"air_hu": -1024.0})), RULES) is None


def received(path):
    record = read_instance(path)
    names = ("study_uid", "series_uid", "sop_instance_uid", "sop_class_uid",
             "transfer_syntax_uid", "identity", "facts")  # fmt: skip
    from datetime import UTC, datetime

    return ReceivedInstance(
        **{name: getattr(record, name) for name in names},
        sha256="0",
        size_bytes=1,
        path=path,
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
        calling_aet="CT1",
    )


@pytest.mark.parametrize(
    ("folder", "slices", "reason"),
    [
        ("chest_siemens_b40f", 30, "slice thickness 8.0 mm > 3.0 mm"),
        ("chest_siemens_b70f", 30, "slice thickness 8.0 mm > 3.0 mm"),
        ("chest_philips_b", 64, "slice thickness 5.0 mm > 3.0 mm"),
    ],
)
def test_real_chests_are_refused_for_the_right_reason(real_ct, folder, slices, reason):
    verdict = judge([received(p) for p in sorted((real_ct / folder).glob("*.dcm"))])
    assert (verdict.eligible, verdict.slices, verdict.reason) == (False, slices, reason)


def test_a_soft_kernel_is_preferred_to_a_lung_kernel_on_real_headers(real_ct):
    loose = EligibilityRules(
        max_slice_thickness_mm=10, max_slice_spacing_mm=10, min_slices=10, allow_lung_kernel=True
    )
    verdicts = [
        judge([received(p) for p in (real_ct / name).glob("*.dcm")], loose)
        for name in ("chest_siemens_b70f", "chest_siemens_b40f")
    ]
    assert all(v.eligible for v in verdicts)
    assert choose_series(verdicts).series_uid == verdicts[1].series_uid


def test_real_reformats_are_never_eligible(real_ct):
    everything = EligibilityRules(
        max_slice_thickness_mm=10, min_slices=1, min_coverage_mm=0, min_slice_spacing_mm=0
    )
    derived_too = EligibilityRules(
        max_slice_thickness_mm=10,
        min_slices=1,
        min_coverage_mm=0,
        min_slice_spacing_mm=0,
        allow_derived=True,
    )
    folder = real_ct / "ctpa_single_images"
    for path in sorted(folder.glob("*.dcm")):
        verdict = judge([received(path)], everything)
        assert verdict.eligible is ("_axial_" in path.name), verdict.reason
        if "_axial_" not in path.name:
            assert verdict.rule == "image_type"
            assert judge([received(path)], derived_too).rule == "not_axial"
