"""Phantom studies as DICOM: data sets, files, and their truth beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from pe_triage.errors import InputError
from pe_triage.phantom.dialects import PLAIN, Dialect
from pe_triage.phantom.header import add_slice, common_header
from pe_triage.phantom.identity import Identity, derive_uid, invent_identity
from pe_triage.phantom.study import PhantomStudy

_IMPLEMENTATION_CLASS_UID = derive_uid("implementation")
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
# The encoder is named, so that a seed gives the same file wherever others are installed too.
_PLUGIN = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls"}
TRANSFER_SYNTAXES: tuple[UID, ...] = (*_NATIVE, *_PLUGIN, JPEG2000Lossless)
"""What the writer can encode in, all lossless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenStudy:
    """Where one study's files lie."""

    study_uid: str
    dicom_dir: Path
    truth_path: Path
    mask_path: Path | None


def identity_of(
    study: PhantomStudy, *, quality_control: bool = True, dialect: Dialect = PLAIN
) -> Identity:
    """Return the identity that `to_datasets` gives a study with the same options."""
    variant = "" if quality_control and dialect == PLAIN else f"{quality_control}|{dialect}"
    return invent_identity(
        key=study.key, seed=study.seed, age_years=study.anatomy.age_years, variant=variant
    )


def to_datasets(
    study: PhantomStudy,
    *,
    transfer_syntax: UID | None = None,
    quality_control: bool = True,
    dialect: Dialect = PLAIN,
    slices: range | None = None,
) -> Iterator[Dataset]:
    """Yield CT Image Storage data sets with file meta, foot to head.

    Parameters
    ----------
    study
        What to encode.
    transfer_syntax
        One of `TRANSFER_SYNTAXES`; the dialect's own if None.
    quality_control
        Value of Quality Control Image (0028,0300).
    dialect
        The header's dialect.
    slices
        Indices along z to yield; all if None.

    Raises
    ------
    InputError
        A transfer syntax that this writer does not know.
    """
    syntax = UID(dialect.transfer_syntax if transfer_syntax is None else transfer_syntax)
    if syntax not in TRANSFER_SYNTAXES:
        raise InputError(f"the phantom cannot be written in transfer syntax {syntax.name}")
    identity = identity_of(study, quality_control=quality_control, dialect=dialect)
    common = common_header(study, identity, dialect, quality_control=quality_control)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    kind = f"{order}{'i' if dialect.signed else 'u'}2"
    outside = _outside(study) if dialect.padding_hu is not None else None
    for index in slices if slices is not None else range(study.hu_zyx.shape[0]):
        ds = Dataset()
        ds.update(common)
        add_slice(ds, study, identity, index, dialect)
        stored = study.hu_zyx[index].astype(np.int32) - dialect.rescale_intercept
        if outside is not None:
            stored[outside] = ds.PixelPaddingValue
        ds.PixelData = stored.astype(kind).tobytes()
        ds["PixelData"].VR = "OW"
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\x00\x01"
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        meta.TransferSyntaxUID = syntax if syntax in _NATIVE else ExplicitVRLittleEndian
        meta.ImplementationClassUID = UID(_IMPLEMENTATION_CLASS_UID)
        meta.ImplementationVersionName = "PE_TRIAGE_PHTM"
        ds.file_meta = meta
        if syntax in _PLUGIN:
            ds.compress(syntax, encoding_plugin=_PLUGIN[syntax], generate_instance_uid=False)
        elif syntax == JPEG2000Lossless:
            # pydicom's own way to this encoder needs the package pylibjpeg for nothing else.
            stream = encode_array(
                stored.astype(kind), bits_stored=ds.BitsStored, photometric_interpretation=2
            )
            ds.PixelData = encapsulate([stream])
            ds["PixelData"].VR = "OB"
            ds["PixelData"].is_undefined_length = True
            meta.TransferSyntaxUID = syntax
        yield ds


