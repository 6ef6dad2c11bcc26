"""The bag features of all exams in the plane, to look at: t-SNE, or PCA where it cannot be had.

A picture, no evidence: distances between clusters in t-SNE mean nothing (van der Maaten and Hinton
2008; Wattenberg et al. 2016).
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FEWEST: Final = 6
SMALL: Final = 150
"""Fewer exams are embedded exactly, which is faster for them."""
MOST: Final = 3000
"""Exams shown at most; more are thinned evenly."""


def in_the_plane(
    bag_sd: NDArray[np.float32], *, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64], str] | None:
    """Embed exams in two dimensions.

    Returns
    -------
    tuple or None
        Points (n, 2), the exams they stand for, and the method in words; None for too few exams
        or features unknown.
    """
    exams = len(bag_sd)
    if exams < FEWEST or bag_sd.ndim != 2 or not bag_sd.shape[1]:
        return None
    index = np.arange(exams)
    if exams > MOST:
        index = np.unique(np.linspace(0, exams - 1, MOST).round().astype(np.int64))
    x = bag_sd[index].astype(np.float64)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    if not x.any():
        return None
    try:
        tsne: Any = importlib.import_module("sklearn.manifold").TSNE
    except ImportError:
        u, s, _ = np.linalg.svd(x, full_matrices=False)
        return u[:, :2] * s[:2], index, "PCA (scikit-learn is not installed)"
    perplexity = float(min(30.0, (len(x) - 1) / 3))
    points = tsne(
        method="exact" if len(x) < SMALL else "barnes_hut",
        n_components=2,
        perplexity=perplexity,
        init="random",
        random_state=seed,
        n_jobs=1,
    ).fit_transform(x)
    return np.asarray(points, dtype=np.float64), index, f"t-SNE, perplexity {perplexity:g}"
