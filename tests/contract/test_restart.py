"""The PostgreSQL server goes away and comes back under a running node."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pe_triage.domain import StudyState
from pe_triage.store.engine import StoreUnavailableError, open_engine
from pe_triage.store.migrate import upgrade
from tests.support.postgres import postgres_server
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
