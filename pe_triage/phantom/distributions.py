"""The two kinds of distribution that everything is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """A uniform distribution between two bounds."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one value."""
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Weights of named alternatives; they need not sum to 1."""

    weights: tuple[tuple[str, float], ...]

    def draw(self, rng: np.random.Generator) -> str:
        """Draw one name."""
        point = float(rng.random()) * sum(weight for _, weight in self.weights)
        for name, weight in self.weights:
            point -= weight
            if point < 0:
                return name
        return self.weights[-1][0]
