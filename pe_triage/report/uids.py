"""UIDs of result objects: derived, not drawn, so a job done twice makes the same objects.

What is not the same object has another UID: see `edition`.

A UUID may be written as an OID under the arc 2.25 (PS3.5 Annex B.2); here its bits come from a
SHA-256 digest, which RFC 9562 calls a version 8 (vendor specific) UUID.
"""

from __future__ import annotations

import hashlib

from pydicom.uid import UID

NO_MODEL = "no-model"
"""Stands for the weights' digest where no network ran."""


def _uid_of(*parts: str) -> str:
    """Return a 2.25 UID of at most 44 characters from text parts, order and bounds significant."""
    hasher = hashlib.sha256(b"pe-triage uid 1")
    for part in parts:
        encoded = part.encode()
        hasher.update(len(encoded).to_bytes(8, "big") + encoded)
    value = int.from_bytes(hasher.digest()[:16], "big")
    value = (value & ~(0xF << 76)) | (0x8 << 76)  # version 8
    value = (value & ~(0x3 << 62)) | (0x2 << 62)  # variant of RFC 9562
    return f"2.25.{value}"


IMPLEMENTATION_CLASS_UID = UID(_uid_of("implementation class"))
"""Implementation Class UID (0002,0012) of the files that this room writes."""

CODING_SCHEME_UID = _uid_of("coding scheme 99PETRIAGE")
"""Names the private coding scheme 99PETRIAGE."""


def derive_uid(
    manifest_digest: str, model_sha256: str | None, run: int, role: str, edition: str = ""
) -> str:
    """Return the UID of one result object, series or tracked thing of one run.

    Parameters
    ----------
    manifest_digest
        Digest of the study's manifest (`StudyManifest.digest`).
    model_sha256
        Digest of the weights; None where no network ran.
    run
        1 for the first run of a study.
    role
        What the UID is for, unique within a run, such as ``sr`` or ``heatmap-03``.
    edition
        Of an object: what it is made of (`edition.edition_of`), so that one UID never names two.
        Empty for what is the same thing however it is put: a tracked finding, a message.
    """
    more = (edition,) if edition else ()
    return _uid_of("result", manifest_digest, model_sha256 or NO_MODEL, str(run), role, *more)


def device_uid(model_sha256: str | None, software_version: str) -> str:
    """Return the Device UID (0018,1002): one for each pair of program version and weights."""
    return _uid_of("device", software_version, model_sha256 or NO_MODEL)
