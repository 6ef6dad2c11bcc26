"""Looks at the node every minute, and says what is not as usual: to the log, webhooks, a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pe_triage.deliver.backoff import next_attempt_s
from pe_triage.deliver.outcomes import Sent
from pe_triage.deliver.statuses import Verdict
from pe_triage.destinations import AnyDestination, WebhookDestination
from pe_triage.domain import DeliveryState
from pe_triage.logs import get_logger
from pe_triage.monitoring import WatchTable
from pe_triage.store.alarms import AlarmStore, Changes, Notice
from pe_triage.store.watching import WatchStore
from pe_triage.watch.alarms import NAMES, SPACE_ALARM, Finding, draw, judge
from pe_triage.watch.metrics import exposition, gauges
from pe_triage.watch.samples import Situation, Uncommitted

RECONCILED = frozenset({"watch.reconciliation", "watch.reconciliation_failed"})
"""Alarms that the daily comparison raises and clears."""
LOOKED_AT = frozenset(NAMES) - RECONCILED - {SPACE_ALARM}

Backlog = Callable[[], tuple[int, float]]
"""Acknowledged instances that are not indexed, and the age of the oldest in seconds."""


Commitments = Callable[[], tuple[tuple[Uncommitted, ...], int]]
"""What destinations have not committed to in time, and how many scanners never took an answer."""


class Poster(Protocol):
    """A webhook."""

    def post(self, body: bytes) -> Sent:
        """Send one body; nothing is raised for what the peer does."""


class Watcher:
    """One look after another; each compares what is with what was.

    Parameters
    ----------
    watching, alarms
        The store.
    clock
        Aware time.
    backlog
        See `Backlog`.
    commitments
        See `Commitments`.
    """

    def __init__(
        self,
        *,
        watching: WatchStore,
        alarms: AlarmStore,
        settings: WatchTable,
        clock: Callable[[], datetime],
        backlog: Backlog = lambda: (0, 0.0),
        reconciliation: Callable[[], Mapping[str, int] | None] = lambda: None,
        commitments: Commitments = lambda: ((), 0),
    ) -> None:
        self._watching = watching
        self._alarms = alarms
        self._settings = settings
        self._clock = clock
        self._backlog = backlog
        self._reconciliation = reconciliation
        self._commitments = commitments
        self._log = get_logger()

    def look(self) -> tuple[Finding, ...]:
        """Judge once; returns every alarm of this look that stands."""
        now = self._clock()
        history = self._watching.history(self._settings)
        situation = self._situation(now)
        findings = judge(history, situation, self._settings)
        changes = self._alarms.settle(
            findings, names=LOOKED_AT, at=now, remind_s=self._settings.remind_s
        )
        say(changes, self._log)
        if self._settings.metrics_file is not None:
            standing = [(a.name, a.subject) for a in self._alarms.standing()]
            text = exposition(
                gauges(
                    now=now,
                    situation=situation,
                    charts=draw(history, self._settings),
                    alarms=standing,
                    reconciliation=self._reconciliation(),
                )
            )
            # The collector runs as another user.
            write_whole(self._settings.metrics_file, text, mode=0o644)
        return findings

    def _situation(self, now: datetime) -> Situation:
        count, oldest_s = self._backlog()
        found = self._watching.situation(self._settings, now)
        uncommitted, unheard = self._commitments()
        return replace(
            found,
            not_indexed=count,
            not_indexed_s=oldest_s,
            uncommitted=uncommitted,
            unheard=unheard,
        )


def say(changes: Changes, log: Any) -> None:
    """Log what has changed: an alarm's name is the event."""
    for alarm in (*changes.raised, *changes.reminded):
        again = alarm in changes.reminded
        log.error(
            alarm.name,
            message=alarm.message,
            subject=alarm.subject or None,
            since=alarm.raised_at.isoformat() if again else None,
            **{k: v for k, v in alarm.facts.items() if k not in ("message", "subject", "since")},
        )
    for alarm in changes.cleared:
        log.info("watch.cleared", alarm=alarm.name, subject=alarm.subject or None)


def write_whole(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file at once: who reads it sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


class Notifier:
    """Sends notices of alarms to webhooks, oldest first, again until they are taken."""

    def __init__(
        self,
        *,
        alarms: AlarmStore,
        posters: Mapping[str, Poster],
        jitter: Callable[[], float],
    ) -> None:
        self._alarms = alarms
        self._posters = posters
        self._jitter = jitter
        self._log = get_logger()

    def tick(self) -> int:
        """Send what is due; returns how many were taken."""
        taken = 0
        for name, poster in self._posters.items():
            for notice in self._alarms.due(name):
                sent = poster.post(notice.body)
                taken += self._record(notice, sent)
                if sent.unreachable:
                    # The ones behind it would fare alike.
                    break
        return taken

    def _record(self, notice: Notice, sent: Sent) -> bool:
        log = self._log.bind(destination=notice.destination, alarm_id=notice.alarm_id)
        if sent.verdict in (Verdict.SENT, Verdict.WARNING):
            self._alarms.mark(notice, DeliveryState.SENT, error=sent.error)
            return True
        wait_s = None
        if sent.verdict is Verdict.RETRY:
            wait_s = next_attempt_s(notice.attempts + 1, notice.age_s, jitter=self._jitter())
        if wait_s is None:
            self._alarms.mark(notice, DeliveryState.PARKED, error=sent.error)
            log.error("watch.notice_given_up", error=sent.error)
            return False
        wait_s = max(wait_s, sent.retry_after_s or 0.0)
        self._alarms.mark(notice, DeliveryState.PENDING, error=sent.error, retry_in_s=wait_s)
        log.warning("watch.notice_retry", error=sent.error, retry_in_s=round(wait_s, 1))
        return False


def alarm_webhooks(tables: Sequence[AnyDestination]) -> list[WebhookDestination]:
    """Webhook destinations that get alarms."""
    return [t for t in tables if isinstance(t, WebhookDestination) and t.alarms != "no"]
