"""Coded concepts of the report, as data.

Standard codes where one exists (DICOM PS3.16, SNOMED CT as in CID 240, 3829, 6102); for the rest
the private scheme 99PETRIAGE, declared in the Coding Scheme Identification Sequence (PS3.3
C.12.1.1.7). Code values of the private scheme never change their meaning: new ones are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydicom.sr.coding import Code

from pe_triage.domain import Decision, Outcome, Priority

SCHEME = "99PETRIAGE"
SCHEME_NAME = "pe-triage private codes"
SCHEME_ORGANIZATION = "pe-triage project"


def _private(value: str, meaning: str) -> Code:
    return Code(value, SCHEME, meaning)


# Findings and sites.
PULMONARY_EMBOLISM = Code("59282003", "SCT", "Pulmonary embolism")
ACUTE_PE = Code("706870000", "SCT", "Acute pulmonary embolism")
CHRONIC_PE = Code("133971000119108", "SCT", "Chronic pulmonary embolism")
PULMONARY_TRUNK = Code("45341000", "SCT", "Pulmonary trunk")
RIGHT_PULMONARY_ARTERY = Code("78480002", "SCT", "Right pulmonary artery")
LEFT_PULMONARY_ARTERY = Code("50408007", "SCT", "Left pulmonary artery")

# Names of content items.
PRESENCE = Code("121052", "DCM", "Presence of property")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
PRIORITY = Code("260870009", "SCT", "Priority")
FINDING = Code("121071", "DCM", "Finding")
FINDING_SITE = Code("363698007", "SCT", "Finding Site")
TRACKING_UID = Code("112040", "DCM", "Tracking Unique Identifier")
ALGORITHM_NAME = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = Code("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS = Code("111002", "DCM", "Algorithm Parameters")
ALGORITHM_FAMILY_AI = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
SOURCE_IMAGE_FOR_PROCESSING = Code("121322", "DCM", "Source image for image processing operation")
PROCEDURE_REPORTED = Code("25045-6", "LN", "CT unspecified body region")

EXAM_SCORE = _private("EXAM_SCORE", "Model score of exam (0 to 1)")
LABEL_SCORE = _private("LABEL_SCORE", "Model score of label (0 to 1)")
SLICE_SCORE = _private("SLICE_SCORE", "Model score of slice (0 to 1)")
ATTENTION = _private("ATTENTION", "Attention weight of slice (0 to 1)")
OUTCOME = _private("OUTCOME", "Triage outcome")
PRIORITY_ASSIGNED = _private("PRIORITY", "Triage priority")
LABEL = _private("LABEL", "Label assessed")
REASON = _private("REASON", "Reason")
SERIES_CHOICE = _private("SERIES_CHOICE", "Reason for the choice of series")
NOTICE = _private("NOTICE", "Notice")
INTENDED_USE = _private("INTENDED_USE", "Intended use of the algorithm")
SHOWN = _private("SHOWN", "Result of the network")
WITHHELD = _private("WITHHELD", "Withheld")
NOT_RUN = _private("NOT_RUN", "No network ran")
ALSO = _private("ALSO", "Further finding assessed")

# Units (UCUM).
NO_UNITS = Code("1", "UCUM", "no units")
PERCENT = Code("%", "UCUM", "Percent")
MILLIMETRE = Code("mm", "UCUM", "millimeter")
PIXELS = Code("{pixels}", "UCUM", "Pixels")
DIRECTION = Code("{-1:1}", "UCUM", "{-1:1}")

PRESENCE_CODES: Mapping[Decision, Code] = MappingProxyType(
    {
        Decision.PRESENT: Code("52101004", "SCT", "Present"),
        Decision.ABSENT: Code("272519000", "SCT", "Absent"),
        Decision.UNDETERMINED: Code("373068000", "SCT", "Undetermined"),
    }
)
"""CID 240."""

OUTCOME_CODES: Mapping[Outcome, Code] = MappingProxyType(
    {
        Outcome.POSITIVE: _private("POSITIVE", "Pulmonary embolism suspected"),
        Outcome.NEGATIVE: _private("NEGATIVE", "No pulmonary embolism detected"),
        Outcome.INDETERMINATE: _private("INDETERMINATE", "Indeterminate"),
        Outcome.NOT_EVALUATED: _private("NOT_EVALUATED", "Not evaluated"),
    }
)

OUTCOME_PRESENCE: Mapping[Outcome, Decision] = MappingProxyType(
    {
        Outcome.POSITIVE: Decision.PRESENT,
        Outcome.NEGATIVE: Decision.ABSENT,
        Outcome.INDETERMINATE: Decision.UNDETERMINED,
        Outcome.NOT_EVALUATED: Decision.UNDETERMINED,
    }
)

PRIORITY_CODES: Mapping[Priority | None, Code] = MappingProxyType(
    {
        Priority.HIGH: _private("HIGH", "High priority"),
        Priority.MEDIUM: _private("MEDIUM", "Medium priority"),
        Priority.LOW: _private("LOW", "Low priority"),
        None: _private("NONE", "No priority assigned"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConcept:
    """How one exam label of RSPECT is written and shown.

    Attributes
    ----------
    code
        The label itself, in the private scheme: what makes the report readable back.
    findings
        What is assessed as present or absent (two for acute-and-chronic).
    site
        Where, if the label says where.
    words
        As drawn in captures.
    """

    code: Code
    findings: tuple[Code, ...]
    words: str
    site: Code | None = None


LABEL_CONCEPTS: Mapping[str, LabelConcept] = MappingProxyType(
    {
        "negative_exam_for_pe": LabelConcept(
            code=_private("NEGATIVE_EXAM", "Negative exam for pulmonary embolism"),
            findings=(_private("NEGATIVE_EXAM", "Negative exam for pulmonary embolism"),),
            words="Negative exam",
        ),
        "indeterminate": LabelConcept(
            code=_private("INDET_EXAM", "Indeterminate exam for pulmonary embolism"),
            findings=(_private("INDET_EXAM", "Indeterminate exam for pulmonary embolism"),),
            words="Indeterminate exam",
        ),
        "chronic_pe": LabelConcept(
            code=_private("CHRONIC", "Chronic pulmonary embolism"),
            findings=(CHRONIC_PE,),
            words="Chronic",
        ),
        "acute_and_chronic_pe": LabelConcept(
            code=_private("ACUTE_CHRONIC", "Acute and chronic pulmonary embolism"),
            findings=(ACUTE_PE, CHRONIC_PE),
            words="Acute and chronic",
        ),
        "central_pe": LabelConcept(
            code=_private("CENTRAL", "Central pulmonary embolism"),
            findings=(PULMONARY_EMBOLISM,),
            words="Central",
            site=PULMONARY_TRUNK,
        ),
        "leftsided_pe": LabelConcept(
            code=_private("LEFT", "Left-sided pulmonary embolism"),
            findings=(PULMONARY_EMBOLISM,),
            words="Left-sided",
            site=LEFT_PULMONARY_ARTERY,
        ),
        "rightsided_pe": LabelConcept(
            code=_private("RIGHT", "Right-sided pulmonary embolism"),
            findings=(PULMONARY_EMBOLISM,),
            words="Right-sided",
            site=RIGHT_PULMONARY_ARTERY,
        ),
        "rv_lv_ratio_gte_1": LabelConcept(
            code=_private("RVLV_GTE_1", "Right to left ventricular ratio 1 or more"),
            findings=(_private("RVLV_GTE_1", "Right to left ventricular ratio 1 or more"),),
            words="RV/LV ratio \N{GREATER-THAN OR EQUAL TO} 1",
        ),
        "rv_lv_ratio_lt_1": LabelConcept(
            code=_private("RVLV_LT_1", "Right to left ventricular ratio below 1"),
            findings=(_private("RVLV_LT_1", "Right to left ventricular ratio below 1"),),
            words="RV/LV ratio < 1",
        ),
    }
)
"""For each of `pe_triage.domain.EXAM_LABELS`, in that order."""

EXAM = _private("PE_EXAM", "Pulmonary embolism, whole exam")
KEY_SLICE = _private("KEY_SLICE", "Slice worth looking at first")
HEATMAP_OUTLINE = _private("OUTLINE", "Outline of heatmap at half its maximum")

POLICY_RULE = "policy rule "
"""What lines of the policy begin with among the algorithm's parameters."""
