"""Two hosts cut off from each other and from the database: fencing is all that saves us.

Each host is a network namespace with a worker of its own (``tests.campaign.work``), joined to the
machine of the database, the receiver and the shared directory by a pair of virtual interfaces. A
cut takes one of them down for longer than a lease; the worker goes on computing meanwhile, and
finds its job taken over when the network is back.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.campaign.database import new_database
from tests.campaign.journal import Journal
from tests.campaign.session import Session
from tests.campaign.setup import Setup
from tests.campaign.waiting import wait_for
from tests.support.node import clean_environment
from tests.support.peers import find_program
from tests.support.postgres import PostgresServer, postgres_server

LEASE_S = 3.0
HOSTS = ("a", "b")


def usable() -> str | None:
    """What is missing for network namespaces; None where nothing is."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None if find_program("ip") else "ip (iproute2) is not installed"


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Host:
    """A network namespace reached over one link."""

    def __init__(self, name: str, number: int) -> None:
        digits = os.getpid() % 10_000
        self.space = f"pet{digits}{name}"
        self.link = f"pv{digits}{name}"
        # Of its own for each job of a campaign: they begin one after the other.
        third = 10 + 2 * (os.getpid() % 120) + number
        self.gateway, self.address = f"10.213.{third}.1", f"10.213.{third}.2"

    def up(self) -> None:
        """Make namespace and link."""
        _ip("netns", "add", self.space)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        _ip("addr", "add", f"{self.gateway}/24", "dev", self.link)
        _ip("link", "set", self.link, "up")
        for words in (
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", self.space, *words)

    def down(self) -> None:
        """Remove both."""
        _ip("link", "del", self.link, check=False)
        _ip("netns", "del", self.space, check=False)

    def cut(self) -> None:
        """Nothing passes any more; no end of a connection is told."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Everything passes again."""
        _ip("link", "set", self.link, "up")


@contextmanager
def hosts() -> Iterator[list[Host]]:
    """Two hosts, removed afterwards."""
    made = [Host(name, number) for number, name in enumerate(HOSTS)]
    try:
        for host in made:
            host.up()
        yield made
    finally:
        for host in made:
            host.down()


@contextmanager
def worker_on(
    host: Host, url: str, session: Session, plant: str, work_s: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in the host's namespace; its log goes where the node's does."""
    setup = Setup(work_s=work_s, plant=plant)
    command = [
        *("ip", "netns", "exec", host.space, sys.executable, "-m", "tests.campaign.work"),
        *("--setup", setup.dumps(), "--data-dir", str(session.node.data_dir)),
        *("--config", str(session.config), "--database", url),
    ]
    with (
        session.node.log.open("ab") as log,
        subprocess.Popen(command, env=clean_environment(), stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def session_of_partitions(
    folder: Path, number: int, journal: Journal, *, times: int = 6, plant: str = ""
) -> list[str]:
    """Cut one host or both, again and again, in the middle of their jobs; check."""
    rng = random.Random(number)
    home = folder / f"network-{number}"
    shutil.rmtree(home, ignore_errors=True)
    trials: list[dict[str, Any]] = []
    with hosts() as (a, b), postgres_server(listen="0.0.0.0") as server:
        url = new_database(server, f"campaign_{number}")
        with (
            Session(home, number, database=url, workers=0, lease_s=LEASE_S, plant=plant) as session,
            worker_on(a, _seen_from(a, server, url), session, plant, 2.0),
            worker_on(b, _seen_from(b, server, url), session, plant, 2.0),
        ):
            session.node.start()
            wait_for(lambda: len(session.node.events("worker.ready")) == 2, 180, "both workers")
            with session.streaming():
                for _ in range(times):
                    trials.append(_cut_once(session, rng.choice([[a], [b], [a], [b], [a, b]]), rng))
            found = session.check(300)
            figures = session.figures()
            session.node.close()
    return journal.add_session("network", number, trials, found, figures, home)


def _cut_once(session: Session, which: list[Host], rng: random.Random) -> dict[str, Any]:
    node, since_s = session.node, time.monotonic()
    wait_for(lambda: node.events_since(since_s, "job.claimed"), 120, "a job is claimed")
    time.sleep(rng.uniform(0.0, 1.5))
    for host in which:
        host.cut()
    cut_s = time.monotonic()
    time.sleep(rng.uniform(LEASE_S + 1, 3 * LEASE_S))
    for host in which:
        host.join()
    back_s = time.monotonic()
    wait_for(lambda: node.events_since(back_s, "job.claimed"), 120, "a job is claimed again")
    lost = len(node.events_since(cut_s, "job.lease_lost"))
    return {
        "process": "worker",
        "how": f"cut:{len(which)} of 2",
        "leases_lost": lost,
        "recovered_s": round(node.events_since(back_s, "job.claimed")[0][0] - back_s, 2),
    }


def _seen_from(host: Host, server: PostgresServer, url: str) -> str:
    return url.replace("127.0.0.1", host.gateway)
