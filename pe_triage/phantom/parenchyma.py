"""What is wrong with the lungs, and what lies beside the arteries without being a clot.

Lung findings are painted slice by slice in the canonical frame, like `thorax`; nodes and plugs are
shapes. Signed distances are in mm and negative inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pe_triage.phantom.anatomy import Anatomy, Painted
from pe_triage.phantom.distributions import Uniform
from pe_triage.phantom.effects import LungFinding
from pe_triage.phantom.geometry import Ellipsoid, Float, Point, soft
from pe_triage.phantom.tree import Vessel, turned, unit

_HILAR = ("right interlobar", "left interlobar", "right upper lobe", "left upper lobe",
          "right lower lobe", "left lower lobe", "right main", "left main")  # fmt: skip
_BACK_MM = 78.0
"""Depth of the dorsal pleura of an average chest."""


def paint_lungs(
    hu: Float, share: Float, content: Float, anatomy: Anatomy, findings: Sequence[LungFinding],
    emphysema: float, x: Float, y: Float, z: float, cavity: Float, coarse: Float, fine: Float,
    edge: float,
) -> None:  # fmt: skip
    """Paint one slice's findings over ``hu`` in place, within the lung.

    Parameters
    ----------
    hu, share, content, cavity, coarse, fine
        ``yx``: the slice, each pixel's share of lung, the value of that share (overwritten),
        distance to the rib cage, textures.
    x, y, z
        Canonical coordinates in mm.
    emphysema
        Extent 0…1; the upper lobes suffer first.
    edge
        Width of an edge in mm.
    """

    def replace(part: Float, value: Float | np.float32) -> None:
        # Only the lung's share of a voxel changes, or its rim would count twice.
        change = part * (value - content)
        np.add(content, change, out=content)
        np.add(hu, share * change, out=hu)

    if emphysema > 0:
        # Holes where the texture is low: more of them the higher and the worse.
        threshold = -1.5 + 1.7 * emphysema + 0.5 * emphysema * min(1.0, max(-1.0, z / 60))
        replace(np.clip((threshold - fine) / np.float32(0.35), 0, 1), np.float32(-968.0))
    for finding in findings:
        distance = _DISTANCES[finding.kind](finding, anatomy, x, y, z, cavity, coarse)
        if distance is None:
            continue
        sign = 1.0 if finding.side == "left" else -1.0
        distance = np.maximum(distance, -sign * x)
        grain = np.float32(2.0 if finding.kind == "effusion" else 11.0)
        replace(soft(distance, edge + 2.0), np.float32(finding.hu) + grain * fine)


def _crescent(depth: float, anatomy: Anatomy, y: Float, cavity: Float) -> Float:
    """Return the distance to a crescent along the ribs: ``depth`` thick at the back, none aside."""
    back = _BACK_MM * anatomy.depth
    lean = np.clip((y + 25.0) / (back + 25.0), 0, 1)
    found: Float = -cavity - depth * lean * lean
    return found


def _atelectasis(
    finding: LungFinding, anatomy: Anatomy, x: Float, y: Float, z: float, cavity: Float,
    coarse: Float,
) -> Float | None:  # fmt: skip
    """Collapse of the dependent base: thick at the bottom, gone at the top, uneven towards lung."""
    top = -105.0 + 2.2 * finding.size_mm
    depth = finding.size_mm * min(1.0, max(0.0, (top - z) / 35.0)) ** 0.5
    if depth <= 1.0:
        return None
    return _crescent(depth, anatomy, y, cavity) + 5.0 * coarse


def _plate(
    finding: LungFinding, anatomy: Anatomy, x: Float, y: Float, z: float, cavity: Float,
    coarse: Float,
) -> Float | None:  # fmt: skip
    """A thin oblique plate above the diaphragm (Fleischner's lines)."""
    tx, ty, _ = finding.tilt
    height = z + 68.0 - finding.size_mm * 0.5 + 0.35 * tx * x + 0.45 * ty * (y - 20.0)
    if abs(z + 68.0) > 70:
        return None
    aside = np.sqrt((np.abs(x) - 75.0) ** 2 + (y - 15.0) ** 2) - 42.0
    found: Float = np.maximum(np.abs(height + 1.5 * coarse) - 1.6, aside)
    return found


def _effusion(
    finding: LungFinding, anatomy: Anatomy, x: Float, y: Float, z: float, cavity: Float,
    coarse: Float,
) -> Float | None:  # fmt: skip
    """Free fluid of a supine patient: a crescent at the back that climbs along the ribs."""
    top = -60.0 + 3.0 * finding.size_mm
    depth = finding.size_mm * min(1.0, max(0.0, (top - z) / 60.0))
    if depth <= 1.0:
        return None
    return _crescent(1.25 * depth, anatomy, y, cavity)


_DISTANCES = {"atelectasis": _atelectasis, "plate": _plate, "effusion": _effusion}


def draw_nodes(
    rng: np.random.Generator, arteries: Sequence[Vessel], count: int, radius_mm: Uniform
) -> tuple[list[Painted], list[dict[str, object]]]:
    """Draw lymph nodes that lie against hilar arteries; shapes, and what to record of each."""
    near = [v for v in arteries if v.name in _HILAR]
    painted: list[Painted] = []
    record: list[dict[str, object]] = []
    for _ in range(count):
        vessel = near[int(rng.integers(len(near)))]
        c, t, r = vessel.shape, float(rng.random()), radius_mm.draw(rng)
        heading = unit([c.end[i] - c.start[i] for i in range(3)])
        aside = turned(rng, heading, np.pi / 2)
        off = c.start_radius_mm + (c.end_radius_mm - c.start_radius_mm) * t + 0.85 * r
        centre: Point = (
            c.start[0] + (c.end[0] - c.start[0]) * t + aside[0] * off,
            c.start[1] + (c.end[1] - c.start[1]) * t + aside[1] * off,
            c.start[2] + (c.end[2] - c.start[2]) * t + aside[2] * off,
        )
        third: Point = (
            heading[1] * aside[2] - heading[2] * aside[1],
            heading[2] * aside[0] - heading[0] * aside[2],
            heading[0] * aside[1] - heading[1] * aside[0],
        )
        hu = float(rng.uniform(35, 80))
        semi = (r * float(rng.uniform(1.2, 1.9)), r, r * float(rng.uniform(0.8, 1.2)))
        shape = Ellipsoid(centre=centre, axes=(heading, aside, third), semi_mm=semi)
        painted.append(Painted(shape=shape, hu=hu))
        record.append(
            {
                "cause": "lymph node",
                "centre_lps_mm": [round(v, 1) for v in centre],
                "radius_mm": round(max(semi), 1),
                "side": vessel.side,
            }
        )
    return painted, record
