"""Results are dated by the clock on the site's wall."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from pe_triage.clock import local_now


def test_results_are_dated_in_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    try:
        now = local_now()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert now.utcoffset() == timedelta(hours=9)
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=10)
