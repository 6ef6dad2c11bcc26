"""Small trees in RSPECT's layout, made of phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pe_triage.phantom import generate_study, write_study
from pe_triage.training.make_tree import make_tree

PRESETS = ("pe-acute", "negative", "pe-chronic", "negative")


def small_tree(
    folder: Path,
    count: int = 6,
    *,
    size: int = 64,
    slices: int = 10,
    seed: int = 1,
    presets: Sequence[str] = PRESETS,
) -> Path:
    """Write `count` phantoms, presets in turn, and return the root of their tree."""
    for k in range(count):
        study = generate_study(seed + k, presets[k % len(presets)], size=size, n_slices=slices)
        write_study(study, folder / "phantoms", mask=False)
    tree = folder / "tree"
    make_tree(folder / "phantoms", tree)
    return tree
