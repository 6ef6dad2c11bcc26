"""The repair of other models' outputs, and the check that counts violations in a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.model.consistency import RULES, count_violations
from pe_triage.training.check_rules import main
from pe_triage.training.predictions import Predictions, save_predictions
from pe_triage.training.repair import ABOVE, repair
from pe_triage.training.submission import check_submission, read_submission, write_submission

edge = st.sampled_from([0.0, 0.25, 0.5, np.nextafter(0.5, 1), 0.6, 1.0])
probability = st.one_of(edge, st.floats(0, 1))


@settings(max_examples=400)
@given(st.lists(probability, min_size=1, max_size=5), st.lists(probability, min_size=9, max_size=9))
def test_what_is_repaired_obeys(image: list[float], exam: list[float]) -> None:
    fixed_image, fixed_exam = repair(image, exam)
    assert not any(count_violations(fixed_image, fixed_exam).values())
    moved = np.concatenate([fixed_image, fixed_exam]) - np.array([*image, *exam])
    landed = np.concatenate([fixed_image, fixed_exam])[moved != 0]
    assert set(landed.tolist()) <= {0.5, ABOVE}


def test_many_random_exams_obey_after_repair_and_few_did_before() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(2000):
        image, exam = rng.random(4) ** 2, rng.random(9)
        wrong += any(count_violations(image, exam).values())
        assert not any(count_violations(*repair(image, exam)).values())
    assert wrong > 1500


def test_an_exam_that_obeys_is_left_alone() -> None:
    exam = np.zeros(9)
    exam[EXAM_LABELS.index("negative_exam_for_pe")] = 0.9
    image, fixed = repair([0.2, 0.5], exam)
    np.testing.assert_array_equal(fixed, exam)
    np.testing.assert_array_equal(image, [0.2, 0.5])


def test_one_hot_slice_in_a_clear_negative_is_lowered() -> None:
    exam = np.full(9, 0.02)
    exam[0] = 0.95
    image, fixed = repair([0.1, 0.55, 0.1], exam)
    np.testing.assert_array_equal(image, [0.1, 0.5, 0.1])
    np.testing.assert_array_equal(fixed, exam)


def test_a_clear_positive_with_no_hot_slice_gets_its_hottest_raised() -> None:
    values = {"central_pe": 0.9, "leftsided_pe": 0.8, "rv_lv_ratio_gte_1": 0.9, "chronic_pe": 0.1}
    exam = np.array([values.get(label, 0.02) for label in EXAM_LABELS])
    image, fixed = repair([0.1, 0.45, 0.1], exam)
    np.testing.assert_array_equal(image, [0.1, ABOVE, 0.1])
    np.testing.assert_array_equal(fixed, exam)


@pytest.mark.parametrize("bad", [[float("nan")], [1.5], [-0.1], []])
def test_no_repair_hides_what_is_no_probability(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected one exam|not a number"):
        repair(bad, np.full(9, 0.5))


def test_a_submission_is_written_read_and_checked(tmp_path: Path) -> None:
    good = dict.fromkeys(EXAM_LABELS, 0.1) | {"negative_exam_for_pe": 0.9}
    bad = dict.fromkeys(EXAM_LABELS, 0.1)
    path = tmp_path / "submission.csv"
    count = write_submission(
        path, [("A", good, ["a1", "a2"], [0.1, 0.2]), ("B", bad, ["b1"], [0.9])]
    )
    rows = read_submission(path)
    assert count == len(rows) == 21
    found = check_submission(rows, [("A", ["a1", "a2"]), ("B", ["b1"])])
    assert (found.exams, found.inconsistent_exams, found.missing, found.unknown) == (2, 1, 0, 0)
    assert found.violations[RULES[0]] == 1
    found = check_submission(rows, [("A", ["a1", "gone"])])
    assert (found.inconsistent_exams, found.missing, found.unknown) == (1, 1, 11)
    assert found.violations[RULES[-1]] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("uid,label\n", "header"),
        ("id,label\na,x\n", "row 2"),
        ("id,label\na\n", "row 2"),
        ("id,label\na,0.1\na,0.2\n", "twice"),
    ],
)
def test_a_table_that_is_no_submission_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_submission(path)
    with pytest.raises(InputError, match="No such file"):
        read_submission(tmp_path / "absent.csv")


def _good_and_bad(tmp_path: Path) -> tuple[Path, Path]:
    """A submission of three exams, of which the second breaks rules, and the table of its images.

    The third is positive by a hair, which rounding to seven decimals would have taken away.
    """
    good = dict.fromkeys(EXAM_LABELS, 0.1) | {"negative_exam_for_pe": 0.9}
    bad = dict.fromkeys(EXAM_LABELS, 0.1) | {"central_pe": 0.7, "leftsided_pe": 0.6}
    hair = dict.fromkeys(EXAM_LABELS, 0.1) | {"central_pe": 0.7, "rv_lv_ratio_lt_1": 0.50000001}
    submission, table = tmp_path / "s.csv", tmp_path / "train.csv"
    write_submission(
        submission,
        [("A", good, ["a1", "a2"], [0.1, 0.2]), ("B", bad, ["b1", "b2"], [0.9, 0.2]),
         ("C", hair, ["c1"], [0.50000001])],
    )  # fmt: skip
    rows = [("A", "a1"), ("B", "b1"), ("A", "a2"), ("B", "b2"), ("C", "c1")]
    lines = [f"{study},S,{image},1" for study, image in rows]
    head = "StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,pe_present_on_image"
    table.write_text("\n".join([head, *lines]) + "\n")
    return submission, table


def test_a_command_counts_violations_of_any_file_and_repairs_it(tmp_path: Path) -> None:
    submission, table = _good_and_bad(tmp_path)
    out = tmp_path / "repaired.csv"
    args = [str(submission), "--exams", str(table)]
    done = CliRunner().invoke(main, [*args, "--repair", str(out)])
    assert done.exit_code == 0, done.output
    said = done.output.splitlines()
    assert said[0] == "1 of 3 exams break a label rule"
    assert said[1].split() == ["1", *RULES[0].split()]
    assert f"1 of 32 rows changed; written to {out}:" in said
    assert "0 of 3 exams break a label rule" in said
    before, after = read_submission(submission), read_submission(out)
    assert {key for key in before if after[key] != before[key]} == {"B_rv_lv_ratio_lt_1"}
    assert after["C_rv_lv_ratio_lt_1"] == 0.50000001
    # a row that is missing is counted, and no repair makes one up
    lines = submission.read_text().splitlines()
    submission.write_text("\n".join(line for line in lines if "B_central_pe" not in line))
    done = CliRunner().invoke(main, args)
    assert "1 rows are missing, 0 belong to no exam" in done.output
    done = CliRunner().invoke(main, [*args, "--repair", str(tmp_path / "again.csv")])
    assert done.exit_code == 1
    assert "study B: 1 rows are missing" in done.output
    assert not (tmp_path / "again.csv").exists()


def test_an_evaluations_table_needs_no_list_of_exams(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    table = Predictions(
        model={}, thresholds={}, study_uids=("A", "B"), series_uids=("", ""),
        patient_s=np.arange(2), start_s=np.array([0, 2, 5]),
        sop_instance_uids=("a1", "a2", "b1", "b2", "b3"),
        slice_probability_k=np.array([0.9, 0.1, 0.1, 0.2, 0.3]), attention_k=np.full(5, 0.2),
        exam_sl=np.full((2, 9), 0.6), pe_s=rng.random(2), image_logit_k=rng.random(5),
        exam_logit_sl=rng.random((2, 9)),
    )  # fmt: skip
    save_predictions(tmp_path / "p.npz", table)
    done = CliRunner().invoke(main, [str(tmp_path / "p.npz")])
    assert done.output.splitlines()[0] == "2 of 2 exams break a label rule"
    assert sum(table.violations().values()) == sum(
        int(line.split()[0]) for line in done.output.splitlines()[1:]
    )


@pytest.mark.parametrize("wrong", ["no exams", "no columns", "no uid", "there already"])
def test_what_the_command_cannot_do_is_one_line(tmp_path: Path, wrong: str) -> None:
    submission, table = _good_and_bad(tmp_path)
    args = [str(submission), "--exams", str(table)]
    if wrong == "no exams":
        args = args[:1]
    elif wrong == "no columns":
        table.write_text("a,b\n1,2\n")
    elif wrong == "no uid":
        table.write_text(table.read_text() + ",S,d1,0\n")
    else:
        args += ["--repair", str(table)]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 1
    assert len(done.output.strip().splitlines()) == 1
    assert isinstance(done.exception, SystemExit)
