"""Presentation contexts that are accepted, as data.

Everything that a CT sender may propose is accepted and filed away, since some senders abort the
whole association when one context of theirs is refused. Only a requestor is limited to 128
contexts; an acceptor answers what it is asked, so the list is made for each request.
"""

from __future__ import annotations

from collections.abc import Iterable

from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import _STORAGE_CLASSES

VERIFICATION = "1.2.840.10008.1.1"

TRANSFER_SYNTAXES: tuple[str, ...] = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian (retired)
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless, process 14
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.5",  # RLE Lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
)
"""Most wanted first: what a sender proposes in one context is answered with the first of these.

Deflated (1.2.840.10008.1.2.1.99) is absent on purpose: 1 MiB of it can hold 2 GiB.
"""

VERIFICATION_SYNTAXES = TRANSFER_SYNTAXES[:3]

STORAGE_CLASSES: frozenset[str] = frozenset(str(uid) for uid in _STORAGE_CLASSES.values())
"""Storage SOP classes of PS3.4 Table B.5-1 known to the network library."""

_DICOM_ROOT = "1.2.840.10008."
_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
_NOT_OF_A_PATIENT = ("1.2.840.10008.5.1.4.1.1.200.", "1.2.840.10008.5.1.4.1.1.201.")
"""Protocols and inventories: under the storage root, but they belong to no study."""


def is_storage_class(sop_class_uid: str) -> bool:
    """Whether objects of this class are accepted for storage.

    Besides the table these are retired and future classes under the storage root, and private
    classes (any UID outside the standard's own root).
    """
    if sop_class_uid in STORAGE_CLASSES:
        return True
    if sop_class_uid.startswith(_NOT_OF_A_PATIENT):
        return False
    return sop_class_uid.startswith(_STORAGE_ROOT) or not sop_class_uid.startswith(_DICOM_ROOT)


def supported_contexts(proposed: Iterable[str]) -> list[PresentationContext]:
    """Contexts to support in answer to the abstract syntaxes that a requestor proposed."""
    contexts = []
    for uid in sorted(set(proposed)):
        if uid == VERIFICATION:
            contexts.append(build_context(uid, list(VERIFICATION_SYNTAXES)))
        elif is_storage_class(uid):
            contexts.append(build_context(uid, list(TRANSFER_SYNTAXES)))
    return contexts
