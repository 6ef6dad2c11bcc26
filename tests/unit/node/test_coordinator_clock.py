"""The timers go on when the wall clock is set back."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest
from apscheduler.schedulers import base, blocking

from pe_triage.node import coordinator as node_coordinator
from pe_triage.node.coordinator import Coordinator, SetBack
from tests.support.node import wait_for

HOUR_S, YEAR_S = 3600.0, 366 * 86400.0


class Nothing:
    """Whatever the coordinator drives, doing nothing."""

    def step(self) -> int:
        return 0

    def tick(self) -> None:
        pass

    def reap(self) -> int:
        return 0

    def clean_temporary(self, **_: Any) -> int:
        return 0

    @property
    def lives(self) -> Any:
        return self

    def forget(self, *_: Any, **__: Any) -> None:
        pass

    def boots(self) -> frozenset[str]:
        return frozenset()

    def unfreeze(self, **_: Any) -> int:
        return 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timers_fire_again_soon_after_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offset_s = 0.0

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=offset_s)

    for module in (base, blocking, node_coordinator):
        if hasattr(module, "datetime"):
            monkeypatch.setattr(module, "datetime", Clock)
    fired = 0

    def count() -> None:
        nonlocal fired
        fired += 1

    nothing: Any = Nothing()
    coordinator = Coordinator(
        indexer=nothing,
        assembler=nothing,
        spool=nothing,
        queue=nothing,
        deliverers=(),
        outbox=nothing,
        timers=[("count", count, 0.1)],
        wall_s=lambda: datetime.now().timestamp() + offset_s,  # noqa: DTZ005
    )
    stop = threading.Event()
    thread = threading.Thread(target=coordinator.run, args=(stop, lambda: None))
    thread.start()
    try:
        wait_for(lambda: fired >= 3, 20, "the timer fires")
        offset_s = -2 * HOUR_S
        before = fired
        wait_for(lambda: fired >= before + 5, 20, "it fires on after the step")
        offset_s = 40 * YEAR_S
        before = fired
        wait_for(lambda: fired >= before + 5, 20, "and after a step forwards")
    finally:
        stop.set()
        thread.join(20)


def test_only_a_step_back_counts() -> None:
    wall_s, steady_s = 1000.0, 5.0
    set_back = SetBack(lambda: wall_s, lambda: steady_s)
    wall_s, steady_s = 1010.0, 15.2
    assert not set_back()
    wall_s, steady_s = 8000.0, 16.0
    assert not set_back()
    wall_s, steady_s = 7990.0, 17.0
    assert set_back()
    wall_s, steady_s = 7991.0, 18.0
    assert not set_back()
