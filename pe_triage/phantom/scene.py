"""What is decided for one study, and the scene that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pe_triage.phantom.anatomy import Anatomy, Painted, draw_anatomy
from pe_triage.phantom.clots import draw_clots
from pe_triage.phantom.geometry import Grid
from pe_triage.phantom.organs import airways, bones, great_vessels, heart
from pe_triage.phantom.presets import Preset
from pe_triage.phantom.render import Motion, Scene, clot_areas_mm2
from pe_triage.phantom.thorax import Texture
from pe_triage.phantom.tree import Vessel, accompanying_airways, grow_arteries, grow_veins


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is decided before anatomy is drawn."""

    status: str
    stage: str
    side: str
    central: bool
    rv_dilated: bool
    artery_hu: float
    noise_hu: float
    motion: Motion | None
    cause: str


def draw_plan(rng: np.random.Generator, preset: Preset) -> Plan:
    """Decide status, stage, sites, contrast and noise of one study."""
    # Every value is drawn whether needed or not, so that one preset's change moves no other draw.
    status, stage, side = preset.status.draw(rng), preset.stage.draw(rng), preset.side.draw(rng)
    central = bool(rng.random() < preset.central)
    rv_point = float(rng.random())
    good, poor = preset.artery_hu.draw(rng), preset.poor_artery_hu.draw(rng)
    cause = preset.indeterminate_cause.draw(rng)
    shift, period = float(rng.uniform(5, 10)), float(rng.uniform(22, 45))
    noise = preset.noise_hu.draw(rng)
    unclear = status == "indeterminate"
    strained = preset.rv_dilated * (1.0 if central else 0.5)
    if status != "positive":
        strained = 0.08
    return Plan(
        status=status,
        stage=stage,
        side=side,
        central=central,
        rv_dilated=rv_point < strained,
        artery_hu=poor if unclear and cause == "contrast" else good,
        noise_hu=noise,
        motion=Motion(shift_mm=shift, period_mm=period) if unclear and cause == "motion" else None,
        cause=cause if unclear else "",
    )


def build_scene(rng: np.random.Generator, plan: Plan) -> Scene:
    """Draw the body that the plan asks for, without clots."""
    anatomy = draw_anatomy(rng, artery_hu=plan.artery_hu, rv_dilated=plan.rv_dilated)
    texture = Texture.draw(rng)
    heart_parts, sac = heart(anatomy)
    arteries = grow_arteries(rng, anatomy, sac)
    veins = grow_veins(rng, anatomy, sac)
    lumina = [*airways(), *accompanying_airways(rng, arteries)]
    painted = [*bones(), *heart_parts, *great_vessels(anatomy)]
    return Scene(
        anatomy=anatomy,
        texture=texture,
        painted=tuple(Painted(shape=anatomy.pose.shape(p.shape), hu=p.hu) for p in painted),
        airways=tuple(anatomy.pose.capsule(c) for c in lumina),
        veins=_placed(anatomy, veins),
        arteries=_placed(anatomy, arteries),
        clots=(),
        motion=plan.motion,
        noise_hu=plan.noise_hu,
    )


def _placed(anatomy: Anatomy, vessels: Sequence[Vessel]) -> tuple[Vessel, ...]:
    return tuple(replace(v, shape=anatomy.pose.capsule(v.shape)) for v in vessels)


def with_visible_clots(
    rng: np.random.Generator, preset: Preset, plan: Plan, scene: Scene, grid: Grid, *,
    min_area_mm2: float, attempts: int = 24,
) -> Scene:  # fmt: skip
    """Return the scene with clots that show in the voxels what the plan asks for.

    Clots are drawn again, up to ``attempts`` times, until stage, sides and central site are each
    borne out by a clot of at least ``min_area_mm2`` in one slice; the last draw is kept if none is.
    """
    for _ in range(attempts):
        clots = draw_clots(
            rng, preset, scene.arteries, stage=plan.stage, side=plan.side, central=plan.central
        )
        scene = replace(scene, clots=clots)
        largest = clot_areas_mm2(scene, grid).max(axis=0)
        seen = [c for c, area in zip(clots, largest, strict=True) if area >= min_area_mm2]
        stages = {"acute", "chronic"} if plan.stage == "both" else {plan.stage}
        sides = {"left", "right"} if plan.side == "both" else {plan.side}
        if (
            stages == {c.stage for c in seen}
            and sides <= {side for c in seen for side in c.sides()}
            and (not plan.central or any(c.central for c in seen))
        ):
            break
    return scene
