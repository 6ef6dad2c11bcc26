# ruff: noqa: RUF009 - the distributions that stand as defaults are frozen values
"""What may befall one study beyond body and clots: distributions, and what was drawn from them.

`Effects` is a row of frozen distributions that a preset carries; `Findings` is one draw. Presets
without effects (those of the committed samples and the plain commissioning ones) draw nothing here.
Findings come from a random stream of their own, so that adding one moves no body and no clot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pe_triage.phantom.distributions import Choice, Uniform

EFFECTS_VERSION = 2
"""Raised whenever the same seed would give other voxels under a preset with effects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A reconstruction kernel: its blur, its noise and the grain of that noise."""

    name: str
    blur_mm: float
    noise_factor: float
    grain_mm: float
    """Standard deviation of the blob that white noise is smeared into."""


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(name="soft", blur_mm=1.4, noise_factor=0.85, grain_mm=1.0),
        Kernel(name="medium", blur_mm=1.1, noise_factor=1.0, grain_mm=0.75),
        Kernel(name="sharp", blur_mm=0.7, noise_factor=1.3, grain_mm=0.5),
    )
}
PLAIN_KERNEL = KERNELS["medium"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Habitus:
    """How bodies differ: ranges that replace those of the plain body."""

    scale: Uniform = Uniform(low=0.87, high=1.12)
    rotation_deg: Uniform = Uniform(low=-9, high=9)
    shift_mm: Uniform = Uniform(low=-12, high=12)
    fat_mm: Uniform = Uniform(low=6, high=48)
    """Squared towards the low end: most people are not obese."""
    depth: Uniform = Uniform(low=0.90, high=1.18)
    lung_hu: Uniform = Uniform(low=-890, high=-790)
    dome_shift_mm: Uniform = Uniform(low=-12, high=12)
    """Depth of the breath, both domes; each then moves by a third of it alone."""
    trunk_factor: Uniform = Uniform(low=0.92, high=1.10)
    aorta_radius_mm: Uniform = Uniform(low=12.5, high=19)
    side_factor: Uniform = Uniform(low=0.90, high=1.10)
    """Calibre of one lung's arteries relative to the average, each side for itself."""
    bow_per_ratio_mm: Uniform = Uniform(low=12, high=22)
    """Bowing of the septum per unit of RV/LV above 1.1, at most 9 mm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One timing of the bolus: factors on the attenuation of the pulmonary arteries."""

    svc: Uniform
    right: Uniform
    left: Uniform
    aorta_of_left: Uniform


