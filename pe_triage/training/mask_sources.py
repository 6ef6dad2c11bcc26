"""Readers of public data with clot masks, each to CT files and a mask for every image.

FUMPE (Masoudi M, et al. Scientific Data 2018;5:180180): ``CT_scans/PAT*/*.dcm`` and
``GroundTruth/PAT*.mat``, a MATLAB array ``Mask`` of rows, columns and slices, its slices in the
order of the files' names, which is not always that of their positions.

CAD-PE (González Serrano G. IEEE DataPort 2019, doi 10.21227/9bw7-6823): ``001.nrrd`` in Hounsfield
units and ``001RefStd.nrrd`` (also found as ``0001RefStd.nrrd``, and in folders of their own), one
number for each clot, voxel for voxel. NRRD is turned into DICOM here, because everything that
trains and serves reads DICOM.

The layouts are taken from the publications and from what public users of the data say of them;
neither data set was at hand.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.errors import ImagingError, InputError, InvalidInstanceError
from pe_triage.imaging.facts import read_instance
from pe_triage.training.converted import BadSourceError, check_hu, source_uid, write_series
from pe_triage.training.rspect import IMAGES_NAME, SUFFIX

MASK_VARIABLE: Final = "Mask"
CAD_PE: Final = "CAD-PE"
_FUMPE_CASE: Final = re.compile(r"PAT\d+", re.IGNORECASE)
_REFERENCE: Final = re.compile(r"(.+)RefStd\.nrrd", re.IGNORECASE)
_TO_LPS: Final[Mapping[str, tuple[int, int, int]]] = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedExam:
    """One case whose CT files lie in the tree already.

    Attributes
    ----------
    mask_of
        SOP Instance UID to mask (rows, columns), as the pixels lie in the file.
    """

    study_uid: str
    series_uid: str
    mask_of: Mapping[str, Bits]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCase:
    """One case of a source: `place` puts its CT files into a tree and reads its mask.

    `place` raises `BadSourceError`.
    """

    name: str
    place: Callable[[Path], ImportedExam]


def fumpe_cases(source: Path) -> list[SourceCase]:
    """Cases under ``CT_scans/``, those without a mask included (importing them says so).

    Raises
    ------
    InputError
        Not FUMPE's layout.
    """
    scans, truths = source / "CT_scans", source / "GroundTruth"
    folders = [p for p in _listed(scans) if p.is_dir() and _FUMPE_CASE.fullmatch(p.name)]
    if not folders or not truths.is_dir():
        raise InputError(f"{source}: expected FUMPE's CT_scans/PAT*/*.dcm and GroundTruth/PAT*.mat")
    mats = {p.stem.upper(): p for p in _listed(truths) if p.suffix.lower() == ".mat"}
    return [
        SourceCase(name=p.name, place=partial(_place_fumpe, p, mats.get(p.name.upper())))
        for p in folders
    ]


def cad_pe_cases(source: Path) -> list[SourceCase]:
    """Cases with an image anywhere below `source`, paired by number with their references.

    Raises
    ------
    InputError
        Nothing of CAD-PE there, or the package pynrrd is missing.
    """
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() == ".nrrd")
    references: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for path in files:
        match = _REFERENCE.fullmatch(path.name)
        into, name = (references, match[1]) if match else (images, path.stem)
        if into.setdefault(_case_key(name), path) is not path:
            raise InputError(f"{source}: two files of case {name}: {path.name}")
    if not images or not references:
        raise InputError(f"{source}: expected CAD-PE's 001.nrrd and 001RefStd.nrrd")
    _needed("nrrd", "pynrrd")
    return [
        SourceCase(name=path.stem, place=partial(_place_cad_pe, path, references.get(key)))
        for key, path in images.items()
    ]


def read_mat_mask(path: Path) -> Bits:
    """Read the mask of a MATLAB file, (rows, columns, slices).

    Raises
    ------
    BadSourceError
        No such array in it.
    InputError
        The file is of MATLAB 7.3 and the package h5py is missing.
    """
    import scipy.io

    try:
        found = scipy.io.loadmat(path)
        arrays = {k: v for k, v in found.items() if not k.startswith("__")}
    except NotImplementedError:  # 7.3 is HDF5, which scipy leaves to others
        arrays = _read_hdf5(path)
    except (OSError, ValueError, TypeError, scipy.io.matlab.MatReadError) as error:
        raise BadSourceError(f"{path.name}: not a MATLAB file ({type(error).__name__})") from None
    volumes = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray) and v.ndim == 3}
    name = MASK_VARIABLE if MASK_VARIABLE in volumes else next(iter(volumes), "")
    if not name or (name != MASK_VARIABLE and len(volumes) > 1):
        raise BadSourceError(f"{path.name}: no array {MASK_VARIABLE} of three axes")
    mask: Bits = volumes[name] > 0
    return mask


def _read_hdf5(path: Path) -> dict[str, Any]:
    h5py = _needed("h5py", "h5py")
    try:
        with h5py.File(path, "r") as file:
            # MATLAB writes its axes in reverse.
            return {
                k: np.asarray(v).transpose() for k, v in file.items() if isinstance(v, h5py.Dataset)
            }
    except OSError:
        raise BadSourceError(f"{path.name}: not a MATLAB file") from None


def _place_fumpe(folder: Path, mat: Path | None, tree: Path) -> ImportedExam:
    if mat is None:
        raise BadSourceError("no GroundTruth for it")
    files = sorted(
        (p for p in _listed(folder) if p.suffix.lower() == SUFFIX),
        key=lambda p: [(int(n) if n else 0, t) for n, t in re.findall(r"(\d+)|(\D+)", p.stem)],
    )
    mask_yxz = read_mat_mask(mat)
    if mask_yxz.shape[2] != len(files):
        raise BadSourceError(f"{len(files)} images, {mask_yxz.shape[2]} slices in the mask")
    try:
        records = [read_instance(path) for path in files]
    except (ImagingError, InvalidInstanceError, OSError) as error:
        raise BadSourceError(f"an image cannot be read: {error}") from None
    if len({(r.study_uid, r.series_uid) for r in records}) != 1:
        raise BadSourceError("the images are of several series")
    mask_of: dict[str, Bits] = {}
    for z, record in enumerate(records):
        if (record.facts.rows, record.facts.columns) != mask_yxz.shape[:2]:
            raise BadSourceError("images and mask differ in rows or columns")
        mask_of[record.sop_instance_uid] = mask_yxz[:, :, z]
    if len(mask_of) != len(records):
        raise BadSourceError("two images have one SOP Instance UID")
    study_uid, series_uid = records[0].study_uid, records[0].series_uid
    into = _fresh_folder(tree, study_uid, series_uid)
    for path, record in zip(files, records, strict=True):
        target = into / f"{record.sop_instance_uid}{SUFFIX}"
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
    return ImportedExam(study_uid=study_uid, series_uid=series_uid, mask_of=mask_of)


def _place_cad_pe(path: Path, reference: Path | None, tree: Path) -> ImportedExam:
    if reference is None:
        raise BadSourceError("no RefStd for it")
    hu_xyz, header = _read_nrrd(path)
    clots_xyz, _ = _read_nrrd(reference)
    if clots_xyz.shape != hu_xyz.shape:
        raise BadSourceError("image and reference differ in size")
    check_hu(hu_xyz)
    axes_mm, origin_mm = _geometry(header)
    study_uid, series_uid = (source_uid(CAD_PE, kind, path.stem) for kind in ("study", "series"))
    uids = write_series(
        hu_xyz, axes_mm, origin_mm, _fresh_folder(tree, study_uid, series_uid), source=CAD_PE,
        name=path.stem, patient=f"{CAD_PE} {path.stem}", derivation="Converted from NRRD",
    )  # fmt: skip
    mask_of = {uid: clots_xyz[:, :, z].T > 0 for z, uid in enumerate(uids)}
    return ImportedExam(study_uid=study_uid, series_uid=series_uid, mask_of=mask_of)


def _read_nrrd(path: Path) -> tuple[NDArray[Any], Mapping[str, Any]]:
    nrrd = _needed("nrrd", "pynrrd")
    try:
        data, header = nrrd.read(str(path), index_order="F")
    except (OSError, ValueError, EOFError, nrrd.NRRDError) as error:
        raise BadSourceError(
            f"{path.name}: not readable as NRRD ({type(error).__name__})"
        ) from None
    if data.ndim != 3:
        raise BadSourceError(f"{path.name}: {data.ndim} axes, not 3")
    return data, header


def _geometry(header: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps along x, y and z, (3, 3), and the first voxel's centre, in LPS millimetres."""
    sign = _TO_LPS.get(str(header.get("space", "")).lower())
    if sign is None or "space directions" not in header or "space origin" not in header:
        raise BadSourceError("its header does not say where it lies in the patient")
    axes_mm = np.asarray(header["space directions"], dtype=np.float64) * sign
    origin_mm = np.asarray(header["space origin"], dtype=np.float64) * sign
    if (
        axes_mm.shape != (3, 3)
        or not np.isfinite(axes_mm).all()
        or not np.isfinite(origin_mm).all()
    ):
        raise BadSourceError("its header does not say where it lies in the patient")
    return axes_mm, origin_mm


def _case_key(name: str) -> str:
    """001 and 0001 are one case, and so are e032 and e0032."""
    letters, digits = re.fullmatch(r"(\D*)(\d*)(?:.*)", name).groups()  # type: ignore[union-attr]
    return f"{letters.lower()}{int(digits)}" if digits else name


def _fresh_folder(tree: Path, study_uid: str, series_uid: str) -> Path:
    study = tree / IMAGES_NAME / study_uid
    if study.exists():
        raise BadSourceError("another case has the same Study Instance UID")
    folder = study / series_uid
    folder.mkdir(parents=True)
    return folder


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return


def _needed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"the package {package} is not installed: pip install 'pe-triage[train]'"
        ) from None
