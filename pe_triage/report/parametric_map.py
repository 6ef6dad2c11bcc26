"""Parametric Map of the heatmaps' values (PS3.3 A.75), lying on the CT slices they explain.

One frame for each key slice with a place on it, float32, at the pixel grid, position and
orientation of that source image and in its frame of reference: viewers that can lay one image
over another do so without this program's pictures. The quantity is Gradient-weighted class
activation (130403, DCM), from 0 to 1 for each slice, without unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from pe_triage.domain import CtVolume, KeySlice, ResultKind, ResultObject, TriageResult
from pe_triage.report import concepts as c
from pe_triage.report.documents import finish_document, result_uid, stand_ins
from pe_triage.report.places import has_place, heat_in_source
from pe_triage.report.settings import ReportSettings
from pe_triage.report.study import StudyContext
from pe_triage.report.wording import series_description

ACTIVATION = Code("130403", "DCM", "Gradient-weighted class activation")

_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
             "FrameOfReferenceUID")  # fmt: skip


def mappable(
    result: TriageResult, volume: CtVolume | None, headers: Mapping[str, Dataset]
) -> tuple[KeySlice, ...]:
    """Return the key slices that a map can hold: with a place, and with geometry in the header."""
    if volume is None:
        return ()
    return tuple(
        key
        for key in result.key_slices
        if has_place(key) and _fits(headers[key.sop_instance_uid], volume)
    )


def _fits(header: Dataset, volume: CtVolume) -> bool:
    rows, columns = volume.hu_zyx.shape[1:]
    shape = (columns, rows) if volume.source_transpose else (rows, columns)
    return (header.get("Rows"), header.get("Columns")) == shape and all(
        header.get(keyword) for keyword in _GEOMETRY
    )


def build_parametric_map(
    *,
    result: TriageResult,
    study: StudyContext,
    volume: CtVolume,
    headers: Mapping[str, Dataset],
    source: Dataset,
    now: datetime,
    settings: ReportSettings,
) -> ResultObject:
    """Build and encode the map of `mappable` key slices, of which there must be one."""
    keys = mappable(result, volume, headers)
    sources = [_geometry(headers[key.sop_instance_uid], study) for key in keys]
    values = np.stack([_values(key, volume) for key in keys])
    ds = hd.pm.ParametricMap(
        source_images=sources,
        pixel_array=values,
        series_instance_uid=result_uid(result, study, "series/parametric-map"),
        series_number=settings.series_number_of(ResultKind.PARAMETRIC_MAP),
        sop_instance_uid=result_uid(result, study, "parametric-map"),
        instance_number=1,
        manufacturer=settings.manufacturer,
        manufacturer_model_name=settings.model_name,
        software_versions=settings.software_version,
        device_serial_number=settings.device_serial_number,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            hd.pm.RealWorldValueMapping(
                lut_label="GRADCAM",
                lut_explanation="Grad-CAM, each slice scaled to its own maximum",
                unit=c.NO_UNITS,
                value_range=(0.0, 1.0),
                slope=1.0,
                intercept=0.0,
                quantity_definition=ACTIVATION,
            )
        ],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="GRADCAM",
        content_description="Where the network looked; not an outline of a clot",
    )
    # highdicom draws this one by chance; the same inputs shall make the same bytes.
    dimensions = result_uid(result, study, "parametric-map/dimensions")
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    ds.SeriesDescription = series_description(result, ResultKind.PARAMETRIC_MAP)
    ds.BodyPartExamined = "CHEST"
    if str(source.get("QualityControlImage", "")) == "YES":
        ds.QualityControlImage = "YES"
    return finish_document(
        ds, result=result, source=source, now=now, settings=settings,
        kind=ResultKind.PARAMETRIC_MAP, label="parametric-map",
    )  # fmt: skip


def _values(key: KeySlice, volume: CtVolume) -> NDArray[np.float32]:
    return heat_in_source(key, volume).astype(np.float32)


def _geometry(header: Dataset, study: StudyContext) -> Dataset:
    """Return a source image with its geometry and UIDs, and nothing that could stop highdicom."""
    (ds,) = stand_ins([header], study)
    ds.Modality = "CT"
    for keyword in (*_GEOMETRY, "Rows", "Columns", "PositionReferenceIndicator"):
        setattr(ds, keyword, header.get(keyword))
    # Slice Thickness is type 2 in CT and type 1 here; a slice has no less than its spacing.
    ds.SliceThickness = header.get("SliceThickness") or "1"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return ds
