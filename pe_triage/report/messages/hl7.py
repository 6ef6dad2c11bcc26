"""HL7 v2.5.1 ORU^R01: the answer as a preliminary observation, AA where it is positive.

Built and validated against the structures of v2.5.1 by hl7apy; every leaf is escaped here (HL7
v2.5.1 chapter 2, section 2.7.1), so that nothing a header holds can end a field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pydicom.sr.coding import Code

from pe_triage.destinations import HL7_CHARACTER_SETS, Hl7Destination
from pe_triage.domain import (
    INTENDED_USE_WORDS,
    NOTICE,
    Outcome,
    Priority,
    ResultKind,
)
from pe_triage.report import concepts
from pe_triage.report.messages.context import MessageContext, PersonNameParts, Subject

UTF8 = "UNICODE UTF-8"

ABNORMAL_FLAG: Mapping[Outcome, str] = MappingProxyType(
    {
        Outcome.POSITIVE: "AA",
        Outcome.NEGATIVE: "N",
        Outcome.INDETERMINATE: "",
        Outcome.NOT_EVALUATED: "",
    }
)
"""OBX-8, table 0078: AA is very abnormal. What is not known is neither normal nor abnormal."""

TIMING_PRIORITY: Mapping[Priority | None, tuple[str, str]] = MappingProxyType(
    {
        Priority.HIGH: ("S", "Stat"),
        Priority.MEDIUM: ("A", "ASAP"),
        Priority.LOW: ("R", "Routine"),
        None: ("R", "Routine"),
    }
)
"""TQ1-9, table 0485."""

PRELIMINARY = "P"
"""OBR-25 and OBX-11, tables 0123 and 0085: no physician has verified it."""

_ESCAPES = str.maketrans(
    {"|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\\": "\\E\\", "\r": " ", "\n": " "}
)

_PLAIN = str.maketrans({"\N{GREATER-THAN OR EQUAL TO}": ">=", "\N{LESS-THAN OR EQUAL TO}": "<="})
"""Signs of our own words that no 8-bit set has; no name is written with them."""

Observation = tuple[str, Code, str, str, str]
"""Value type, what is observed, encoded value, encoded units, abnormal flag."""


def escape(text: str) -> str:
    """Escape delimiters and drop control characters."""
    return "".join(c for c in text.translate(_ESCAPES) if c.isprintable())


def build_hl7(context: MessageContext, table: Hl7Destination) -> bytes:
    r"""Return one ORU^R01 in the character set that its MSH-18 names, segments ended by CR.

    Raises
    ------
    hl7apy.exceptions.HL7apyException
        The message does not hold to v2.5.1.
    """
    from hl7apy.consts import VALIDATION_LEVEL
    from hl7apy.core import Message

    subject = context.subject
    message = Message("ORU_R01", version="2.5.1", validation_level=VALIDATION_LEVEL.STRICT)
    _header(message.msh, context, table)
    patient_result = message.add_group("ORU_R01_PATIENT_RESULT")
    _patient(patient_result.add_group("ORU_R01_PATIENT").add_segment("PID"), subject)
    order = patient_result.add_group("ORU_R01_ORDER_OBSERVATION")
    _order(order, context, subject, table)
    for number, observation in enumerate(observations(context), start=1):
        segment = order.add_group("ORU_R01_OBSERVATION").add_segment("OBX")
        _observation(segment, number, observation, context)
    message.validate()
    text: str = message.to_er7() + "\r"
    try:
        return text.translate(_PLAIN).encode(HL7_CHARACTER_SETS[table.character_set])
    except UnicodeEncodeError:
        # A name that the RIS's set cannot write: say so in MSH-18 rather than write another name.
        message.msh.msh_18 = UTF8
        return (str(message.to_er7()) + "\r").encode()


def _header(msh: Any, context: MessageContext, table: Hl7Destination) -> None:
    msh.msh_3 = escape(table.sending_application)
    msh.msh_4 = escape(table.sending_facility)
    msh.msh_5 = escape(table.receiving_application)
    msh.msh_6 = escape(table.receiving_facility)
    msh.msh_7 = _time(context)
    msh.msh_9 = "ORU^R01^ORU_R01"
    msh.msh_10 = context.message_id(ResultKind.HL7, table.name)
    msh.msh_11 = table.processing_id
    msh.msh_12 = "2.5.1"
    msh.msh_18 = table.character_set


def _patient(pid: Any, subject: Subject) -> None:
    authority = escape(subject.issuer)
    if subject.issuer_uid:
        authority += f"&{escape(subject.issuer_uid)}&{escape(subject.issuer_uid_type)}"
    pid.pid_1 = "1"
    pid.pid_3 = f"{escape(subject.patient_id)}^^^{authority}^PI"
    for code, name in (subject.names or {"A": PersonNameParts()}).items():
        pid.add_field("PID_5").value = _xpn(name, code)
    pid.pid_7 = subject.birth_date
    pid.pid_8 = subject.sex


def _xpn(name: PersonNameParts, representation: str) -> str:
    """XPN puts the suffix before the prefix; PN the other way round."""
    parts = (name.family, name.given, name.middle, name.suffix, name.prefix)
    return "^".join(escape(part) for part in parts) + f"^^L^{representation}"


def _order(order: Any, context: MessageContext, subject: Subject, table: Hl7Destination) -> None:
    accession = escape(subject.accession_number)
    if accession:
        filler = accession + (
            f"^{escape(subject.accession_issuer)}" if subject.accession_issuer else ""
        )
    else:
        filler = f"{context.message_id(ResultKind.HL7, table.name)}^PE-TRIAGE"
    orc = order.add_segment("ORC")
    orc.orc_1 = "RE"
    orc.orc_2, orc.orc_3 = escape(subject.placer_order), filler
    obr = order.add_segment("OBR")
    obr.obr_1 = "1"
    obr.obr_2, obr.obr_3 = escape(subject.placer_order), filler
    obr.obr_4 = _code(context.settings.procedure_reported)
    obr.obr_7 = subject.study_date + (subject.study_time if subject.study_date else "")
    obr.obr_18 = accession
    obr.obr_22 = _time(context)
    obr.obr_24 = "CT"
    obr.obr_25 = PRELIMINARY
    code, words = TIMING_PRIORITY[context.result.priority]
    timing = order.add_group("ORU_R01_TIMING_QTY").add_segment("TQ1")
    timing.tq1_1 = "1"
    timing.tq1_9 = f"{code}^{words}^HL70485"


def observations(context: MessageContext) -> Iterable[Observation]:
    """What the message observes, the answer first."""
    result = context.result
    presence = concepts.PRESENCE_CODES[concepts.OUTCOME_PRESENCE[result.outcome]]
    answer = f"{_code(concepts.OUTCOME_CODES[result.outcome])}^{_code(presence)}"
    flag = ABNORMAL_FLAG[result.outcome]
    yield "CWE", concepts.PULMONARY_EMBOLISM, answer, "", flag
    if result.priority is not None:
        code = context.settings.priority_codes[result.priority]
        yield "CWE", concepts.PRIORITY, _code(code), "", ""
    prediction = result.prediction
    if prediction is not None:
        yield "NM", concepts.EXAM_SCORE, f"{prediction.pe_probability:.3f}", "", ""
        if prediction.model.calibrated:
            percent = f"{100 * prediction.pe_probability:.1f}"
            yield "NM", concepts.CERTAINTY, percent, _code(concepts.PERCENT), ""
        for label, decision in prediction.findings.items():
            concept = concepts.LABEL_CONCEPTS.get(label)
            if concept is not None:
                yield "CWE", concept.code, _code(concepts.PRESENCE_CODES[decision]), "", ""
    if result.reason:
        yield "TX", concepts.REASON, escape(result.reason), "", ""
    yield "TX", concepts.NOTICE, escape(NOTICE), "", ""
    if result.model is not None:
        words = INTENDED_USE_WORDS[result.model.intended_use]
        yield "TX", concepts.INTENDED_USE, escape(words), "", ""
        yield "ST", concepts.ALGORITHM_NAME, escape(result.model.name), "", ""
        yield "ST", concepts.ALGORITHM_VERSION, escape(result.model.version), "", ""
    yield "ST", DICOM_STUDY, escape(context.study.study_uid), "", ""


DICOM_STUDY = Code("113014", "DCM", "DICOM Study")
"""Names the Study Instance UID, by which a RIS opens the images."""


def _observation(obx: Any, number: int, what: Observation, context: MessageContext) -> None:
    value_type, code, value, units, flag = what
    obx.obx_1 = str(number)
    obx.obx_2 = value_type
    obx.obx_3 = _code(code)
    obx.obx_5 = value
    if units:
        obx.obx_6 = units
    if flag:
        obx.obx_8 = flag
    obx.obx_11 = PRELIMINARY
    obx.obx_14 = _time(context)


def _code(code: Code) -> str:
    return f"{escape(code.value)}^{escape(code.meaning)}^{escape(code.scheme_designator)}"


def _time(context: MessageContext) -> str:
    return context.now.strftime("%Y%m%d%H%M%S%z")
