"""``pe-triage phantom``: synthetic CTPA studies with known truth."""

from __future__ import annotations

from pathlib import Path

import click
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from rich.console import Console
from rich.progress import Progress

from pe_triage.errors import InputError
from pe_triage.phantom import (
    DIALECTS,
    PRESETS,
    dialect_for,
    find_preset,
    generate_study,
    write_study,
)

_SYNTAXES: dict[str, UID] = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "rle": RLELossless,
    "jpeg2000": JPEG2000Lossless,
    "jpeg-ls": JPEGLSLossless,
}


@click.command(name="phantom")
@click.option(
    "--out",
    "out_dir",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory for dicom/<StudyInstanceUID>/*.dcm and truth/<StudyInstanceUID>.json.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the first study.")
@click.option(
    "--count", type=int, default=1, show_default=True, help="Number of studies; study k: seed + k."
)
@click.option(
    "--preset",
    default="standard",
    show_default=True,
    help=f"What is drawn: {', '.join(PRESETS)}.",
)
@click.option("--size", type=int, default=256, show_default=True, help="Rows and columns.")
@click.option(
    "--spacing", "spacing_mm", type=float, default=2.0, show_default=True,
    help="Distance between slices, mm.",
)  # fmt: skip
@click.option(
    "--thickness", "thickness_mm", type=float, default=None,
    help="Slice thickness, mm.  [default: the spacing, at most 5]",
)  # fmt: skip
@click.option(
    "--slices", type=int, default=None,
    help="Number of slices over the whole chest; overrides --spacing.",
)  # fmt: skip
@click.option(
    "--transfer-syntax",
    type=click.Choice(tuple(_SYNTAXES)),
    default=None,
    help="Encoding of the files; all are lossless.  [default: the dialect's; explicit for plain]",
)
@click.option(
    "--dialect",
    type=click.Choice((*DIALECTS, "mixed")),
    default="plain",
    show_default=True,
    help="Header habits of a vendor, with invented values; mixed: one of them for each study.",
)
@click.option("--no-mask", is_flag=True, help="Leave out the clot mask (NIfTI).")
def phantom(
    out_dir: Path,
    seed: int,
    count: int,
    preset: str,
    size: int,
    spacing_mm: float,
    thickness_mm: float | None,
    slices: int | None,
    transfer_syntax: str | None,
    dialect: str,
    no_mask: bool,
) -> None:
    """Write synthetic CTPA studies and their ground truth.

    A commissioning tool, no patient: every image is marked Quality Control Image (0028,0300) YES,
    and no figure measured on it holds for people.
    """
    table = find_preset(preset)
    if count < 1:
        raise InputError(f"--count must be at least 1, not {count}")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("phantom studies", total=count)
        for k in range(count):
            study = generate_study(
                seed + k,
                table,
                size=size,
                slice_spacing_mm=spacing_mm,
                slice_thickness_mm=thickness_mm,
                n_slices=slices,
            )
            written = write_study(
                study,
                out_dir,
                transfer_syntax=None if transfer_syntax is None else _SYNTAXES[transfer_syntax],
                dialect=dialect_for(seed + k) if dialect == "mixed" else DIALECTS[dialect],
                mask=not no_mask,
            )
            labels = ", ".join(name for name, value in study.exam.items() if value)
            click.echo(f"{written.study_uid}  seed {seed + k}  {labels}")
            progress.advance(task)
