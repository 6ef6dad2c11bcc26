"""Makes a report of nothing, so that the first study does not wait for what is read but once.

pydicom and highdicom look up and build their code tables and dictionaries when these are first
needed, which takes longer than a report itself.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from pe_triage.domain import PatientIdentity
from pe_triage.logs import get_logger
from pe_triage.report.policy import not_evaluated
from pe_triage.report.results import build_results
from pe_triage.report.settings import ReportSettings
from pe_triage.report.study import StudyContext

_UID = "2.25.1"


def warm_up(settings: ReportSettings) -> None:
    """Build the objects of a study that does not exist, and throw them away; never raises."""
    try:
        _build(settings)
    except Exception as error:  # noqa: BLE001 - only the first study is slower for it
        get_logger().warning("report.not_warmed_up", error=type(error).__name__)


def _build(settings: ReportSettings) -> None:
    header = Dataset()
    header.SOPClassUID = CTImageStorage
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(header, keyword, _UID)
    header.PatientID = "NOBODY"
    build_results(
        result=not_evaluated("no study; the report is thrown away"),
        study=StudyContext(
            study_uid=_UID,
            run=1,
            manifest_digest="",
            identity=PatientIdentity(patient_id="NOBODY", issuer=""),
        ),
        volume=None,
        headers={_UID: header},
        now=datetime(2000, 1, 1, tzinfo=UTC),
        settings=settings,
    )
