"""A database clock that is set back must not freeze the queue or the outbox."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update

from pe_triage.node.coordinator import Coordinator
from pe_triage.store import schema
from pe_triage.store.engine import db_now
from tests.support.store import PACS, StoreUnderTest

HOUR_S = 3600.0


def put_off(store: StoreUnderTest, column: Any, seconds: float) -> None:
    with store.engine.begin() as connection:
        connection.execute(update(column.table).values({column.name: db_now() + seconds}))


def watch(store: StoreUnderTest) -> None:
    nothing: Any = None
    Coordinator(
        indexer=nothing,
        assembler=nothing,
        spool=nothing,
        queue=store.queue,
        deliverers=(),
        outbox=store.outbox,
    ).watch_clock()


def test_a_queued_job_comes_back(store: StoreUnderTest) -> None:
    store.queued()
    put_off(store, schema.jobs.c.available_at, 60.0)
    assert store.queue.claim("w", 30) is None
    watch(store)
    assert store.queue.claim("w", 30) is not None


def test_a_job_that_waits_for_its_next_attempt_goes_on_waiting(store: StoreUnderTest) -> None:
    store.queued()
    store.queue.fail(store.claimed(), "disk full", retry=True, delay_s=600.0, counted=False)
    watch(store)
    assert store.queue.claim("w", 30) is None
    put_off(store, schema.jobs.c.available_at, 24 * HOUR_S)
    watch(store)
    assert store.queue.claim("w", 30) is not None


def test_a_dead_workers_lease_ends(store: StoreUnderTest) -> None:
    store.queued()
    store.claimed()
    put_off(store, schema.jobs.c.lease_until, 24 * HOUR_S)
    # A lease as long as leases are is left alone.
    assert store.queue.unfreeze(longest_wait_s=660.0, longest_lease_s=25 * HOUR_S) == 0
    assert store.queue.unfreeze(longest_wait_s=660.0, longest_lease_s=-1.0) == 1
    assert store.queue.reap() == 1


def test_a_delivery_comes_back(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    put_off(store, schema.deliveries.c.next_attempt_at, 60.0)
    assert store.outbox.due(PACS, 9) == []
    watch(store)
    assert len(store.outbox.due(PACS, 9)) == 2
    assert store.outbox.unfreeze(longest_wait_s=600.0) == 0
