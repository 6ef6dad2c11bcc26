"""A clock that is wrong already when a node starts is noticed by what was written before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from structlog.testing import capture_logs

from pe_triage.config import Settings, load_settings
from pe_triage.receive.spool import Spool
from pe_triage.startup import warn_if_clock_behind
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import upgrade
from pe_triage.store.studies import StudyStore
from tests.support.store import STUDY, instance

LAST = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"data_dir": tmp_path}, environ={})


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    upgrade(settings.database_url)
    made = open_engine(settings.database_url)
    yield made
    made.dispose()


def said(settings: Settings, engine: Engine, now: datetime) -> list[Any]:
    with capture_logs() as logs:
        warn_if_clock_behind(settings, engine, now)
    return [entry for entry in logs if entry["event"] == "clock.behind_records"]


def test_a_new_node_has_nothing_to_compare_with(settings: Settings, engine: Engine) -> None:
    assert said(settings, engine, LAST) == []


def test_behind_what_the_database_knows(settings: Settings, engine: Engine) -> None:
    study = instance(STUDY, 1, settings.data_dir, received_at=LAST)
    StudyStore(engine, settings.data_dir).record([(study, {}, "a-1")])
    for ahead in (timedelta(days=400), timedelta(0), -timedelta(minutes=4)):
        assert said(settings, engine, LAST + ahead) == []
    (entry,) = said(settings, engine, LAST - timedelta(days=3 * 365))
    assert entry["log_level"] == "error"
    assert (entry["newest"], entry["hours"]) == (LAST.isoformat(), 26280.0)


def test_behind_what_the_spool_shows(settings: Settings, engine: Engine) -> None:
    """Nothing is indexed yet: what was acknowledged lies there, or a receiver was there."""
    spool = Spool(settings.spool_dir)
    spool.lives.announce("receiver-1")
    for path in (spool.incoming, spool.root / "receivers"):
        for other in (spool.incoming, spool.root / "receivers"):
            os.utime(other, (0, 0))
        os.utime(path, (LAST.timestamp(),) * 2)
        assert said(settings, engine, LAST) == []
        assert len(said(settings, engine, LAST - timedelta(hours=1))) == 1


def test_a_spool_that_is_not_there_yet_says_nothing(settings: Settings, engine: Engine) -> None:
    assert not settings.spool_dir.exists()
    assert said(settings, engine, LAST) == []
    assert not settings.spool_dir.exists()
