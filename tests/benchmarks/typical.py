"""Make ``pe_triage/imaging/typical.json``: what figures a chest in a CTPA usually has.

Run: PYTHONPATH=. python tests/benchmarks/typical.py > pe_triage/imaging/typical.json

Phantoms as those that the demonstration model's stage 2 learns from (256 x 256, presets standard,
hard and easy), seeds `FIRST_SEED` and following. ``--drawn FOLDER`` takes volumes already drawn by
``pe-triage bundle demonstration`` from there; they are the same to the last bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from pe_triage.domain import CtVolume
from pe_triage.imaging.measure import figures_of
from pe_triage.imaging.typical import usual_of
from pe_triage.training.demonstration.exams import exam_path, make_exam

FIRST_SEED = 22_000_000
COUNT = 60


def exam_volume(seed: int, drawn: Path | None) -> CtVolume:
    """The phantom of a seed, read if it was drawn before."""
    path = None if drawn is None else exam_path(drawn, seed)
    if path is not None and path.exists():
        with safe_open(path, framework="numpy") as file:
            hu_zyx, spacing = file.get_tensor("hu_zyx"), file.get_tensor("spacing")
    else:
        arrays = make_exam(seed)
        hu_zyx, spacing = arrays["hu_zyx"], arrays["spacing"]
    z, y, x = (float(v) for v in spacing)
    return volume_of(hu_zyx, (z, y, x))


def volume_of(hu_zyx: NDArray[np.int16], spacing_mm: tuple[float, float, float]) -> CtVolume:
    return CtVolume(
        hu_zyx=np.ascontiguousarray(hu_zyx),
        spacing_mm=spacing_mm,
        affine_lps=np.eye(4),
        sop_instance_uids=tuple(f"1.{z}" for z in range(len(hu_zyx))),
        series_uid="1.2",
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--count", type=int, default=COUNT)
    options.add_argument("--drawn", type=Path)
    given = options.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + given.count)
    table = usual_of([figures_of(exam_volume(seed, given.drawn)) for seed in seeds])
    document = {
        "about": "Usual figures of a chest in a CTPA: median, and spread (a robust standard "
        "deviation, of the wider tail; logarithms where pe_triage/imaging/typical.py says so). "
        "Made of phantoms, so they are wide guesses for patients.",
        "made_by": "PYTHONPATH=. python tests/benchmarks/typical.py",
        "phantoms": {"first_seed": FIRST_SEED, "count": given.count},
        "figures": {
            name: {"usual": round(usual, 5), "spread": round(spread, 5)}
            for name, (usual, spread) in table.items()
        },
    }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
