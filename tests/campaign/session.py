"""One node, one PACS and one scanner, and the check on all that went through them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pe_triage.errors import PeTriageError
from pe_triage.store.engine import open_engine
from tests.campaign.check import (
    SENT,
    Held,
    Seen,
    answers,
    database_problem,
    held_in,
    violations,
)
from tests.campaign.nodes import CampaignNode
from tests.campaign.pacs import Pacs
from tests.campaign.scanner import Scanner
from tests.campaign.studies import make_study, write_config
from tests.campaign.waiting import patience
from tests.support.postgres import free_port

SETTLE_S = 150.0
"""Within this time after the last fault every study must have ended, its results delivered."""
PLANTED_S = 45.0
"""The same where a fault was planted: what is lost never ends."""
IN_FLIGHT = 3
"""Studies that a stream lets wait for their answer before it sends the next."""
PAUSE_S, LONGEST_PAUSE_S = 0.3, 8.0
"""Between two studies of a stream: at least, and at most, whatever the node has answered."""


class Session:
    """A node's life under faults, ended by a check.

    Parameters
    ----------
    home
        A folder of its own.
    number
        Makes the studies' numbers: sessions never share a study.
    """

    def __init__(
        self,
        home: Path,
        number: int,
        *,
        data_dir: Path | None = None,
        database: str | None = None,
        forked: bool = True,
        plant: str = "",
        work_s: float = 0.2,
        environment: dict[str, str] | None = None,
        **settings: object,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.next_study = number * 10_000
        self.pacs = Pacs()
        self.pacs.start()
        self.settings = settings
        self.config = write_config(home / "node.toml", [self.pacs.address], **settings)
        self.node = CampaignNode(
            data_dir or home / "data",
            self.config,
            database=database,
            port=free_port(),
            forked=forked,
            plant=plant,
            work_s=work_s,
            environment=environment,
        )
        self.scanner = Scanner("127.0.0.1", self.node.port)
        self.stop_sending = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_sending.set()
        for thread in self._threads:
            thread.join(20)
        self.node.close()
        self.pacs.stop()

    # -- work

    def send_one(self, **options: Any) -> str:
        """Send one more study to the end; its UID."""
        study = make_study(self.next_study)
        self.next_study += 1
        self.scanner.send(study, **options)
        return study.study_uid

    def _stream(self, pause_s: float) -> None:
        sent_s = 0.0
        while not self.stop_sending.is_set():
            at_the_pacs = {a.study_uid for a in list(self.pacs.arrivals)}
            waiting = len(self.scanner.sent.keys() - at_the_pacs)
            if waiting >= IN_FLIGHT and time.monotonic() < sent_s + LONGEST_PAUSE_S:
                time.sleep(0.1)
                continue
            self.send_one(pause_s=pause_s, deadline_s=300.0)
            sent_s = time.monotonic()
            self.stop_sending.wait(PAUSE_S)

    @contextmanager
    def streaming(self, pause_s: float = 0.01) -> Iterator[None]:
        """Send study after study meanwhile; what was begun is sent to its end."""
        self.stop_sending.clear()
        thread = threading.Thread(target=self._stream, args=(pause_s,), daemon=True)
        thread.start()
        self._threads.append(thread)
        try:
            yield
        finally:
            self.stop_sending.set()
            thread.join(300)

    # -- check

    def held(self) -> Held:
        """What the database says now."""
        engine = open_engine(self.node.database_url)
        try:
            return held_in(engine, self.node.data_dir)
        finally:
            engine.dispose()

    def _settled(self, held: Held) -> bool:
        if self.node.incoming():
            return False
        for study in self.scanner.sent.values():
            acked = [i for i in study.images if i.sop_instance_uid in self.scanner.acked]
            if acked and held.studies.get(study.study_uid, ("",))[0] != "DONE":
                return False
        return bool(held.deliveries) and all(d.state in SENT for d in held.deliveries)

    def settle(self, timeout_s: float = SETTLE_S) -> Held:
        """Wait until everything has ended; what is held then, or when time is up."""
        until = time.monotonic() + timeout_s * patience()
        while True:
            held = Held()
            try:
                held = self.held()
                if self._settled(held) or time.monotonic() > until:
                    return held
            except PeTriageError:
                if time.monotonic() > until:
                    return held
            time.sleep(0.4)

    def check(self, timeout_s: float = SETTLE_S) -> list[str]:
        """Let everything end, then say what breaks the invariant."""
        held = self.settle(min(timeout_s, PLANTED_S) if self.node.setup.plant else timeout_s)
        found = violations(self.seen(held))
        acked = self.scanner.acked.keys()
        found += [
            f"the PACS lacks the answer on all of study {study.study_uid}"
            for study in self.scanner.sent.values()
            if study.digests.keys() <= acked and not answers(self.pacs.arrivals, study)
        ]
        if self.node.database is None and (problem := database_problem(self.node.data_dir)):
            found.append(problem)
        return found

    def seen(self, held: Held) -> Seen:
        """All that the check is about."""
        return Seen(
            sent=self.scanner.sent,
            acked=list(self.scanner.acked),
            held=held,
            data_dir=self.node.data_dir,
            arrivals=list(self.pacs.arrivals),
            finished=[(e["study_uid"], e["run"]) for e in self.node.events("job.finished")],
        )

    def figures(self) -> dict[str, int]:
        """How much went through."""
        return {"studies": len(self.scanner.sent), "instances": len(self.scanner.acked)}
