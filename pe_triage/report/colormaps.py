"""The heatmap's colours: perceptually even, safe for the colour-blind, and rising in grey.

Built from a few anchors in CIELAB whose lightness rises in equal steps, so a reading station that
shows the capture in grey still shows more as brighter, in proportion. Hue runs from violet over
red and orange to pale yellow, which deuteranopes and protanopes tell apart by lightness alone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ANCHORS_LAB = np.array(
    [
        # L*, a*, b*: lightness in even steps from dark to light.
        [12.0, 16.0, -24.0],
        [28.5, 44.0, -34.0],
        [45.0, 62.0, 6.0],
        [61.5, 50.0, 52.0],
        [78.0, 14.0, 68.0],
        [94.5, -6.0, 40.0],
    ]
)
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])
_XYZ_TO_SRGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
)


def _lab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert CIELAB (D65), shape (n, 3), to sRGB in [0, 1] (IEC 61966-2-1); clips to the gamut."""
    fy = (lab[:, 0] + 16.0) / 116.0
    f = np.stack([fy + lab[:, 1] / 500.0, fy, fy - lab[:, 2] / 200.0], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _WHITE_D65
    linear = np.clip(xyz @ _XYZ_TO_SRGB.T, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.clip(encoded, 0.0, 1.0))


@lru_cache(maxsize=1)
def heat_table() -> NDArray[np.uint8]:
    """Return the colour table, uint8 (256, 3), read-only."""
    position = np.linspace(0.0, len(_ANCHORS_LAB) - 1, 256)
    lab = np.stack(
        [np.interp(position, np.arange(len(_ANCHORS_LAB)), column) for column in _ANCHORS_LAB.T],
        axis=1,
    )
    table = np.rint(_lab_to_srgb(lab) * 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def heat_colors(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return RGB, uint8 (..., 3), for values in [0, 1]; outside is clipped, NaN counts as 0."""
    clean = np.clip(np.nan_to_num(values), 0.0, 1.0)
    colors: NDArray[np.uint8] = heat_table()[np.rint(clean * 255).astype(np.intp)]
    return colors
