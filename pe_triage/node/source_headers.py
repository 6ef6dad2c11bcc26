"""Headers of the images that a result speaks of, as its objects need them.

The frames of an Enhanced CT image have no header of their own. Each gets one here that says what
that of a single-frame image would say, so that nothing that writes results asks which kind it is.
"""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset
from pydicom.filereader import read_partial
from pydicom.valuerep import DSfloat

from pe_triage.domain import ReceivedInstance
from pe_triage.errors import PermanentError

_FUNCTIONAL_GROUPS = 0x52009229
"""What follows is the frames' own, as large as a small image, and then pixels."""


def read_header(path: Path) -> Dataset:
    """Read a Part 10 file up to its functional groups or pixels.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        return read_partial(file, stop_when=lambda tag, _vr, _length: tag >= _FUNCTIONAL_GROUPS)


def frame_header(header: Dataset, image: ReceivedInstance) -> Dataset:
    """Return the header of one frame.

    Parameters
    ----------
    header
        Of the frame's instance, as of `read_header`.
    image
        The frame, as of `frames.images_of`.

    Raises
    ------
    PermanentError
        `image` is no frame of that instance.
    """
    if image.frame is None or str(header.get("SOPInstanceUID", "")) != image.sop_instance_uid:
        raise PermanentError(f"{image.sop_instance_uid} is not the frame's instance")
    out = header[:]  # a copy whose values are still as they stand in the file
    facts = image.facts
    for keyword, values in (
        ("ImagePositionPatient", facts.image_position_mm),
        ("ImageOrientationPatient", facts.image_orientation),
        ("PixelSpacing", facts.pixel_spacing_mm),
        ("SliceThickness", facts.slice_thickness_mm),
    ):
        if isinstance(values, tuple):
            setattr(out, keyword, [DSfloat(v, auto_format=True) for v in values])
        elif values is not None:
            setattr(out, keyword, DSfloat(values, auto_format=True))
    out.ReferencedFrameNumber = image.frame
    return out
