"""Which phantoms make the demonstration model and which judge it: ``seeds.json``, read and checked.

The file was written before the first training run; only the two parts that teach grew since, as it
says itself. ``specimens`` teach stage 1, ``exams`` stage 2
(bodies that stage 1 never saw), ``validation`` chooses weights, temperatures and thresholds, and
the two test parts are looked at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from pe_triage.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPart:
    """A run of seeds; `preset` where all are drawn from one."""

    name: str
    first: int
    count: int
    preset: str | None = None

    @property
    def seeds(self) -> range:
        """The seeds themselves."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """All parts, and how their phantoms are sampled."""

    size: int
    slice_spacing_mm: float
    parts: Mapping[str, SeedPart]


def read_seeds() -> Seeds:
    """Return the seeds that stand in the package.

    Raises
    ------
    InputError
        Two parts share a seed.
    """
    text = files("pe_triage.training.demonstration").joinpath("seeds.json").read_text("utf-8")
    document = json.loads(text)
    parts = {name: SeedPart(name=name, **row) for name, row in document["parts"].items()}
    known: set[int] = set()
    for part in parts.values():
        if known & set(part.seeds):
            raise InputError(f"seeds.json: {part.name} shares seeds with another part")
        known |= set(part.seeds)
    return Seeds(size=document["size"], slice_spacing_mm=document["slice_spacing_mm"], parts=parts)
