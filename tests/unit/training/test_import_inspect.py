"""INSPECT's importer on a small copy of its layout, written here from phantoms."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.model.builtin import materialize_untrained
from pe_triage.model.decisions import PE
from pe_triage.model.spec import ATTENTION_BILSTM
from pe_triage.phantom import generate_study
from pe_triage.phantom.study import PhantomStudy
from pe_triage.training.evaluate import Options, evaluate
from pe_triage.training.evaluate_data import find_studies, load_study
from pe_triage.training.import_inspect import import_inspect, inspect_cases, main

SIZE, SLICES = 32, 6
LABELS = ("True", "False", "TRUE", "false", "Censored", "True", "False")
TURNS = ((1, 1, 1), (-1, -1, 1), (1, -1, -1))
"""Signs of the volume's axes in the patient, RAS: NIfTI files come in any."""


@pytest.fixture(scope="module")
def studies() -> list[PhantomStudy]:
    return [
        generate_study(k + 1, ("pe-acute", "negative")[k % 2], size=SIZE, n_slices=SLICES)
        for k in range(len(LABELS))
    ]


def write_volume(path: Path, study: PhantomStudy, turn: tuple[int, int, int]) -> None:
    step_z, step_y, step_x = study.spacing_mm
    hu_xyz = study.hu_zyx.transpose(2, 1, 0)
    # the phantom's axes in RAS: x and y run against R and A
    affine = np.diag([-step_x, -step_y, step_z, 1.0])
    affine[:3, 3] = np.array(study.origin_lps_mm) * (-1, -1, 1)
    for axis, sign in enumerate(turn):
        if sign < 0:
            hu_xyz = np.flip(hu_xyz, axis)
            affine[:3, 3] += affine[:3, axis] * (hu_xyz.shape[axis] - 1)
            affine[:3, axis] *= -1
    nib.save(nib.Nifti1Image(np.ascontiguousarray(hu_xyz), affine), path)  # type: ignore[attr-defined, no-untyped-call]


