"""What a node under test is told beside its settings; travels to each of its processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Plain values.

    Attributes
    ----------
    work_s
        Seconds that the stand-in computes for one study.
    plant
        Name of a planted fault (`planted.PLANTS`), or empty.
    log
        File that standard error goes to; empty: where it went.
    group
        Process group to join; 0: none.
    """

    work_s: float = 0.2
    plant: str = ""
    log: str = ""
    group: int = 0

    def dumps(self) -> str:
        """As one word of a command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Setup:
        """Read what `dumps` wrote."""
        return Setup(**json.loads(text))
