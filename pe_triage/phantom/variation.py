"""How bodies and boluses differ beyond the plain body: habitus, sides, septum, timing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pe_triage.phantom.anatomy import Anatomy, Contrast, Pose
from pe_triage.phantom.distributions import Uniform
from pe_triage.phantom.effects import PHASES, Habitus


def vary_anatomy(rng: np.random.Generator, plain: Anatomy, habitus: Habitus, phase: str) -> Anatomy:
    """Return a body drawn from wider ranges; sex, age, ribs and ventricles stay the plain one's."""
    slim = float(rng.random())
    fat = habitus.fat_mm
    breath = habitus.dome_shift_mm.draw(rng)
    right, left = habitus.dome_shift_mm.draw(rng) / 3, habitus.dome_shift_mm.draw(rng) / 3
    shift = Uniform(low=-7, high=7)
    bow = habitus.bow_per_ratio_mm.draw(rng) * max(0.0, plain.rv_lv_ratio - 1.1)
    return replace(
        plain,
        pose=Pose(
            scale=habitus.scale.draw(rng),
            rotation_deg=habitus.rotation_deg.draw(rng),
            shift_x_mm=habitus.shift_mm.draw(rng),
            shift_y_mm=habitus.shift_mm.draw(rng),
        ),
        fat_mm=fat.low + (fat.high - fat.low) * slim * slim,
        depth=habitus.depth.draw(rng),
        lung_hu=habitus.lung_hu.draw(rng),
        right_dome_mm=plain.right_dome_mm + breath + right,
        left_dome_mm=plain.left_dome_mm + breath + left,
        heart_shift=(shift.draw(rng), shift.draw(rng) * 0.7, shift.draw(rng) * 0.7 + breath / 4),
        heart_turn_deg=plain.heart_turn_deg * 1.3,
        trunk_radius_mm=plain.trunk_radius_mm * habitus.trunk_factor.draw(rng),
        aorta_radius_mm=habitus.aorta_radius_mm.draw(rng),
        contrast=draw_timing(rng, plain.contrast.artery_hu, phase),
        bow_mm=min(9.0, bow),
        side_factors=(habitus.side_factor.draw(rng), habitus.side_factor.draw(rng)),
    )


def draw_timing(rng: np.random.Generator, artery_hu: float, phase: str) -> Contrast:
    """Draw the attenuation of each compartment at a timing of the bolus (`effects.PHASES`)."""
    table = PHASES[phase]
    left = max(50.0, artery_hu * table.left.draw(rng))
    return Contrast(
        artery_hu=artery_hu,
        svc_hu=min(1800.0, max(60.0, artery_hu * table.svc.draw(rng))),
        right_heart_hu=artery_hu * table.right.draw(rng),
        left_heart_hu=left,
        aorta_hu=max(45.0, left * table.aorta_of_left.draw(rng)),
        ivc_hu=Uniform(low=45, high=110).draw(rng),
    )
