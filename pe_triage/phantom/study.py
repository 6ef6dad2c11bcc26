"""One phantom study: from a seed and a preset to voxels and truth.

A commissioning tool: it exercises every step from C-STORE to report and lets figures be computed
against a known truth. It is no patient: its anatomy is a set of simple shapes, its clots are tubes,
and a figure obtained on it says nothing about figures on people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_triage.errors import InputError
from pe_triage.phantom.anatomy import Anatomy
from pe_triage.phantom.effects import EFFECTS_VERSION, PLAIN_KERNEL, draw_findings
from pe_triage.phantom.geometry import Grid
from pe_triage.phantom.presets import GENERATOR_VERSION, Preset, find_preset
from pe_triage.phantom.render import areas_mm2, render
from pe_triage.phantom.scene import (
    build_scene,
    draw_plan,
    varied,
    with_extras,
    with_visible_clots,
)
from pe_triage.phantom.thorax import CAVITY_HALF_WIDTH_MM
from pe_triage.phantom.truth import (
    SLICE_POSITIVE_MIN_AREA_MM2,
    ClotTruth,
    describe,
    exam_labels,
    measure,
)

DEFAULT_COVERAGE_MM = (-140.0, 100.0)
"""Foot and head end of the scan relative to the carina: bases to apices."""

THICKEST_DEFAULT_MM = 5.0
"""So that few slices over a whole chest, as tests like them, still show a chest."""

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomStudy:
    """Voxels and truth of one synthetic CTPA.

    Arrays are ``zyx``: z foot to head, y front to back, x the patient's right to left, and are
    read-only. `origin_lps_mm` is the centre of voxel 0, 0, 0.
    """

    seed: int
    preset: str
    key: str
    """Hash of everything that the voxels follow from; UIDs are derived from it."""
    hu_zyx: NDArray[np.int16]
    clot_index_zyx: NDArray[np.uint8]
    """0 outside clots, else the number of the clot, counted from 1 in the order of `clots`."""
    spacing_mm: tuple[float, float, float]
    """z, y, x."""
    origin_lps_mm: tuple[float, float, float]
    slice_thickness_mm: float
    exam: Mapping[str, int]
    """The nine exam labels of RSPECT, 0 or 1, obeying its consistency rules."""
    slice_pe_z: NDArray[np.uint8]
    """1 where a slice holds at least `SLICE_POSITIVE_MIN_AREA_MM2` of one clot."""
    clots: tuple[ClotTruth, ...]
    anatomy: Anatomy
    drawn: Mapping[str, Any] = field(hash=False)
    """What was drawn, as values that JSON can hold."""
    kernel: str = PLAIN_KERNEL.name
    """soft, medium or sharp: `header` names it as a vendor would."""
    generator_version: int = GENERATOR_VERSION

    @property
    def clot_mask_zyx(self) -> NDArray[np.bool_]:
        """True where a voxel's blood is mostly clot."""
        mask: NDArray[np.bool_] = self.clot_index_zyx > 0
        return mask


