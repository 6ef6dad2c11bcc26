"""What is new of studies that still arrive, a piece at a time, on both databases."""

from __future__ import annotations

import pytest

from pe_triage.domain import InstanceRole
from pe_triage.store import arriving as arriving_module
from pe_triage.store.arriving import Arriving
from tests.support.store import STUDY, StoreUnderTest, instance


def test_each_image_comes_once_and_only_of_studies_that_are_open(
    store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_module, "AT_ONCE", 2)
    arriving, other = Arriving(store.engine), f"{STUDY}.9"
    assert arriving.studies() == {}
    assert arriving.after(STUDY, 0).instances == ()
    store.record(*(instance(STUDY, n, store.data_dir) for n in (3, 1, 2)))
    store.record(instance(other, 1, store.data_dir))
    store.record(instance(STUDY, 4, store.data_dir, role=InstanceRole.OTHER))
    assert arriving.studies() == {STUDY: 3, other: 1}
    seen: list[str] = []
    last = 0
    while True:
        arrived = arriving.after(STUDY, last)
        if arrived.last == last:
            break
        assert len(arrived.instances) <= 2
        seen += [i.sop_instance_uid for i in arrived.instances]
        last = arrived.last
    assert sorted(seen) == [f"{STUDY}.{n}" for n in (1, 2, 3)]
    store.record(instance(STUDY, 1, store.data_dir), instance(STUDY, 5, store.data_dir))
    (new,) = arriving.after(STUDY, last).instances
    assert new.sop_instance_uid == f"{STUDY}.5"
    store.enqueue()
    assert arriving.studies() == {other: 1}
    store.record(instance(STUDY, 6, store.data_dir))
    assert set(arriving.studies()) == {STUDY, other}
