"""The result in words, for viewers that show a report as text: Enhanced SR, CT Chest Report.

In the style of the Basic Diagnostic Imaging Report (PS3.16 TID 2000): sections of text, with the
key slices as images. The coded report stands beside it; nobody should parse this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from pe_triage.domain import (
    EXAM_LABELS,
    INTENDED_USE_WORDS,
    NOTICE,
    CtVolume,
    Decision,
    ExamPrediction,
    Outcome,
    ResultKind,
    ResultObject,
    TriageResult,
)
from pe_triage.report import concepts as c
from pe_triage.report.documents import (
    device_observer,
    finish_document,
    make_document,
    result_uid,
)
from pe_triage.report.headers import CHARACTER_SET, text_of
from pe_triage.report.places import marks
from pe_triage.report.settings import UNMARKED, ReportSettings
from pe_triage.report.slices import position_mm
from pe_triage.report.source_images import frame_number, frame_numbers
from pe_triage.report.study import StudyContext
from pe_triage.report.wording import headline, model_words, series_description

TITLE = Code("24627-2", "LN", "CT Chest Report")
_ENGLISH = hd.sr.CodedConcept("en-US", "RFC5646", "English (United States)")
_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
_PROCEDURES = Code("55111-9", "LN", "Current Procedure Descriptions")
_FINDINGS = Code("59776-5", "LN", "Findings")
_IMPRESSIONS = Code("19005-8", "LN", "Impressions")
_PROCEDURE = Code("121065", "DCM", "Procedure Description")
_IMPRESSION = Code("121073", "DCM", "Impression")
_BEST = Code("121080", "DCM", "Best illustration of finding")

_MEANINGS: Mapping[Outcome, str] = {
    Outcome.POSITIVE: "Signs of pulmonary embolism were found.",
    Outcome.NEGATIVE: "No sign of pulmonary embolism was found.",
    Outcome.INDETERMINATE: "The result is indeterminate: it says nothing about embolism.",
    Outcome.NOT_EVALUATED: "The study was not evaluated: this says nothing about embolism.",
}


def wants_narrative(result: TriageResult, settings: ReportSettings) -> bool:
    """Whether the site wants the report in words for this result."""
    if settings.narrative == UNMARKED:
        return not marks(result.key_slices)
    return bool(settings.narrative)


def build_narrative(
    *,
    result: TriageResult,
    study: StudyContext,
    volume: CtVolume | None,
    headers: Mapping[str, Dataset],
    source: Dataset,
    predecessors: Sequence[Dataset],
    now: datetime,
    settings: ReportSettings,
) -> ResultObject:
    """Build and encode the report in words; for every outcome.

    `predecessors` are the coded reports of earlier runs, named in words only: a predecessor
    document would have to be of this kind.
    """
    root = hd.sr.ContainerContentItem(name=TITLE, template_id="2000")
    content: list[hd.sr.ContentItem] = [
        *hd.sr.LanguageOfContentItemAndDescendants(_ENGLISH),
        *hd.sr.ObservationContext(observer_device_context=device_observer(result, settings)),
        # What matters first: text viewers open at the top.
        _section(_IMPRESSIONS, _texts(_IMPRESSION, _impression(result))),
        _section(_FINDINGS, _findings(result, headers, volume)),
        _section(
            _PROCEDURES, _texts(_PROCEDURE, _procedure(result, study, settings, predecessors))
        ),
    ]
    root.ContentSequence = hd.sr.ContentSequence(content, is_root=False)
    ds = make_document(
        hd.sr.EnhancedSR,
        root,
        result=result,
        study=study,
        headers=headers,
        source=source,
        series_instance_uid=result_uid(result, study, "series/narrative"),
        series_number=settings.series_number_of(ResultKind.NARRATIVE),
        sop_instance_uid=result_uid(result, study, "narrative"),
        instance_number=study.run,
        manufacturer=settings.manufacturer,
        is_complete=True,
        is_final=False,
        is_verified=False,
        performed_procedure_codes=[settings.procedure_reported],
        series_description=series_description(result, ResultKind.NARRATIVE),
        specific_character_set=CHARACTER_SET,
    )
    return finish_document(
        ds, result=result, source=source, now=now, settings=settings,
        kind=ResultKind.NARRATIVE, label="narrative",
    )  # fmt: skip


def _section(name: Code, items: list[hd.sr.ContentItem]) -> hd.sr.ContainerContentItem:
    section = hd.sr.ContainerContentItem(name=name, relationship_type=_CONTAINS)
    section.ContentSequence = hd.sr.ContentSequence(items)
    return section


def _texts(name: Code, lines: Iterator[str]) -> list[hd.sr.ContentItem]:
    return [
        hd.sr.TextContentItem(name=name, value=line, relationship_type=_CONTAINS) for line in lines
    ]


def _procedure(
    result: TriageResult,
    study: StudyContext,
    settings: ReportSettings,
    predecessors: Sequence[Dataset],
) -> Iterator[str]:
    yield (
        f"Automatic triage of CT pulmonary angiography, run {study.run}, by {settings.model_name} "
        f"{settings.software_version}: {model_words(result.model)}. Not for diagnostic use."
    )
    if result.series_choice:
        yield f"Series chosen: {result.series_choice}."
    if result.model:
        yield f"Intended use: {INTENDED_USE_WORDS[result.model.intended_use]}."
    yield f"Priority policy {settings.policy.name}: {'; '.join(settings.policy.describe())}."
    if predecessors:
        uids = ", ".join(str(ds.SOPInstanceUID) for ds in predecessors)
        yield f"Supersedes the earlier result {uids}."


def _findings(
    result: TriageResult, headers: Mapping[str, Dataset], volume: CtVolume | None
) -> list[hd.sr.ContentItem]:
    items = _texts(c.FINDING, _finding_lines(result))
    for number, key in enumerate(result.key_slices, start=1):
        header = headers[key.image_id]
        frame = frame_number(header)
        part = "" if frame is None else f", frame {frame}"
        where = f"at {position_mm(volume, key.z):.1f} mm, " if volume else ""
        items += _texts(
            c.FINDING,
            iter(
                [
                    f"Key slice {number} of {len(result.key_slices)}: {where}series "
                    f"{text_of(header, 'SeriesNumber') or '-'}, image "
                    f"{text_of(header, 'InstanceNumber') or '-'}{part}; "
                    f"score {key.probability:.3f}, attention {key.attention:.3f}."
                ]
            ),
        )
        items.append(
            hd.sr.ImageContentItem(
                name=_BEST,
                referenced_sop_class_uid=str(header.SOPClassUID),
                referenced_sop_instance_uid=str(header.SOPInstanceUID),
                referenced_frame_numbers=frame_numbers(header),
                relationship_type=_CONTAINS,
            )
        )
    return items


def _finding_lines(result: TriageResult) -> Iterator[str]:
    prediction = result.prediction
    if prediction is None:
        yield (
            "The result of the network is withheld."
            if result.outcome is (Outcome.INDETERMINATE)
            else "No network result exists."
        )
        return
    yield _line("Pulmonary embolism", prediction, prediction.pe_probability, "pe", None)
    for label in EXAM_LABELS:
        decision = prediction.findings.get(label, Decision.UNDETERMINED)
        words = c.LABEL_CONCEPTS[label].code.meaning
        yield _line(words, prediction, prediction.exam_probability[label], label, decision)


def _line(
    words: str, prediction: ExamPrediction, value: float, key: str, decision: Decision | None
) -> str:
    kind = "calibrated probability" if prediction.model.calibrated else "score"
    said = f"{decision.value.lower()}, " if decision else ""
    threshold = prediction.thresholds.get(key)
    limit = f" (threshold {threshold:.3f})" if threshold is not None else ""
    return f"{words}: {said}{kind} {value:.3f}{limit}."


def _impression(result: TriageResult) -> Iterator[str]:
    yield f"{headline(result)}. {_MEANINGS[result.outcome]}"
    if result.reason:
        yield f"Reason: {result.reason}."
    yield f"Priority: {result.priority.value if result.priority else 'none assigned'}."
    yield NOTICE
