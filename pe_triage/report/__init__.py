"""From a triage result to what a PACS files: policy, structured report, captures, read-back.

Floor 1: knows the domain values, pydicom, highdicom and Pillow; opens no socket and no database.
"""

from pe_triage.report.policy import (
    Decided,
    PriorityRule,
    TriagePolicy,
    decide,
    make_result,
    not_evaluated,
)
from pe_triage.report.readback import read_sr
from pe_triage.report.results import build_results
from pe_triage.report.settings import ReportSettings
from pe_triage.report.study import StudyContext

__all__ = [
    "Decided",
    "PriorityRule",
    "ReportSettings",
    "StudyContext",
    "TriagePolicy",
    "build_results",
    "decide",
    "make_result",
    "not_evaluated",
    "read_sr",
]
