"""The structured report: Comprehensive 3D SR, Imaging Measurement Report (PS3.16 TID 1500).

Four outcomes, one document: it always says the outcome, the priority or that none was assigned,
the reason, the notice and what the weights are for. COMPLETE as a document, PRELIMINARY as a
means of communication and UNVERIFIED, since no person has signed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset

from pe_triage.domain import CtVolume, ResultKind, ResultObject, TriageResult
from pe_triage.report import concepts as c
from pe_triage.report.documents import device_observer, finish_document, make_document, result_uid
from pe_triage.report.headers import CHARACTER_SET
from pe_triage.report.image_library import image_library
from pe_triage.report.settings import ReportSettings
from pe_triage.report.sr_groups import GroupWriter, MeasurementGroup
from pe_triage.report.study import StudyContext
from pe_triage.report.uids import CODING_SCHEME_UID


def build_sr(
    *,
    result: TriageResult,
    study: StudyContext,
    volume: CtVolume | None,
    headers: Mapping[str, Dataset],
    source: Dataset,
    predecessors: Sequence[Dataset],
    now: datetime,
    settings: ReportSettings,
    series_description: str,
) -> ResultObject:
    """Build and encode the report.

    Parameters
    ----------
    volume
        Needed where the result has key slices: places their points in the source's pixel grid.
    headers
        Header-only data sets by `domain.image_id`; must hold the key slices.
    source
        The header whose patient and study are copied.
    predecessors
        Reports of earlier runs, which this one supersedes (PS3.3 C.17.2.2).
    """
    key_headers = [headers[key.image_id] for key in result.key_slices]
    ds = make_document(
        hd.sr.Comprehensive3DSR,
        _content(result, study, volume, key_headers, settings)[0],
        result=result,
        study=study,
        headers=headers,
        source=source,
        series_instance_uid=result_uid(result, study, "series/sr"),
        series_number=settings.series_number,
        sop_instance_uid=result_uid(result, study, "sr"),
        instance_number=study.run,
        manufacturer=settings.manufacturer,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=list(predecessors) or None,
        performed_procedure_codes=[settings.procedure_reported],
        series_description=series_description,
        specific_character_set=CHARACTER_SET,
    )
    scheme = Dataset()
    scheme.CodingSchemeDesignator = c.SCHEME
    scheme.CodingSchemeUID = CODING_SCHEME_UID
    scheme.CodingSchemeName = c.SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = c.SCHEME_ORGANIZATION
    ds.CodingSchemeIdentificationSequence = [scheme]
    return finish_document(
        ds, result=result, source=source, now=now, settings=settings, kind=ResultKind.SR, label="sr"
    )


def _content(
    result: TriageResult,
    study: StudyContext,
    volume: CtVolume | None,
    key_headers: Sequence[Dataset],
    settings: ReportSettings,
) -> hd.sr.MeasurementReport:
    writer = GroupWriter(result=result, study=study, settings=settings)
    # The exam first, for readers of text; the key slices next, for what OHIF writes beside them.
    groups: list[MeasurementGroup] = [writer.exam(key_headers)]
    for number, (key, header) in enumerate(
        zip(result.key_slices, key_headers, strict=True), start=1
    ):
        assert volume is not None  # build_results has checked
        groups += writer.key_slice(key, number, header, volume)
    if result.prediction is not None:
        groups += writer.labels(result.prediction)
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=device_observer(result, settings)
        ),
        procedure_reported=settings.procedure_reported,
        imaging_measurements=groups,
    )
    if key_headers:
        # TID 1500 wants the library before the measurements, which highdicom puts last.
        root = report[0].ContentSequence
        root.insert(len(root) - 1, image_library(key_headers))
    return report
