"""Two full nodes on one PostgreSQL and one store; one of them is killed, whole, at random.

``python -m tests.campaign.hosts --studies 200 --out hosts.json``: half of the studies are sent to
each host, which may be the one that is down; whatever was not answered 0000 is sent again to the
same host until it is. Each time one of the two, drawn by chance, is killed by SIGKILL to all of its
processes, stays away for a while drawn by chance, and is started again. Then everything must end,
and the invariant of `check` must hold over both hosts together.
"""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pe_triage.errors import PeTriageError
from pe_triage.store.engine import open_engine
from pe_triage.store.leases import COORDINATOR, Leases
from pe_triage.store.migrate import upgrade
from tests.campaign.check import ENDS, SENT, Held, Seen, answers, held_in, violations
from tests.campaign.nodes import CampaignNode
from tests.campaign.pacs import Pacs
from tests.campaign.scanner import Scanner
from tests.campaign.studies import make_study, write_config
from tests.support.postgres import free_port, postgres_server

HOSTS = ("a", "b")
SEND_S = 3600.0
"""For so long one study is sent again and again before the run is given up."""


@dataclass
class Pair:
    """Both hosts, what is sent to each, and what was done to them."""

    home: Path
    url: str
    rng: random.Random
    lease_s: float
    kills: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.shared = self.home / "shared"
        self.pacs = Pacs()
        self.pacs.start()
        config = write_config(
            self.home / "node.toml",
            [self.pacs.address],
            shared_dir=str(self.shared),
            lease_s=self.lease_s,
        )
        self.nodes = {
            name: CampaignNode(
                self.home / name, config, database=self.url, port=free_port(), work_s=0.1
            )
            for name in HOSTS
        }
        self.scanners = {n: Scanner("127.0.0.1", node.port) for n, node in self.nodes.items()}
        self.engine = open_engine(self.url)
        self._making = threading.Lock()

    def leader(self) -> str | None:
        """Name of the host that coordinates; None where the lease is nobody's at the moment."""
        owner = Leases(self.engine).held(COORDINATOR).get(COORDINATOR, "")
        for name in HOSTS:
            file = self.home / name / "node-id"
            if file.exists() and owner.startswith(f"{file.read_text().strip()}/"):
                return name
        return None

    def send(self, name: str, numbers: range, until_s: float) -> None:
        """Send studies to one host, one after the other; begin none after `until_s`."""
        for number in numbers:
            if time.monotonic() > until_s:
                return
            with self._making:
                # It changes the one chest that all studies are made of.
                study = make_study(number)
            self.scanners[name].send(study, deadline_s=SEND_S)

    @contextmanager
    def sending(self, studies: int, most_s: float) -> Iterator[list[threading.Thread]]:
        """Send half of `studies` to each host meanwhile, or what can be sent in `most_s`."""
        half, until_s = studies // 2, time.monotonic() + most_s
        threads = [
            threading.Thread(
                target=self.send,
                args=(name, range(k * half, (k + 1) * half), until_s),
                daemon=True,
            )
            for k, name in enumerate(HOSTS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield threads
        finally:
            for thread in threads:
                thread.join()

    def kill_one(self) -> None:
        """Kill a host, let it be away, and start it again."""
        victim = self.rng.choice(HOSTS)
        led, at_s = self.leader() == victim, time.monotonic()
        self.nodes[victim].kill()
        away_s = self.rng.uniform(0.0, 40.0)
        taken_over_s: float | None = None
        while time.monotonic() - at_s < away_s:
            if led and taken_over_s is None and self.leader() not in (None, victim):
                taken_over_s = time.monotonic() - at_s
            time.sleep(0.2)
        while not self.nodes[victim].start(timeout_s=900):
            # Refused, as where the database does not answer in time: a service manager goes on.
            time.sleep(2.0)
        kill = {"host": victim, "led": led, "away_s": round(away_s, 1)}
        if taken_over_s is not None:
            kill["taken_over_s"] = round(taken_over_s, 1)
        self.kills.append(kill)
        click.echo(f"{time.strftime('%H:%M:%S')} {kill} acknowledged {self.acknowledged()}")

    def acknowledged(self) -> int:
        """Instances that were answered 0000."""
        return sum(len(scanner.acked) for scanner in self.scanners.values())

    def settle(self, timeout_s: float) -> Held:
        """Wait until everything has ended; what is held then, or when time is up."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                held = held_in(self.engine, self.shared)
            except PeTriageError:
                held = Held()
            ended = (
                held.studies
                and all(state in ENDS for state, _ in held.studies.values())
                and all(job.state in ENDS for job in held.jobs)
                and all(row.state in SENT for row in held.deliveries)
                and not list((self.shared / "spool" / "incoming").glob("*.dcm"))
            )
            if ended or time.monotonic() > until:
                return held
            time.sleep(1.0)

    def check(self, held: Held) -> list[str]:
        """Everything that breaks the invariant."""
        sent = {uid: s for scanner in self.scanners.values() for uid, s in scanner.sent.items()}
        finished = [
            (event["study_uid"], event["run"])
            for node in self.nodes.values()
            for event in node.events("job.finished")
        ]
        acked = [uid for scanner in self.scanners.values() for uid in scanner.acked]
        found = violations(
            Seen(
                sent=sent,
                acked=acked,
                held=held,
                data_dir=self.shared,
                arrivals=list(self.pacs.arrivals),
                finished=finished,
            )
        )
        wanted = {image.sop_instance_uid for study in sent.values() for image in study.images}
        if missing := wanted - set(acked):
            found.append(f"{len(missing)} instances were never answered 0000")
        found += [
            f"the PACS lacks the answer on all of study {study.study_uid}"
            for study in sent.values()
            if not answers(self.pacs.arrivals, study)
        ]
        return found

    def close(self) -> None:
        """Kill both."""
        for node in self.nodes.values():
            node.close()
        self.pacs.stop()
        self.engine.dispose()


def run(
    pair: Pair, *, studies: int, most_s: float, pause_s: float, settle_s: float
) -> dict[str, Any]:
    """Send, kill, settle, check; the figures."""
    began_s = time.monotonic()
    for node in pair.nodes.values():
        if not node.start(timeout_s=900):
            raise AssertionError(f"a host did not start; see {pair.home}")
    with pair.sending(studies, most_s) as threads:
        while any(thread.is_alive() for thread in threads):
            time.sleep(pair.rng.uniform(0.0, pause_s))
            if any(thread.is_alive() for thread in threads):
                pair.kill_one()
    sent_s = time.monotonic() - began_s
    held = pair.settle(settle_s)
    found = pair.check(held)
    runs = Counter(job.study_uid for job in held.jobs)
    take_overs = [kill["taken_over_s"] for kill in pair.kills if "taken_over_s" in kill]
    return {
        "studies": sum(len(scanner.sent) for scanner in pair.scanners.values()),
        "instances": pair.acknowledged(),
        "kills": len(pair.kills),
        "kills_of_the_leader": sum(kill["led"] for kill in pair.kills),
        "longest_takeover_s": max(take_overs, default=None),
        "runs": sum(runs.values()),
        "studies_of_several_runs": sum(count > 1 for count in runs.values()),
        "results_at_the_pacs": len({a.sop_instance_uid for a in pair.pacs.arrivals}),
        "sent_again_to_the_pacs": len(pair.pacs.arrivals)
        - len({a.sop_instance_uid for a in pair.pacs.arrivals}),
        "sending_s": round(sent_s),
        "all_s": round(time.monotonic() - began_s),
        "violations": found,
    }


@click.command()
@click.option("--studies", type=int, default=200)
@click.option("--minutes", type=float, default=240.0, help="Begin no study after these.")
@click.option("--seed", type=int, default=1)
@click.option("--pause", "pause_s", type=float, default=20.0, help="Longest time between kills.")
@click.option("--settle", "settle_s", type=float, default=600.0, help="Time for all to end.")
@click.option("--lease", "lease_s", type=float, default=15.0, help="Of a job.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the figures.")
def main(
    studies: int,
    minutes: float,
    seed: int,
    pause_s: float,
    settle_s: float,
    lease_s: float,
    out: Path | None,
) -> None:
    """Exit code 1 where the invariant is broken."""
    with tempfile.TemporaryDirectory(prefix="pe-triage-hosts-") as folder, postgres_server() as db:
        upgrade(db.url)
        pair = Pair(Path(folder), db.url, random.Random(seed), lease_s)
        try:
            figures = run(
                pair, studies=studies, most_s=60 * minutes, pause_s=pause_s, settle_s=settle_s
            )
        finally:
            pair.close()
    text = json.dumps(figures, indent=2)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n")
    if figures["violations"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
