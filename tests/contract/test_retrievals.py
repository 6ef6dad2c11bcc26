"""A part of what an archive was asked for is known as a part, whoever is away by then."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import select, update

from pe_triage.cli import reprocess
from pe_triage.config import Settings
from pe_triage.receive.spool import AssociationEvent
from pe_triage.store import schema
from pe_triage.store.engine import db_now
from pe_triage.store.retrievals import FORGOTTEN_AFTER_S, Retrievals, short_of
from tests.support.assembling import SLICES, WAITS, Association, World, image
from tests.support.store import StoreUnderTest

UID = "1.7.1"
CHEST, THIN = f"{UID}.1", f"{UID}.9"


def test_said_and_ended(store: StoreUnderTest) -> None:
    fetching = Retrievals(store.engine)
    fetching.begin("1.2.3", {"a": 5})
    fetching.begin("1.2.3", {"a": 6})
    fetching.begin("1.2.4", {"b": 1})
    assert fetching.unfinished() == {"1.2.3": {"a": 6}, "1.2.4": {"b": 1}}
    fetching.end("1.2.4")
    fetching.end("1.2.4")
    assert fetching.unfinished() == {"1.2.3": {"a": 6}}


def test_forgotten_after_a_month(store: StoreUnderTest) -> None:
    fetching, table = Retrievals(store.engine), schema.retrievals
    fetching.begin("1.2.3", {"a": 5})
    with store.engine.begin() as connection:
        connection.execute(update(table).values(begun_at=db_now() - FORGOTTEN_AFTER_S - 1))
    assert fetching.unfinished() == {}
    fetching.begin("1.2.4", {"b": 1})
    with store.engine.connect() as connection:
        assert list(connection.execute(select(table.c.study_uid)).scalars()) == ["1.2.4"]


def test_how_much_is_missing() -> None:
    assert short_of({"a": 5, "b": 2}, {"a": 3, "c": 9}) == 4
    assert short_of({"a": 5}, {"a": 6}) == 0
    assert short_of({}, {"a": 6}) == 0


def closed(store: StoreUnderTest, wanted: dict[str, int], numbers: range) -> tuple[str, int | None]:
    """What closed a study that came by C-MOVE from an archive that is away since."""
    fetching = Retrievals(store.engine)
    fetching.begin(UID, wanted)
    world = World(store.engine, random.Random(1))
    world.assembler._retrieving = fetching.unfinished
    association = Association(1, "PACS", [], AssociationEvent.RELEASED)
    world.open(association)
    for number in numbers:
        world.arrive(association, image(UID, number))
    world.end(association)
    for _ in range(int(WAITS.expected_wait_s + WAITS.max_wait_s) + 2):
        world.now_s += 1.0
        world.index(1000)
        world.tick()
    with store.engine.connect() as connection:
        row = connection.execute(
            select(schema.jobs.c.closed_by, schema.jobs.c.expected_images)
        ).one()
    return row.closed_by, row.expected_images


def test_the_whole_is_no_part(store: StoreUnderTest) -> None:
    sign, expected = closed(store, {CHEST: SLICES}, range(SLICES))
    assert sign == "released_and_contiguous"
    assert expected in (None, SLICES)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        # Slices are missing at the end, and what came is contiguous.
        ({CHEST: SLICES}, range(SLICES - 2)),
        # The better series did not come at all.
        ({CHEST: SLICES, THIN: 300}, range(SLICES)),
    ],
)
def test_a_part_says_how_much_there_is(
    store: StoreUnderTest, wanted: dict[str, int], numbers: range
) -> None:
    sign, expected = closed(store, wanted, numbers)
    assert sign != "released_and_contiguous"
    assert expected == sum(wanted.values())


def test_a_part_is_fetched_on_and_not_queued(
    store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for again before the node has closed it."""
    store.receive("1.2.3", count=3)
    Retrievals(store.engine).begin("1.2.3", {"1.2.3.0": 5})
    fetched: list[str] = []
    monkeypatch.setattr(
        "pe_triage.retrieving.fetch_and_queue",
        lambda _settings, _engine, uid, **_: fetched.append(uid) or 1,
    )
    settings = Settings(data_dir=store.data_dir, retrieve={"pacs": "PACS@127.0.0.1:104"})
    assert reprocess.queue_one(settings, store.engine, "1.2.3", None) == 1
    assert fetched == ["1.2.3"]
    assert store.queue.pending().total == 0
    Retrievals(store.engine).end("1.2.3")
    store.enqueue("1.2.3")
    store.finish(store.claimed())
    assert reprocess.queue_one(settings, store.engine, "1.2.3", None) == 2
    assert (len(fetched), store.queue.pending().total) == (1, 1)
