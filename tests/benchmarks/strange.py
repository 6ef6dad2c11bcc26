"""Motion and strange pixels: what the checks say of phantoms at rest, in motion, and altered.

Run: PYTHONPATH=. python tests/benchmarks/strange.py --out strange.jsonl [--drawn FOLDER]

Phantoms are the demonstration's exams from seed `FIRST_SEED` on (see `typical`), none of which set
a limit. Some lines of docs/quality.md come from here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pe_triage.assemble.measure_rules import CAUTION_RULES, MEASURE_RULES
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import CtVolume
from pe_triage.imaging.measure import measure_volume
from pe_triage.imaging.motion import motion_signs
from pe_triage.imaging.quality import slice_jump
from pe_triage.phantom.distributions import Choice
from pe_triage.phantom.effects import draw_findings
from pe_triage.phantom.presets import find_preset
from pe_triage.phantom.scene import draw_plan
from pe_triage.training.demonstration.exams import _MIX
from pe_triage.training.seeding import numpy_at
from tests.benchmarks.typical import exam_volume, volume_of

FIRST_SEED, LAST_SEED = 22_001_740, 22_002_500
GROUPS = {"severe": 20, "at rest": 30, "mild": 10}
AMPLITUDES_MM = (2, 4)
BODIES = 2
HU = NDArray[np.int16]


def breath_of(seed: int) -> tuple[str, float]:
    """Group and shift in mm of the exam of a seed: what `make_exam` draws, without its voxels."""
    name = str(numpy_at("exam", seed).choice([n for n, _ in _MIX], p=[share for _, share in _MIX]))
    stage = Choice(weights=(("acute", 0.5), ("chronic", 0.25), ("both", 0.25)))
    preset = replace(find_preset(name), stage=stage)
    streams = [
        np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(7)
    ]
    severe = draw_plan(streams[0], preset).motion is not None
    assert preset.effects is not None
    breath = draw_findings(streams[4], preset.effects, severe_motion=severe).breath
    if severe:
        return "severe", breath.shift_mm if breath else 0.0
    return ("mild", breath.shift_mm) if breath else ("at rest", 0.0)


def along(volume: CtVolume, amplitude_mm: float, period_mm: float, phase: float) -> CtVolume:
    """Organs moved along z as a sine of the height."""
    z_mm = volume.spacing_mm[0]
    at = np.arange(len(volume.hu_zyx)) * z_mm
    shown = (at + amplitude_mm * np.sin(2 * np.pi * at / period_mm + phase)) / z_mm
    shown = np.clip(shown, 0, len(at) - 1.001)
    whole = shown.astype(int)
    part = (shown - whole)[:, None, None].astype(np.float32)
    hu = volume.hu_zyx[whole] * (1 - part) + volume.hu_zyx[whole + 1] * part
    return volume_of(np.rint(hu).astype(np.int16), volume.spacing_mm)


def altered(volume: CtVolume, rng: np.random.Generator) -> Iterator[tuple[str, HU]]:
    """The pixels as they are, and in ways that headers would not tell."""
    hu = volume.hu_zyx.astype(np.float32)
    y_mm, x_mm = volume.spacing_mm[1:]
    y, x = np.mgrid[: hu.shape[1], : hu.shape[2]]
    y, x = y - hu.shape[1] // 2, x - int(hu.shape[2] * 0.55)
    radius, angle = np.hypot(y, x) + 1, np.arctan2(y, x)
    metal = hu.copy()
    for z in range(len(hu) // 2 - 8, len(hu) // 2 + 8):
        metal[z] += 1500 * np.cos(9 * angle + z) * np.exp(-radius / 40)
        metal[z][radius < 8] = 3071
    mr_hu = (-1000, -960, -300, 300, 50, 80, -600, -900, -900, -1000)
    mr_of = (-1024, -900, -150, -80, 20, 60, 150, 400, 1000, 3071)
    kinds = {
        "as it is": hu,
        "head-foot flipped": hu[::-1],
        "front-back flipped": hu[:, ::-1],
        "transposed": hu.transpose(0, 2, 1),
        "inverted": np.where(hu < -1010, -1024, -(hu + 1000) + 40),
        "MR-like": np.interp(hu, mr_of, mr_hu),
        "noise of 100 HU": hu + rng.normal(0, 100, hu.shape),
        "sharpened": hu + 3 * (hu - ndimage.gaussian_filter(hu, (0, 0.8, 0.8))),
        "blurred by 3 mm": ndimage.gaussian_filter(hu, (0, 3 / y_mm, 3 / x_mm)),
        "metal": metal,
        "HU halved": (hu + 1000) * 0.5 - 1000,
        "no contrast": np.where((hu > 80) & (hu < 600), 45 + (hu - 80) * 0.03, hu),
        "every slice twice": np.repeat(hu[1::2], 2, axis=0),
    }
    for name, values in kinds.items():
        yield name, np.clip(np.rint(values), -1024, 3071).astype(np.int16)


def judged(volume: CtVolume) -> dict[str, Any]:
    """Return what refuses a volume, or which cautions it gets."""
    rules, measures = EligibilityRules(), measure_volume(volume)
    refusing = [rule.name for rule in MEASURE_RULES if rule.refuses(measures, rules) is not None]
    return {
        "refused": refusing[0] if refusing else None,
        "cautions": [r.name for r in CAUTION_RULES if r.refuses(measures, rules) is not None],
        "alternation": measures.alternation,
        "strangeness": measures.strangeness,
        "strangest": measures.strangest,
    }


def of_motion(group: str, volume: CtVolume, rng: np.random.Generator) -> dict[str, Any]:
    """Return the signs of motion and the slice jump, and those of the volume made to breathe."""
    started = time.process_time()
    doubling, unevenness = motion_signs(volume)
    row = {
        "doubling": doubling,
        "unevenness": unevenness,
        "cpu_s": time.process_time() - started,
        "slice_jump": slice_jump(volume),
    }
    if group == "at rest":
        period_mm, phase = float(rng.uniform(22, 45)), float(rng.uniform(0, 6))
        for mm in AMPLITUDES_MM:
            row[f"unevenness at {mm} mm"] = motion_signs(along(volume, mm, period_mm, phase))[1]
        row["period_mm"] = period_mm
    return row


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--drawn", type=Path)
    given = options.parse_args()
    rng = np.random.default_rng(7)
    pool: list[tuple[str, int]] = []
    for seed in range(FIRST_SEED, LAST_SEED):
        group, _ = breath_of(seed)
        if sum(g == group for g, _ in pool) < GROUPS[group]:
            pool.append((group, seed))
    with given.out.open("w", encoding="utf-8") as out:

        def write(**row: Any) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        for seed in [s for group, s in pool if group == "at rest"][:BODIES]:
            volume = exam_volume(seed, given.drawn)
            for what, hu_zyx in altered(volume, rng):
                write(what=what, seed=seed, **judged(volume_of(hu_zyx, volume.spacing_mm)))
        for group, seed in pool:
            volume = exam_volume(seed, given.drawn)
            write(what="motion", group=group, seed=seed, **of_motion(group, volume, rng))


if __name__ == "__main__":
    main()
