"""A reading task that the RIS has already: whose it is, and what may be done with it.

Two reading tasks for one study are worse than one, so the RIS's own is looked for before ours is
made. What a search brings is not trusted: each workitem is retrieved, and must name our patient,
our study and the reading of it. Pure functions over DICOM JSON (PS3.18 Annex F).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

PATIENT_ID = "00100020"
ISSUER = "00100021"
STUDY = "0020000D"
ACCESSION = "00080050"
REQUESTS = "0040A370"
SOP_INSTANCE = "00080018"
STATE = "00741000"
PRIORITY = "00741200"
WORKITEM_CODE = "00404018"
CODE_VALUE = "00080100"
CODE_SCHEME = "00080102"

_UID = re.compile(r"[0-9.]{1,64}")

RANK: Mapping[str, int] = MappingProxyType({"LOW": 0, "MEDIUM": 1, "HIGH": 2})
"""(0074,1200); what a workitem lacks or spells otherwise ranks below all."""


class Action(StrEnum):
    """What a workitem of this study's reading leaves us to do."""

    RAISE = "raise"
    LEAVE = "leave"
    IN_PROGRESS = "in progress"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """Whose reading task is sought, and the priority that it should have at least."""

    patient_id: str
    issuer: str
    study_uid: str
    accession_number: str
    code: tuple[str, str]
    priority: str
    queries: tuple[str, ...]
    """Search parameters, encoded: servers differ in the keys that they match."""

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> Sought:
        """Read what `report.messages.ups` wrote.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is something else.
        """
        value, scheme = document["code"]
        return Sought(
            patient_id=str(document["patient_id"]),
            issuer=str(document["issuer"]),
            study_uid=str(document["study_uid"]),
            accession_number=str(document["accession_number"]),
            code=(str(value), str(scheme)),
            priority=str(document["priority"]),
            queries=tuple(str(query) for query in document["queries"]),
        )


def uid_of(item: Any) -> str:
    """SOP Instance UID of a workitem; empty where there is none."""
    return _first(item, SOP_INSTANCE)


def state_of(item: Any) -> str:
    """Procedure Step State of a workitem; empty where there is none."""
    return _first(item, STATE)


def action_for(item: Any, sought: Sought) -> Action:
    """Say what may be done with a retrieved workitem (PS3.4 Section CC.2.6.2).

    Only a SCHEDULED one may be changed without its Transaction UID, and only upwards: a triage aid
    lowers nobody's priority. One IN PROGRESS is locked by who reads it.
    """
    if not _is_this_reading(item, sought):
        return Action.NONE
    match state_of(item):
        case "SCHEDULED":
            lower = RANK.get(_first(item, PRIORITY), -1) < RANK[sought.priority]
            return Action.RAISE if lower else Action.LEAVE
        case "IN PROGRESS":
            return Action.IN_PROGRESS
        case _:
            return Action.NONE


def raising(sought: Sought) -> list[dict[str, Any]]:
    """Body of the update (PS3.18 Section 11.6): the priority, and nothing that is the RIS's."""
    return [{PRIORITY: {"vr": "CS", "Value": [sought.priority]}}]


def _is_this_reading(item: Any, sought: Sought) -> bool:
    issuer = _first(item, ISSUER)
    if not sought.patient_id or _first(item, PATIENT_ID) != sought.patient_id:
        return False
    if issuer and sought.issuer and issuer != sought.issuer:
        return False
    code = {(_first(c, CODE_VALUE), _first(c, CODE_SCHEME)) for c in _values(item, WORKITEM_CODE)}
    if sought.code not in code:
        return False
    holders = [item, *_values(item, REQUESTS)]
    studies = {_first(holder, STUDY) for holder in holders} - {""}
    if studies:
        return sought.study_uid in studies
    accessions = {_first(holder, ACCESSION) for holder in holders} - {""}
    return sought.accession_number in accessions


def _first(item: Any, tag: str) -> str:
    for value in _values(item, tag):
        return str(value).strip()
    return ""


def _values(item: Any, tag: str) -> Sequence[Any]:
    element = item.get(tag) if isinstance(item, Mapping) else None
    values = element.get("Value") if isinstance(element, Mapping) else None
    return values if isinstance(values, list) else ()


def uids_of(found: Any) -> Iterator[str]:
    """SOP Instance UIDs of a search's result; nothing that is no UID gets into a path."""
    for item in found if isinstance(found, list) else ():
        uid = uid_of(item)
        if _UID.fullmatch(uid):
            yield uid
