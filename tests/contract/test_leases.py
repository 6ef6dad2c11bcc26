"""What only one of several hosts may do, on both databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from pe_triage.node import leadership
from pe_triage.node.leadership import LeaderGuard, Leadership, NotLeadingError
from pe_triage.store import schema
from pe_triage.store.engine import db_now
from pe_triage.store.leases import COORDINATOR, HOST, LONGEST_S, Leases, fact, settle_fact
from tests.support.node import wait_for
from tests.support.store import StoreUnderTest


@pytest.fixture
def leases(store: StoreUnderTest) -> Leases:
    return Leases(store.engine)


def run_out(store: StoreUnderTest, name: str, by_s: float = 1.0) -> None:
    """Let a lease run out so long ago; negative: it runs for so long still."""
    table = schema.leases
    with store.engine.begin() as connection:
        connection.execute(
            update(table).where(table.c.name == name).values(held_until=db_now() - by_s)
        )


def test_one_holds_it(leases: Leases) -> None:
    with ThreadPoolExecutor(4) as pool:
        tokens = list(pool.map(lambda n: leases.take("x", f"h{n}/", 30.0), range(8)))
    assert sorted(tokens, key=str) == [1, *[None] * 7]


def test_it_runs_out(store: StoreUnderTest, leases: Leases) -> None:
    first = leases.take("x", "a/", 30.0)
    assert first is not None
    run_out(store, "x")
    # Late, but nobody has acted in between.
    assert leases.renew("x", first, 30.0)
    run_out(store, "x")
    second = leases.take("x", "b/", 30.0)
    assert second == first + 1
    assert not leases.renew("x", first, 30.0)
    assert leases.renew("x", second, 30.0)


def test_who_is_gone_gives_it_back(leases: Leases) -> None:
    token = leases.take("x", "node-1/coordinator/1/", 30.0)
    assert token is not None
    assert leases.release("node-1/coordinator/10/") == 0
    assert leases.release("node-1/coordinator/1/") == 1
    assert leases.release("node-1/coordinator/1/") == 0
    # Declared dead is dead, even if it should live.
    assert not leases.renew("x", token, 30.0)
    assert leases.take("x", "node-2/coordinator/1/", 30.0) is not None
    with pytest.raises(ValueError, match="everyone"):
        leases.release("")


def test_an_earlier_life_is_over(leases: Leases) -> None:
    assert leases.take("x", "n/machine/", 30.0)
    assert leases.take("x", "n/other/", 30.0, over="n/other/") is None
    assert leases.take("x", "n/machine/", 30.0, over="n/machine/") == 2


def test_a_clock_set_back_freezes_nothing(store: StoreUnderTest, leases: Leases) -> None:
    leases.take("x", "a/", LONGEST_S)
    run_out(store, "x", by_s=-10 * LONGEST_S)
    assert leases.take("x", "b/", 30.0) == 2
    with pytest.raises(ValueError, match="lease of"):
        leases.take("y", "a/", LONGEST_S + 1)


def test_living_hosts(store: StoreUnderTest, leases: Leases) -> None:
    leases.take(f"{HOST}node-1", "node-1/a/", 30.0)
    leases.take(f"{HOST}node-2", "node-2/b/", 30.0)
    leases.take(COORDINATOR, "node-3/coordinator/1/", 30.0)
    run_out(store, f"{HOST}node-2")
    assert leases.living_hosts() == {"node-1"}


def test_a_fact_is_said_once(store: StoreUnderTest) -> None:
    assert fact(store.engine, "store") is None
    with ThreadPoolExecutor(4) as pool:
        said = set(pool.map(lambda n: settle_fact(store.engine, "store", f"s{n}"), range(6)))
    assert said == {fact(store.engine, "store")}


# ------------------------------------------------------------------ leading


def leader(leases: Leases, owner: str, on_deposed: Callable[[], None] = lambda: None) -> Leadership:
    return Leadership(leases, owner, on_deposed=on_deposed, ttl_s=1.0, margin_s=0.3, look_s=0.05)


def test_another_leads_once_the_leader_is_gone(leases: Leases) -> None:
    stop, second = threading.Event(), leader(leases, "b/")
    first = leader(leases, "a/")
    assert not first.holds()
    assert first.take(stop)
    with first.running(), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.take, stop)
        time.sleep(1.5)
        # Longer than a lease: it was renewed.
        assert first.holds()
        assert not waiting.done()
        leases.release("a/")
        assert waiting.result(20)
    assert second.holds()


def test_who_waits_can_be_stopped(leases: Leases) -> None:
    leases.take(COORDINATOR, "a/", 30.0)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    assert not leader(leases, "b/").take(stop)


def test_a_process_that_was_paused_finds_out_first(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = leader(leases, "a/")
    assert paused.take(threading.Event())
    guard = LeaderGuard(paused.holds)
    with guard:
        pass
    now = leadership.mark()
    # Of a paused virtual machine one clock may have stood still.
    for clocks in ((now[0] + 60, now[1]), (now[0], now[1] + 60)):
        monkeypatch.setattr(leadership, "mark", lambda clocks=clocks: clocks)
        assert not paused.holds()
        with pytest.raises(NotLeadingError), guard:
            pass
    monkeypatch.setattr(leadership, "mark", lambda: now)
    # The lock was given back each time.
    with guard:
        pass


def test_a_leader_that_was_replaced_ends(leases: Leases) -> None:
    ended = threading.Event()
    deposed = leader(leases, "a/", ended.set)
    assert deposed.take(threading.Event())
    with deposed.running():
        leases.release("a/")
        assert leases.take(COORDINATOR, "b/", 30.0)
        wait_for(ended.is_set, 20, "the end")
    assert not deposed.holds()
