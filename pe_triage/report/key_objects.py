"""Key Object Selection of the key slices (PS3.3 A.35.4, PS3.16 TID 2010), title "Of Interest"."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from pe_triage.domain import INTENDED_USE_WORDS, NOTICE, ResultKind, ResultObject, TriageResult
from pe_triage.report.documents import device_observer, finish_document, result_uid, stand_ins
from pe_triage.report.settings import ReportSettings
from pe_triage.report.source_images import frame_number
from pe_triage.report.study import StudyContext
from pe_triage.report.wording import headline, model_words, series_description


def build_key_objects(
    *,
    result: TriageResult,
    study: StudyContext,
    headers: Mapping[str, Dataset],
    source: Dataset,
    now: datetime,
    settings: ReportSettings,
) -> ResultObject:
    """Build and encode the selection; the result must have key slices."""
    sources = [headers[key.image_id] for key in result.key_slices]
    images = stand_ins(sources, study)
    for image in images:
        image.Rows = image.Columns = 1  # what tells highdicom an image from another composite
    ds = hd.ko.KeyObjectSelectionDocument(
        # Several frames of one instance are one object.
        evidence=list({str(image.SOPInstanceUID): image for image in images}.values()),
        content=hd.ko.KeyObjectSelection(
            document_title=codes.DCM.OfInterest,
            referenced_objects=images,
            observer_device_context=device_observer(result, settings),
            description=_description(result),
        ),
        series_instance_uid=result_uid(result, study, "series/key-objects"),
        series_number=settings.series_number_of(ResultKind.KEY_OBJECTS),
        sop_instance_uid=result_uid(result, study, "key-objects"),
        instance_number=1,
        manufacturer=settings.manufacturer,
    )
    references = [item for item in ds.ContentSequence if item.ValueType == "IMAGE"]
    for item, header in zip(references, sources, strict=True):
        if "ConceptNameCodeSequence" in item:
            # TID 2010 gives its references no purpose; highdicom writes one.
            del item.ConceptNameCodeSequence
        frame = frame_number(header)
        if frame is not None:
            item.ReferencedSOPSequence[0].ReferencedFrameNumber = frame
    ds.SeriesDescription = series_description(result, ResultKind.KEY_OBJECTS)
    return finish_document(
        ds, result=result, source=source, now=now, settings=settings,
        kind=ResultKind.KEY_OBJECTS, label="key-objects",
    )  # fmt: skip


def _description(result: TriageResult) -> str:
    parts = [f"{headline(result)}: slices worth looking at first"]
    if result.model:
        use = INTENDED_USE_WORDS[result.model.intended_use]
        parts.append(f"chosen by {model_words(result.model)}; {use}")
    return ". ".join([*parts, NOTICE])
