"""The three committed sample studies, and the command that makes them again byte for byte.

``python -m pe_triage.phantom.samples --out sample_dicom``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click
from pydicom.uid import JPEGLSLossless

from pe_triage.phantom.distributions import Choice, Uniform
from pe_triage.phantom.presets import PRESETS, Preset
from pe_triage.phantom.study import PhantomStudy, generate_study
from pe_triage.phantom.writer import identity_of, write_slices, write_truth

TRANSFER_SYNTAX = JPEGLSLossless


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample study: its folder's name, its seed and what it is drawn from."""

    name: str
    seed: int
    preset: Preset


_QUIET = Uniform(low=8, high=9)
_COVERAGE_MM = (-135.0, 90.0)

SAMPLES: Mapping[str, Sample] = {
    sample.name: sample
    for sample in (
        Sample(
            name="acute-bilateral-pe",
            seed=27,
            preset=replace(
                PRESETS["pe-acute"],
                name="sample-acute-bilateral-pe",
                central=1.0,
                side=Choice(weights=(("both", 1.0),)),
                clots_per_side=Uniform(low=2, high=4),
                artery_hu=Uniform(low=300, high=380),
                rv_dilated=1.0,
                noise_hu=_QUIET,
            ),
        ),
        Sample(
            name="negative",
            seed=21,
            preset=replace(
                PRESETS["negative"],
                name="sample-negative",
                artery_hu=Uniform(low=300, high=380),
                noise_hu=_QUIET,
            ),
        ),
        Sample(
            name="poor-contrast",
            seed=22,
            preset=replace(
                PRESETS["poor-contrast"],
                name="sample-poor-contrast",
                poor_artery_hu=Uniform(low=120, high=130),
                noise_hu=_QUIET,
            ),
        ),
    )
}


def generate_sample(name: str) -> PhantomStudy:
    """Generate one of `SAMPLES`: 90 slices of 256 x 256, 2.5 mm."""
    sample = SAMPLES[name]
    return generate_study(
        sample.seed, sample.preset, size=256, slice_spacing_mm=2.5, coverage_mm=_COVERAGE_MM
    )


def write_sample(name: str, out_dir: Path) -> None:
    """Write one sample as ``<name>/*.dcm`` and ``truth/<name>.json``."""
    study = generate_sample(name)
    folder = out_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    (out_dir / "truth").mkdir(exist_ok=True)
    write_slices(study, folder, transfer_syntax=TRANSFER_SYNTAX)
    write_truth(study, identity_of(study), out_dir / "truth" / f"{name}.json")


@click.command()
@click.option(
    "--out",
    "out_dir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write the samples into.",
)
def main(out_dir: Path) -> None:
    """Write the three sample studies."""
    for name in SAMPLES:
        write_sample(name, out_dir)
        click.echo(f"{out_dir / name}")


if __name__ == "__main__":
    main()
