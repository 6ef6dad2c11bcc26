"""A series' instances to one Hounsfield volume in patient orientation.

Nothing here guesses: what cannot be put in order exactly is refused in words a radiographer
understands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pe_triage.cores import usable_cores
from pe_triage.domain import CtVolume, ReceivedInstance
from pe_triage.errors import ImagingError
from pe_triage.imaging.decoded import DecodedSlices
from pe_triage.imaging.geometry import InPlane, affine_lps, in_plane, spacing_zyx_mm
from pe_triage.imaging.multiframe import MultiFrame
from pe_triage.imaging.pixels import decode_hu
from pe_triage.stack import Stack, analyse_stack

MAX_VOLUME_BYTES = 4 * 1024**3
"""About 8,000 slices of 512 x 512; more is no chest."""
MAX_THREADS = 8


def load_volume(
    instances: Sequence[ReceivedInstance],
    *,
    max_threads: int = MAX_THREADS,
    decoded: DecodedSlices | None = None,
) -> CtVolume:
    """Decode a series and order it by Image Position (Patient) along the slice normal.

    The result is bit-identical whatever the order of `instances`, the transfer syntax, whether an
    instance holds one slice or (Enhanced CT) the frames of many, and
    whichever of the eight axial orientations the source has. Several identical images at one
    position count once.

    Parameters
    ----------
    instances
        All instances of one series.
    max_threads
        Decoding threads at most (the decoders release the GIL).
    decoded
        Slices that are not read again; where it has all, they become views of the volume.

    Raises
    ------
    ImagingError
        Not one regular axial stack, or an image that cannot be decoded; the message is the reason
        shown to people.
    """
    series = {i.series_uid for i in instances}
    if len(series) != 1 or len({i.study_uid for i in instances}) != 1:
        raise ImagingError(f"one series was expected, not {len(series)}")
    stack = analyse_stack(instances)
    if stack.problem is not None:
        raise ImagingError(stack.problem.reason)
    plane = in_plane(stack)
    affine = affine_lps(stack, plane)
    hu_zyx = _decode(stack, plane, max_threads, decoded)
    numbers = tuple(group[0].frame for group in stack.groups)
    return CtVolume(
        hu_zyx=hu_zyx,
        spacing_mm=spacing_zyx_mm(affine),
        affine_lps=affine,
        sop_instance_uids=tuple(group[0].sop_instance_uid for group in stack.groups),
        series_uid=instances[0].series_uid,
        quality_control=all(i.facts.quality_control for i in instances),
        source_flip_yx=(plane.flip_y, plane.flip_x),
        source_transpose=plane.transpose,
        frame_numbers=numbers if any(n is not None for n in numbers) else (),
    )


def _decode(
    stack: Stack, plane: InPlane, max_threads: int, decoded: DecodedSlices | None
) -> NDArray[np.int16]:
    facts = stack.groups[0][0].facts
    rows, columns = facts.rows or 0, facts.columns or 0
    shape = (len(stack.groups), columns, rows) if plane.transpose else (
        len(stack.groups), rows, columns,
    )  # fmt: skip
    if 2 * int(np.prod(shape, dtype=np.int64)) > MAX_VOLUME_BYTES:
        raise ImagingError(f"the series is too large: {len(stack.groups)} slices")
    hu_zyx = np.empty(shape, dtype=np.int16)
    volume_zyx = hu_zyx.view()
    volume_zyx.setflags(write=False)
    # A view holds the whole volume: one of few slices would hold far more than it stands for.
    has_all = decoded is not None and all(
        decoded.get(image.path) is not None for group in stack.groups for image in group
    )
    sources = {
        uid: MultiFrame(path, uid)
        for uid, path in sorted(
            {(i.sop_instance_uid, i.path) for group in stack.groups for i in group if i.frame}
        )
    }

    def fill(z: int) -> None:
        group = stack.groups[z]
        hu_yx = _slice(group[0], sources, rows, columns, decoded)
        for other in group[1:]:
            if not np.array_equal(hu_yx, _slice(other, sources, rows, columns, decoded)):
                raise ImagingError(
                    f"{len(group)} different images lie at one position "
                    f"({stack.positions_mm[z]:.1f} mm): several acquisitions in one series"
                )
        hu_zyx[z] = plane.apply(hu_yx)
        if decoded is not None and has_all:
            for image in group:
                decoded.moved(image.path, plane.undo(volume_zyx[z]))

    threads = max(1, min(max_threads, usable_cores(), len(stack.groups)))
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode") as pool:
        futures = [pool.submit(fill, z) for z in range(len(stack.groups))]
        try:
            # In the order of the slices, so that the reason does not depend on timing.
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return hu_zyx


def _slice(
    image: ReceivedInstance,
    sources: Mapping[str, MultiFrame],
    rows: int,
    columns: int,
    decoded: DecodedSlices | None,
) -> NDArray[np.int16]:
    number = image.facts.instance_number
    name = f"image {number}: " if number is not None else ""
    try:
        before = None if decoded is None else decoded.get(image.path)
        if before is not None and image.frame is None:
            hu_yx = before
        elif image.frame is None:
            hu_yx = decode_hu(image.path, sop_instance_uid=image.sop_instance_uid)
        else:
            name = f"frame {image.frame}: "
            hu_yx = sources[image.sop_instance_uid].hu(image.frame)
    except ImagingError as error:
        raise ImagingError(f"{name}{error}") from error
    if hu_yx.shape != (rows, columns):
        raise ImagingError(f"{name}the file's image size differs from the one received")
    return hu_yx
