"""Series of header facts, made in memory: nothing in this room opens a file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pe_triage.domain import InstanceFacts, PatientIdentity, ReceivedInstance

CT = "1.2.840.10008.5.1.4.1.1.2"

INSTANCE_KEYS = {"sop_class_uid", "identity", "study_uid", "series_uid"}


def make_series(
    slices: int = 200,
    *,
    step_mm: float = 1.25,
    series: str = "1.2.3.1",
    skip: tuple[int, ...] = (),
    each: Callable[[int], dict[str, Any]] | None = None,
    **change: Any,
) -> list[ReceivedInstance]:
    """An eligible CTPA series of `slices`, with what `change` and `each` say otherwise."""
    instances = []
    for z in range(slices):
        if z in skip:
            continue
        facts: dict[str, Any] = {
            "modality": "CT",
            "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
            "series_description": "CTPA 1.25",
            "kernel": ("STANDARD",),
            "instance_number": slices - z,
            "patient_age_years": 60.0,
            "rows": 512,
            "columns": 512,
            "bits_allocated": 16,
            "bits_stored": 12,
            "pixel_representation": 0,
            "samples_per_pixel": 1,
            "rescale_slope": 1.0,
            "rescale_intercept": -1024.0,
            "pixel_spacing_mm": (0.7, 0.7),
            "slice_thickness_mm": 1.25,
            "image_position_mm": (-180.0, -180.0, round(-300 + z * step_mm, 4)),
            "image_orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            "gantry_tilt_deg": 0.0,
            "frame_of_reference_uid": "1.2.9",
        }
        own = change | (each(z) if each else {})
        outer = {k: own.pop(k) for k in list(own) if k in INSTANCE_KEYS}
        instances.append(
            ReceivedInstance(
                **{
                    "study_uid": "1.2.3",
                    "series_uid": series,
                    "sop_instance_uid": f"{series}.{(z * 7919) % 10007}",
                    "sop_class_uid": CT,
                    "transfer_syntax_uid": "1.2.840.10008.1.2.1",
                    "identity": PatientIdentity(patient_id="P1"),
                    "sha256": f"{z:064x}",
                    "size_bytes": 525_000,
                    "path": Path("/nowhere") / f"{z}.dcm",
                    "received_at": datetime(2026, 1, 1, tzinfo=UTC),
                    "calling_aet": "CT1",
                }
                | outer,
                facts=InstanceFacts(**(facts | own)),
            )
        )
    return instances


@pytest.fixture(scope="session")
def ct_series() -> Callable[..., list[ReceivedInstance]]:
    return make_series
