"""Parametric Map of the heatmaps' values (PS3.3 A.75), lying on the CT slices they explain.

One frame for each key slice with a place on it, float32, at the pixel grid, position and
orientation of that source image and in its frame of reference: viewers that can lay one image
over another do so without this program's pictures. The quantity is Gradient-weighted class
activation (130403, DCM), from 0 to 1 for each slice, without unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage

from pe_triage.domain import CtVolume, KeySlice, ResultKind, ResultObject, TriageResult
from pe_triage.report import concepts as c
from pe_triage.report.documents import finish_document, result_uid, stand_ins
from pe_triage.report.places import has_place, heat_in_source
from pe_triage.report.settings import ReportSettings
from pe_triage.report.source_images import frame_number
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
        key for key in result.key_slices if has_place(key) and _fits(headers[key.image_id], volume)
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
    # Under UIDs of its own each frame is an image to highdicom, which takes Enhanced CT only whole.
    stands_for = {f"2.25.{n}": headers[key.image_id] for n, key in enumerate(keys, start=1)}
    sources = [_geometry(uid, header, study) for uid, header in stands_for.items()]
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
    _name_sources(ds, stands_for)
    ds.SeriesDescription = series_description(result, ResultKind.PARAMETRIC_MAP)
    ds.BodyPartExamined = "CHEST"
    if str(source.get("QualityControlImage", "")) == "YES":
        ds.QualityControlImage = "YES"
    return finish_document(
        ds, result=result, source=source, now=now, settings=settings,
        kind=ResultKind.PARAMETRIC_MAP, label="parametric-map",
    )  # fmt: skip


def _name_sources(ds: Dataset, stands_for: Mapping[str, Dataset]) -> None:
    """Refer to the true images, and of multi-frame ones to the frame (PS3.3 C.7.6.16.2.6)."""
    # highdicom uses the same items here and among the referenced instances.
    sources = [deepcopy(item) for item in ds.get("SourceImageSequence", ())]
    if sources:
        ds.SourceImageSequence = list(sources)
    for groups in ds.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", ()):
            sources += derivation.SourceImageSequence
    for source in sources:
        header = stands_for[str(source.ReferencedSOPInstanceUID)]
        _refer(source, header)
        frame = frame_number(header)
        if frame is not None:
            source.ReferencedFrameNumber = frame
    for series in ds.get("ReferencedSeriesSequence", ()):
        for instance in series.ReferencedInstanceSequence:
            _refer(instance, stands_for[str(instance.ReferencedSOPInstanceUID)])
        # Several frames of one instance are one object.
        series.ReferencedInstanceSequence = list(
            {str(i.ReferencedSOPInstanceUID): i for i in series.ReferencedInstanceSequence}.values()
        )


def _refer(item: Dataset, header: Dataset) -> None:
    item.ReferencedSOPClassUID = str(header.SOPClassUID)
    item.ReferencedSOPInstanceUID = str(header.SOPInstanceUID)


def _values(key: KeySlice, volume: CtVolume) -> NDArray[np.float32]:
    return heat_in_source(key, volume).astype(np.float32)


def _geometry(uid: str, header: Dataset, study: StudyContext) -> Dataset:
    """Return a source image with its geometry, and nothing that could stop highdicom."""
    (ds,) = stand_ins([header], study)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, uid
    ds.Modality = "CT"
    for keyword in (*_GEOMETRY, "Rows", "Columns", "PositionReferenceIndicator"):
        setattr(ds, keyword, header.get(keyword))
    # Slice Thickness is type 2 in CT and type 1 here; a slice has no less than its spacing.
    ds.SliceThickness = header.get("SliceThickness") or "1"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return ds