PHASES = {
    "early": Phase(
        svc=Uniform(low=2.0, high=4.0), right=Uniform(low=1.0, high=1.3),
        left=Uniform(low=0.20, high=0.55), aorta_of_left=Uniform(low=0.65, high=0.95),
    ),
    "typical": Phase(
        svc=Uniform(low=1.2, high=2.4), right=Uniform(low=0.95, high=1.15),
        left=Uniform(low=0.55, high=1.0), aorta_of_left=Uniform(low=0.75, high=0.95),
    ),
    "late": Phase(
        svc=Uniform(low=0.7, high=1.1), right=Uniform(low=0.85, high=1.0),
        left=Uniform(low=1.0, high=1.25), aorta_of_left=Uniform(low=0.90, high=1.10),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """What clots look like."""

    acute: Choice = Choice(weights=(("occlusive", 0.5), ("floating", 0.5)))
    acute_wide: Choice = Choice(weights=(("occlusive", 0.15), ("floating", 0.85)))
    """In main arteries, which are rarely shut: clots cast in narrower veins float there."""
    chronic: Choice = Choice(weights=(("eccentric", 0.5), ("web", 0.2), ("recanalised", 0.3)))
    calcified: float = 0.3
    """Probability that a chronic clot holds specks of calcium."""
    swelling: Uniform = Uniform(low=1.0, high=1.2)
    """Calibre of an artery shut by acute clot, relative to the open one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """Probabilities and sizes of everything in `Findings`."""

    habitus: Habitus = field(default_factory=Habitus)
    forms: Forms = field(default_factory=Forms)
    kernel: Choice = Choice(weights=(("soft", 0.35), ("medium", 0.45), ("sharp", 0.20)))
    phase: Choice = Choice(weights=(("early", 0.25), ("typical", 0.55), ("late", 0.20)))
    noise_per_fat: float = 0.010
    """Relative growth of noise per mm of fat beyond 18 mm, and its fall below."""
    streaks: float = 0.5
    streak_hu: Uniform = Uniform(low=25, high=110)
    """At a vena cava of 1000 HU; in proportion to what it has above 300 HU."""
    smoke: float = 0.35
    smoke_count: Uniform = Uniform(low=1, high=4)
    smoke_radius_mm: Uniform = Uniform(low=6, high=18)
    smoke_depth: Uniform = Uniform(low=0.30, high=0.70)
    """Share of the contrast that unmixed blood lacks in the middle of the swirl."""
    interruption: float = 0.08
    interruption_depth: Uniform = Uniform(low=0.15, high=0.40)
    breathing: float = 0.35
    breathing_mm: Uniform = Uniform(low=1.0, high=5.0)
    """Of studies that can be judged."""
    severe_mm: Uniform = Uniform(low=4.0, high=11.0)
    """Of studies that are indeterminate for motion; it overlaps with those that are not."""
    heartbeat: float = 0.6
    heartbeat_mm: Uniform = Uniform(low=0.8, high=4.0)
    nodes: float = 0.40
    node_count: Uniform = Uniform(low=1, high=5)
    node_radius_mm: Uniform = Uniform(low=2.5, high=7.0)
    mucus: float = 0.20
    mucus_count: Uniform = Uniform(low=1, high=4)
    atelectasis: float = 0.22
    """Of each side; dependent, and a plate beside it in half of them."""
    effusion: float = 0.16
    """Of each side."""
    effusion_mm: Uniform = Uniform(low=8, high=40)
    emphysema: float = 0.20
    emphysema_extent: Uniform = Uniform(low=0.15, high=0.7)


STANDARD_EFFECTS = Effects()

EASY_EFFECTS = Effects(
    kernel=Choice(weights=(("soft", 0.5), ("medium", 0.5))),
    phase=Choice(weights=(("typical", 1.0),)),
    streaks=0.2, streak_hu=Uniform(low=15, high=50),
    smoke=0.05, interruption=0.0, breathing=0.1, breathing_mm=Uniform(low=1.0, high=2.5),
    severe_mm=Uniform(low=7.0, high=12.0), heartbeat=0.3, nodes=0.15, mucus=0.05,
    atelectasis=0.10, effusion=0.08, emphysema=0.10,
)  # fmt: skip

HARD_EFFECTS = Effects(
    kernel=Choice(weights=(("soft", 0.25), ("medium", 0.40), ("sharp", 0.35))),
    phase=Choice(weights=(("early", 0.35), ("typical", 0.35), ("late", 0.30))),
    streaks=0.6, smoke=0.45, interruption=0.12, breathing=0.5, heartbeat=0.7, nodes=0.5,
    mucus=0.3, atelectasis=0.3, effusion=0.2, emphysema=0.25,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Breath:
    """Breathing during part of the scan; heights are shares of its length, foot 0 to head 1."""

    shift_mm: float
    period_mm: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LungFinding:
    """Something in one lung or beside it."""

    kind: str
    """atelectasis, plate or effusion."""
    side: str
    size_mm: float
    hu: float
    tilt: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was drawn for one study; nothing in it is a clot."""

    kernel: Kernel
    phase: str
    streak_hu: float
    """Of one ray near the vena cava; 0: none."""
    n_smoke: int
    smoke_depth: float
    interruption_depth: float
    interruption_at: float
    """Share of the scan's length."""
    breath: Breath | None
    heartbeat_mm: float
    n_nodes: int
    n_mucus: int
    lungs: tuple[LungFinding, ...]
    emphysema_extent: float


def _unit(rng: np.random.Generator) -> tuple[float, float, float]:
    v = [float(value) for value in rng.standard_normal(3)]
    norm = max(sum(value * value for value in v) ** 0.5, 1e-6)
    return (v[0] / norm, v[1] / norm, v[2] / norm)


def draw_findings(rng: np.random.Generator, effects: Effects, *, severe_motion: bool) -> Findings:
    """Draw one study's findings, by a fixed number of draws.

    Parameters
    ----------
    rng
        A stream of its own.
    effects
        The distributions.
    severe_motion
        Whether the study is to be indeterminate for motion.
    """

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    kernel, phase = KERNELS[effects.kernel.draw(rng)], effects.phase.draw(rng)
    streaks, streak_hu = happens(effects.streaks), effects.streak_hu.draw(rng)
    smoke, n_smoke = happens(effects.smoke), int(effects.smoke_count.draw(rng))
    smoke_depth = effects.smoke_depth.draw(rng)
    gap, gap_depth = happens(effects.interruption), effects.interruption_depth.draw(rng)
    gap_at = float(rng.uniform(0.2, 0.8))
    mild, mild_mm = happens(effects.breathing), effects.breathing_mm.draw(rng)
    severe_mm, period_mm = effects.severe_mm.draw(rng), float(rng.uniform(22, 45))
    reach, low = float(rng.uniform(0.4, 1.0)), float(rng.random())
    low *= 1 - reach
    if severe_motion:
        breath = Breath(shift_mm=severe_mm, period_mm=period_mm, low=low, high=low + reach)
    else:
        breath = Breath(shift_mm=mild_mm, period_mm=period_mm, low=low, high=low + 0.5 * reach)
    beat, beat_mm = happens(effects.heartbeat), effects.heartbeat_mm.draw(rng)
    nodes, n_nodes = happens(effects.nodes), int(effects.node_count.draw(rng))
    mucus, n_mucus = happens(effects.mucus), int(effects.mucus_count.draw(rng))
    lungs: list[LungFinding] = []
    for side in ("left", "right"):
        collapse, plate = happens(effects.atelectasis), happens(0.5)
        fluid, fluid_mm = happens(effects.effusion), effects.effusion_mm.draw(rng)
        size, hu = float(rng.uniform(8, 34)), float(rng.uniform(45, 95))
        water_hu, tilt = float(rng.uniform(0, 18)), _unit(rng)
        if collapse:
            lungs.append(LungFinding(kind="atelectasis", side=side, size_mm=size, hu=hu, tilt=tilt))
            if plate:
                lungs.append(LungFinding(kind="plate", side=side, size_mm=size, hu=hu, tilt=tilt))
        if fluid:
            lungs.append(
                LungFinding(kind="effusion", side=side, size_mm=fluid_mm, hu=water_hu, tilt=tilt)
            )
    holes, extent = happens(effects.emphysema), effects.emphysema_extent.draw(rng)
    return Findings(
        kernel=kernel,
        phase=phase,
        streak_hu=streak_hu if streaks else 0.0,
        n_smoke=n_smoke if smoke else 0,
        smoke_depth=smoke_depth,
        interruption_depth=gap_depth if gap else 0.0,
        interruption_at=gap_at,
        breath=breath if severe_motion or mild else None,
        heartbeat_mm=beat_mm if beat else 0.0,
        n_nodes=n_nodes if nodes else 0,
        n_mucus=n_mucus if mucus else 0,
        lungs=tuple(lungs),
        emphysema_extent=extent if holes else 0.0,
    )
