"""One RSPECT exam from its files to a volume with its labels in anatomical order.

The pieces are those that serve: the same headers, the same stack, the same orientation, the same
decoder. Only the strictness about UIDs differs, because the published files carry hexadecimal
names where the standard wants UIDs, and may lack the SOP Class; the file name is believed then.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import CtVolume, InstanceFacts, PatientIdentity, ReceivedInstance
from pe_triage.errors import ImagingError, InvalidInstanceError, PermanentError
from pe_triage.imaging.elements import read_elements
from pe_triage.imaging.geometry import affine_lps, in_plane, spacing_zyx_mm
from pe_triage.imaging.pixels import decode_hu
from pe_triage.imaging.values import Values
from pe_triage.stack import Stack, analyse_stack
from pe_triage.training.rspect import RspectExam

_SOP_INSTANCE_UID: Final = 0x00080018
_PATIENT_ID: Final = 0x00100020
_LAST_TAG: Final = 0x0028FFFF
_TEXT: Mapping[str, int] = {
    "modality": 0x00080060,
    "manufacturer": 0x00080070,
    "model_name": 0x00081090,
    "patient_position": 0x00185100,
}
_DECIMALS: Mapping[str, int] = {"slice_thickness_mm": 0x00180050, "gantry_tilt_deg": 0x00181120}
_UNSIGNED: Mapping[str, int] = {"rows": 0x00280010, "columns": 0x00280011}
_INTEGERS: Mapping[str, int] = {"instance_number": 0x00200013, "number_of_frames": 0x00280008}
_VECTORS: Mapping[str, tuple[int, int]] = {
    "pixel_spacing_mm": (0x00280030, 2),
    "image_position_mm": (0x00200032, 3),
    "image_orientation": (0x00200037, 6),
}
_KERNEL: Final = 0x00181210
_FRAME_OF_REFERENCE: Final = 0x00200052
_QUALITY_CONTROL: Final = 0x00280300
_WANTED = frozenset(
    {
        0x00080005,
        _SOP_INSTANCE_UID,
        _PATIENT_ID,
        _KERNEL,
        _FRAME_OF_REFERENCE,
        _QUALITY_CONTROL,
        *_TEXT.values(),
        *_DECIMALS.values(),
        *_UNSIGNED.values(),
        *_INTEGERS.values(),
        *(tag for tag, _ in _VECTORS.values()),
    }
)
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


class BadExamError(PermanentError):
    """An exam that cannot be used; `code` is one of `PROBLEM_CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedExam:
    """A volume with its labels.

    Attributes
    ----------
    image_pe_z
        uint8 (slices,), in the order of the volume; where several identical images lie at one
        position, 1 if one of them is.
    patient_id
        As in the headers; empty where they hold none. For the check of leakage only.
    facts
        Header of the first slice: scanner, kernel, thickness.
    """

    exam: RspectExam
    volume: CtVolume
    image_pe_z: NDArray[np.uint8]
    patient_id: str
    facts: InstanceFacts

    def __post_init__(self) -> None:
        self.image_pe_z.setflags(write=False)


def load_exam(exam: RspectExam, *, threads: int = 1) -> LoadedExam:
    """Read, order and decode the images of one exam.

    Raises
    ------
    BadExamError
        With the code of the problem; the message names no patient.
    """
    instances = [_instance(exam, uid) for uid in exam.sop_instance_uids]
    if len({i.identity.patient_id for i in instances}) > 1:
        raise BadExamError("wrong-identity", "the images name different patients")
    stack = analyse_stack(instances)
    if stack.problem is not None:
        raise BadExamError("irregular-stack", stack.problem.reason)
    plane = in_plane(stack)
    affine = affine_lps(stack, plane)
    slices = _decode(stack, threads)
    try:
        hu_zyx = np.stack([plane.apply(hu_yx) for hu_yx in slices])
    except ValueError:
        raise BadExamError("irregular-stack", "the images differ in size") from None
    pe = dict(zip(exam.sop_instance_uids, exam.image_pe.tolist(), strict=True))
    return LoadedExam(
        exam=exam,
        volume=CtVolume(
            hu_zyx=hu_zyx,
            spacing_mm=spacing_zyx_mm(affine),
            affine_lps=affine,
            sop_instance_uids=tuple(group[0].sop_instance_uid for group in stack.groups),
            series_uid=exam.series_uid,
            quality_control=all(i.facts.quality_control for i in instances),
            source_flip_yx=(plane.flip_y, plane.flip_x),
            source_transpose=plane.transpose,
        ),
        image_pe_z=np.array(
            [max(pe[i.sop_instance_uid] for i in group) for group in stack.groups], dtype=np.uint8
        ),
        patient_id=instances[0].identity.patient_id,
        facts=stack.groups[0][0].facts,
    )


def _instance(exam: RspectExam, uid: str) -> ReceivedInstance:
    """Read the header of one file as the value that `analyse_stack` orders."""
    path = exam.path_of(uid)
    try:
        elements = read_elements(path, _WANTED, last=_LAST_TAG)
    except (InvalidInstanceError, OSError) as error:
        raise BadExamError("unreadable-file", f"{path.name}: {_words(error)}") from None
    values = Values(elements.found)
    stated = values.text(_SOP_INSTANCE_UID)
    if stated is not None and stated != uid:
        raise BadExamError("wrong-identity", f"{path.name} holds another image")
    read: dict[str, Any] = {name: values.text(tag) for name, tag in _TEXT.items()}
    read.update({name: values.decimal(tag) for name, tag in _DECIMALS.items()})
    read.update({name: values.unsigned(tag) for name, tag in _UNSIGNED.items()})
    read.update({name: values.integer(tag) for name, tag in _INTEGERS.items()})
    read.update({name: values.decimals(tag, n) for name, (tag, n) in _VECTORS.items()})
    return ReceivedInstance(
        study_uid=exam.study_uid,
        series_uid=exam.series_uid,
        sop_instance_uid=uid,
        sop_class_uid="",
        transfer_syntax_uid=elements.transfer_syntax_uid,
        identity=PatientIdentity(patient_id=values.unbounded_text(_PATIENT_ID)),
        sha256="",
        size_bytes=0,
        path=path,
        received_at=_NEVER,
        calling_aet="",
        facts=InstanceFacts(
            **read,
            kernel=values.texts(_KERNEL),
            frame_of_reference_uid=values.text(_FRAME_OF_REFERENCE),
            quality_control=values.text(_QUALITY_CONTROL) == "YES",
        ),
    )


def _decode(stack: Stack, threads: int) -> list[NDArray[np.int16]]:
    def one(group: tuple[ReceivedInstance, ...]) -> NDArray[np.int16]:
        hu_yx = _hu(group[0].path)
        for other in group[1:]:
            if not np.array_equal(hu_yx, _hu(other.path)):
                raise BadExamError("irregular-stack", "different images lie at one position")
        return hu_yx

    if threads <= 1:
        return [one(group) for group in stack.groups]
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode") as pool:
        return list(pool.map(one, stack.groups))


def _hu(path: Path) -> NDArray[np.int16]:
    try:
        return decode_hu(path)
    except (ImagingError, OSError) as error:
        raise BadExamError("unreadable-file", f"{path.name}: {_words(error)}") from None


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
