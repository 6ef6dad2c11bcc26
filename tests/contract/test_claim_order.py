"""Who is next: the most urgent, a backfill last, and nobody for ever last."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update

from pe_triage.app import requeue
from pe_triage.errors import InputError
from pe_triage.store import schema
from pe_triage.store.claim_order import FAIR_EVERY, STARVING_S, claimable, starving_s
from pe_triage.store.engine import db_now
from pe_triage.store.jobs import JobQueue, Rank
from tests.contract.test_plans import full, plan  # noqa: F401 - a fixture
from tests.support.store import STUDY, StoreUnderTest, instance


def queue(store: StoreUnderTest, rank: int, count: int, *, waited_s: float = 0.0) -> None:
    """Queue studies of one image each, which have waited."""
    for number in range(count):
        uid = f"1.2.826.{rank}.{number}"
        store.receive(uid, count=1)
        store.enqueue(uid, rank=rank)
    jobs = schema.jobs
    with store.engine.begin() as connection:
        connection.execute(
            update(jobs).where(jobs.c.rank == rank).values(available_at=db_now() - waited_s)
        )


def places(store: StoreUnderTest, count: int, worker: JobQueue | None = None) -> list[int]:
    """Ranks of the next claims, which are ended at once."""
    found = []
    for _ in range(count):
        job = (worker or store.queue).claim("w/", 30)
        assert job is not None
        found.append(int(job.study_uid.split(".")[3]))
        store.finish(job, results=())
    return found


def test_what_arrives_goes_before_a_backfill(store: StoreUnderTest) -> None:
    """However long the backfill has waited, short of a day, and however often it is claimed."""
    queue(store, Rank.BACKFILL, 24, waited_s=80_000)
    assert places(store, 3) == [200] * 3
    for number in range(8):
        uid = f"1.2.826.100.{number}"
        store.receive(uid, count=1)
        store.enqueue(uid)
        assert places(store, 2) == [100, 200]


def test_no_rank_starves(store: StoreUnderTest) -> None:
    queue(store, Rank.STAT, 2 * FAIR_EVERY)
    queue(store, Rank.ROUTINE, 2, waited_s=STARVING_S[Rank.ROUTINE] + 60)
    queue(store, Rank.BACKFILL, 2, waited_s=STARVING_S[Rank.BACKFILL] + 60)
    claimed = places(store, 2 * FAIR_EVERY)
    # Each in its turn, and no more than one claim in ten.
    assert claimed.count(0) == 2 * FAIR_EVERY - 2
    assert [claimed[FAIR_EVERY - 1], claimed[2 * FAIR_EVERY - 1]] == [100, 200]


def test_what_has_not_waited_long_waits(store: StoreUnderTest) -> None:
    queue(store, Rank.STAT, FAIR_EVERY + 1)
    queue(store, Rank.ROUTINE, 1, waited_s=STARVING_S[Rank.ROUTINE] - 60)
    assert places(store, FAIR_EVERY + 1) == [0] * (FAIR_EVERY + 1)
    assert places(store, 1) == [100]


@pytest.mark.parametrize(
    ("rank", "limit_s"), [(0, 600), (1, 600), (100, 600), (199, 600), (200, 86_400), (999, 86_400)]
)
def test_any_number_is_a_rank(rank: int, limit_s: float) -> None:
    assert starving_s(rank) == limit_s


@pytest.mark.parametrize("rank", [None, 100])
def test_it_is_answered_from_the_index(full: StoreUnderTest, rank: int | None) -> None:  # noqa: F811
    text = plan(full, claimable(lock=False, rank=rank))
    assert "ix_jobs_claim" in text
    assert "TEMP B-TREE" not in text


def test_the_list_given_again_queues_nothing_twice(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    assert requeue(store.engine, STUDY, rank=Rank.BACKFILL) == 2
    assert requeue(store.engine, STUDY, rank=Rank.BACKFILL) == 2
    # A person who names it now wants it now, and one more run.
    assert requeue(store.engine, STUDY, rank=None) == 3


@pytest.mark.parametrize("rank", [None, Rank.BACKFILL])
def test_a_study_that_still_arrives_is_not_analysed_in_pieces(
    store: StoreUnderTest, rank: int | None
) -> None:
    """Nor where it had an answer before: `--from-date` names what the scanner is sending now."""
    store.receive(count=2)
    with pytest.raises(InputError, match="still arriving"):
        requeue(store.engine, STUDY, rank=rank)
    store.enqueue()
    store.finish(store.claimed())
    store.record(instance(STUDY, 3, store.data_dir))
    with pytest.raises(InputError, match="still arriving"):
        requeue(store.engine, STUDY, rank=rank)
    assert store.queue.pending().total == 0


def test_a_waiting_backfill_does_not_hold_up_the_run_after_it(store: StoreUnderTest) -> None:
    """Runs of a study go in order; a late slice must not wait behind the archive."""
    store.queued()
    store.finish(store.claimed())
    requeue(store.engine, STUDY, rank=Rank.BACKFILL)
    # Tried once, so that it can take no slice in any more.
    store.queue.fail(store.claimed(), "broken", retry=True)
    store.record(instance(STUDY, 9, store.data_dir))
    job = store.enqueue()
    assert job is not None
    assert job.run == 3
    jobs = schema.jobs
    with store.engine.begin() as connection:
        waiting = select(func.max(jobs.c.rank)).where(jobs.c.state == "QUEUED")
        assert connection.execute(waiting).scalar_one() == Rank.ROUTINE
