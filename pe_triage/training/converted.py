"""CT files made of public data that come in other formats: what trains and serves reads DICOM."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pe_triage.errors import PermanentError
from pe_triage.training.rspect import SUFFIX

AIR_BELOW_HU: Final = -500
"""An image of a chest in Hounsfield units holds air; one that does not is in another unit."""


class BadSourceError(PermanentError):
    """A case that cannot be imported; the message is the reason."""


def check_hu(values: NDArray[Any]) -> None:
    """Refuse what cannot be an image of a chest in whole Hounsfield units.

    Raises
    ------
    BadSourceError
        It does not fit 16 bits, or holds no air.
    """
    if values.dtype.kind not in "iu" or values.min() < -32768 or values.max() > 32767:
        raise BadSourceError("values that do not fit 16 bits")
    if values.min() > AIR_BELOW_HU:
        raise BadSourceError(f"no value below {AIR_BELOW_HU}: not in Hounsfield units")


def source_uid(source: str, *words: str) -> str:
    """Return the UID of a thing of a source, the same every time (PS3.5 section B.2: 2.25.)."""
    digest = hashlib.sha256("|".join((source, *words)).encode()).hexdigest()
    return f"2.25.{int(digest[:32], 16)}"


def write_series(
    hu_xyz: NDArray[Any],
    axes_mm: NDArray[np.float64],
    origin_mm: NDArray[np.float64],
    folder: Path,
    *,
    source: str,
    name: str,
    patient: str,
    derivation: str,
) -> list[str]:
    """Write a volume as one axial CT series; return its SOP Instance UIDs along the last axis.

    Parameters
    ----------
    hu_xyz
        Columns, rows, slices; whole Hounsfield units.
    axes_mm, origin_mm
        Steps along the three axes, (3, 3), and the first voxel's centre, LPS.
    folder
        Where the files go; it exists.
    source, name
        Data set and case: all UIDs follow from these.
    patient
        Patient ID and Name: what tells the data set's patients apart, never a person's name.
    derivation
        Of Derivation Description (0008,2111).

    Raises
    ------
    BadSourceError
        No image of a chest in Hounsfield units.
    """
    check_hu(hu_xyz)
    uids = []
    for z in range(hu_xyz.shape[2]):
        ds = _image(hu_xyz[:, :, z].T, axes_mm, origin_mm + z * axes_mm[2])
        ds.DerivationDescription = derivation
        ds.StudyInstanceUID = source_uid(source, "study", name)
        ds.SeriesInstanceUID = source_uid(source, "series", name)
        ds.SOPInstanceUID = source_uid(source, "image", name, str(z))
        ds.FrameOfReferenceUID = source_uid(source, "frame", name)
        ds.PatientID = ds.PatientName = patient
        ds.InstanceNumber = z + 1
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(folder / f"{ds.SOPInstanceUID}{SUFFIX}", enforce_file_format=True)
        uids.append(str(ds.SOPInstanceUID))
    return uids


def _image(
    hu_yx: NDArray[Any], axes_mm: NDArray[np.float64], at_mm: NDArray[np.float64]
) -> Dataset:
    """Make a CT image of what is known, without identifiers (PS3.3 A.3)."""
    step_x, step_y, step_z = np.linalg.norm(axes_mm, axis=1)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    ds.Modality = "CT"
    ds.ImagePositionPatient = [_decimal(v) for v in at_mm]
    ds.ImageOrientationPatient = [_decimal(v) for v in (*axes_mm[0] / step_x, *axes_mm[1] / step_y)]
    ds.PixelSpacing = [_decimal(step_y), _decimal(step_x)]
    ds.SliceThickness = _decimal(step_z)  # the distance of slices: the thickness is not known
    ds.Rows, ds.Columns = hu_yx.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "HU"
    ds.PixelData = np.ascontiguousarray(hu_yx, dtype="<i2").tobytes()
    return ds


def _decimal(value: float) -> str:
    """Write a number in the 16 characters of a Decimal String (PS3.5 section 6.2)."""
    return next(text for d in range(10, 0, -1) if len(text := f"{value:.{d}g}") <= 16)
