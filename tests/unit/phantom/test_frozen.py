"""The phantom's physics is frozen: whoever changes a figure must raise the version and say so here.

`docs/phantom.md` promises that the presets' figures were chosen before the first training run and
are never tuned to a result. What follows fails when they are.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pe_triage.phantom import PRESETS, Choice, Uniform, generate_study
from pe_triage.phantom.effects import EFFECTS_VERSION, KERNELS, PHASES, Effects
from pe_triage.phantom.presets import GENERATOR_VERSION, Preset

PAGE = Path(__file__).resolve().parents[3] / "docs" / "phantom.md"
VERSIONS = (1, 2)
DIGEST = "35587938f54f0bdf"
"""Of every distribution of every preset, of kernels and of timings, at `VERSIONS`."""
VOXELS = {"easy": (-599.7502, 155), "standard": (-601.0348, 85), "hard": (-597.3921, 1)}
"""Mean HU, and voxels of clot, of seed 500004 at 96 x 96 x 32."""


def test_no_distribution_has_changed_since_the_first_training_run() -> None:
    said = [repr((name, preset, preset.effects)) for name, preset in PRESETS.items()]
    text = "\n".join([*said, repr(KERNELS), repr(PHASES)])
    assert (GENERATOR_VERSION, EFFECTS_VERSION) == VERSIONS
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGEST


@pytest.mark.parametrize("preset", list(VOXELS))
def test_nor_have_the_voxels_that_come_of_them(preset: str) -> None:
    study = generate_study(500004, preset, size=96, n_slices=32)
    mean, clot = VOXELS[preset]
    assert float(study.hu_zyx.mean()) == pytest.approx(mean, abs=0.01)
    assert int(study.clot_mask_zyx.sum()) == clot


def _percent(*shares: float) -> str:
    return ", ".join(f"{100 * s:g}" for s in shares) + " %"


def _groups(*groups: tuple[float, ...]) -> str:
    return "; ".join(", ".join(f"{100 * s:g}" for s in group) for group in groups) + " %"


def _to(u: Uniform) -> str:
    return f"{u.low:g} to {u.high:g}"


def _shares(choice: Choice, *names: str) -> list[float]:
    weights = dict(choice.weights)
    assert set(weights) <= set(names)
    return [weights.get(name, 0.0) for name in names]


def _count(u: Uniform) -> str:
    """Of a number that is rounded down."""
    low, high = int(u.low), int(u.high) - 1
    return f"{low} or {high}" if high == low + 1 else f"{low} to {high}"


def _said(preset: Preset) -> dict[str, str]:
    """The rows of the page's table, from the preset."""
    e: Effects | None = preset.effects
    assert e is not None
    return {
        "positive, negative, indeterminate": _percent(
            *_shares(preset.status, "positive", "negative", "indeterminate")
        ),
        "of positive: acute, chronic, both": _percent(
            *_shares(preset.stage, "acute", "chronic", "both")
        ),
        "central clot, of positive": _percent(preset.central),
        "peripheral clots: lobar, segmental, subsegmental": _percent(
            *_shares(preset.peripheral_level, "lobar", "segmental", "subsegmental")
        ),
        "peripheral clots on an affected side": _count(preset.clots_per_side),
        "length of peripheral clots, mm": _to(preset.clot_length_mm),
        "arteries, HU": _to(preset.artery_hu),
        "arteries of poor contrast, HU": _to(preset.poor_artery_hu),
        "noise at 2 mm, HU": _to(preset.noise_hu),
        "RV/LV ≥ 1 with, without central clot (8 % if no clot)": _percent(
            preset.rv_dilated, preset.rv_dilated / 2
        ),
        "early, typical, late bolus": _percent(*_shares(e.phase, "early", "typical", "late")),
        "soft, medium, sharp kernel": _percent(*_shares(e.kernel, "soft", "medium", "sharp")),
        "streaks; unmixed blood; interrupted bolus": _groups(
            (e.streaks,), (e.smoke,), (e.interruption,)
        ),
        "nodes; mucus": _groups((e.nodes,), (e.mucus,)),
        "mild breathing (of evaluable); heartbeat": _groups((e.breathing,), (e.heartbeat,)),
        "mild, severe breathing, mm": f"{_to(e.breathing_mm)}, {_to(e.severe_mm)}",
        "atelectasis, effusion (each side); emphysema": _groups(
            (e.atelectasis, e.effusion), (e.emphysema,)
        ),
        "clots, HU (chronic: 15 more)": _to(preset.clot_hu),
    }


def test_the_page_states_the_presets_distributions_as_they_are() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index("| | easy | standard | hard |")
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = cells
    said = [_said(PRESETS[name]) for name in ("easy", "standard", "hard")]
    assert rows == {name: [row[name] for row in said] for name in said[0]}
