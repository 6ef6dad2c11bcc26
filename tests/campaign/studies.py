"""Studies that are small and quick to make: as they go over the wire, and what is expected of them.

One small chest is drawn once; a study is that chest under UIDs and a patient of its own, with a
few pixels that say which study and slice they belong to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.dsutils import encode

from pe_triage.phantom import generate_study, to_datasets
from tests.campaign.standin import expected_probability

SLICES = 12
ELIGIBILITY: Mapping[str, float | int | bool] = {
    "min_slices": 4,
    "min_matrix": 32,
    "max_pixel_spacing_mm": 50.0,
    "max_slice_spacing_mm": 30.0,
    "max_slice_thickness_mm": 30.0,
    "max_unimaged_mm": 30.0,
    "min_lung_extent_mm": 1.0,
    "min_lung_fraction": 0.0001,
    "max_slice_jump": 1000.0,
    "min_grain": 0.0,
    "min_vessel_hu": 0.0,
    "good_vessel_hu": 0.0,
    "max_noise_hu": 3000.0,
    "max_unevenness": 1000.0,
    "max_strangeness": 10000.0,
}
"""Limits under which so small a chest is analysed and not refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One instance as it is sent."""

    sop_instance_uid: str
    sop_class_uid: str
    encoded: bytes
    """Data set as on the wire, Explicit VR Little Endian."""

    @property
    def sha256(self) -> str:
        """Of the bytes on the wire."""
        return hashlib.sha256(self.encoded).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SentStudy:
    """A study, and what must be said of it."""

    study_uid: str
    patient_id: str
    images: tuple[Image, ...]

    @property
    def digests(self) -> dict[str, str]:
        """SOP Instance UID to the SHA-256 of its bytes."""
        return {image.sop_instance_uid: image.sha256 for image in self.images}

    @property
    def probability(self) -> float:
        """What the stand-in says of all of it."""
        return expected_probability(image.sop_instance_uid for image in self.images)


@cache
def _chest() -> tuple[Dataset, ...]:
    study = generate_study(7, "negative", size=64, n_slices=SLICES, coverage_mm=(-90.0, 90.0))
    return tuple(to_datasets(study))


def make_study(number: int, *, slices: int = SLICES) -> SentStudy:
    """Study `number`: the same UIDs and bytes whenever it is made."""
    digits = str(int(hashlib.sha256(f"campaign {number}".encode()).hexdigest()[:24], 16))
    study_uid, patient_id = f"2.25.{digits}1", f"CAMPAIGN-{digits[-12:]}"
    images = []
    for z, source in enumerate(_chest()[:slices]):
        ds = Dataset()
        ds.update(source)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, f"2.25.{digits}2"
        ds.SOPInstanceUID = f"2.25.{digits}3{z:03d}"
        ds.PatientID, ds.PatientName = patient_id, f"CAMPAIGN^{number}"
        pixels = bytearray(source.PixelData)
        mark = int(digits[-6:]) * SLICES + z
        for bit in range(32):
            # The lowest bit of a few corner pixels: no two images of the campaign are alike.
            pixels[2 * bit] = (pixels[2 * bit] & 0xFE) | (mark >> bit & 1)
        ds.PixelData = bytes(pixels)
        encoded = encode(ds, is_implicit_vr=False, is_little_endian=True)
        assert encoded is not None
        images.append(
            Image(
                sop_instance_uid=str(ds.SOPInstanceUID),
                sop_class_uid=str(ds.SOPClassUID),
                encoded=encoded,
            )
        )
    return SentStudy(study_uid=study_uid, patient_id=patient_id, images=tuple(images))


def write_config(path: Path, destinations: Sequence[str], **settings: object) -> Path:
    """Write a node's configuration whose waits are short."""
    values: dict[str, object] = {
        "grace_s": 0.3,
        "quiet_s": 2.0,
        "min_free_mb": 1,
        "lease_s": 3.0,
        "threads": 1,
        # A stand-in encodes nothing.
        "ahead": False,
        "max_attempts": 50,
        "log_level": "DEBUG",
        "log_format": "json",
        "send_to": list(destinations),
        **settings,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    # Nothing is removed for want of space or by age: the check looks for every file.
    lines += ["[report]", "narrative = true", "[retention]", "enabled = false"]
    lines += ["[eligibility]", *(f"{k} = {json.dumps(v)}" for k, v in ELIGIBILITY.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


TRANSFER_SYNTAX = str(ExplicitVRLittleEndian)
