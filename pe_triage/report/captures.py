"""Secondary Captures (PS3.3 A.8.1): the summary, and one heatmap for each key slice.

RGB, 8 bit, single frame, uncompressed, so that every viewer shows them. No Frame of Reference and
no geometry, or viewers would stack them with the CT. No patient identity is drawn into pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from pe_triage.domain import CtVolume, ResultKind, ResultObject, TriageResult
from pe_triage.report.concepts import SOURCE_IMAGE_FOR_PROCESSING
from pe_triage.report.documents import result_uid
from pe_triage.report.headers import apply_headers, text_of
from pe_triage.report.heatmap_picture import heatmap_picture
from pe_triage.report.part10 import code_item, encode, local_time, set_equipment, set_times
from pe_triage.report.settings import ReportSettings
from pe_triage.report.slices import SlicePictures
from pe_triage.report.source_images import frame_number
from pe_triage.report.study import StudyContext
from pe_triage.report.summary_picture import SourcePlace, summary_picture
from pe_triage.report.wording import series_description


def drawings(
    *,
    result: TriageResult,
    study: StudyContext,
    volume: CtVolume | None,
    headers: Mapping[str, Dataset],
    source: Dataset,
    now: datetime,
    settings: ReportSettings,
    pictures: SlicePictures,
) -> list[Callable[[], Image.Image]]:
    """Return what draws each picture: the summary, then the heatmaps as the key slices come.

    Each may be called from any thread; none looks into a data set. `volume` is needed where the
    result has key slices; each of these must have its header.
    """
    common: dict[str, Any] = {
        "result": result,
        "volume": volume,
        "run": study.run,
        "when": local_time(now, source),
        "software": f"{settings.model_name} {settings.software_version}",
    }
    places = {
        uid: _place(headers[uid])
        for key in result.key_slices
        for uid in (key.sop_instance_uid, key.image_id)
        if uid in headers
    }
    return [
        partial(summary_picture, places=places, **common),
        *(
            partial(
                heatmap_picture,
                index=index,
                place=places[key.image_id],
                pictures=pictures,
                **common,
            )
            for index, key in enumerate(result.key_slices)
        ),
    ]


def build_captures(
    *,
    result: TriageResult,
    study: StudyContext,
    headers: Mapping[str, Dataset],
    source: Dataset,
    now: datetime,
    settings: ReportSettings,
    pictures: Sequence[Image.Image],
) -> list[ResultObject]:
    """Build the summary and then the heatmaps around what `drawings` have drawn."""
    when = local_time(now, source)
    keys = [headers[key.image_id] for key in result.key_slices]
    common: dict[str, Any] = {
        "result": result, "study": study, "source": source, "settings": settings, "when": when,
    }  # fmt: skip
    summary = _capture(
        pictures[0], images=keys, role="summary", offset=1, number=1,
        derivation="Summary of the triage result drawn as a picture", **common,
    )  # fmt: skip
    captures = [encode(summary, ResultKind.SUMMARY, "summary")]
    for number, (key_header, picture) in enumerate(zip(keys, pictures[1:], strict=True), start=1):
        label = f"heatmap-{number:02d}"
        heatmap = _capture(
            picture, images=[key_header], role=label, offset=2, number=number,
            derivation="Key slice with gradient-weighted class activation laid over", **common,
        )  # fmt: skip
        captures.append(encode(heatmap, ResultKind.HEATMAP, label))
    return captures


def _capture(
    picture: Image.Image,
    *,
    result: TriageResult,
    study: StudyContext,
    source: Dataset,
    settings: ReportSettings,
    when: datetime,
    images: Sequence[Dataset],
    role: str,
    offset: int,
    number: int,
    derivation: str,
) -> Dataset:
    heatmap = role.startswith("heatmap")
    series = "heatmaps" if heatmap else role
    ds = Dataset()
    apply_headers(source, ds)
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = result_uid(result, study, role)
    ds.SeriesInstanceUID = result_uid(result, study, f"series/{series}")
    ds.Modality = "OT"
    ds.SeriesNumber = settings.series_number + offset
    ds.SeriesDescription = series_description(
        result, ResultKind.HEATMAP if heatmap else ResultKind.SUMMARY
    )
    ds.InstanceNumber = number
    ds.BodyPartExamined = "CHEST"
    ds.PatientOrientation = ""
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.ConversionType = "WSD"
    ds.DerivationDescription = derivation
    ds.BurnedInAnnotation = settings.burned_in_annotation
    ds.LossyImageCompression = "00"
    if str(source.get("QualityControlImage", "")) == "YES":
        # A picture of a phantom is a phantom's picture.
        ds.QualityControlImage = "YES"
    if images:
        ds.SourceImageSequence = [_source_item(image) for image in images]
    set_times(ds, when)
    set_equipment(ds, result.model, settings)
    rgb = picture.convert("RGB")
    ds.SamplesPerPixel = 3
    ds.PhotometricInterpretation = "RGB"
    ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = rgb.height, rgb.width
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    pixels = rgb.tobytes()
    ds.PixelData = pixels + b"\x00" * (len(pixels) % 2)
    ds["PixelData"].VR = "OB"
    return ds


def _source_item(image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = str(image.SOPClassUID)
    item.ReferencedSOPInstanceUID = str(image.SOPInstanceUID)
    frame = frame_number(image)
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE_FOR_PROCESSING)]
    return item


def _place(ds: Dataset) -> SourcePlace:
    frame = frame_number(ds)
    return SourcePlace(
        series_number=text_of(ds, "SeriesNumber"),
        instance_number=text_of(ds, "InstanceNumber"),
        frame_number="" if frame is None else str(frame),
    )
