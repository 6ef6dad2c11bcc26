"""DICOM: headers, encodings, files, truth beside them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
)

from pe_triage.errors import InputError
from pe_triage.phantom import (
    DIALECTS,
    TRANSFER_SYNTAXES,
    PhantomStudy,
    dialect_for,
    find_dialect,
    generate_study,
    identity_of,
    to_datasets,
    write_study,
)
from tests.support.peers import require_program


def _names(uids: tuple[UID, ...]) -> list[str]:
    return [uid.name for uid in uids]


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=_names(TRANSFER_SYNTAXES))
def test_every_encoding_is_lossless(small: PhantomStudy, tmp_path: Path, syntax: UID) -> None:
    path = tmp_path / "slice.dcm"
    (ds,) = to_datasets(small, transfer_syntax=syntax, slices=range(2, 3))
    ds.save_as(path, enforce_file_format=True)
    raw = path.read_bytes()
    assert raw[:128] == bytes(128)
    read = pydicom.dcmread(path)
    assert read.file_meta.TransferSyntaxUID == syntax
    hu = read.pixel_array.astype(int) * int(read.RescaleSlope) + int(read.RescaleIntercept)
    np.testing.assert_array_equal(hu, small.hu_zyx[2])


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=_names(TRANSFER_SYNTAXES))
def test_dciodvfy_finds_no_error(small: PhantomStudy, tmp_path: Path, syntax: UID) -> None:
    dciodvfy = require_program("dciodvfy", "dicom3tools")
    path = tmp_path / "slice.dcm"
    (ds,) = to_datasets(small, transfer_syntax=syntax, slices=range(1))
    ds.save_as(path, enforce_file_format=True)
    done = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if line.startswith("Error")] == []
    assert done.returncode == 0
    assert "CTImage" in lines


def test_header_is_an_adult_contrast_ct_of_nobody(small: PhantomStudy) -> None:
    ds = next(to_datasets(small))
    assert ds.SOPClassUID == CTImageStorage
    assert list(ds.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert ds.Modality == "CT"
    assert ds.BodyPartExamined == "CHEST"
    assert ds.SeriesDescription == "CTPA 5.0 B30f"
    assert ds.ConvolutionKernel == "B30f"
    assert ds.ContrastBolusAgent
    assert ds.QualityControlImage == "YES"
    assert str(ds.PatientName) == "PHANTOM^CTPA^0004"
    assert ds.PatientID.startswith("PHANTOM-000004-")
    assert ds.IssuerOfPatientID
    age = int(ds.PatientAge[:3])
    assert age >= 18
    born, studied = ds.PatientBirthDate, ds.StudyDate
    years = int(studied[:4]) - int(born[:4]) - (studied[4:] < born[4:])
    assert years == age
    assert ds.PatientPosition == "HFS"
    assert [float(v) for v in ds.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
    for element in ds.iterall():
        if element.VR == "DS":
            values = element.value if element.VM > 1 else [element.value]
            assert all(len(str(v)) <= 16 for v in values)


def test_slices_run_foot_to_head(small: PhantomStudy) -> None:
    datasets = list(to_datasets(small))
    assert [int(ds.InstanceNumber) for ds in datasets] == list(range(1, 7))
    heights = [float(ds.ImagePositionPatient[2]) for ds in datasets]
    np.testing.assert_allclose(np.diff(heights), small.spacing_mm[0], atol=1e-4)
    assert heights[0] == pytest.approx(small.origin_lps_mm[2], abs=1e-5)
    assert len({ds.SOPInstanceUID for ds in datasets}) == 6
    assert len({ds.SeriesInstanceUID for ds in datasets}) == 1
    assert len({ds.FrameOfReferenceUID for ds in datasets}) == 1


def test_uids_are_derived_and_valid(small: PhantomStudy) -> None:
    again = generate_study(4, "pe-chronic", size=64, n_slices=6)
    one, two = identity_of(small), identity_of(again)
    assert one == two
    for uid in (one.study_uid, one.series_uid, one.frame_of_reference_uid, one.instance_uid(1)):
        assert UID(uid).is_valid
        assert uid.startswith("2.25.")
    # Another header or another content is another object.
    assert identity_of(small, quality_control=False).instance_uid(1) != one.instance_uid(1)
    bigger = generate_study(4, "pe-chronic", size=65, n_slices=6)
    assert identity_of(bigger).study_uid != one.study_uid


def test_quality_control_can_be_withheld(small: PhantomStudy) -> None:
    ds = next(to_datasets(small, quality_control=False))
    assert ds.QualityControlImage == "NO"


def test_unknown_transfer_syntax_is_refused(small: PhantomStudy) -> None:
    with pytest.raises(InputError, match="Deflated"):
        next(to_datasets(small, transfer_syntax=DeflatedExplicitVRLittleEndian))


def test_study_on_disk(small: PhantomStudy, tmp_path: Path) -> None:
    written = write_study(small, tmp_path, transfer_syntax=JPEGLSLossless)
    assert written.dicom_dir == tmp_path / "dicom" / written.study_uid
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dicom", "truth"]
    files = sorted(written.dicom_dir.iterdir())
    assert [p.name for p in files] == [f"{n:04d}.dcm" for n in range(1, 7)]
    truth = json.loads(written.truth_path.read_text(encoding="utf-8"))
    assert truth["exam"] == dict(small.exam)
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in files]
    assert [s["sop_instance_uid"] for s in truth["slices"]] == [h.SOPInstanceUID for h in headers]
    assert [s["pe"] for s in truth["slices"]] == [int(v) for v in small.slice_pe_z]
    assert truth["study_uid"] == written.study_uid == headers[0].StudyInstanceUID
    # Twice the same command, the same bytes.
    before = {p.name: p.read_bytes() for p in files}
    mask_before = written.mask_path.read_bytes() if written.mask_path else b""
    write_study(small, tmp_path, transfer_syntax=JPEGLSLossless)
    assert {p.name: p.read_bytes() for p in files} == before
    assert written.mask_path is not None
    assert written.mask_path.read_bytes() == mask_before


def test_mask_lies_where_the_images_lie(acute: PhantomStudy, tmp_path: Path) -> None:
    written = write_study(acute, tmp_path)
    assert written.mask_path is not None
    image = nib.load(written.mask_path)
    data = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    assert data.dtype == np.uint8
    assert set(np.unique(data)) == {0, 1}
    np.testing.assert_array_equal(data.transpose(2, 1, 0) > 0, acute.clot_mask_zyx)
    z, y, x = (int(v[0]) for v in np.nonzero(acute.clot_mask_zyx))
    ds = pydicom.dcmread(written.dicom_dir / f"{z + 1:04d}.dcm", stop_before_pixels=True)
    left, back, up = _lps_of_pixel(ds, row=y, column=x)
    right, front, height, _ = image.affine @ [x, y, z, 1]  # type: ignore[attr-defined]
    np.testing.assert_allclose([-right, -front, height], [left, back, up], atol=1e-3)


def _lps_of_pixel(ds: Dataset, *, row: int, column: int) -> tuple[float, float, float]:
    """PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1, written out for the test."""
    position = np.array([float(v) for v in ds.ImagePositionPatient])
    along_row = np.array([float(v) for v in ds.ImageOrientationPatient[:3]])
    along_column = np.array([float(v) for v in ds.ImageOrientationPatient[3:]])
    between_rows, between_columns = (float(v) for v in ds.PixelSpacing)
    p = position + along_row * between_columns * column + along_column * between_rows * row
    return float(p[0]), float(p[1]), float(p[2])


def test_unwritable_directory_is_one_line(small: PhantomStudy, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(InputError, match="cannot write to"):
        write_study(small, blocked)


def test_default_syntax_is_explicit_little_endian(small: PhantomStudy) -> None:
    assert next(to_datasets(small)).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


@pytest.mark.parametrize("name", list(DIALECTS))
def test_every_dialect_says_the_same_study(small: PhantomStudy, tmp_path: Path, name: str) -> None:
    dialect = find_dialect(name)
    written = write_study(small, tmp_path, dialect=dialect, mask=False)
    files = [pydicom.dcmread(p) for p in written.dicom_dir.iterdir()]
    files.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    numbers = [int(ds.InstanceNumber) for ds in files]
    assert numbers == sorted(numbers, reverse=dialect.head_first)
    truth = json.loads(written.truth_path.read_text(encoding="utf-8"))
    assert [s["sop_instance_uid"] for s in truth["slices"]] == [ds.SOPInstanceUID for ds in files]
    away = np.arange(64) - 31.5
    circle = away[:, None] ** 2 + away[None, :] ** 2 <= 32**2
    for index, ds in enumerate(files):
        assert ds.file_meta.TransferSyntaxUID == dialect.transfer_syntax
        assert ds.QualityControlImage == "YES"
        assert str(ds.PatientName).startswith("PHANTOM")
        assert ds.ConvolutionKernel == dialect.kernel(small.kernel)
        assert ds.PatientPosition == dialect.patient_position
        assert not any(element.tag.is_private for element in ds.iterall())
        hu = ds.pixel_array.astype(int) + int(ds.RescaleIntercept)
        if dialect.padding_hu is None:
            np.testing.assert_array_equal(hu, small.hu_zyx[index])
        else:
            np.testing.assert_array_equal(hu[circle], small.hu_zyx[index][circle])
            assert set(np.unique(ds.pixel_array[~circle])) == {int(ds.PixelPaddingValue)}
    assert "phantom" in files[0].Manufacturer


@pytest.mark.parametrize("name", list(DIALECTS))
def test_dciodvfy_finds_no_error_in_any_dialect(
    small: PhantomStudy, tmp_path: Path, name: str
) -> None:
    dciodvfy = require_program("dciodvfy", "dicom3tools")
    path = tmp_path / "slice.dcm"
    next(to_datasets(small, dialect=find_dialect(name))).save_as(path, enforce_file_format=True)
    done = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if line.startswith("Error")] == []


def test_dialects_have_uids_of_their_own_and_are_dealt_by_seed(small: PhantomStudy) -> None:
    uids = {identity_of(small, dialect=d).study_uid for d in DIALECTS.values()}
    assert len(uids) == len(DIALECTS)
    assert {dialect_for(seed).name for seed in range(40)} == set(DIALECTS) - {"plain"}
    with pytest.raises(InputError, match="unknown dialect 'acme': choose from plain, siemens"):
        find_dialect("acme")
