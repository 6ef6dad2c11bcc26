"""Random numbers by counter: each draw of training follows from where it stands, and nothing else.

A generator is made for each (seed, stage, epoch, step, …), so a batch is the same whichever worker
prepares it and however often training was interrupted before.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_of(*place: int | str) -> int:
    """Return a 63-bit seed that follows from `place` alone."""
    text = "|".join(str(part) for part in place)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def numpy_at(*place: int | str) -> np.random.Generator:
    """Return numpy's generator of a place."""
    return np.random.Generator(np.random.Philox(key=seed_of(*place)))


def seed_torch(*place: int | str) -> None:
    """Set torch's generators (dropout, noise), of every device, to those of a place."""
    torch.manual_seed(seed_of(*place))
