"""Each form of clot is what its name says, and each compartment of blood has its own contrast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pe_triage.phantom import PRESETS, Choice, Preset
from pe_triage.phantom.clots import Clot, clot_shares, draw_clots
from pe_triage.phantom.effects import Forms
from pe_triage.phantom.geometry import Capsule, Grid, Point
from pe_triage.phantom.render import Scene, render
from pe_triage.phantom.scene import build_scene, draw_plan

STANDARD = PRESETS["standard"]


@pytest.fixture(scope="module")
def scene() -> Scene:
    rng = np.random.default_rng(5)
    plan = replace(draw_plan(rng, STANDARD), artery_hu=300.0, motion=None, noise_hu=0.0)
    return build_scene(rng, plan)


def _only(kind: str, **more: float) -> Preset:
    assert STANDARD.effects is not None
    one = Choice(weights=((kind, 1.0),))
    forms = replace(Forms(), acute=one, acute_wide=one, chronic=one, **more)  # type: ignore[arg-type]
    return replace(STANDARD, effects=replace(STANDARD.effects, forms=forms))


def _clots(scene: Scene, kind: str, stage: str, **more: float) -> list[Clot]:
    """A dozen clots of one form that begin in lobar arteries."""
    rng = np.random.default_rng(8)
    preset = replace(_only(kind, **more), peripheral_level=Choice(weights=(("lobar", 1.0),)))
    found: list[Clot] = []
    while len(found) < 12:
        found += draw_clots(rng, preset, scene.arteries, stage=stage, side="both", central=False)
    return found[:12]


def _around(capsules: list[Capsule], spacing_mm: float = 1.0) -> Grid:
    bounds = [c.bounds() for c in capsules]
    low, high = min(b[0][2] for b in bounds) - 4, max(b[1][2] for b in bounds) + 4
    return Grid.of(
        size=300, field_of_view_mm=300, coverage_mm=(low, high), slice_spacing_mm=spacing_mm,
        slice_thickness_mm=spacing_mm, kernel_blur_mm=0.5,
    )  # fmt: skip


def _filled(clot: Clot) -> tuple[float, float]:
    """Share of the lumen that the clot takes: of all of it, and where voxels are half wall."""
    grid = _around([p.vessel for p in clot.pieces])
    shares = clot_shares(clot, grid.slab(0, grid.n_slices))
    assert shares is not None
    rim = (shares.vessel > 0.3) & (shares.vessel < 0.7)
    whole = float((shares.clot * shares.vessel).sum() / shares.vessel.sum())
    return whole, float(shares.clot[rim].mean())


@pytest.mark.parametrize(
    ("kind", "stage", "least", "most"),
    [
        ("occlusive", "acute", 0.97, 1.0),
        ("floating", "acute", 0.12, 0.65),
        ("eccentric", "chronic", 0.4, 0.95),
        ("web", "chronic", 0.2, 0.75),
        ("recanalised", "chronic", 0.5, 0.97),
    ],
)
def test_a_form_leaves_the_lumen_that_its_name_says(
    scene: Scene, kind: str, stage: str, least: float, most: float
) -> None:
    clots = _clots(scene, kind, stage)
    assert {(c.kind, c.stage) for c in clots} == {(kind, stage)}
    taken = np.array([_filled(c) for c in clots])
    assert least <= taken[:, 0].min()
    assert taken[:, 0].max() <= most
    if kind == "floating":  # contrast all around it
        assert taken[:, 1].max() < 0.1
    if kind in ("eccentric", "recanalised"):  # it clings to the wall
        assert taken[:, 1].mean() > taken[:, 0].mean()


def test_a_saddle_rides_on_the_fork_and_lies_in_both_main_arteries(scene: Scene) -> None:
    rng = np.random.default_rng(3)
    drawn = [
        c
        for _ in range(12)
        for c in draw_clots(rng, STANDARD, scene.arteries, stage="acute", side="both", central=True)
    ]
    saddles = [c for c in drawn if c.kind == "saddle"]
    assert saddles
    mains = [v for v in scene.arteries if v.level == "main"]
    forks = {s: next(v.shape.start for v in mains if v.side == s) for s in ("left", "right")}
    for clot in saddles:
        assert clot.central
        assert clot.sides() == {"left", "right"}
        starts = {p.vessel.start for p in clot.pieces}
        assert set(forks.values()) <= starts
        ends = [p.vessel.end[0] - forks["left"][0] for p in clot.pieces]
        assert min(ends) < -10
        assert max(ends) > 10


def test_calcium_sits_in_old_clot_within_the_artery_and_is_seen(scene: Scene) -> None:
    clots = _clots(scene, "eccentric", "chronic", calcified=1.0)
    hard = [c for c in clots if c.calcium]
    assert len(hard) >= 6
    assert not any(c.calcium for c in _clots(scene, "eccentric", "chronic", calcified=0.0))
    assert not any(c.calcium for c in _clots(scene, "floating", "acute", calcified=1.0))
    for clot in hard:
        assert 300 <= clot.calcium_hu <= 650
        for speck in clot.calcium:
            radius = max(p.vessel.start_radius_mm for p in clot.pieces)
            assert min(_from_axis(speck.start, p.vessel) for p in clot.pieces) < radius
    clot = hard[0]
    grid = _around([clot.calcium[0]])
    pictures = [
        render(replace(scene, clots=(c,)), grid, np.random.default_rng(0))[0].astype(int)
        for c in (clot, replace(clot, calcium=()))
    ]
    brighter = pictures[0] - pictures[1]
    assert brighter.max() > 60
    assert 0 < (brighter > 30).sum() < 500


def _from_axis(point: Point, c: Capsule) -> float:
    a, b, p = np.array(c.start), np.array(c.end), np.array(point)
    along = b - a
    t = float(np.clip((p - a) @ along / max(along @ along, 1e-9), 0, 1))
    return float(np.linalg.norm(p - a - t * along))


def test_arteries_veins_aorta_and_vena_cava_have_their_own_contrast(scene: Scene) -> None:
    contrast = replace(
        scene.anatomy.contrast, artery_hu=300.0, left_heart_hu=180.0, aorta_hu=140.0, svc_hu=900.0
    )
    before = scene.anatomy.contrast
    swap = {before.aorta_hu: 140.0, before.svc_hu: 900.0, before.left_heart_hu: 180.0}
    coloured = replace(
        scene,
        anatomy=replace(scene.anatomy, contrast=contrast),
        painted=tuple(replace(p, hu=swap.get(p.hu, p.hu)) for p in scene.painted),
    )
    grid = Grid.of(
        size=200, field_of_view_mm=300, coverage_mm=(-60, 40), slice_spacing_mm=4.0,
        slice_thickness_mm=4.0, kernel_blur_mm=0.5,
    )  # fmt: skip
    hu_zyx, _ = render(coloured, grid, np.random.default_rng(0))
    slab = grid.slab(0, grid.n_slices)

    def at(point: Point) -> float | None:
        index = [
            int(np.abs(axis - value).argmin())
            for axis, value in zip((slab.z_mm, slab.y_mm, slab.x_mm), point[::-1], strict=True)
        ]
        inside = slab.z_mm[0] < point[2] < slab.z_mm[-1]
        return float(hu_zyx[tuple(index)]) if inside else None

    def median(points: list[Point]) -> float:
        seen = [value for value in map(at, points) if value is not None]
        assert len(seen) >= 2
        return float(np.median(seen))

    def middles(shapes: list[Capsule]) -> list[Point]:
        wide = [c for c in shapes if min(c.start_radius_mm, c.end_radius_mm) > 4]
        return [tuple((a + b) / 2 for a, b in zip(c.start, c.end, strict=True)) for c in wide]  # type: ignore[misc]

    tubes = [(p.shape, p.hu) for p in coloured.painted if isinstance(p.shape, Capsule)]
    assert median(middles([v.shape for v in scene.arteries])) == pytest.approx(300, abs=15)
    assert median(middles([v.shape for v in scene.veins])) == pytest.approx(180, abs=15)
    for value in (140.0, 900.0):
        found = median(middles([shape for shape, hu in tubes if hu == value]))
        assert found == pytest.approx(value, abs=15)