def _outside(study: PhantomStudy) -> NDArray[np.bool_]:
    """Return the pixels ``yx`` outside the circle of reconstruction."""
    size = study.hu_zyx.shape[1]
    away = np.arange(size) - (size - 1) / 2
    found: NDArray[np.bool_] = away[:, None] ** 2 + away[None, :] ** 2 > (size / 2) ** 2
    return found


def truth_of(study: PhantomStudy, identity: Identity) -> dict[str, Any]:
    """Return the truth document of a study; ``slices`` run foot to head."""
    return {
        "study_uid": identity.study_uid,
        "series_uid": identity.series_uid,
        "seed": study.seed,
        "preset": study.preset,
        "exam": dict(study.exam),
        "slices": [
            {"sop_instance_uid": identity.instance_uid(index + 1), "pe": int(positive)}
            for index, positive in enumerate(study.slice_pe_z)
        ],
        "size": study.hu_zyx.shape[1],
        "spacing_zyx_mm": list(study.spacing_mm),
        "slice_thickness_mm": study.slice_thickness_mm,
        "drawn": dict(study.drawn),
    }


def write_truth(study: PhantomStudy, identity: Identity, path: Path) -> None:
    """Write the truth document."""
    text = json.dumps(truth_of(study, identity), indent=1, sort_keys=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_mask(study: PhantomStudy, path: Path) -> None:
    """Write the clot mask, 0 or 1, as NIfTI-1 with axes x, y, z.

    DICOM coordinates are LPS and NIfTI's RAS+, so x and y of the affine change sign.
    """
    spacing_z, spacing_y, spacing_x = study.spacing_mm
    x, y, z = study.origin_lps_mm
    affine = np.array(
        [[-spacing_x, 0, 0, -x], [0, -spacing_y, 0, -y], [0, 0, spacing_z, z], [0, 0, 0, 1]]
    )
    mask_xyz = study.clot_mask_zyx.astype(np.uint8).transpose(2, 1, 0)
    # nibabel publishes no types.
    make: Any = nib.Nifti1Image
    image = make(mask_xyz, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)


def write_slices(
    study: PhantomStudy, folder: Path, *, transfer_syntax: UID | None = None,
    quality_control: bool = True, dialect: Dialect = PLAIN,
) -> None:  # fmt: skip
    """Write one Part 10 file per slice into an existing folder, named by instance number."""
    datasets = to_datasets(
        study, transfer_syntax=transfer_syntax, quality_control=quality_control, dialect=dialect
    )
    for ds in datasets:
        ds.save_as(folder / f"{int(ds.InstanceNumber):04d}.dcm", enforce_file_format=True)


def write_study(
    study: PhantomStudy,
    out_dir: Path,
    *,
    transfer_syntax: UID | None = None,
    quality_control: bool = True,
    dialect: Dialect = PLAIN,
    mask: bool = True,
) -> WrittenStudy:
    """Write ``dicom/<StudyInstanceUID>/*.dcm`` and ``truth/<StudyInstanceUID>.json`` (and mask).

    Raises
    ------
    InputError
        The directory cannot be written, or the transfer syntax is unknown.
    """
    identity = identity_of(study, quality_control=quality_control, dialect=dialect)
    dicom_dir = out_dir / "dicom" / identity.study_uid
    truth_dir = out_dir / "truth"
    truth_path = truth_dir / f"{identity.study_uid}.json"
    mask_path = truth_dir / f"{identity.study_uid}.nii.gz" if mask else None
    try:
        dicom_dir.mkdir(parents=True, exist_ok=True)
        truth_dir.mkdir(parents=True, exist_ok=True)
        write_slices(
            study, dicom_dir, transfer_syntax=transfer_syntax, quality_control=quality_control,
            dialect=dialect,
        )  # fmt: skip
        write_truth(study, identity, truth_path)
        if mask_path is not None:
            write_mask(study, mask_path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write to {error.filename or out_dir}: {reason}") from error
    return WrittenStudy(
        study_uid=identity.study_uid,
        dicom_dir=dicom_dir,
        truth_path=truth_path,
        mask_path=mask_path,
    )
