"""All objects of one run, built in one go, in the order in which they should be sent.

The report goes first: it is small and carries the coded priority, so urgency is known while the
pictures are still on the wire. Then the narrative (where the site wants it), the summary, the key
object selection, the heatmaps, the parametric map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from pe_triage.domain import CtVolume, Outcome, ResultKind, ResultSet, TriageResult
from pe_triage.errors import PermanentError
from pe_triage.report.captures import build_captures, drawings
from pe_triage.report.edition import edition_of
from pe_triage.report.headers import apply_headers
from pe_triage.report.key_objects import build_key_objects
from pe_triage.report.narrative import build_narrative, wants_narrative
from pe_triage.report.parametric_map import build_parametric_map, mappable
from pe_triage.report.settings import ReportSettings
from pe_triage.report.slices import SlicePictures
from pe_triage.report.sr import build_sr
from pe_triage.report.study import StudyContext, check_belongs, choose_source
from pe_triage.report.wording import series_description


def build_results(
    *,
    result: TriageResult,
    study: StudyContext,
    volume: CtVolume | None,
    headers: Mapping[str, Dataset],
    predecessors: Sequence[Dataset] = (),
    now: datetime,
    settings: ReportSettings | None = None,
    pictures: SlicePictures | None = None,
) -> ResultSet:
    """Build and encode every object of a run; same inputs, same UIDs and bytes, else neither.

    Parameters
    ----------
    volume
        The analysed volume; may be None where the result has no key slices.
    headers
        Header-only data sets of the study by `domain.image_id`: at least one, each key slice, and
        of multi-frame instances their own besides.
    predecessors
        Structured reports of this study's earlier runs.
    now
        Aware; written as the objects' time (in the source's time zone where it names one). Pass
        the run's own time, not the clock's, where a repeated job shall make the same bytes.
    pictures
        What is drawn already; changes no byte.

    Raises
    ------
    PermanentError
        If a header or predecessor is of another study or patient, a key slice lacks its header
        or volume, or the result contradicts itself.
    """
    settings = settings or ReportSettings()
    _check(result, volume, headers)
    for header in headers.values():
        check_belongs(header, study, "image")
    for predecessor in predecessors:
        check_belongs(predecessor, study, "earlier report")
    source = choose_source(headers, result)
    study = replace(study, edition=_edition(result, source, predecessors, now, settings))
    common: dict[str, Any] = {
        "result": result, "study": study, "headers": headers, "source": source, "now": now,
        "settings": settings,
    }  # fmt: skip
    # Drawing holds the interpreter's lock for a small part of its time, writing the report for all.
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="draw") as pool:
        drawn = [
            pool.submit(draw)
            for draw in drawings(volume=volume, pictures=pictures or SlicePictures(), **common)
        ]
        report = build_sr(
            volume=volume,
            predecessors=predecessors,
            series_description=series_description(result, ResultKind.SR),
            **common,
        )
        boards = [future.result() for future in drawn]
    captures = build_captures(pictures=boards, **common)
    heatmaps = [item for item in captures if item.kind is ResultKind.HEATMAP]
    objects = [report]
    if wants_narrative(result, settings):
        objects.append(build_narrative(volume=volume, predecessors=predecessors, **common))
    objects += [item for item in captures if item.kind is ResultKind.SUMMARY]
    if settings.key_objects and result.key_slices:
        objects.append(build_key_objects(**common))
    objects += heatmaps
    if settings.parametric_map and mappable(result, volume, headers):
        assert volume is not None  # mappable has looked
        objects.append(build_parametric_map(volume=volume, **common))
    return ResultSet(study_uid=study.study_uid, run=study.run, objects=tuple(objects))


def _edition(
    result: TriageResult,
    source: Dataset,
    predecessors: Sequence[Dataset],
    now: datetime,
    settings: ReportSettings,
) -> str:
    """What shapes the bytes beside the images, which the manifest's digest stands for."""
    named = Dataset()
    apply_headers(source, named)
    earlier = [str(ds.SOPInstanceUID) for ds in predecessors]
    return edition_of(result, named, earlier, now, settings)


def _check(result: TriageResult, volume: CtVolume | None, headers: Mapping[str, Dataset]) -> None:
    """Refuse a result that could not be written truthfully."""
    positive = result.outcome is Outcome.POSITIVE
    if positive != (result.priority is not None):
        raise PermanentError(f"outcome {result.outcome} with priority {result.priority}")
    if result.outcome in (Outcome.POSITIVE, Outcome.NEGATIVE) and result.prediction is None:
        raise PermanentError(f"outcome {result.outcome} without a prediction")
    if result.outcome is Outcome.NOT_EVALUATED and (result.prediction or not result.reason):
        raise PermanentError("NOT_EVALUATED must have a reason and no prediction")
    if not result.key_slices:
        return
    if result.prediction is None or volume is None:
        raise PermanentError("key slices without prediction or volume")
    for key in result.key_slices:
        if key.image_id not in headers:
            raise PermanentError(f"no header for key slice {key.image_id}")
        at = volume.sop_instance_uids[key.z] if key.z < len(volume.sop_instance_uids) else None
        if at != key.sop_instance_uid or volume.frame_of(key.z) != key.frame:
            raise PermanentError(f"key slice {key.image_id} is not slice {key.z}")
