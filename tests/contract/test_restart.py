"""The PostgreSQL server goes away and comes back under a running node."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sqlalchemy import text

from pe_triage.domain import StudyState
from pe_triage.store.engine import (
    CONNECTION_LIMITS,
    SESSION_LIMITS_S,
    StoreUnavailableError,
    open_engine,
    read,
)
from pe_triage.store.migrate import upgrade
from tests.support.postgres import postgres_server, postgres_url
from tests.support.store import PACS, STUDY, StoreUnderTest, instance


def test_a_crashed_server_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    with postgres_server() as server:
        upgrade(server.url)
        engine = open_engine(server.url)
        store = StoreUnderTest(engine=engine, url=server.url, data_dir=tmp_path)
        store.queued()
        job = store.claimed()
        server.stop(signal.SIGQUIT)
        batch = instance("1.2.826.0.1.2", 1, tmp_path)
        for call in (
            lambda: store.record(batch),
            lambda: store.queue.heartbeat(job, "node/worker-0/1", 30.0),
            lambda: store.queue.claim("w", 30.0),
            lambda: store.studies.get(STUDY),
        ):
            with pytest.raises(StoreUnavailableError, match="database not available"):
                call()
        server.start()
        store.queue.heartbeat(job, "node/worker-0/1", 30.0)
        store.finish(job)
        assert store.state() is StudyState.DONE
        assert len(store.outbox.due(PACS, 10)) == 2
        assert store.record(batch)[0].status == "NEW"
        engine.dispose()


def test_a_vanished_server_is_given_up_soon() -> None:
    with postgres_url() as url:
        engine = open_engine(url)
        with read(engine) as connection:
            for name, limit in SESSION_LIMITS_S.items():
                shown = connection.execute(text(f"SHOW {name}")).scalar_one()
                assert shown in (f"{limit}s", f"{limit // 60}min")
            raw = connection.connection.dbapi_connection
            assert raw is not None
            given = raw.info.get_parameters()
        engine.dispose()
    assert {key: given[key] for key in CONNECTION_LIMITS} == {
        key: str(value) for key, value in CONNECTION_LIMITS.items()
    }
