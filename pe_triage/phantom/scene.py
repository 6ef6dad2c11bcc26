"""What is decided for one study, and the scene that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pe_triage.phantom import artefacts, parenchyma
from pe_triage.phantom.anatomy import Anatomy, Painted, draw_anatomy
from pe_triage.phantom.clots import draw_clots
from pe_triage.phantom.effects import Effects, Findings
from pe_triage.phantom.geometry import Capsule, Grid
from pe_triage.phantom.organs import SVC_AXIS, airways, bones, great_vessels, heart
from pe_triage.phantom.presets import Preset
from pe_triage.phantom.render import Extras, Motion, Scene, clot_areas_mm2
from pe_triage.phantom.thorax import Texture
from pe_triage.phantom.tree import Vessel, accompanying_airways, grow_arteries, grow_veins
from pe_triage.phantom.variation import vary_anatomy


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


def build_scene(
    rng: np.random.Generator, plan: Plan, vary: Callable[[Anatomy], Anatomy] | None = None
) -> Scene:
    """Draw the body that the plan asks for, without clots.

    Parameters
    ----------
    rng
        Source of randomness.
    plan
        What was decided.
    vary
        Turns the plain body into the one that is drawn.
    """
    anatomy = draw_anatomy(rng, artery_hu=plan.artery_hu, rv_dilated=plan.rv_dilated)
    if vary is not None:
        anatomy = vary(anatomy)
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
    left, right = anatomy.side_factors

    def calibre(vessel: Vessel) -> Capsule:
        factor = left if vessel.side == "left" else right
        shape = vessel.shape
        if vessel.level in ("trunk", "main") or factor == 1.0:
            return shape
        return replace(
            shape,
            start_radius_mm=shape.start_radius_mm * factor,
            end_radius_mm=shape.end_radius_mm * factor,
        )

    return tuple(replace(v, shape=anatomy.pose.capsule(calibre(v))) for v in vessels)


def varied(
    rng: np.random.Generator, effects: Effects, findings: Findings
) -> Callable[[Anatomy], Anatomy]:
    """Return what turns a plain body into one of the preset's habitus and of the drawn timing."""

    def vary(plain: Anatomy) -> Anatomy:
        return vary_anatomy(rng, plain, effects.habitus, findings.phase)

    return vary


def with_extras(
    rng: np.random.Generator, scene: Scene, effects: Effects, findings: Findings, grid: Grid
) -> Scene:
    """Return the scene with what the findings ask for laid out in this body.

    Nodes, plugs, smoke and streaks each draw from a stream of their own, so that one more node
    moves no streak.
    """
    node_rng, plug_rng, smoke_rng, streak_rng = rng.spawn(4)
    anatomy = scene.anatomy
    pose = anatomy.pose
    nodes, mimics = parenchyma.draw_nodes(
        node_rng, scene.arteries, findings.n_nodes, effects.node_radius_mm
    )
    plugs = _plugs(plug_rng, scene, findings.n_mucus, mimics)
    smoke = tuple(_smoke(smoke_rng, scene, effects, findings) for _ in range(findings.n_smoke))
    mimics += [
        {
            "cause": "unmixed blood",
            "centre_lps_mm": [round(v, 1) for v in s.centre],
            "radius_mm": round(s.radius_mm, 1),
            "side": s.side,
            "level": s.level,
            "vessel": s.vessel_name,
            "depth": round(s.depth, 3),
        }
        for s in smoke
    ]
    axis = tuple(pose.point(p) for p in SVC_AXIS)
    hu = findings.streak_hu * max(0.0, anatomy.contrast.svc_hu - 300.0) / 700.0
    streaks = artefacts.Streaks.draw(streak_rng, axis, hu) if hu > 2 else None
    if streaks is not None:
        middle = axis[1]
        mimics.append(
            {
                "cause": "streaks",
                "centre_lps_mm": [round(v, 1) for v in middle],
                "radius_mm": 60.0,
                "foot_mm": round(axis[0][2], 1),
                "head_mm": round(axis[-1][2], 1),
                "hu": round(hu, 1),
            }
        )
    foot = grid.z0_mm - grid.slice_spacing_mm / 2
    gap_at = foot + findings.interruption_at * grid.n_slices * grid.slice_spacing_mm
    if findings.interruption_depth > 0:
        mimics.append(
            {
                "cause": "interrupted bolus",
                "foot_mm": round(gap_at - 25, 1),
                "head_mm": round(gap_at + 25, 1),
                "depth": round(findings.interruption_depth, 3),
            }
        )
    fat = max(0.7, 1 + effects.noise_per_fat * (anatomy.fat_mm - 18))
    heart_centre = (20.0 + anatomy.heart_shift[0], -8.0 + anatomy.heart_shift[1], -62.0)
    extras = Extras(
        findings=findings,
        noise_hu=artefacts.noise_level_hu(
            scene.noise_hu, findings.kernel, fat, grid.slice_thickness_mm, grid.pixel_mm
        ),
        streaks=streaks,
        smoke=smoke,
        interruption_at_mm=gap_at,
        plugs=plugs,
        plug_hu=22.0,
        heart=pose.point(heart_centre),
        mimics=tuple(mimics),
    )
    return replace(scene, painted=(*scene.painted, *nodes), extras=extras)


def _plugs(
    rng: np.random.Generator, scene: Scene, count: int, mimics: list[dict[str, object]]
) -> tuple[Capsule, ...]:
    """Fill segmental bronchi with mucus: a dark tube beside an artery."""
    found = []
    thin = [c for c in scene.airways if c.start_radius_mm < 3.0]
    for _ in range(count if thin else 0):
        c = thin[int(rng.integers(len(thin)))]
        found.append(replace(c, start_radius_mm=c.start_radius_mm + 0.9,
                             end_radius_mm=c.end_radius_mm + 0.7))  # fmt: skip
        middle = [round((a + b) / 2, 1) for a, b in zip(c.start, c.end, strict=True)]
        half = sum((a - b) ** 2 for a, b in zip(c.start, c.end, strict=True)) ** 0.5 / 2
        mimics.append(
            {"cause": "mucus plug", "centre_lps_mm": middle, "radius_mm": round(half + 2, 1)}
        )
    return tuple(found)


def _smoke(
    rng: np.random.Generator, scene: Scene, effects: Effects, findings: Findings
) -> artefacts.Smoke:
    """Lay one swirl of unmixed blood into a main, lobar or wide segmental artery."""
    wide = [
        v for v in scene.arteries
        if v.level in ("main", "lobar") or (v.level == "segmental" and v.shape.end_radius_mm > 2)
    ]  # fmt: skip
    vessel = wide[int(rng.integers(len(wide)))]
    c, t = vessel.shape, float(rng.uniform(0.2, 0.8))
    radius = effects.smoke_radius_mm.draw(rng)
    r = c.start_radius_mm
    off = [float(v) * 0.35 * r for v in rng.uniform(-1, 1, size=3)]
    x, y, z = (c.start[i] + (c.end[i] - c.start[i]) * t + off[i] for i in range(3))
    return artefacts.Smoke(
        centre=(x, y, z),
        radius_mm=min(radius, 2.2 * r + 3.0),
        depth=findings.smoke_depth * float(rng.uniform(0.8, 1.0)),
        lattice=artefacts.Smoke.draw_lattice(rng),
        vessel_name=vessel.name,
        side=vessel.side,
        level=vessel.level,
    )


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
