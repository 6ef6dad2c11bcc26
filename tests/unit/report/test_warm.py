"""A worker builds a report of nothing when it starts; that must work, and never stop it."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from pe_triage.domain import ResultSet
from pe_triage.report import warm
from pe_triage.report.settings import ReportSettings


def test_a_report_of_nothing_is_built_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[ResultSet] = []
    real = warm.build_results
    monkeypatch.setattr(warm, "build_results", lambda **more: built.append(real(**more)))
    with capture_logs() as events:
        warm.warm_up(ReportSettings())
    assert events == []
    assert [item.label for item in built[0].objects] == ["sr", "summary"]


def test_where_it_fails_the_worker_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "build_results", None)
    with capture_logs() as events:
        warm.warm_up(ReportSettings())
    assert [(e["event"], e["error"]) for e in events] == [("report.not_warmed_up", "TypeError")]
