"""Predictions, their files, data, splits, heatmap peaks, subgroups: the parts of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pe_triage.domain import EXAM_LABELS, CtVolume, KeySlice
from pe_triage.errors import InputError, PermanentError
from pe_triage.model.decisions import PE, THRESHOLD_KEYS
from pe_triage.training.evaluate_causes import cause_at, cause_table, trait_table, traits
from pe_triage.training.evaluate_compare import common_exams, comparison_document
from pe_triage.training.evaluate_data import LabelledStudy, read_split
from pe_triage.training.evaluate_gallery import choose_cases
from pe_triage.training.evaluate_localisation import (
    Peak,
    distance_mm,
    judge_peaks,
    load_mask,
    localisation_figures,
)
from pe_triage.training.evaluate_position import position_document, position_scores
from pe_triage.training.evaluate_subgroups import range_name, subgroup_documents
from pe_triage.training.evaluate_tables import (
    label_samples,
    score_document,
    score_parts,
    served_decisions,
)
from pe_triage.training.intervals import Resampler
from pe_triage.training.predictions import Predictions, load_predictions, save_predictions
from pe_triage.training.predictions_submission import from_submission, to_submission
from pe_triage.training.score import challenge_score


def make_table(exams: int = 24, seed: int = 0, *, shift: float = 0.0) -> Predictions:
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 6, exams)
    start = np.concatenate([[0], np.cumsum(counts)])
    slices = int(start[-1])
    return Predictions(
        model={"name": "made up", "version": "1", "sha256": "0" * 64},
        thresholds=dict.fromkeys(THRESHOLD_KEYS, 0.4),
        study_uids=tuple(f"1.2.{s}" for s in range(exams)),
        series_uids=tuple(f"1.3.{s}" for s in range(exams)),
        patient_s=np.arange(exams),
        start_s=start,
        sop_instance_uids=tuple(f"1.4.{k}" for k in range(slices)),
        slice_probability_k=np.clip(rng.random(slices) + shift, 0, 1),
        attention_k=np.full(slices, 0.1),
        exam_sl=rng.random((exams, 9)),
        pe_s=rng.random(exams),
        image_logit_k=rng.normal(size=slices),
        exam_logit_sl=rng.normal(size=(exams, 9)),
        bag_sd=rng.normal(size=(exams, 4)).astype(np.float32),
    )


def make_truth(table: Predictions) -> tuple[np.ndarray, np.ndarray]:
    exam = np.zeros((len(table.study_uids), 9), np.int8)
    exam[::2, 0] = 1
    exam[1::2, 4] = exam[1::2, 8] = 1
    slices = np.zeros(len(table.sop_instance_uids), np.int8)
    for s in range(1, len(exam), 2):
        slices[table.start_s[s]] = 1
    return exam, slices


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = make_table()
    save_predictions(tmp_path / "deep" / "p.npz", table)
    again = load_predictions(tmp_path / "deep" / "p.npz")
    for name in Predictions.__dataclass_fields__:
        first, second = getattr(table, name), getattr(again, name)
        same = np.array_equal(first, second) if isinstance(first, np.ndarray) else first == second
        assert same, name
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["p.npz"]  # no scratch left


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    with pytest.raises(InputError, match="No such file"):
        load_predictions(path)
    for content in (b"", b"PK\x03\x04 nonsense", b"id,label\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="predictions file"):
            load_predictions(path)
    np.savez(path, head=np.array('{"format": "other/1"}'))
    with pytest.raises(InputError, match="format 'other/1'"):
        load_predictions(path)


def test_a_table_that_contradicts_itself_is_refused() -> None:
    table = make_table()
    fields = {name: getattr(table, name) for name in Predictions.__dataclass_fields__}
    with pytest.raises(InputError, match="pe_s has shape"):
        Predictions(**{**fields, "pe_s": np.zeros(3)})
    with pytest.raises(InputError, match="occurs twice"):
        Predictions(**{**fields, "study_uids": ("1.2.0",) * 24})
    with pytest.raises(InputError, match="start_s"):
        Predictions(**{**fields, "start_s": fields["start_s"][::-1].copy()})


def test_select_keeps_slices_with_their_exam() -> None:
    table = make_table()
    part = table.select([5, 2])
    assert part.study_uids == ("1.2.5", "1.2.2")
    assert part.sop_instance_uids[part.slices_of(1)] == table.sop_instance_uids[table.slices_of(2)]
    assert (part.slice_probability_k[part.slices_of(0)]
            == table.slice_probability_k[table.slices_of(5)]).all()  # fmt: skip
    assert part.exam_of_k.tolist() == [0] * (
        len(part.exam_of_k) - int(np.diff(part.start_s)[1])
    ) + [1] * int(np.diff(part.start_s)[1])


def studies_of(table: Predictions) -> list[LabelledStudy]:
    exam, slices = make_truth(table)
    return [
        LabelledStudy(
            study_uid=uid,
            exam_truth=dict(zip(EXAM_LABELS, exam[s].tolist(), strict=True)),
            slice_truth=dict(
                zip(
                    table.sop_instance_uids[table.slices_of(s)],
                    slices[table.slices_of(s)].tolist(),
                    strict=True,
                )
            ),
            files=(),
            detail={"drawn": {"indeterminate_cause": "motion" if s % 4 == 0 else None}},
        )
        for s, uid in enumerate(table.study_uids)
    ]


def test_submission_there_and_back(tmp_path: Path) -> None:
    table = make_table()
    path = tmp_path / "s.csv"
    assert to_submission(path, table) == 24 * 9 + len(table.sop_instance_uids)
    again, skipped = from_submission(path, studies_of(table))
    assert not skipped
    assert again.sop_instance_uids == table.sop_instance_uids
    assert np.allclose(again.exam_sl, table.exam_sl, atol=1e-7)
    assert np.allclose(again.slice_probability_k, table.slice_probability_k, atol=1e-7)
    assert np.allclose(again.pe_s, np.clip(1 - table.exam_sl[:, :2].sum(axis=1), 0, 1), atol=1e-6)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "1.2.3_central_pe" not in line))
    again, skipped = from_submission(path, studies_of(table))
    assert skipped == {"1.2.3": f"1 of {9 + int(np.diff(table.start_s)[3])} rows are not in the "
                       "submission"}  # fmt: skip
    assert len(again.study_uids) == 23


def test_violations_are_counted_by_exam() -> None:
    table = make_table(2)
    table.slice_probability_k[:] = 0.1
    table.exam_sl[:] = 0.2
    table.exam_sl[:, 0] = 0.9
    assert not any(table.violations().values())
    table.exam_sl[1, 1] = 0.8
    broken = table.violations()
    assert broken["exactly one of negative and indeterminate on any other exam"] == 1
    assert sum(broken.values()) == 1


def test_score_parts_add_up_to_the_score() -> None:
    table = make_table()
    exam, slices = make_truth(table)
    parts = score_parts(table, exam, slices)
    assert parts is not None
    spans = [table.slices_of(s) for s in range(24)]
    whole = challenge_score(
        [slices[k] for k in spans], [table.slice_probability_k[k] for k in spans], exam,
        table.exam_sl,
    )  # fmt: skip
    assert parts.total == pytest.approx(whole.total, abs=1e-12)
    found = score_document(table, exam, slices, Resampler(table.patient_s, resamples=200))
    assert found is not None
    assert found["score"]["low"] < found["score"]["value"] < found["score"]["high"]
    slices[0] = -1
    assert score_parts(table, exam, slices) is None


def test_unknown_truth_is_left_out_and_served_decisions_obey() -> None:
    table = make_table()
    exam, slices = make_truth(table)
    exam[3, 4] = -1
    slices[:2] = -1
    samples = label_samples(table, exam, slices, Resampler(table.patient_s, resamples=10))
    assert len(samples["central_pe"].truth_s) == 23
    assert 3 not in samples["central_pe"].index_s
    assert len(samples["pe_present_on_image"].truth_s) == len(slices) - 2
    served = served_decisions(table)
    assert (served[PE] == (table.pe_s > 0.4)).all()
    sites = served["central_pe"] | served["leftsided_pe"] | served["rightsided_pe"]
    assert (sites == served[PE]).all()
    none = served["negative_exam_for_pe"] ^ served["indeterminate"]
    assert (none == ~served[PE]).all()


def test_position_alone_is_the_share_among_other_patients_at_that_height() -> None:
    table = make_table(40)
    counts = np.diff(table.start_s)
    place = np.concatenate([np.arange(n) / n for n in counts])
    slices = (place >= 0.5).astype(np.int8)  # only the upper half ever shows PE
    slices[: counts[0]] = -1
    resampler = Resampler(table.patient_s, resamples=100)
    assert position_document(table, slices, resampler)["value"] > 0.95
    score = position_scores(table, slices, resampler.group_s)
    assert np.isfinite(score).all()
    # by hand: what the others have in the first slice's part of the scan, which is the lowest
    assert score[table.start_s[5]] == 0.0
    # one's own truth has no say: with two patients each is told by the other
    two = table.select([1, 2])
    own = np.zeros(len(two.sop_instance_uids), np.int8)
    own[two.slices_of(0)] = 1
    said = position_scores(two, own, np.array([0, 1]))
    assert np.nanmax(said[two.slices_of(0)]) == 0.0
    assert np.nanmin(said[two.slices_of(1)]) == 1.0
    # one patient alone, or no positive slice: no figure, and no crash
    one = table.select([1])
    alone = Resampler(one.patient_s, resamples=100)
    assert position_document(one, own[: len(one.sop_instance_uids)], alone)["value"] is None
    nothing = np.zeros(len(table.sop_instance_uids), np.int8)
    assert position_document(table, nothing, resampler)["value"] is None


def test_comparison_of_a_model_with_itself_and_with_less() -> None:
    table = make_table()
    exam, slices = make_truth(table)
    fewer = table.select(range(20))
    first, second = common_exams([table, fewer])
    assert first.study_uids == second.study_uids == table.study_uids[:20]
    cut = len(first.sop_instance_uids)
    resampler = Resampler(first.patient_s, resamples=100)
    found = comparison_document(first, second, exam[:20], slices[:cut], resampler)
    assert found["exams"] == 20
    assert all(row["value"] in (0.0, None) for row in found["differences"])
    figures = {(row["label"], row["figure"]): row for row in found["differences"]}
    assert figures[PE, "auc"]["method"] == "DeLong"
    assert figures["pe_present_on_image", "auc"]["method"] == "paired bootstrap"
    assert ("challenge", "score") in figures
    other = make_table()
    with_other_slices = Predictions(
        **{
            **{n: getattr(other, n) for n in Predictions.__dataclass_fields__},
            "sop_instance_uids": tuple(f"9.{u}" for u in other.sop_instance_uids),
        }
    )
    assert common_exams([table, with_other_slices])[0].study_uids == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"train": ["1"], "test": ["2", "3"], "seed": 4}'),
        ("b.json", '{"parts": {"train": ["1"], "test": ["2", "3"]}}'),
        ("c.csv", "StudyInstanceUID,split\n1,train\n2,test\n3,test\n"),
    ],
)
def test_splits_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_split(tmp_path / name) == {"train": {"1"}, "test": {"2", "3"}}


def test_splits_that_leak_or_are_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for text, words in (
        ('{"train": ["1"], "test": ["1"]}', "stands in train and in test"),
        ("{}", "no study in any part"),
        ("{", "not JSON"),
        ("a,b\n1,2\n", "columns study_uid and part"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_split(path)
    path.write_text("1\n2\n")
    assert read_split(path) == {"all": {"1", "2"}}


def make_volume(shape: tuple[int, int, int] = (3, 20, 30)) -> CtVolume:
    hu = np.full(shape, -1000, np.int16)
    hu[:, 2:18, 3:27] = 40
    hu[:, 5:15, 6:12] = -850  # a lung inside counts as body
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = (-30, -20, 7)
    return CtVolume(
        hu_zyx=hu,
        spacing_mm=(5.0, 2.0, 2.0),
        affine_lps=affine,
        sop_instance_uids=tuple(f"1.{z}" for z in range(shape[0])),
        series_uid="1",
    )


def write_mask(path: Path, mask_xyz: np.ndarray, affine_lps: np.ndarray) -> None:
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps
    nib.save(nib.Nifti1Image(mask_xyz.astype(np.uint8), ras), path)


def test_masks_come_into_the_grid_of_the_volume(tmp_path: Path) -> None:
    volume = make_volume()
    mask_zyx = np.zeros(volume.hu_zyx.shape, bool)
    mask_zyx[1, 4:8, 20:24] = True
    write_mask(tmp_path / "m.nii.gz", mask_zyx.transpose(2, 1, 0), volume.affine_lps)
    assert (load_mask(tmp_path / "m.nii.gz", volume) == mask_zyx).all()
    # the same mask stored with x reversed, as other software does
    turned = volume.affine_lps @ np.array(
        [[-1.0, 0, 0, 29], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    write_mask(tmp_path / "t.nii.gz", mask_zyx.transpose(2, 1, 0)[::-1], turned)
    assert (load_mask(tmp_path / "t.nii.gz", volume) == mask_zyx).all()
    (tmp_path / "bad.nii.gz").write_bytes(b"no")
    with pytest.raises(PermanentError, match="NIfTI"):
        load_mask(tmp_path / "bad.nii.gz", volume)


def key(z: int, peak: tuple[float, float], *, empty: bool = False) -> KeySlice:
    heat = np.zeros((2, 2), np.float32)
    heat[0, 0] = 0 if empty else 1
    return KeySlice(
        z=z, sop_instance_uid=f"1.{z}", probability=0.9, attention=0.2, heatmap_yx=heat,
        peak_yx=peak,
    )  # fmt: skip


def test_peaks_and_controls_by_hand() -> None:
    volume = make_volume()
    mask_zyx = np.zeros(volume.hu_zyx.shape, bool)
    mask_zyx[0, 6:8, 20:22] = True
    mask_zyx[1, 6:8, 20:22] = True
    peaks = judge_peaks(
        volume, mask_zyx, [key(0, (6.5, 20.0)), key(1, (6.5, 27.0), empty=True), key(2, (0, 0))]
    )
    assert [p.clot_area_mm2 for p in peaks] == [16.0, 16.0, 0.0]
    assert peaks[0].distance_mm == 0.0
    assert peaks[0].hit
    # from column 27 to the voxel's edge at 21.5: 5.5 columns of 2 mm
    assert peaks[1].distance_mm == pytest.approx(11.0)
    assert not peaks[1].hit
    # image centre (9.5, 14.5): 2 rows below the edge at 7.5, 5 columns before the one at 19.5
    assert peaks[0].centre_distance_mm == pytest.approx(np.hypot(4.0, 10.0))
    assert not peaks[0].centre_hit
    assert 0.1 < peaks[0].chance < 0.6
    assert peaks[2].distance_mm is None
    assert not peaks[2].hit
    assert distance_mm(mask_zyx[0], (6.5, 27.0), (2.0, 2.0)) == pytest.approx(11.0)


def test_localisation_counts_true_positives_only() -> None:
    def peak(distance: float, area: float, probability: float = 0.9) -> Peak:
        return Peak(
            z=0, probability=probability, clot_area_mm2=area,
            distance_mm=distance if area else None, centre_distance_mm=30.0 if area else None,
            chance=0.25, empty=False,
        )  # fmt: skip

    peaks = {s: [peak(5.0, 40.0), peak(15.0, 80.0), peak(0.0, 0.0)] for s in range(8)}
    peaks[8] = [peak(0.0, 40.0, probability=0.1)]  # a slice that was not called
    peaks[9] = [peak(0.0, 40.0)]  # an exam that was not called
    called = np.arange(10) != 9
    found = localisation_figures(peaks, called, 0.5, Resampler(np.arange(10), resamples=100))
    assert (found["all"]["slices"], found["all"]["exams"]) == (16, 8)
    assert found["all"]["heatmap"]["value"] == 0.5
    assert found["small"]["heatmap"]["value"] == 1.0
    assert found["large"]["heatmap"]["value"] == 0.0
    assert found["all"]["image_centre"]["value"] == 0.0
    assert found["all"]["chance"]["value"] == 0.25


def test_subgroups_and_causes() -> None:
    table = make_table(40)
    exam, slices = make_truth(table)
    resampler = Resampler(table.patient_s, resamples=100)
    sample = label_samples(table, exam, slices, resampler)[PE]
    studies = studies_of(table)
    facts = [
        {"manufacturer": "A" if s < 30 else None, "spacing_z_mm": 2.0, "slice_thickness_mm": 1.5}
        for s in range(40)
    ]
    called = table.pe_s > 0.4
    found = subgroup_documents(sample, studies, facts, called, resampler)
    by_maker = {row["part"]: row for row in found["scan"]["manufacturer"]}
    assert by_maker["A"]["exams"] == 30
    assert by_maker["not stated"]["positives"] == 5
    assert [row["part"] for row in found["scan"]["slice thickness"]] == ["1.5 to < 2.5 mm"]
    false = {row["trait"]: row for row in trait_table(sample, studies, called, resampler)}
    assert false["all"]["exams_without_pe"] == 20
    assert false["all"]["false_positives"] == int(called[::2].sum())
    assert false["indeterminate cause: motion"]["exams_without_pe"] == 10
    assert false["none of these"]["exams_without_pe"] == 10
    assert found["clot"] == {}
    assert range_name(3.5, (0.0, 1.0, 3.5), "mm") == "≥ 3.5 mm"


def test_traits_are_what_the_truth_says() -> None:
    study = studies_of(make_table(1))[0]
    drawn = {
        "status": "negative", "sex": "F", "noise_hu": 12.0, "flow_artefact": True,
        "effusion": False,
        "mimics": [{"cause": "lymph node"}, {"cause": "vein"}], "clots": [{"kind": "web"}],
        "effects": {"kernel": "soft", "noise_level_hu": 5.0, "lungs": [{"kind": "effusion"}]},
    }  # fmt: skip
    labelled = LabelledStudy(
        study_uid="1",
        exam_truth=study.exam_truth,
        slice_truth={},
        files=(),
        detail={"drawn": drawn},
    )
    assert traits(labelled) == {
        "flow artefact", "mimics: lymph node", "mimics: vein", "kernel: soft", "lungs: effusion"
    }  # fmt: skip


MIMICS = [
    {"cause": "lymph node", "centre_lps_mm": [0, 0, 0], "radius_mm": 5.0},
    {"cause": "mucus plug", "centre_lps_mm": [30, 0, 0], "radius_mm": 3.0},
    {"cause": "interrupted bolus", "foot_mm": 20.0, "head_mm": 40.0},
    {"cause": "streaks", "centre_lps_mm": [0, 0, 60], "radius_mm": 25.0, "foot_mm": 50.0,
     "head_mm": 70.0},
]  # fmt: skip


@pytest.mark.parametrize(
    ("point", "cause"),
    [
        ((0, 14.9, 0), "lymph node"),
        ((0, 15.1, 0), "nothing drawn there"),
        ((22, 0, 0), "mucus plug"),
        ((99, 0, 30), "interrupted bolus"),
        ((20, 0, 55), "streaks"),
        ((30, 0, 55), "nothing drawn there"),
    ],
)
def test_a_cause_is_what_lies_there(point: tuple[float, float, float], cause: str) -> None:
    assert cause_at(point, MIMICS) == cause


def test_causes_stand_beside_their_control() -> None:
    table = make_table(40)
    exam, slices = make_truth(table)
    resampler = Resampler(table.patient_s, resamples=100)
    sample = label_samples(table, exam, slices, resampler)[PE]
    studies = [
        LabelledStudy(study_uid=s.study_uid, exam_truth=s.exam_truth, slice_truth={}, files=(),
                      detail={"drawn": {"mimics": MIMICS}})
        for s in studies_of(table)
    ]  # fmt: skip
    called = np.zeros(40, bool)
    called[:16] = True  # eight of twenty exams without PE
    pointed = {s: (0.0, 0.0, 0.0) if s < 12 else (200.0, 0.0, 0.0) for s in range(40)}
    rows = {r["cause"]: r for r in cause_table(sample, studies, called, pointed, resampler)}
    assert rows["lymph node"]["false_positives"] == 6
    assert rows["lymph node"]["share_of_false_positives"]["value"] == 0.75
    assert rows["lymph node"]["share_of_all_without_pe"]["value"] == 0.3
    assert rows["nothing drawn there"]["false_positives"] == 2
    assert cause_table(sample, studies, called, {}, resampler) == []


def test_the_worst_stand_first() -> None:
    truth = np.array([1, 1, 1, 0, 0, 0], np.int8)
    pe = np.array([0.3, 0.1, 0.9, 0.7, 0.95, 0.2])
    chosen = choose_cases(truth, pe, pe > 0.5, 2)
    assert chosen == {
        "false_negative": [1, 0],
        "false_positive": [4, 3],
        "true_positive": [2],
        "true_negative": [5],
    }


def test_published_rows_are_json() -> None:
    from pe_triage.training.evaluate_seeds import PUBLISHED

    rows = [row.to_json() for row in PUBLISHED]
    assert json.loads(json.dumps(rows)) == rows
    by_spec = {row["spec"]: row["figures"] for row in rows if row["unit"] == "slice"}
    assert by_spec["r3d18-tcn"]["auc"] == 0.9213
    assert by_spec["effnet-lstm"]["f1"] == 0.4012
