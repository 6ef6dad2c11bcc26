"""Image types that say of an image that it was computed from others, as data.

Single-frame CT names them in Image Type by words of the vendors (PS3.3 C.8.2.1.1.1); Enhanced CT
has defined values for each frame (PS3.3 C.8.15.3.3, C.8.16.1).
"""

from __future__ import annotations

DERIVED_TYPES = frozenset(
    {
        "REFORMATTED", "MPR", "MIP", "MIN_IP", "MINIP", "MAX_IP", "PROJECTION IMAGE", "VRT", "CPR",
        "SUBTRACT", "DOSE_INFO", "SCREEN SAVE", "MULTIPLANAR", "SSD", "CT_SOM5 MPR",
        "VOLUME_RENDERED",
    }
)  # fmt: skip

CHEST_FLAVORS = frozenset(
    {
        "AXIAL", "VOLUME", "ANGIO", "NONE", "STATIC", "POST_CONTRAST", "CARDIAC", "CARDIAC_GATED",
        "RESP_GATED", "CARDRESP_GATED", "WHOLE_BODY", "",
    }
)  # fmt: skip
"""Third values of a frame type (PS3.3 C.8.16.1.3) that one volume of the chest may have."""

COMPUTED_CONTRASTS = frozenset(
    {
        "ADDITION", "DIVISION", "MASKED", "MAXIMUM", "MEAN", "MINIMUM", "MULTIPLICATION",
        "RESAMPLED", "STD_DEVIATION", "SUBTRACTION", "FILTERED", "MEDIAN", "QUANTITY",
        "ENERGY_PROP_WT", "MIXED",
    }
)  # fmt: skip
"""Fourth values (PS3.3 C.8.16.1.4) of frames computed from others."""

NOT_CALCULATED = frozenset({"NONE", ""})
"""Volume Based Calculation Technique (PS3.3 C.8.16.2.1.3) of frames as reconstructed."""


def computed(types: tuple[str, ...], calculation: str) -> str | None:
    """Words for a frame that is no axial slice as reconstructed; None for one that is.

    Parameters
    ----------
    types
        Frame Type (0008,9007), upper case.
    calculation
        Volume Based Calculation Technique (0008,9207), upper case; empty where not stated.
    """
    found = "\\".join(types[:4]) or "missing"
    flavor, contrast = (*types[2:4], "", "")[:2]
    if types[:2] != ("ORIGINAL", "PRIMARY") or flavor not in CHEST_FLAVORS:
        return found
    if calculation not in NOT_CALCULATED:
        return f"{found} calculated by {calculation}"
    # A conversion keeps its source's values, and the fourth may be any word of the vendor's.
    return found if contrast in DERIVED_TYPES | COMPUTED_CONTRASTS else None
