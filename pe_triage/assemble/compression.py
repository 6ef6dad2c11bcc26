"""Whether a compression has changed an image's pixels, now or earlier."""

from __future__ import annotations

from pe_triage.domain import ReceivedInstance

LOSSY_SYNTAXES = {
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
"""Transfer syntaxes that may change pixels (PS3.5 section 8.2), by their names for people."""
MAYBE_LOSSLESS = frozenset({"JPEG-LS near-lossless", "JPEG 2000"})


def changed_by(image: ReceivedInstance) -> str | None:
    """Say by what the pixels were changed (PS3.3 C.7.6.1.1.5); None where nothing says so."""
    stated = image.facts.lossy_compression
    if stated == "01":
        return "lossy image compression (0028,2110) is 01"
    syntax = LOSSY_SYNTAXES.get(image.transfer_syntax_uid)
    # JPEG-LS and JPEG 2000 may be reversible under these too, and say so.
    return None if stated == "00" and syntax in MAYBE_LOSSLESS else syntax
