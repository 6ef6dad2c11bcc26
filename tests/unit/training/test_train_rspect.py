"""RSPECT's table and files: what is read, and what is named, counted and skipped."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.imaging.facts import read_instance
from pe_triage.imaging.volume import load_volume
from pe_triage.training.make_tree import main, make_tree
from pe_triage.training.problems import PROBLEM_CODES, count_problems
from pe_triage.training.rspect import COLUMNS, RspectIndex, read_rspect
from pe_triage.training.volumes import BadExamError, load_exam
from tests.support.rspect import small_tree

Row = dict[str, str]
NEGATIVE = {"negative_exam_for_pe": "1"}
POSITIVE = {"central_pe": "1", "rv_lv_ratio_lt_1": "1"}


def rows_of(study: str, labels: Row, pe: str, series: str = "S") -> list[Row]:
    base = dict.fromkeys(COLUMNS, "0") | labels
    return [
        base
        | {
            "StudyInstanceUID": study,
            "SeriesInstanceUID": series,
            "SOPInstanceUID": f"{study}{k}",
            "pe_present_on_image": bit,
        }
        for k, bit in enumerate(pe)
    ]


def write(root: Path, rows: list[Row], columns: tuple[str, ...] = COLUMNS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return root


def read(root: Path, rows: list[Row]) -> RspectIndex:
    good = rows_of("good", NEGATIVE, "000")
    return read_rspect(write(root, [*good, *rows]), check_files=False)


def test_a_table_is_read_in_its_own_order(tmp_path: Path) -> None:
    rows = [*rows_of("b", POSITIVE, "0110"), *rows_of("a", NEGATIVE, "00")]
    rows[0], rows[2] = rows[2], rows[0]
    index = read_rspect(write(tmp_path, rows), check_files=False)
    assert [e.study_uid for e in index.exams] == ["a", "b"]
    b = index.exams[1]
    assert b.sop_instance_uids == ("b2", "b1", "b0", "b3")
    assert b.image_pe.tolist() == [1, 1, 0, 0]
    assert b.positive
    assert not index.exams[0].positive
    assert b.exam_vector.tolist() == [float(label in POSITIVE) for label in EXAM_LABELS]
    assert b.path_of("b2") == tmp_path / "train" / "b" / "S" / "b2.dcm"
    assert (index.images, index.problems) == (6, ())


def test_columns_may_stand_in_any_order_and_rows_of_exams_may_mix(tmp_path: Path) -> None:
    a, b = rows_of("a", NEGATIVE, "00"), rows_of("b", POSITIVE, "01")
    mixed = [a[0], b[0], a[1], b[1]]
    index = read_rspect(write(tmp_path, mixed, tuple(reversed(COLUMNS))), check_files=False)
    assert [len(e.sop_instance_uids) for e in index.exams] == [2, 2]
    assert not index.problems


def change(rows: list[Row], k: int, **values: str) -> list[Row]:
    rows[k] = rows[k] | values
    return rows


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("bad-value", lambda: change(rows_of("x", NEGATIVE, "000"), 1, central_pe="2")),
        ("bad-value", lambda: change(rows_of("x", NEGATIVE, "000"), 0, pe_present_on_image="")),
        ("contradictory-labels", lambda: change(rows_of("x", NEGATIVE, "000"), 2, qa_motion="1")),
        ("several-series", lambda: change(rows_of("x", NEGATIVE, "00"), 1, SeriesInstanceUID="T")),
        (
            "duplicate-instance",
            lambda: change(rows_of("x", NEGATIVE, "00"), 1, SOPInstanceUID="x0"),
        ),
        (
            "malformed-row",
            lambda: change(rows_of("x", NEGATIVE, "00"), 1, SOPInstanceUID="../../y"),
        ),
        ("malformed-row", lambda: change(rows_of("x", NEGATIVE, "00"), 1, SOPInstanceUID="")),
        ("image-positive-in-negative-exam", lambda: rows_of("x", NEGATIVE, "010")),
        ("image-positive-in-negative-exam", lambda: rows_of("x", {"indeterminate": "1"}, "1")),
        ("no-positive-image-in-positive-exam", lambda: rows_of("x", POSITIVE, "000")),
        ("rule-violation", lambda: rows_of("x", {"central_pe": "1"}, "1")),
        ("rule-violation", lambda: rows_of("x", NEGATIVE | {"indeterminate": "1"}, "0")),
        ("rule-violation", lambda: rows_of("x", NEGATIVE | {"rv_lv_ratio_lt_1": "1"}, "0")),
        (
            "rule-violation",
            lambda: rows_of("x", POSITIVE | {"chronic_pe": "1", "acute_and_chronic_pe": "1"}, "1"),
        ),
    ],
)
def test_an_exam_with_bad_labels_is_named_counted_and_skipped(
    tmp_path: Path, code: str, make: Callable[[], list[Row]]
) -> None:
    index = read(tmp_path, make())
    assert [e.study_uid for e in index.exams] == ["good"]
    found = [p for p in index.problems if p.code == code]
    assert found, index.problems
    assert found[0].study_uid == "x"
    assert code in str(found[0])
    assert count_problems(index.problems)[code] >= 1
    with pytest.raises(InputError, match=rf"bad training data.*{code} 1"):
        read_rspect(tmp_path, on_bad="fail", check_files=False)


def test_a_row_cut_short_costs_its_exam(tmp_path: Path) -> None:
    root = write(tmp_path, [*rows_of("good", NEGATIVE, "0"), *rows_of("x", NEGATIVE, "00")])
    text = (root / "train.csv").read_text()
    (root / "train.csv").write_text(text.rstrip()[:-6])
    index = read_rspect(root, check_files=False)
    assert [e.study_uid for e in index.exams] == ["good"]
    assert index.problems[0].code == "malformed-row"


def test_unknown_columns_are_told_and_ignored_missing_ones_refused(tmp_path: Path) -> None:
    rows = rows_of("a", NEGATIVE, "0")
    index = read_rspect(write(tmp_path, rows, (*COLUMNS, "extra")), check_files=False)
    assert [p.code for p in index.problems] == ["unknown-column"]
    assert len(index.exams) == 1
    write(tmp_path, rows, COLUMNS[:-1])
    with pytest.raises(InputError, match="columns missing: indeterminate"):
        read_rspect(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_rspect(tmp_path / "absent")
    write(tmp_path, rows_of("x", POSITIVE, "000"))
    with pytest.raises(InputError, match="no usable exam"):
        read_rspect(tmp_path, check_files=False)


def test_a_table_of_two_hundred_thousand_rows_is_read_whole(tmp_path: Path) -> None:
    line = ",".join(["0"] * 14)
    at = COLUMNS.index("negative_exam_for_pe") - 3
    values = line.split(",")
    values[at] = "1"
    tail = ",".join(values)
    with (tmp_path / "train.csv").open("w") as file:
        file.write(",".join(COLUMNS) + "\n")
        for k in range(200_000):
            file.write(f"study{k // 250:05d},series,{k:012x},{tail}\n")
    index = read_rspect(tmp_path, check_files=False)
    assert len(index.exams) == 800
    assert index.images == 200_000
    assert not index.problems


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory.mktemp("rspect"), 3)


def copy_of(tree: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(tree, to / "tree")
    return to / "tree"


def test_missing_and_unlisted_files_are_named(tree: Path, tmp_path: Path) -> None:
    root = copy_of(tree, tmp_path)
    first, second, third = read_rspect(root).exams
    first.path_of(first.sop_instance_uids[0]).unlink()
    (second.directory / "other.dcm").write_bytes(b"")
    third.directory.rename(third.directory.with_name("elsewhere"))
    index = read_rspect(root)
    assert [e.study_uid for e in index.exams] == [second.study_uid]
    assert count_problems(index.problems) == {
        "missing-directory": 1,
        "missing-file": 1,
        "unlisted-file": 1,
    }
    assert set(count_problems(index.problems)) <= set(PROBLEM_CODES)


def test_the_volume_of_an_exam_is_the_one_that_is_served(tree: Path) -> None:
    """Training and serving take the same way, so the same voxels come out."""
    exam = read_rspect(tree).exams[0]
    loaded = load_exam(exam)
    from datetime import UTC, datetime

    from pe_triage.domain import ReceivedInstance

    instances = []
    for uid in exam.sop_instance_uids:
        record = read_instance(exam.path_of(uid))
        instances.append(
            ReceivedInstance(
                study_uid=record.study_uid,
                series_uid=record.series_uid,
                sop_instance_uid=record.sop_instance_uid,
                sop_class_uid=record.sop_class_uid,
                transfer_syntax_uid=record.transfer_syntax_uid,
                identity=record.identity,
                sha256="",
                size_bytes=0,
                path=exam.path_of(uid),
                received_at=datetime.now(UTC),
                calling_aet="",
                facts=record.facts,
            )
        )
    served = load_volume(instances)
    np.testing.assert_array_equal(loaded.volume.hu_zyx, served.hu_zyx)
    np.testing.assert_array_equal(loaded.volume.affine_lps, served.affine_lps)
    assert loaded.volume.sop_instance_uids == served.sop_instance_uids
    assert loaded.volume.quality_control
    truth = dict(zip(exam.sop_instance_uids, exam.image_pe.tolist(), strict=True))
    assert loaded.image_pe_z.tolist() == [truth[uid] for uid in served.sop_instance_uids]


def test_hexadecimal_names_in_place_of_uids_are_read(tree: Path, tmp_path: Path) -> None:
    """As RSPECT has them: neither UIDs nor, in some files, a SOP Class or a Patient ID."""
    exam = read_rspect(tree).exams[0]
    rows = []
    folder = tmp_path / "train" / "00268ff88746" / "75d23269adbd"
    folder.mkdir(parents=True)
    for k, uid in enumerate(exam.sop_instance_uids):
        name = f"{k:012x}"
        ds = pydicom.dcmread(exam.path_of(uid))
        with pydicom.config.disable_value_validation():
            ds.StudyInstanceUID, ds.SeriesInstanceUID = "00268ff88746", "75d23269adbd"
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = name
            ds.FrameOfReferenceUID = "0aa11bb22cc3"
            for keyword in ("SOPClassUID", "PatientID", "PatientName"):
                delattr(ds, keyword)
            ds.save_as(folder / f"{name}.dcm")
        labels = {key: str(value) for key, value in exam.labels.items()}
        row = rows_of("00268ff88746", labels, str(exam.image_pe[k]), "75d23269adbd")[0]
        rows.append(row | {"SOPInstanceUID": name})
    index = read_rspect(write(tmp_path, rows))
    loaded = load_exam(index.exams[0])
    assert not index.problems
    np.testing.assert_array_equal(loaded.volume.hu_zyx, load_exam(exam).volume.hu_zyx)
    assert loaded.patient_id == ""


@pytest.mark.parametrize("harm", ["cut", "text", "swap", "gap"])
def test_a_bad_file_is_named_by_its_code(tree: Path, tmp_path: Path, harm: str) -> None:
    root = copy_of(tree, tmp_path)
    exam = read_rspect(root).exams[0]
    path = exam.path_of(sorted(exam.sop_instance_uids)[4])
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif harm == "text":
        path.write_text("not a DICOM file")
    elif harm == "swap":
        other = exam.path_of(sorted(exam.sop_instance_uids)[5])
        path.write_bytes(other.read_bytes())
    else:
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) + 7.5
        ds.save_as(path)
    codes = {"swap": "wrong-identity", "gap": "irregular-stack"}
    with pytest.raises(BadExamError) as caught:
        load_exam(exam)
    assert caught.value.code == codes.get(harm, "unreadable-file")
    assert "PHANTOM" not in str(caught.value)


def test_a_tree_is_made_by_a_command_and_never_over_another(tree: Path, tmp_path: Path) -> None:
    phantoms = tree.parent / "phantoms"
    done = CliRunner().invoke(main, [str(phantoms), "--out", str(tmp_path / "t")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "t" / "train.csv").read_text() == (tree / "train.csv").read_text()
    with pytest.raises(InputError, match="exists already"):
        make_tree(phantoms, tmp_path / "t")
    with pytest.raises(InputError, match="phantom"):
        make_tree(tmp_path, tmp_path / "u")
