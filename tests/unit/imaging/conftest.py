"""A small CT writer for this room: every header value and the encoding can be set."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pe_triage.domain import ReceivedInstance
from pe_triage.imaging.facts import read_instance

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


def rle(pixels: np.ndarray) -> bytes:
    """One frame by PS3.5 Annex G: a header of offsets, then a segment for each byte, high first."""
    data = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(-1, 1).view(np.uint8)
    planes = data.reshape(pixels.size, -1).T
    segments = []
    for plane in planes:
        segment = bytes(imagecodecs.packbits_encode(plane.tobytes()))
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = [64]
    for segment in segments[:-1]:
        offsets.append(offsets[-1] + len(segment))
    header = struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(offsets)))
    return header + b"".join(segments)


def unsigned(pixels: np.ndarray) -> np.ndarray:
    return pixels.view(f"u{pixels.dtype.itemsize}")


# Predictor 4: the encoder wraps predictors 5 to 7 of 16-bit samples wrongly (three independent
# decoders agree); with DCMTK as the encoder all seven decode right (see test_pixels_dcmtk.py).
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.4.57": lambda a: imagecodecs.jpeg8_encode(
        unsigned(a), lossless=True, predictor=4
    ),
    "1.2.840.10008.1.2.4.70": lambda a: imagecodecs.jpeg8_encode(
        unsigned(a), lossless=True, predictor=1
    ),
    "1.2.840.10008.1.2.4.80": lambda a: imagecodecs.jpegls_encode(unsigned(a)),
    "1.2.840.10008.1.2.4.90": lambda a: imagecodecs.jpeg2k_encode(
        a, level=0, codecformat="j2k", reversible=True
    ),
    "1.2.840.10008.1.2.5": rle,
}
REVERSIBLE = {
    # What may change pixels, as encoders write it that do not.
    "1.2.840.10008.1.2.4.81": ENCODERS["1.2.840.10008.1.2.4.80"],
    "1.2.840.10008.1.2.4.91": ENCODERS["1.2.840.10008.1.2.4.90"],
}


def ct_dataset(pixels: np.ndarray, **overrides: Any) -> Dataset:
    """A minimal CT instance around stored values; ``None`` removes an attribute."""
    signed = np.issubdtype(pixels.dtype, np.signedinteger)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1",
        "PatientID": "P1",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "InstanceNumber": 1,
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.7, 0.8],
        "SliceThickness": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "HighBit": 8 * pixels.dtype.itemsize - 1,
        "PixelRepresentation": int(signed),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    values.update(overrides)
    ds = Dataset()
    for name, value in values.items():
        if value is not None:
            setattr(ds, name, value)
    return ds


def write_ct(
    path: Path,
    pixels: np.ndarray,
    *,
    transfer_syntax: str = ExplicitVRLittleEndian,
    stream: bytes | None = None,
    **overrides: Any,
) -> Path:
    """Write `pixels` (or, for a compressed syntax, `stream`) as a Part 10 file."""
    ds = ct_dataset(pixels, **overrides)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = transfer_syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "1.2")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2")
    if transfer_syntax in NATIVE:
        order = ">" if transfer_syntax == ExplicitVRBigEndian else "<"
        data = (
            pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if stream is None else stream
        )
        ds.PixelData = data
        ds["PixelData"].VR = "OW"
    else:
        if stream is None:
            stream = ENCODERS[transfer_syntax](np.ascontiguousarray(pixels))
        ds.PixelData = encapsulate([stream])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    ds.save_as(
        path,
        implicit_vr=transfer_syntax == ImplicitVRLittleEndian,
        little_endian=transfer_syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return path


def received(path: Path) -> ReceivedInstance:
    record = read_instance(path)
    return ReceivedInstance(
        study_uid=record.study_uid,
        series_uid=record.series_uid,
        sop_instance_uid=record.sop_instance_uid,
        sop_class_uid=record.sop_class_uid,
        transfer_syntax_uid=record.transfer_syntax_uid,
        identity=record.identity,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size_bytes=path.stat().st_size,
        path=path,
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
        calling_aet="CT1",
        facts=record.facts,
    )


@pytest.fixture(scope="session")
def ct_writer() -> Callable[..., Path]:
    return write_ct


@pytest.fixture(scope="session")
def receive_file() -> Callable[[Path], ReceivedInstance]:
    return received


@pytest.fixture(scope="session")
def encoders() -> dict[str, Callable[[np.ndarray], bytes]]:
    return ENCODERS