def generate_study(
    seed: int,
    preset: str | Preset = "standard",
    *,
    size: int = 256,
    slice_spacing_mm: float = 2.0,
    slice_thickness_mm: float | None = None,
    coverage_mm: tuple[float, float] = DEFAULT_COVERAGE_MM,
    n_slices: int | None = None,
) -> PhantomStudy:
    """Generate one study; the same arguments give the same voxels to the last bit.

    Parameters
    ----------
    seed
        0…2^63 - 1. The same seed under another preset keeps the body and changes the disease.
    preset
        A name of `presets.PRESETS`, or a table row of one's own.
    size
        Rows and columns.
    slice_spacing_mm, slice_thickness_mm
        Along z; the thickness, which blurs, is the spacing unless given, but at most
        `THICKEST_DEFAULT_MM`.
    coverage_mm
        Foot and head end relative to the carina.
    n_slices
        If given, the coverage is divided into that many slices and the spacing follows from it.

    Raises
    ------
    InputError
        An unknown preset, or a number out of range.
    """
    table = find_preset(preset) if isinstance(preset, str) else preset
    if not 0 <= seed <= _MAX_SEED:
        raise InputError(f"seed must be 0 to {_MAX_SEED}, not {seed}")
    if n_slices is not None:
        if n_slices < 1:
            raise InputError(f"the number of slices must be at least 1, not {n_slices}")
        # Rounded down, so that it can be written as a decimal string and still fits the coverage.
        slice_spacing_mm = int((coverage_mm[1] - coverage_mm[0]) / n_slices * 1e4) / 1e4
    thickness_mm = (
        min(slice_spacing_mm, THICKEST_DEFAULT_MM)
        if slice_thickness_mm is None
        else slice_thickness_mm
    )
    # One stream for each idea: what is added later takes a new one and moves no other draw.
    plan_rng, body_rng, clot_rng, noise_rng, finding_rng, habitus_rng, extra_rng = (
        np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(7)
    )
    plan = draw_plan(plan_rng, table)
    effects, findings, vary = table.effects, None, None
    if effects is not None:
        findings = draw_findings(finding_rng, effects, severe_motion=plan.motion is not None)
        vary = varied(habitus_rng, effects, findings)
    scene = build_scene(body_rng, plan, vary)
    body = scene.anatomy
    grid = Grid.of(
        size=size,
        field_of_view_mm=field_of_view_mm(body.fat_mm, body.pose.scale),
        coverage_mm=coverage_mm,
        slice_spacing_mm=slice_spacing_mm,
        slice_thickness_mm=thickness_mm,
        kernel_blur_mm=findings.kernel.blur_mm if findings else PLAIN_KERNEL.blur_mm,
    )
    if effects is not None and findings is not None:
        scene = with_extras(extra_rng, scene, effects, findings, grid)
    if plan.status == "positive":
        scene = with_visible_clots(
            clot_rng, table, plan, scene, grid, min_area_mm2=SLICE_POSITIVE_MIN_AREA_MM2
        )
    hu_zyx, index_zyx = render(scene, grid, noise_rng)
    area_zk = areas_mm2(index_zyx, len(scene.clots), grid)
    clots = measure(scene.clots, index_zyx, area_zk, grid)
    slice_pe_z: NDArray[np.uint8] = np.asarray(
        (area_zk >= SLICE_POSITIVE_MIN_AREA_MM2).any(axis=1), dtype=np.uint8
    )
    for array in (hu_zyx, index_zyx, slice_pe_z):
        array.setflags(write=False)
    return PhantomStudy(
        seed=seed,
        preset=table.name,
        key=_key(seed, table, grid),
        hu_zyx=hu_zyx,
        clot_index_zyx=index_zyx,
        spacing_mm=(grid.slice_spacing_mm, grid.pixel_mm, grid.pixel_mm),
        origin_lps_mm=(grid.x0_mm, grid.y0_mm, grid.z0_mm),
        slice_thickness_mm=grid.slice_thickness_mm,
        exam=exam_labels(plan.status, clots, body.rv_lv_ratio),
        slice_pe_z=slice_pe_z,
        clots=clots,
        anatomy=body,
        drawn=describe(plan, scene, clots),
        kernel=findings.kernel.name if findings else PLAIN_KERNEL.name,
        generator_version=EFFECTS_VERSION if findings else GENERATOR_VERSION,
    )


def field_of_view_mm(fat_mm: float, scale: float) -> int:
    """Width and height of the image around a body, 18 mm of air on either side of it.

    Parameters
    ----------
    fat_mm, scale
        Of the body (`Anatomy.fat_mm`, `Pose.scale`).
    """
    half_width_mm = (CAVITY_HALF_WIDTH_MM + 22 + fat_mm) * scale
    return round(2 * (half_width_mm + 18))


def _key(seed: int, preset: Preset, grid: Grid) -> str:
    """Hash what the voxels follow from."""
    text = f"{GENERATOR_VERSION}|{seed}|{preset}|{grid}"
    if preset.effects is not None:
        text += f"|{EFFECTS_VERSION}|{preset.effects}"
    return hashlib.sha256(text.encode()).hexdigest()
