"""From public data with clot masks to a tree in RSPECT's layout.

    python -m pe_triage.training.import_masks fumpe SRC --out TREE
    python -m pe_triage.training.import_masks cad-pe SRC --out TREE

Writes ``train.csv``, ``train/<Study>/<Series>/<SOP>.dcm`` and ``masks/<Study>.nii.gz``. An image is
labelled PE where clot covers at least `MIN_AREA_MM2` of it. These data say nothing of the nine
exam labels (sides, ventricles, chronic or acute), so their cells are left empty: unknown. Training
then learns from the images alone, and evaluation leaves the exams out; a reader that does not know
of empty cells refuses them instead of taking them for "no".
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import IMAGE_LABEL, CtVolume
from pe_triage.errors import InputError, PeTriageError
from pe_triage.imaging.geometry import InPlane
from pe_triage.training.converted import BadSourceError
from pe_triage.training.mask_sources import (
    ImportedExam,
    SourceCase,
    cad_pe_cases,
    fumpe_cases,
)
from pe_triage.training.rspect import (
    COLUMNS,
    IMAGES_NAME,
    MASK_SUFFIX,
    MASKS_NAME,
    TABLE_NAME,
    UID_COLUMNS,
    RspectExam,
)
from pe_triage.training.volumes import BadExamError, load_exam

MIN_AREA_MM2: Final = 10.0
"""Clot on a slice that makes it positive: what the phantoms take for visible to a reader."""
CLOT_HU: Final = (-50.0, 300.0)
"""Where the median under a mask of clots is expected, partial volume with contrast counted."""
SOURCES: Final[Mapping[str, Callable[[Path], list[SourceCase]]]] = {
    "fumpe": fumpe_cases,
    "cad-pe": cad_pe_cases,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTree:
    """What an import made.

    Attributes
    ----------
    slices, positive, small
        Images; those labelled PE; those that hold clot, but less than the least area.
    skipped
        Case to why it was left out.
    """

    exams: int
    slices: int
    positive: int
    small: int
    skipped: Mapping[str, str]


def import_masks(
    cases: Sequence[SourceCase],
    out: Path,
    *,
    min_area_mm2: float = MIN_AREA_MM2,
    progress: Callable[[str], None] = lambda _line: None,
) -> ImportedTree:
    """Write the tree of `cases`; what cannot be used is left out and named.

    Raises
    ------
    InputError
        `out` holds a table already, cannot be written, or no case could be used.
    """
    table = out / TABLE_NAME
    if table.exists() or (out / IMAGES_NAME).exists():
        # Nothing is deleted to make room: it may be someone's data, or an import cut short.
        raise InputError(f"{out} holds a tree already, whole or in part: name another directory")
    skipped: dict[str, str] = {}
    figures: list[tuple[int, int, int]] = []
    clot_hu: float | None
    partial = table.with_suffix(".partial")
    try:
        (out / MASKS_NAME).mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            for case in cases:
                try:
                    exam = case.place(out)
                    rows, figure, clot_hu = _exam(exam, out, min_area_mm2)
                except (BadSourceError, BadExamError) as error:
                    skipped[case.name] = str(error)
                    progress(f"{case.name}: left out: {error}")
                    continue
                writer.writerows(rows)
                figures.append(figure)
                progress(f"{case.name}: {figure[0]} images, {figure[1]} with PE{_words(clot_hu)}")
        if not figures:
            partial.unlink()
            first = next((f"; {k}: {v}" for k, v in skipped.items()), "")
            raise InputError(f"no case could be used{first}")
        partial.rename(table)
    except OSError as error:
        raise InputError(f"{error.filename or out}: {error.strerror or error}") from None
    slices, positive, small = (sum(column) for column in zip(*figures, strict=True))
    return ImportedTree(
        exams=len(figures), slices=slices, positive=positive, small=small, skipped=skipped
    )


def _exam(
    imported: ImportedExam, out: Path, min_area_mm2: float
) -> tuple[list[dict[str, str]], tuple[int, int, int], float | None]:
    """Read the exam as training will, and write its mask in that volume's grid."""
    folder = out / IMAGES_NAME / imported.study_uid
    uids = tuple(imported.mask_of)
    exam = RspectExam(
        study_uid=imported.study_uid,
        series_uid=imported.series_uid,
        sop_instance_uids=uids,
        image_pe=np.zeros(len(uids), dtype=np.uint8),
        labels={},
        directory=folder / imported.series_uid,
    )
    try:
        volume = load_exam(exam).volume
    except BadExamError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    flip_y, flip_x = volume.source_flip_yx
    plane = InPlane(transpose=volume.source_transpose, flip_y=flip_y, flip_x=flip_x)
    mask_zyx = np.stack([plane.apply(imported.mask_of[u]) for u in volume.sop_instance_uids])
    _, step_y, step_x = volume.spacing_mm
    area_of = {uid: float(m.sum()) * step_y * step_x for uid, m in imported.mask_of.items()}
    _write_mask(mask_zyx, volume, out / MASKS_NAME / f"{imported.study_uid}{MASK_SUFFIX}")
    rows = [
        {
            **dict(zip(UID_COLUMNS, (imported.study_uid, imported.series_uid, uid), strict=True)),
            IMAGE_LABEL: str(int(area >= min_area_mm2)),
        }
        for uid, area in area_of.items()
    ]
    positive = sum(area >= min_area_mm2 for area in area_of.values())
    small = sum(0 < area < min_area_mm2 for area in area_of.values())
    clot_hu = float(np.median(volume.hu_zyx[mask_zyx])) if mask_zyx.any() else None
    return rows, (len(rows), positive, small), clot_hu


def _words(clot_hu: float | None) -> str:
    """Say what lies under a mask: one in the wrong place shows by that it lies on lung or bone."""
    if clot_hu is None:
        return ", an empty mask"
    low, high = CLOT_HU
    doubt = "" if low <= clot_hu <= high else ": DOES THE MASK LIE ON ITS IMAGES?"
    return f", median under the mask {clot_hu:.0f} HU{doubt}"


def _write_mask(mask_zyx: NDArray[np.bool_], volume: CtVolume, path: Path) -> None:
    """Write a mask as NIfTI-1; DICOM coordinates are LPS and NIfTI's RAS+."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine_lps
    make: Any = nib.Nifti1Image
    image = make(mask_zyx.astype(np.uint8).transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


@click.command()
@click.argument("source", type=click.Choice(list(SOURCES)))
@click.argument("folder", metavar="SRC", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The tree to make.")
@click.option(
    "--min-area-mm2",
    type=click.FloatRange(0, min_open=True),
    default=MIN_AREA_MM2,
    show_default=True,
    help="Clot on an image, in mm2, that makes it positive.",
)
def main(source: str, folder: Path, out: Path, min_area_mm2: float) -> None:
    """Turn FUMPE or CAD-PE, as unpacked in SRC, into a tree in RSPECT's layout with masks."""
    try:
        made = import_masks(
            SOURCES[source](folder), out, min_area_mm2=min_area_mm2, progress=click.echo
        )
    except PeTriageError as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"{made.exams} exams in {out}: {made.slices} images, {made.positive} with PE, "
        f"{made.small} with clot under {min_area_mm2:g} mm2 labelled without; "
        f"{len(made.skipped)} cases left out; exam labels unknown"
    )


if __name__ == "__main__":
    main()
