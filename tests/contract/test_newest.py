from __future__ import annotations

from datetime import timedelta

from pe_triage.store.newest import newest_at
from tests.support.store import START, STUDY, StoreUnderTest, instance


def test_the_newest_of_what_came_and_what_ended(store: StoreUnderTest) -> None:
    assert newest_at(store.engine) is None
    store.record(instance(STUDY, 1, store.data_dir), instance("1.2.9", 5, store.data_dir))
    assert newest_at(store.engine) == START + timedelta(seconds=5)
    store.clock.forward(3600)
    assert store.enqueue() is not None
    assert newest_at(store.engine) == START + timedelta(seconds=5)
    store.finish(store.claimed())
    assert newest_at(store.engine) == START + timedelta(hours=1)
