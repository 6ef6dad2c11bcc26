"""What the quality measures read on phantoms and, where they are at hand, on the real chests.

Run: PYTHONPATH=. python tests/benchmarks/quality.py --count 60 --real FOLDER

The figures of docs/quality.md come from here. Each phantom is measured as it is, with one slice of
another phantom in it, and with two slices exchanged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pe_triage.cli.analyze import read_folder
from pe_triage.domain import CtVolume, VolumeMeasures
from pe_triage.imaging.measure import measure_volume
from pe_triage.imaging.quality import slice_jump
from pe_triage.imaging.volume import load_volume
from pe_triage.phantom import generate_study

PRESETS = ("easy", "standard", "hard", "poor-contrast")
FIRST_SEED = 700_000
PERCENTILES = (0, 5, 50, 95, 100)


def as_volume(hu_zyx: NDArray[np.int16], spacing_mm: tuple[float, float, float]) -> CtVolume:
    return CtVolume(
        hu_zyx=hu_zyx,
        spacing_mm=spacing_mm,
        affine_lps=np.eye(4),
        sop_instance_uids=tuple(f"1.{z}" for z in range(len(hu_zyx))),
        series_uid="1.2",
    )


def line(name: str, values: list[float | None]) -> str:
    found = [v for v in values if v is not None]
    cells = [f"{np.percentile(found, p):.1f}" if found else "" for p in PERCENTILES]
    return f"| {name} | {len(found)} of {len(values)} | " + " | ".join(cells) + " |"


def of_preset(preset: str, count: int, size: int, slices: int) -> None:
    measured: list[VolumeMeasures] = []
    foreign: list[float | None] = []
    swapped: list[float | None] = []
    before: NDArray[np.int16] | None = None
    for k in range(count):
        study = generate_study(FIRST_SEED + k, preset, size=size, n_slices=slices)
        measured.append(measure_volume(as_volume(study.hu_zyx, study.spacing_mm)))
        middle = slices // 2
        if before is not None:
            other = study.hu_zyx.copy()
            other[middle] = before[middle]
            foreign.append(slice_jump(as_volume(other, study.spacing_mm)))
            other = study.hu_zyx.copy()
            other[[middle, middle + 10]] = other[[middle + 10, middle]]
            swapped.append(slice_jump(as_volume(other, study.spacing_mm)))
        before = study.hu_zyx
    print(f"\n{preset}, {count} of {size} x {size} x {slices}\n")
    print("| measure | found | " + " | ".join(str(p) for p in PERCENTILES) + " |")
    for name in (
        "air_hu", "soft_tissue_hu", "vessel_hu", "noise_hu", "grain", "slice_jump",
        "lung_fraction", "lung_extent_mm", "blank_slices", "saturated_slices",
    ):  # fmt: skip
        print(line(name, [getattr(m, name) for m in measured]))
    print(line("slice_jump, one slice foreign", foreign))
    print(line("slice_jump, two slices exchanged", swapped), flush=True)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--count", type=int, default=60)
    options.add_argument("--size", type=int, default=112)
    options.add_argument("--slices", type=int, default=60)
    options.add_argument("--fine", type=int, default=4, help="phantoms of 512 x 512 for the noise")
    options.add_argument("--real", type=Path)
    given = options.parse_args()
    if given.real is not None:
        for folder in sorted({p.parent for p in given.real.glob("chest_*/*.dcm")}):
            print(folder.name, measure_volume(load_volume(read_folder(folder))), flush=True)
    for preset in PRESETS:
        of_preset(preset, given.count, given.size, given.slices)
    for preset in PRESETS:
        if given.fine:
            of_preset(preset, given.fine, 512, 24)


if __name__ == "__main__":
    main()