@pytest.fixture(scope="module")
def source(studies: list[PhantomStudy], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    (root / "CTPA").mkdir()
    labels, mapping, splits = [], [], []
    for k, (study, label) in enumerate(zip(studies, LABELS, strict=True)):
        write_volume(root / "CTPA" / f"PE{k:06x}.nii.gz", study, TURNS[k % 3])
        key = str(900 + k)
        labels.append({"impression_id": key, "pe_positive_nlp": label, "1_month_mortality": "x"})
        mapping.append({"impression_id": key, "image_id": f"PE{k:06x}", "person_id": str(k // 2)})
        splits.append({"impression_id": key, "split": "valid" if k == 6 else "test"})
    mapping.append({"impression_id": "950", "image_id": "PEffffff", "person_id": "9"})
    labels.append({"impression_id": "950", "pe_positive_nlp": "True", "1_month_mortality": ""})
    splits += [{"impression_id": "950", "split": "test"}, splits[0]]  # twice alike, as published
    for name, rows in (("labels", labels), ("study_mapping", mapping), ("splits", splits)):
        with (root / f"{name}_20250611.tsv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("imported")
    done = CliRunner().invoke(main, [str(source), "--out", str(out), "--split", "test"])
    assert done.exit_code == 0, done.output
    return out, done.output


def test_what_cannot_be_used_is_named_and_counted(imported: tuple[Path, str]) -> None:
    _, said = imported
    assert "PE000004: left out: its label is neither true nor false" in said
    assert "PEffffff: left out: its volume is not there" in said
    assert said.splitlines()[-1].startswith("5 exams in ")
    assert said.splitlines()[-1].endswith("3 with PE; 2 left out")


def test_the_volume_read_back_is_the_phantoms_whichever_way_its_axes_ran(
    imported: tuple[Path, str], studies: list[PhantomStudy]
) -> None:
    out, _ = imported
    seen = 0
    for study in find_studies(out).studies:
        loaded = load_study(study)
        k = next(k for k, s in enumerate(studies) if np.array_equal(s.hu_zyx, loaded.volume.hu_zyx))
        assert loaded.volume.spacing_mm == pytest.approx(studies[k].spacing_mm, abs=1e-4)
        assert loaded.volume.affine_lps[:3, 3] == pytest.approx(studies[k].origin_lps_mm, abs=1e-3)
        assert loaded.patient_id == f"INSPECT {k // 2}"
        assert study.positive is (LABELS[k].lower() == "true")
        seen += 1
    assert seen == 5


def test_only_what_the_source_knows_is_claimed(imported: tuple[Path, str]) -> None:
    out, _ = imported
    for study in find_studies(out).studies:
        sides = {study.exam_truth[label] for label in EXAM_LABELS[2:]}
        assert sides == ({-1} if study.positive else {0})
        assert set(study.slice_truth.values()) == ({-1} if study.positive else {0})


@pytest.mark.long
def test_only_what_the_source_knows_is_judged(imported: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = imported
    spec = replace(
        ATTENTION_BILSTM, name="tiny", backbone="test_efficientnet", size=64, sequence_hidden=8,
        dense_dim=8,
    )  # fmt: skip
    bundle = materialize_untrained(tmp_path, spec)
    options = Options(resamples=20, device="cpu", threads=1, gallery=1)
    found = evaluate(
        bundle, out, tmp_path / "report", options, now=datetime(2026, 5, 4, tzinfo=UTC)
    ).document
    assert found["labels"][PE]["samples"] == 5
    assert found["labels"][PE]["positives"] == 3
    assert found["labels"][PE]["auc"]["value"] is not None
    assert found["labels"]["central_pe"]["positives"] == 0
    assert found["labels"]["central_pe"]["auc"]["value"] is None
    assert found["challenge"] is None, "the score needs labels that are not known"
    assert found["gallery_failed"] == {}


def test_an_import_goes_on_where_it_was_stopped(source: Path, tmp_path: Path) -> None:
    cases = inspect_cases(source, "test")
    import_inspect(cases[:2], tmp_path)
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "dicom").rglob("*.dcm")}
    assert len(first) == 2 * SLICES
    left = next((tmp_path / "truth").glob("*.json"))
    left.unlink()  # as if killed before the truth was written
    done, _ = import_inspect(cases, tmp_path)
    assert done == 5
    again = {p: p.stat().st_mtime_ns for p in first}
    assert sum(again[p] != at for p, at in first.items()) == SLICES
    assert not list(tmp_path.rglob("*.partial"))


def test_another_layout_is_refused_in_words(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected INSPECT's CTPA"):
        inspect_cases(tmp_path)
    (tmp_path / "CTPA").symlink_to(source / "CTPA")
    with pytest.raises(InputError, match="expected INSPECT's table labels"):
        inspect_cases(tmp_path)
    for name in ("labels", "study_mapping"):
        text = (source / f"{name}_20250611.tsv").read_text()
        (tmp_path / f"{name}_20250611.tsv").write_text(text)
    (tmp_path / "study_mapping_20260101.tsv").write_text("impression_id\timage_id\n")
    with pytest.raises(InputError, match="no column person_id"):
        inspect_cases(tmp_path)
    (tmp_path / "study_mapping_20260101.tsv").write_text(
        "impression_id\timage_id\tperson_id\n900\tPE0\t1\n900\tPE1\t1\n"
    )
    with pytest.raises(InputError, match="900 stands twice with different values"):
        inspect_cases(tmp_path)
    (tmp_path / "study_mapping_20260101.tsv").write_text(
        "impression_id\timage_id\tperson_id\n900\t../x\t1\n"
    )
    with pytest.raises(InputError, match="unsafe"):
        inspect_cases(tmp_path)
    (tmp_path / "splits_1.tsv").write_text("impression_id\tsplit\n900\ttest\n")
    with pytest.raises(InputError, match="no exam in split valid"):
        inspect_cases(tmp_path, "valid")


def test_volumes_that_are_no_axial_chest_in_hu_are_left_out(
    source: Path, studies: list[PhantomStudy], tmp_path: Path
) -> None:
    case = inspect_cases(source)[0]
    hu_xyz = studies[0].hu_zyx.transpose(2, 1, 0)
    flat = np.diag([-1.0, -1.0, 2.0, 1.0])
    sagittal = flat[[2, 0, 1, 3]]

    def reason(values: np.ndarray, affine: np.ndarray) -> str:
        path = tmp_path / "x.nii.gz"
        nib.save(nib.Nifti1Image(values, affine), path)  # type: ignore[attr-defined, no-untyped-call]
        with pytest.raises(InputError, match="no exam could be used") as caught:
            import_inspect([replace(case, path=path)], tmp_path / "out")
        assert not list((tmp_path / "out").rglob("*.dcm"))
        return str(caught.value)

    assert "not axial" in reason(hu_xyz, sagittal)
    assert "not in Hounsfield units" in reason(np.zeros((4, 4, 4), np.int16), flat)
    assert "no numbers" in reason(np.full((4, 4, 4), np.nan, np.float32), flat)
    assert "not a volume" in reason(np.zeros((4, 4), np.int16), flat)
    (tmp_path / "x.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="not readable as NIfTI"):
        import_inspect([replace(case, path=tmp_path / "x.nii.gz")], tmp_path / "out")
    # whole numbers kept as floats are taken
    path = tmp_path / "floats.nii.gz"
    nib.save(nib.Nifti1Image(hu_xyz.astype(np.float32), flat), path)  # type: ignore[attr-defined, no-untyped-call]
    assert import_inspect([replace(case, path=path)], tmp_path / "ok")[0] == 1
    (truth,) = (tmp_path / "ok" / "truth").glob("*.json")
    assert json.loads(truth.read_text())["source"] == "INSPECT"
