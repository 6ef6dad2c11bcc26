"""Effects: each changes what it should and nothing else; plans obey RSPECT's rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pe_triage.domain import EXAM_LABELS, POSITIVE_LABELS
from pe_triage.phantom import PRESETS, Choice, PhantomStudy, Preset, Uniform, generate_study
from pe_triage.phantom.anatomy import IDENTITY, draw_anatomy
from pe_triage.phantom.artefacts import grain_weights, noise, noise_level_hu
from pe_triage.phantom.clots import draw_clots
from pe_triage.phantom.effects import KERNELS, Effects, draw_findings
from pe_triage.phantom.geometry import Capsule, Ellipsoid, Grid
from pe_triage.phantom.organs import heart
from pe_triage.phantom.rasterise import CapsuleArray, unite
from pe_triage.phantom.scene import build_scene, draw_plan
from pe_triage.phantom.truth import ClotTruth, exam_labels
from pe_triage.phantom.variation import draw_timing, vary_anatomy

WITH_EFFECTS = ("easy", "standard", "hard")
NOTHING: dict[str, Any] = {
    "streaks": 0.0, "smoke": 0.0, "interruption": 0.0, "breathing": 0.0, "heartbeat": 0.0,
    "nodes": 0.0, "mucus": 0.0, "atelectasis": 0.0, "effusion": 0.0, "emphysema": 0.0,
    "kernel": Choice(weights=(("medium", 1.0),)), "phase": Choice(weights=(("early", 1.0),)),
}  # fmt: skip


def _preset(**effects: Any) -> Preset:
    standard = PRESETS["standard"]
    assert standard.effects is not None
    return replace(
        standard,
        status=Choice(weights=(("negative", 1.0),)),
        noise_hu=Uniform(low=6, high=7),
        artery_hu=Uniform(low=320, high=340),
        effects=replace(standard.effects, **{**NOTHING, **effects}),
    )


def _study(seed: int = 11, **effects: Any) -> PhantomStudy:
    return generate_study(seed, _preset(**effects), size=96, n_slices=40)


@pytest.fixture(scope="module")
def bare() -> PhantomStudy:
    return _study()


_WORSE = Uniform(low=0.5, high=0.6)

# name, effects, lowest and highest HU that nearly all changed voxels had before
CHANGES: tuple[tuple[str, dict[str, Any], tuple[int, int]], ...] = (
    ("emphysema", {"emphysema": 1.0, "emphysema_extent": _WORSE}, (-960, -200)),
    ("effusion", {"effusion": 1.0, "effusion_mm": Uniform(low=25, high=30)}, (-1000, 200)),
    ("atelectasis", {"atelectasis": 1.0}, (-1000, 400)),
    ("nodes", {"nodes": 1.0, "node_count": Uniform(low=4, high=5)}, (-1000, 2000)),
    ("mucus", {"mucus": 1.0}, (-1030, 400)),
    ("smoke", {"smoke": 1.0, "smoke_count": Uniform(low=3, high=4)}, (-850, 450)),
    ("interruption", {"interruption": 1.0}, (-900, 450)),
    ("streaks", {"streaks": 1.0}, (-1030, 2000)),
    ("heartbeat", {"heartbeat": 1.0, "heartbeat_mm": Uniform(low=4, high=5)}, (-1030, 3000)),
    ("breathing", {"breathing": 1.0}, (-1030, 3000)),
)


@pytest.mark.parametrize(("name", "effects", "levels"), CHANGES, ids=[c[0] for c in CHANGES])
def test_each_effect_changes_its_voxels_and_no_other_draw(
    bare: PhantomStudy, name: str, effects: dict[str, Any], levels: tuple[int, int]
) -> None:
    study = _study(**effects)
    changed = study.hu_zyx != bare.hu_zyx
    # The noise is the same, so what is not touched is the same to the last bit.
    assert 0 < changed.mean() < 0.45, name
    # What was there before, thin vessels and rims of partial volume apart.
    much = np.abs(study.hu_zyx.astype(int) - bare.hu_zyx) > 20
    low, high = np.percentile(bare.hu_zyx[much], [3, 97])
    assert levels[0] <= low
    assert high <= levels[1]
    assert study.anatomy == bare.anatomy
    assert dict(study.exam) == dict(bare.exam)
    assert not study.clot_index_zyx.any()
    assert study.key != bare.key


@pytest.mark.parametrize("name", ["smoke", "interruption", "nodes", "mucus", "streaks"])
def test_mimics_are_recorded_with_cause_and_place(bare: PhantomStudy, name: str) -> None:
    study = _study(**next(e for n, e, _ in CHANGES if n == name))
    causes = {
        "smoke": "unmixed blood", "interruption": "interrupted bolus", "nodes": "lymph node",
        "mucus": "mucus plug", "streaks": "streaks",
    }  # fmt: skip
    mimics = study.drawn["mimics"]
    assert {m["cause"] for m in mimics} == {causes[name]}
    assert bare.drawn["mimics"] == []
    z, y, x = (axis.astype(float) for axis in np.nonzero(study.hu_zyx != bare.hu_zyx))
    origin, spacing = study.origin_lps_mm, study.spacing_mm
    place = [origin[i] + index * spacing[2 - i] for i, index in enumerate((x, y, z))]
    explained = np.zeros(len(z), dtype=bool)
    for m in mimics:
        if "foot_mm" in m:
            explained |= (place[2] > m["foot_mm"] - 8) & (place[2] < m["head_mm"] + 8)
        else:
            away2 = sum((p - c) ** 2 for p, c in zip(place, m["centre_lps_mm"], strict=True))
            explained |= away2 < (m["radius_mm"] + 9) ** 2
    assert explained.all()
    assert study.exam["negative_exam_for_pe"] == 1
    assert not study.slice_pe_z.any()


def test_smoke_darkens_blood_without_reaching_clot(bare: PhantomStudy) -> None:
    study = _study(smoke=1.0, smoke_count=Uniform(low=3, high=4))
    changed = study.hu_zyx != bare.hu_zyx
    lost = bare.hu_zyx[changed].astype(int) - study.hu_zyx[changed]
    assert lost.min() >= 0
    assert lost.max() > 60
    assert lost.max() < study.anatomy.contrast.artery_hu - 40


def test_effusion_is_fluid_at_the_back(bare: PhantomStudy) -> None:
    study = _study(effusion=1.0, effusion_mm=Uniform(low=25, high=30))
    filled = (study.hu_zyx > -40) & (bare.hu_zyx < -700)
    assert filled.sum() > 200
    fluid = study.hu_zyx[filled]
    assert -5 < np.median(fluid) < 25
    _, rows, _ = np.nonzero(filled)
    assert rows.mean() > 0.6 * study.hu_zyx.shape[1]


def test_emphysema_is_darker_and_worse_above(bare: PhantomStudy) -> None:
    study = _study(emphysema=1.0, emphysema_extent=Uniform(low=0.5, high=0.6))
    dark = (study.hu_zyx < -930) & (bare.hu_zyx > -900) & (bare.hu_zyx < -700)
    lung = (bare.hu_zyx > -900) & (bare.hu_zyx < -700)
    third = len(dark) // 3
    below = dark[:third].sum() / max(1, lung[:third].sum())
    above = dark[2 * third : -3].sum() / max(1, lung[2 * third : -3].sum())
    assert above > below > 0


def test_noise_follows_dose_kernel_body_slice_and_pixel() -> None:
    def level(**changes: Any) -> float:
        arguments = {
            "noise_hu": 10.0, "kernel": KERNELS["medium"], "fat_factor": 1.0, "slab_mm": 2.0,
            "pixel_mm": 0.7, **changes,
        }  # fmt: skip
        return noise_level_hu(**arguments)

    assert level() == pytest.approx(10.0)
    assert level(noise_hu=20.0) == pytest.approx(20.0)
    assert level(slab_mm=1.0) == pytest.approx(10 * 2**0.5)
    assert level(kernel=KERNELS["soft"]) < level() < level(kernel=KERNELS["sharp"])
    assert level(fat_factor=1.3) == pytest.approx(13.0)
    assert level(pixel_mm=3.0) < 0.8 * level()


@pytest.mark.parametrize("kernel", list(KERNELS.values()), ids=list(KERNELS))
def test_noise_has_the_level_and_the_grain_asked_for(kernel: Any) -> None:
    grid = Grid.of(
        size=200, field_of_view_mm=140, coverage_mm=(-20, 0), slice_spacing_mm=2.0,
        slice_thickness_mm=2.0, kernel_blur_mm=1.0,
    )  # fmt: skip
    grain = noise(np.random.default_rng(0), grid.slab(0, 10), kernel, 10.0)
    middle = grain[:, 80:120, 80:120]
    assert float(middle.std()) == pytest.approx(11.4, rel=0.06)
    assert sum(w * w for w in grain_weights(kernel, 0.7)) == pytest.approx(1.0)
    beside = float((middle[:, :, 1:] * middle[:, :, :-1]).mean() / middle.var())
    across = float((middle[1:] * middle[:-1]).mean() / middle.var())
    assert abs(across) < 0.05 < beside
    if kernel.name == "soft":
        sharp = noise(np.random.default_rng(0), grid.slab(0, 10), KERNELS["sharp"], 10.0)
        rough = sharp[:, 80:120, 80:120]
        assert beside > float((rough[:, :, 1:] * rough[:, :, :-1]).mean() / rough.var()) + 0.1


def test_timing_orders_the_compartments() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        early, late = draw_timing(rng, 300.0, "early"), draw_timing(rng, 300.0, "late")
        assert early.svc_hu >= 1.9 * 300
        assert early.left_heart_hu < 0.6 * 300
        assert late.left_heart_hu >= 300
        assert late.svc_hu < early.svc_hu
        assert early.artery_hu == late.artery_hu == 300


def test_streaks_follow_the_brightness_of_the_vena_cava() -> None:
    """Beam hardening: strong where undiluted contrast passes, next to nothing after it has."""

    def strength(phase: str) -> float:
        study = _study(streaks=1.0, phase=Choice(weights=((phase, 1.0),)))
        found = [m["hu"] for m in study.drawn["mimics"] if m["cause"] == "streaks"]
        return float(found[0]) if found else 0.0

    assert strength("early") > 3 * strength("late")
    assert strength("early") > 10


def test_bowed_septum_keeps_the_ratio_drawn() -> None:
    assert PRESETS["standard"].effects is not None
    habitus = PRESETS["standard"].effects.habitus
    bowed = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        plain = draw_anatomy(rng, artery_hu=300.0, rv_dilated=True)
        anatomy = vary_anatomy(rng, plain, habitus, "typical")
        assert anatomy.rv_lv_ratio == plain.rv_lv_ratio
        if not anatomy.bow_mm:
            continue
        bowed += 1
        parts, _ = heart(anatomy)
        contrast = anatomy.contrast
        left = next(
            p.shape for p in parts
            if isinstance(p.shape, Ellipsoid) and p.shape.axes != IDENTITY
            and p.hu == contrast.left_heart_hu
        )  # fmt: skip
        seen = {contrast.left_heart_hu: 0.0, contrast.right_heart_hu: 0.0}
        for t in np.arange(-60, 140, 0.1):
            point = tuple(c + a * float(t) for c, a in zip(left.centre, left.axes[1], strict=True))
            inside = [
                p.hu for p in parts
                if isinstance(p.shape, Ellipsoid) and p.shape.contains(point)  # type: ignore[arg-type]
            ]  # fmt: skip
            if inside and inside[-1] in seen:
                seen[inside[-1]] += 0.1
        measured = seen[contrast.right_heart_hu] / seen[contrast.left_heart_hu]
        assert measured == pytest.approx(anatomy.rv_lv_ratio, rel=0.03)
    assert bowed >= 6


@pytest.mark.parametrize("preset", list(PRESETS))
def test_plans_give_labels_that_obey_the_rules(preset: str) -> None:
    """Two hundred plans and their clots on a shared tree, with sizes that no voxel had to show."""
    table = PRESETS[preset]
    rng = np.random.default_rng(1)
    scene = build_scene(rng, draw_plan(rng, table))
    count: Counter[str] = Counter()
    for _ in range(200):
        plan = draw_plan(rng, table)
        clots = ()
        if plan.status == "positive":
            clots = draw_clots(
                rng, table, scene.arteries, stage=plan.stage, side=plan.side, central=plan.central
            )
        truths = [
            ClotTruth(
                clot=clot, volume_mm3=1.0, max_area_mm2=float(rng.uniform(0, 60)),
                max_area_slice=0, first_slice=0, last_slice=0, centre_lps_mm=None,
            )
            for clot in clots
        ]  # fmt: skip
        ratio = float(rng.uniform(1.03, 1.7) if plan.rv_dilated else rng.uniform(0.62, 0.97))
        exam = exam_labels(plan.status, truths, ratio)
        assert tuple(exam) == EXAM_LABELS
        count.update(label for label, value in exam.items() if value)
        if any(t.visible for t in truths):
            assert exam["rv_lv_ratio_gte_1"] + exam["rv_lv_ratio_lt_1"] == 1
            assert exam["leftsided_pe"] + exam["rightsided_pe"] + exam["central_pe"] >= 1
            assert exam["chronic_pe"] + exam["acute_and_chronic_pe"] <= 1
            assert exam["negative_exam_for_pe"] == exam["indeterminate"] == 0
        else:
            assert exam["negative_exam_for_pe"] + exam["indeterminate"] == 1
            assert not any(exam[label] for label in POSITIVE_LABELS)
        if table.effects is not None:
            severe = plan.motion is not None
            findings = draw_findings(rng, table.effects, severe_motion=severe)
            assert not severe or findings.breath is not None
    if preset in WITH_EFFECTS:
        assert all(count[label] for label in EXAM_LABELS)


def test_standard_holds_enough_of_every_label() -> None:
    table = PRESETS["standard"]
    rng = np.random.default_rng(2)
    plans = [draw_plan(rng, table) for _ in range(20_000)]
    sick = [p for p in plans if p.status == "positive"]
    share = len(sick) / len(plans)
    assert 0.35 < share < 0.45
    assert 0.06 < sum(p.status == "indeterminate" for p in plans) / len(plans) < 0.08
    for stage in ("chronic", "both"):
        assert sum(p.stage == stage for p in sick) / len(plans) > 0.065
    assert 0.30 < sum(p.rv_dilated for p in sick) / len(sick) < 0.40
    # Poor contrast overlaps with contrast that can be judged.
    poor = [p.artery_hu for p in plans if p.cause == "contrast"]
    good = [p.artery_hu for p in plans if p.status != "indeterminate"]
    assert min(good) < max(poor)


def test_indeterminate_motion_overlaps_with_what_can_be_judged() -> None:
    effects = PRESETS["standard"].effects
    assert effects is not None
    rng = np.random.default_rng(0)

    def shifts(severe: bool) -> list[float]:
        drawn = [draw_findings(rng, effects, severe_motion=severe) for _ in range(300)]
        return [f.breath.shift_mm for f in drawn if f.breath]

    severe, mild = shifts(True), shifts(False)
    assert min(severe) < max(mild)
    assert np.median(severe) > np.median(mild)


@pytest.mark.parametrize("kind", ["eccentric", "web", "recanalised"])
def test_chronic_forms_are_seen_labelled_and_measured(kind: str) -> None:
    """How much lumen each leaves is looked at in `test_forms`."""
    effects = replace(
        PRESETS["standard"].effects or Effects(),
        **{**NOTHING, "forms": replace(Effects().forms, chronic=Choice(weights=((kind, 1.0),)))},
    )
    preset = replace(
        PRESETS["standard"], status=Choice(weights=(("positive", 1.0),)), central=1.0,
        stage=Choice(weights=(("chronic", 1.0),)), effects=effects,
    )  # fmt: skip
    study = generate_study(3, preset, size=128, n_slices=48)
    assert {t.clot.kind for t in study.clots} == {kind}
    seen = [t for t in study.clots if t.visible]
    assert seen
    assert study.exam["chronic_pe"] == 1
    for number, truth in enumerate(study.clots, start=1):
        if not truth.visible:
            continue
        areas = (study.clot_index_zyx == number).sum(axis=(1, 2))
        assert int(areas.argmax()) == truth.max_area_slice
        pixel = study.spacing_mm[1] * study.spacing_mm[2]
        assert areas.max() * pixel == pytest.approx(truth.max_area_mm2, abs=0.01)
        assert truth.clot.place in ("central", "lobar", "segmental", "subsegmental")


def test_effects_are_deterministic_and_move_no_plain_preset() -> None:
    one, two = (generate_study(6, "hard", size=64, n_slices=16) for _ in range(2))
    assert one.hu_zyx.tobytes() == two.hu_zyx.tobytes()
    assert one.drawn == two.drawn
    assert one.generator_version == 2
    plain = generate_study(6, "negative", size=32, n_slices=3)
    assert plain.generator_version == 1
    assert "effects" not in plain.drawn


def test_many_tubes_at_once_are_the_same_bits_as_one_by_one() -> None:
    rng = np.random.default_rng(4)
    grid = Grid.of(
        size=48, field_of_view_mm=100, coverage_mm=(-40, 40), slice_spacing_mm=2.5,
        slice_thickness_mm=2.5, kernel_blur_mm=1.1,
    )  # fmt: skip
    tubes = []
    for _ in range(120):
        a, b = rng.uniform(-60, 60, 3), rng.uniform(-12, 12, 3)
        radius = float(rng.uniform(0.5, 9))
        start = (float(a[0]), float(a[1]), float(a[2]))
        end = (start[0] + float(b[0]), start[1] + float(b[1]), start[2] + float(b[2]))
        tubes.append(
            Capsule(start=start, end=end, start_radius_mm=radius, end_radius_mm=radius * 0.8)
        )
    point = (1.0, 2.0, 3.0)
    tubes.append(Capsule(start=point, end=point, start_radius_mm=2.0, end_radius_mm=2.0))
    for slab in grid.slabs(voxels=48 * 48 * 10):
        expected = np.zeros(slab.shape, dtype=np.float32)
        for tube in tubes:
            found = tube.coverage(slab)
            if found is not None:
                np.maximum(expected[found[0]], found[1], out=expected[found[0]])
        made = np.zeros(slab.shape, dtype=np.float32)
        unite(CapsuleArray(tubes), slab, made)
        np.testing.assert_array_equal(made, expected)
