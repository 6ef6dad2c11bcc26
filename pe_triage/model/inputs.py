"""Volume to the network's input, in training and in serving alike.

Axes: ``p`` planes (see `units`), ``n`` units, ``c`` channels, ``t`` planes of a window. The order
of steps: lung mask, crop to the lungs' box, square of air, in-plane resampling, resampling along z
(all in Hounsfield units), windows, planes or windows of planes. The training room may store
`ExamInput.planes_hu` and go on from there with `unit_images`.

The lungs' box cuts rows and columns only: every slice of the volume is seen. Where no lungs are
found (`ExamInput.lungs_found`), the whole slices are the input, unmasked: a study with lungs that
run out of a small field of view must not be judged on a picture of air.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pe_triage.imaging.lungs import Box, lung_box, outside_is_air
from pe_triage.imaging.windows import Window, resampling_weights, resize_slices, window_channels
from pe_triage.model.specification import ModelSpec
from pe_triage.model.units import UnitPlan, plan_units


class ExamInput:
    """One volume as a spec's network wants it; nothing is computed before it is asked for.

    Parameters
    ----------
    spec
        Which network.
    hu_zyx
        (slices, rows, columns) int16 Hounsfield units.
    spacing_mm
        (z, y, x).
    """

    def __init__(
        self,
        spec: ModelSpec,
        hu_zyx: NDArray[np.int16],
        spacing_mm: tuple[float, float, float],
    ) -> None:
        self.spec = spec
        self.plan: UnitPlan = plan_units(spec, hu_zyx.shape[0], spacing_mm[0])
        self._hu_zyx = hu_zyx
        self._spacing_yx_mm = spacing_mm[1:]
        found = None if spec.lung == "none" else lung_box(hu_zyx, spacing_mm)
        self.lungs_found: bool | None = None if spec.lung == "none" else found is not None
        whole = Box(top=0, bottom=hu_zyx.shape[1], left=0, right=hu_zyx.shape[2])
        self.box: Box = found if found is not None and spec.lung == "box" else whole
        self._windows = tuple(Window(level_hu=a, width_hu=b) for a, b in spec.windows)
        self._weights_ps = (
            resampling_weights(self.plan.slices, self.plan.planes)
            if self.plan.planes != self.plan.slices
            else None
        )

    def images(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return units `start` to `stop` in [0, 1].

        Returns
        -------
        ndarray
            float32 (n, c, size, size), or (n, c, t, size, size) for windows.
        """
        stop = min(stop, self.plan.units)
        if self.spec.is_plain_slices:
            return window_channels(self._hu_zyx[start:stop], self._windows, self.spec.size)
        return unit_images(self.spec, self.plan, self.planes_hu, start, stop)

    def planes_hu(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return planes `start` to `stop`, masked, cropped and resampled: (p, size, size)."""
        if self._weights_ps is None:
            return self._resized(start, stop)
        weights = self._weights_ps[start:stop]
        used = np.flatnonzero(weights.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        mixed: NDArray[np.float32] = np.tensordot(
            weights[:, first:last], self._resized(first, last), axes=1
        )
        return mixed

    def _resized(self, start: int, stop: int) -> NDArray[np.float32]:
        hu_zyx = self._hu_zyx[start:stop]
        if self.spec.lung == "mask" and self.lungs_found:
            hu_zyx = outside_is_air(hu_zyx, self._spacing_yx_mm)
        box = self.box
        return resize_slices(hu_zyx[:, box.top : box.bottom, box.left : box.right], self.spec.size)


def unit_images(
    spec: ModelSpec,
    plan: UnitPlan,
    planes_hu: Callable[[int, int], NDArray[np.float32]],
    start: int,
    stop: int,
) -> NDArray[np.float32]:
    """Make units of planes.

    Parameters
    ----------
    planes_hu
        Gives planes ``(first, last)``, last excluded, in Hounsfield units: (p, size, size).
    start, stop
        Which units.

    Returns
    -------
    ndarray
        float32 (n, c, size, size) with channels in the order of windows, then of planes; or
        (n, c, t, size, size), zeros beyond the last plane.
    """
    windows = tuple(Window(level_hu=a, width_hu=b) for a, b in spec.windows)
    half = spec.planes // 2
    first = max(0, int(plan.start_u[start]) - half)
    last = min(plan.planes, int(plan.start_u[stop - 1]) + max(plan.length, 1 + half))
    hu_pyx = np.ascontiguousarray(planes_hu(first, last), dtype=np.float32)
    seen = np.stack([window.apply(hu_pyx) for window in windows])  # (windows, p, size, size)
    if spec.encoder == "window":
        shape = (stop - start, len(windows), plan.length, spec.size, spec.size)
        out = np.zeros(shape, dtype=np.float32)
        for i, begin in enumerate(plan.start_u[start:stop].tolist()):
            part = seen[:, begin - first : begin - first + plan.length]
            out[i, :, : part.shape[1]] = part
        return out
    offsets = np.arange(-half, half + 1)
    at = np.clip(plan.start_u[start:stop, None] + offsets, 0, plan.planes - 1) - first
    # (windows, n, planes, size, size) to (n, windows * planes, size, size)
    slabs = np.moveaxis(seen[:, at], 0, 1)
    return np.ascontiguousarray(slabs.reshape(stop - start, spec.channels, spec.size, spec.size))
