"""Work that may wait leaves time to what may not."""

from __future__ import annotations

import pytest

from pe_triage.node import spare as spare_module
from pe_triage.node.spare import WAITING, Effort, Pace


def test_images_come_fast_when_scanners_do_not_make_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: dict[str, int] = {"a": 5}
    now_s, waiting = 100.0, 0
    pace = Pace(lambda: dict(counts), lambda: waiting)
    monkeypatch.setattr(spare_module.time, "monotonic", lambda: now_s)
    found = []
    for seconds, a, b, waiting in (  # noqa: B007 - the stand-in for the spool asks it
        (0.5, 5, 0, 0),
        (0.5, 60, 0, 0),
        (1.0, 100, 50, 0),
        (0.5, 130, 71, 0),
        (0.01, 131, 71, 0),
        # What has come waits for the indexer, and is recorded in one batch with what came since.
        (0.5, 131, 71, 45),
        (0.5, 186, 71, 0),
        (0.5, 186, 71, WAITING + 1),
        (0.5, 186, 71, WAITING),
    ):
        now_s += seconds
        counts.update(a=a, b=b)
        found.append(pace.is_fast())
    # 110/s of one study; 90/s, 102/s of two together; a moment says nothing. Then 90/s and 20/s; so
    # many that the indexer is behind, and as many as ever.
    assert found == [False, True, False, True, False, False, False, True, False]


def test_a_wait_that_is_short_beside_the_work_is_no_reason_to_rest() -> None:
    def crowded(wall_s: float, processor_s: float) -> bool:
        effort = Effort()
        effort._wall_s, effort._processor_s = wall_s, processor_s
        return effort.is_crowded

    assert not crowded(0.5, 0.5)
    assert not crowded(0.5, 0.9)
    assert not crowded(0.3, 0.05)
    assert not crowded(1.0, 0.45)
    assert crowded(1.0, 0.35)
    assert crowded(0.4, 0.05)
