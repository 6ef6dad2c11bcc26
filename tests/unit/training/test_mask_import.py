"""Importers of FUMPE and CAD-PE on small files of their layouts, written here from a phantom."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import scipy.io
import torch
from click.testing import CliRunner

from pe_triage.cli import cli
from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.model.bundle import load_bundle
from pe_triage.phantom import generate_study, write_study
from pe_triage.phantom.study import PhantomStudy
from pe_triage.training.evaluate_data import find_studies
from pe_triage.training.evaluate_localisation import load_mask
from pe_triage.training.import_masks import ImportedTree, import_masks, main
from pe_triage.training.losses import SampledSlices, stage_one_loss
from pe_triage.training.make_tree import make_tree
from pe_triage.training.mask_sources import cad_pe_cases, fumpe_cases, read_mat_mask
from pe_triage.training.rspect import read_rspect
from pe_triage.training.volumes import load_exam

SLICES, SIZE = 8, 64


@pytest.fixture(scope="module")
def studies() -> list[PhantomStudy]:
    presets = ("pe-acute", "negative", "pe-acute")
    return [generate_study(k + 1, p, size=SIZE, n_slices=SLICES) for k, p in enumerate(presets)]


def write_fumpe(folder: Path, studies: list[PhantomStudy], *, hdf5: bool = False) -> Path:
    """Case 1 in the order of positions, case 2 against it; its files are named the other way."""
    (folder / "GroundTruth").mkdir(parents=True)
    for k, study in enumerate(studies, start=1):
        write_study(study, folder / "raw", mask=False)
        into = folder / "CT_scans" / f"PAT{k:03d}"
        into.mkdir(parents=True)
        found = sorted(
            (pydicom.dcmread(p) for p in next((folder / "raw" / "dicom").iterdir()).glob("*.dcm")),
            key=lambda ds: float(ds.ImagePositionPatient[2]),
        )
        order = range(SLICES) if k == 1 else range(SLICES - 1, -1, -1)
        for number, z in enumerate(order, start=1):
            found[z].save_as(into / f"D{number}.dcm")  # D10 comes after D9, as numbers do
        mask_yxz = study.clot_mask_zyx[list(order)].transpose(1, 2, 0).astype(np.uint8)
        path = folder / "GroundTruth" / f"PAT{k:03d}.mat"
        if hdf5:
            with h5py.File(path, "w", userblock_size=512) as file:
                file["Mask"] = mask_yxz.transpose()
            header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
            with path.open("r+b") as raw:
                raw.write(header)
        else:
            scipy.io.savemat(path, {"Mask": mask_yxz})
        for leftover in (folder / "raw" / "dicom").iterdir():
            for p in leftover.glob("*"):
                p.unlink()
            leftover.rmdir()
    return folder


def write_cad_pe(folder: Path, studies: list[PhantomStudy], *, space: str, flip: bool) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "rs").mkdir()
    sign = -1.0 if space.startswith("right") else 1.0
    for k, study in enumerate(studies, start=1):
        dz, dy, dx = study.spacing_mm
        step = np.diag([dx, dy, dz])
        origin = np.array(study.origin_lps_mm, dtype=float)
        hu_zyx, mask_zyx = study.hu_zyx, study.clot_mask_zyx.astype(np.int16) * 3
        if flip:  # head first, and rows from back to front
            hu_zyx, mask_zyx = hu_zyx[::-1, ::-1], mask_zyx[::-1, ::-1]
            origin = origin + np.array([0, dy * (SIZE - 1), dz * (SLICES - 1)])
            step = step * [1, -1, -1]
        flipped = np.array([sign, sign, 1.0])
        header = {
            "space": space,
            "space directions": step * flipped,
            "space origin": origin * flipped,
        }
        image = np.ascontiguousarray(hu_zyx.transpose(2, 1, 0))
        nrrd.write(str(folder / "images" / f"{k:03d}.nrrd"), image, header)
        reference = np.ascontiguousarray(mask_zyx.transpose(2, 1, 0))
        nrrd.write(str(folder / "rs" / f"{k:04d}RefStd.nrrd"), reference, header)
    return folder


def check_tree(tree: Path, studies: list[PhantomStudy], made: ImportedTree) -> None:
    """Volumes, masks and labels must be those of the phantoms."""
    index = read_rspect(tree)
    assert not index.problems
    assert made.exams == len(index.exams) == len(studies)
    left = list(studies)
    for exam in index.exams:
        assert not exam.exam_known
        assert np.isnan(exam.exam_vector).all()
        assert exam.mask_path is not None
        loaded = load_exam(exam)
        study = next(s for s in left if np.array_equal(s.hu_zyx, loaded.volume.hu_zyx))
        left.remove(study)
        np.testing.assert_allclose(loaded.volume.spacing_mm, study.spacing_mm, rtol=1e-6)
        np.testing.assert_allclose(loaded.volume.affine_lps[:3, 3], study.origin_lps_mm, atol=1e-4)
        mask = load_mask(exam.mask_path, loaded.volume)
        np.testing.assert_array_equal(mask, study.clot_mask_zyx)
        _, dy, dx = study.spacing_mm
        area_z = mask.sum(axis=(1, 2)) * dy * dx
        np.testing.assert_array_equal(loaded.image_pe_z, area_z >= 10)
        assert exam.positive == bool((area_z >= 10).any())
    assert made.positive > 0
    assert not made.skipped


@pytest.mark.parametrize("hdf5", [False, True])
def test_fumpe_masks_follow_the_names_of_the_files(
    studies: list[PhantomStudy], tmp_path: Path, hdf5: bool
) -> None:
    source = write_fumpe(tmp_path / "src", studies, hdf5=hdf5)
    made = import_masks(fumpe_cases(source), tmp_path / "tree")
    check_tree(tmp_path / "tree", studies, made)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
@pytest.mark.parametrize("flip", [False, True])
def test_cad_pe_comes_out_as_it_lay_in_the_patient(
    studies: list[PhantomStudy], tmp_path: Path, space: str, flip: bool
) -> None:
    source = write_cad_pe(tmp_path / "src", studies, space=space, flip=flip)
    made = import_masks(cad_pe_cases(source), tmp_path / "tree")
    check_tree(tmp_path / "tree", studies, made)
    ids = {load_exam(exam).patient_id for exam in read_rspect(tmp_path / "tree").exams}
    assert ids == {"CAD-PE 001", "CAD-PE 002", "CAD-PE 003"}


def test_cad_pe_gets_the_same_identifiers_every_time(
    studies: list[PhantomStudy], tmp_path: Path
) -> None:
    source = write_cad_pe(tmp_path / "s", studies[:1], space="left-posterior-superior", flip=False)
    tables = []
    for name in ("a", "b"):
        import_masks(cad_pe_cases(source), tmp_path / name)
        tables.append((tmp_path / name / "train.csv").read_text())
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert {row[label] for row in rows for label in EXAM_LABELS} == {""}


def test_the_least_area_decides(studies: list[PhantomStudy], tmp_path: Path) -> None:
    source = write_fumpe(tmp_path / "src", studies[:1])
    every = import_masks(fumpe_cases(source), tmp_path / "a", min_area_mm2=0.001)
    none = import_masks(fumpe_cases(source), tmp_path / "b", min_area_mm2=1e6)
    assert every.positive == none.small > 0
    assert every.small == none.positive == 0


def test_what_cannot_be_used_is_left_out_by_name(
    studies: list[PhantomStudy], tmp_path: Path
) -> None:
    source = write_fumpe(tmp_path / "src", studies)
    truth = source / "GroundTruth"
    (truth / "PAT002.mat").unlink()
    scipy.io.savemat(truth / "PAT003.mat", {"Mask": np.zeros((SIZE, SIZE, SLICES - 1), np.uint8)})
    done = CliRunner().invoke(main, ["fumpe", str(source), "--out", str(tmp_path / "tree")])
    assert done.exit_code == 0, done.output
    assert "PAT002: left out: no GroundTruth for it" in done.output
    assert "PAT003: left out: 8 images, 7 slices in the mask" in done.output
    assert "2 cases left out" in done.output
    assert len(read_rspect(tmp_path / "tree").exams) == 1
    again = CliRunner().invoke(main, ["fumpe", str(source), "--out", str(tmp_path / "tree")])
    assert again.exit_code == 1
    assert "holds a tree already" in again.output


def test_a_mask_that_lies_elsewhere_is_remarked_upon(
    studies: list[PhantomStudy], tmp_path: Path
) -> None:
    source = write_fumpe(tmp_path / "src", studies[:1])
    air = np.zeros((SIZE, SIZE, SLICES), np.uint8)
    air[:3, :3] = 1  # the corner of the image: air around the patient
    scipy.io.savemat(source / "GroundTruth" / "PAT001.mat", {"Mask": air})
    lines: list[str] = []
    import_masks(fumpe_cases(source), tmp_path / "tree", progress=lines.append)
    assert "DOES THE MASK LIE ON ITS IMAGES?" in lines[0]


def test_values_in_another_unit_are_refused(studies: list[PhantomStudy], tmp_path: Path) -> None:
    raw = [replace(studies[0], hu_zyx=studies[0].hu_zyx + np.int16(1024))]
    source = write_cad_pe(tmp_path / "src", raw, space="left-posterior-superior", flip=False)
    with pytest.raises(InputError, match="not in Hounsfield units"):
        import_masks(cad_pe_cases(source), tmp_path / "tree")


@pytest.mark.parametrize("package", ["nrrd", "h5py"])
def test_a_missing_package_is_one_line(
    studies: list[PhantomStudy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    if package == "nrrd":
        write_cad_pe(tmp_path, studies[:1], space="left-posterior-superior", flip=False)
        monkeypatch.setitem(sys.modules, "nrrd", None)
        with pytest.raises(InputError, match="package pynrrd is not installed"):
            cad_pe_cases(tmp_path)
    else:
        source = write_fumpe(tmp_path, studies[:1], hdf5=True)
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(InputError, match="package h5py is not installed"):
            read_mat_mask(source / "GroundTruth" / "PAT001.mat")


@pytest.mark.parametrize("source", ["fumpe", "cad-pe"])
def test_another_layout_is_one_line(tmp_path: Path, source: str) -> None:
    done = CliRunner().invoke(main, [source, str(tmp_path), "--out", str(tmp_path / "tree")])
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert "expected" in done.output


# -- unknown exam labels in training -----------------------------------------------------------


def sampled(exam: torch.Tensor, image: torch.Tensor) -> SampledSlices:
    b = len(image)
    return SampledSlices(image, exam, torch.ones_like(image), image.mean(1), torch.full((b,), 9.0))


@pytest.mark.parametrize("kind", ["challenge", "image", "exam", "mixed"])
def test_unknown_exam_labels_weigh_nothing_and_images_count_in_full(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, generator=generator)
    exams = torch.randn(2, 3, 9, generator=generator, requires_grad=True)
    image = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    known = torch.randint(0, 2, (2, 9), generator=generator).float()
    half = torch.cat([known[:1], torch.full((1, 9), torch.nan)])
    loss = stage_one_loss(logits, exams, sampled(half, image), kind)
    if kind != "image":
        loss.lost.backward()
        assert exams.grad is not None
        assert exams.grad[0].any()
        assert not exams.grad[1].any()
    first, second = (
        stage_one_loss(logits[k : k + 1], exams[k : k + 1],
                       sampled(half[k : k + 1], image[k : k + 1]), kind)
        for k in (0, 1)
    )  # fmt: skip
    if kind != "mixed":  # which takes means of images and of exams apart
        torch.testing.assert_close(loss.lost, first.lost + second.lost)
        torch.testing.assert_close(loss.weight, first.weight + second.weight)
    assert loss.lost.isfinite()
    assert (second.lost == 0) == (kind == "exam")


def test_labels_empty_in_part_are_refused(studies: list[PhantomStudy], tmp_path: Path) -> None:
    import_masks(fumpe_cases(write_fumpe(tmp_path / "src", studies[:2])), tmp_path / "tree")
    table = tmp_path / "tree" / "train.csv"
    rows = list(csv.reader(table.read_text().splitlines()))
    at = rows[0].index("central_pe")
    for row in rows[1 : 1 + SLICES]:
        row[at] = "1"
    table.write_text("\n".join(",".join(row) for row in rows) + "\n")
    index = read_rspect(tmp_path / "tree")
    assert len(index.exams) == 1
    assert [(p.code, p.count) for p in index.problems] == [("bad-value", SLICES)]


def test_a_mixed_tree_trains_and_stage_two_learns_from_the_known_alone(
    studies: list[PhantomStudy], tmp_path: Path
) -> None:
    """Imported exams and labelled ones in one tree, by joining tables and folders."""
    for k in range(4):
        study = generate_study(k + 30, ("pe-acute", "negative")[k % 2], size=SIZE, n_slices=SLICES)
        write_study(study, tmp_path / "phantoms")
    tree = tmp_path / "tree"
    make_tree(tmp_path / "phantoms", tree)
    other = tmp_path / "other"
    import_masks(fumpe_cases(write_fumpe(tmp_path / "src", studies)), other)
    for path in [*(other / "train").iterdir(), *(other / "masks").iterdir()]:
        path.rename(tree / path.relative_to(other))
    more = (other / "train.csv").read_text().splitlines()[1:]
    with (tree / "train.csv").open("a") as file:
        file.write("\n".join(more) + "\n")
    data = find_studies(tree)
    assert len(data.studies) == 4
    assert data.problems["unknown-exam-labels"] == 3
    assert all(study.mask_path is not None for study in data.studies)
    args = [
        "train", "attention-guided-resnet", "--data", str(tree), "--out", str(tmp_path / "run"),
        "--size", "64", "--epochs1", "1", "--epochs2", "1", "--batch1", "6", "--max-steps1", "2",
        "--validation", "0.4", "--device", "cpu", "--no-tensorboard",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    assert "3 exams without known exam labels" in done.output
    assert all(t.isfinite().all() for t in
               load_bundle(tmp_path / "run" / "bundle").network.state_dict().values())  # fmt: skip


def test_data_without_any_exam_labels_cannot_teach_stage_two(
    studies: list[PhantomStudy], tmp_path: Path
) -> None:
    import_masks(fumpe_cases(write_fumpe(tmp_path / "src", studies)), tmp_path / "tree")
    args = ["train", "attention-guided-resnet", "--data", str(tmp_path / "tree"), "--out",
            str(tmp_path / "run"), "--size", "64", "--validation", "0.5", "--device", "cpu",
            "--no-tensorboard"]  # fmt: skip
    done = CliRunner().invoke(cli, args)
    assert isinstance(done.exception, InputError)
    assert "known exam labels" in str(done.exception)
    with pytest.raises(InputError, match="no exam has known exam labels"):
        find_studies(tmp_path / "tree")


def test_masks_are_written_for_other_programs_too(
    studies: list[PhantomStudy], tmp_path: Path
) -> None:
    import_masks(fumpe_cases(write_fumpe(tmp_path / "src", studies[:1])), tmp_path / "tree")
    path = next((tmp_path / "tree" / "masks").iterdir())
    image = nib.load(path)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.get_data_dtype() == np.uint8
    x, y, z = (float(v) for v in nib.affines.apply_affine(image.affine, [0, 0, 0]))
    assert (-x, -y, z) == pytest.approx(studies[0].origin_lps_mm, abs=1e-3)
