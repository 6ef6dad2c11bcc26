"""The one rule by which two headers are of the same patient.

Indexing, the guard before a result is made and the check before it is sent each read the header
by other means; what they compare is made here, so that no spelling can pass one and stop at the
next. It is for comparing only: results carry the source's own identifier, exactly as it came.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from pe_triage.domain import PatientIdentity

_BACKSLASH = "\\"


MAX_IDENTIFIER = 256
"""A Patient ID or issuer of more bytes (LO has 64 characters) is refused, never shortened."""

_UID = re.compile(rb"[0-9]+(?:\.[0-9]+)*")


def is_uid(value: bytes) -> bool:
    """Whether `value` is 1 to 64 bytes of digits and dots (PS3.5 Section 9.1).

    Leading zeros of a component and a single component are tolerated: equipment in the field
    writes them.
    """
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def clean_text(text: str) -> str:
    """`text` without control, format and surrogate characters (Unicode category C)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if unicodedata.category(c)[0] != "C" else (" " if c.isspace() else "") for c in text
    )


def comparable(value: object) -> str:
    """Return an identifier as it is compared: invisible characters and padding do not count.

    Parameters
    ----------
    value
        Text, None, or the several values of an attribute that should have one: readers differ in
        whether a backslash in an identifier divides it (PS3.5 Section 6.4), so it never does here.
    """
    if value is None:
        return ""
    if isinstance(value, str) or not isinstance(value, Iterable):
        text = str(value)
    else:
        text = _BACKSLASH.join("" if item is None else str(item) for item in value)
    return _BACKSLASH.join(part.strip() for part in clean_text(text).split(_BACKSLASH))


def same_patient(one: PatientIdentity, other: PatientIdentity) -> bool:
    """Whether two headers are about one patient; an absent issuer matches any.

    A modality worklist or a dose server often leaves the issuer out that the scanner writes
    (PS3.3 Section C.2.2 has it optional), which says nothing of the patient.
    """
    one = identity_of(one.patient_id, one.issuer)
    other = identity_of(other.patient_id, other.issuer)
    return one.patient_id == other.patient_id and (
        one.issuer == other.issuer or not one.issuer or not other.issuer
    )


def identity_of(patient_id: object, issuer: object = "") -> PatientIdentity:
    """Return who a header is about, from the values of its Patient ID and issuer."""
    return PatientIdentity(patient_id=comparable(patient_id), issuer=comparable(issuer))
