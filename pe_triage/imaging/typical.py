"""Whether a volume is made as a chest in a CTPA is: its make-up, held against the usual.

The rules on air, lung and vessels catch what has no lung or no contrast. Here eleven plain figures
of the slices that hold lung (shares of fat, soft tissue, bright tissue and bone; level and spread
of the lung; the body's width and depth; whether the spine lies behind) are compared with
``typical.json``, which says for each figure the usual value and its spread. A figure many spreads
away says that these are pixels of another kind, whatever the headers say: inverted, flipped,
rescaled, of another part, of another technique.

Which volumes ``typical.json`` was made of stands in it, and in `docs/quality.md`;
``tests/benchmarks/typical.py`` makes it. Axes: ``z y x`` of the coarse copy in `measure`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FIGURES: Final[Mapping[str, str]] = {
    "fat": "share of fat",
    "soft": "share of soft tissue",
    "bright": "share of bright tissue",
    "bone": "share of bone",
    "between": "share of tissue between lung and fat",
    "lung_hu": "level of the lung (HU)",
    "lung_sd": "spread of the lung (HU)",
    "lung_share": "share of lung",
    "width_mm": "width of the body (mm)",
    "depth_mm": "depth of the body (mm)",
    "spine_hu": "midline behind less in front (HU)",
}
"""Each figure and its words."""
LOG: Final = frozenset({"between", "lung_sd", "width_mm", "depth_mm"})
"""Compared as logarithms: their spread goes with their size."""
LOW_ONLY: Final = frozenset({"spine_hu"})
"""Only small values are strange: the sign changes in a chest that is back to front."""
SIGN_SPREADS: Final = 4.5
"""Of those, zero counts as so many spreads from the usual: a bright heart may come near it."""
_RANGES_HU: Final = {
    "between": (-400.0, -150.0),
    "fat": (-150.0, -30.0),
    "soft": (-30.0, 100.0),
    "bright": (100.0, 400.0),
    "bone": (400.0, 4000.0),
}
_MIDLINE_MM: Final = 20.0
"""Half the width of the strip that holds sternum, mediastinum and spine."""
_MIN_LUNG_MM2: Final = 1500.0
_FEWEST_SLICES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Strangeness:
    """The figure that lies furthest from the usual.

    Attributes
    ----------
    spreads
        How far, in usual spreads.
    words
        Which figure, its value, and the usual one.
    """

    spreads: float
    words: str


def chest_figures(
    hu_zyx: NDArray[np.float32],
    dense: NDArray[np.bool_],
    lung: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
) -> dict[str, float]:
    """Return `FIGURES` of the slices that hold lung; empty where those are too few.

    Parameters
    ----------
    hu_zyx
        Coarse copy, voxels of some millimetres, foot to head, front to back, right to left.
    dense, lung
        Body without lung; lung.
    spacing_mm
        (z, y, x).
    """
    _, y_mm, x_mm = spacing_mm
    held = np.flatnonzero(lung.sum(axis=(1, 2)) * y_mm * x_mm >= _MIN_LUNG_MM2)
    if len(held) < _FEWEST_SLICES:
        return {}
    hu_zyx, dense, lung = hu_zyx[held], dense[held], lung[held]
    tissue, air = hu_zyx[dense], hu_zyx[lung]
    found = {
        name: float(((tissue > low) & (tissue <= high)).mean())
        for name, (low, high) in _RANGES_HU.items()
    }
    low, middle, high = (float(v) for v in np.percentile(air, (16, 50, 84)))
    body = dense | lung
    found |= {
        "lung_hu": middle,
        "lung_sd": high - low,
        "lung_share": float(lung.sum() / body.sum()),
        "width_mm": float(np.median(_extent(body, 1) * x_mm)),
        "depth_mm": float(np.median(_extent(body, 2) * y_mm)),
        "spine_hu": _spine_hu(hu_zyx, lung, x_mm),
    }
    return found


def _extent(body: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    """Length from the first to the last True of each slice, where `axis` is looked through."""
    mask: NDArray[np.bool_] = np.asarray(body.any(axis=axis), dtype=np.bool_)
    length = mask.shape[1]
    first = mask.argmax(axis=1)
    last = length - 1 - mask[:, ::-1].argmax(axis=1)
    return np.asarray(np.where(mask.any(axis=1), last - first + 1, 0), dtype=np.int64)


def _spine_hu(hu_zyx: NDArray[np.float32], lung: NDArray[np.bool_], x_mm: float) -> float:
    """Mean of the midline's rear half less that of its front half, over the lungs' depth."""
    found = []
    half = max(1, round(_MIDLINE_MM / x_mm))
    for hu_yx, lung_yx in zip(hu_zyx, lung, strict=True):
        columns, rows = np.flatnonzero(lung_yx.any(axis=0)), np.flatnonzero(lung_yx.any(axis=1))
        middle, split = (columns[0] + columns[-1]) // 2, (rows[0] + rows[-1]) // 2
        strip = hu_yx[:, max(0, middle - half) : middle + half + 1]
        found.append(strip[split : rows[-1] + 1].mean() - strip[rows[0] : split + 1].mean())
    return float(np.median(found))


def strangeness(
    figures: Mapping[str, float], usual: Mapping[str, tuple[float, float]] | None = None
) -> Strangeness | None:
    """Return the figure furthest from the usual; None where none was measured.

    Parameters
    ----------
    usual
        Figure to its usual value and spread, on the scale that it is compared on; those of
        ``typical.json`` unless given.
    """
    table = read_typical() if usual is None else usual
    worst: Strangeness | None = None
    for name, value in figures.items():
        centre, spread = table[name]
        away = (_scaled(name, value) - centre) / spread
        away = max(0.0, -away) if name in LOW_ONLY else abs(away)
        if worst is None or away > worst.spreads:
            normal = math.exp(centre) if name in LOG else centre
            words = f"{FIGURES[name]} {value:.3g}, usually about {normal:.3g}"
            worst = Strangeness(spreads=away, words=words)
    return worst


def usual_of(measured: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return the usual value and spread of each figure: median, and a robust deviation.

    The deviation is that of the wider tail, so that a skewed figure is not called strange on its
    long side.
    """
    table = {}
    for name in FIGURES:
        values = np.array([_scaled(name, row[name]) for row in measured if name in row])
        low, middle, high = (float(v) for v in np.percentile(values, (5, 50, 95)))
        spread = max(middle - low, high - middle) / 1.645
        if name in LOW_ONLY:
            spread = middle / SIGN_SPREADS
        table[name] = (middle, max(spread, 1e-6))
    return table


@cache
def read_typical() -> Mapping[str, tuple[float, float]]:
    """Return the table of the package's ``typical.json``."""
    text = files("pe_triage.imaging").joinpath("typical.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    return {name: (row["usual"], row["spread"]) for name, row in document["figures"].items()}


def _scaled(name: str, value: float) -> float:
    return math.log(max(value, 1e-6)) if name in LOG else value
