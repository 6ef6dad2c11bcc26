"""The end of the recipe: temperatures and thresholds, chosen on phantoms of their own."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pe_triage.phantom.study import generate_study
from pe_triage.phantom.writer import write_study
from pe_triage.training.demonstration.drawing import draw_all
from pe_triage.training.demonstration.recipe import Recipe
from pe_triage.training.demonstration.seeds import SeedPart, Seeds
from pe_triage.training.evaluate import Options, evaluate
from pe_triage.training.reporting import Reporter


def calibrate_all(
    recipe: Recipe,
    bundles: Mapping[str, Path],
    reporter: Reporter,
    *,
    now: Callable[[], datetime],
    threads: int = 2,
) -> dict[str, Path]:
    """Choose temperatures and thresholds on the validation phantoms; return the finished bundles.

    The PE threshold is the highest that finds 95 of 100 exams with PE.
    """
    data, out = recipe.out / "validation", recipe.out / "calibration"
    part = recipe.seeds.parts["validation"]
    reporter.begin("phantoms: validation", part.count)
    draw_all(
        data / "drawn", list(part.seeds), partial(write_phantom, part=part, seeds=recipe.seeds,
        out=data), workers=recipe.workers, progress=lambda done, _total: reporter.step(done),
    )  # fmt: skip
    finished: dict[str, Path] = {}
    for name, bundle in bundles.items():
        target = recipe.out / f"bundle-{name}"
        reporter.begin(f"calibration: {name}", part.count)
        shutil.rmtree(target, ignore_errors=True)
        done = itertools.count(1)
        found = evaluate(
            bundle,
            data,
            out,
            # All three read one encoder: the first run embeds for the others too.
            Options(
                calibrate=target, gallery=0, heatmaps=False, threads=threads,
                compare=tuple(b for b in bundles.values() if b != bundle and not finished),
            ),
            now=now(),
            progress=lambda _uid: reporter.step(next(done)),  # noqa: B023  used in this pass only
        )  # fmt: skip
        found.html_path.replace(out / f"{name}.html")
        found.json_path.replace(out / f"{name}.json")
        finished[name] = target
    return finished


def write_phantom(seed: int, *, part: SeedPart, seeds: Seeds, out: Path) -> dict[str, Any]:
    """Write a phantom of a part as DICOM with its truth; the returned array only marks it done."""
    assert part.preset is not None
    study = generate_study(
        seed, part.preset, size=seeds.size, slice_spacing_mm=seeds.slice_spacing_mm
    )
    write_study(study, out)
    return {"seed": np.array([seed])}
