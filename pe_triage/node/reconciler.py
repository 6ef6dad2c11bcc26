"""Once a day asks the PACS for the studies of the day before, and says which are missing here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from pe_triage.deliver.find_scu import PacsSeries, PacsStudy
from pe_triage.errors import QueryError
from pe_triage.logs import get_logger
from pe_triage.monitoring import ReconcileTable
from pe_triage.node.watcher import RECONCILED, say, write_whole
from pe_triage.store.alarms import AlarmStore
from pe_triage.store.watching import Standing, WatchStore
from pe_triage.watch.alarms import Finding
from pe_triage.watch.reconcile import TROUBLE, AtPacs, Here, document, is_wanted, reconcile

FOLDER = "reconciliation"
"""Folder of the reports in the data directory, one file for each day."""
TROUBLE_ALARM = "watch.reconciliation"
FAILED_ALARM = "watch.reconciliation_failed"
PATIENCE = timedelta(hours=1)
"""A PACS that does not answer is asked again for so long before anybody is called."""
CATCH_UP_DAYS = 7
"""Days back that are made up for after the node or the PACS was away."""


class Archive(Protocol):
    """What is asked; `deliver.find_scu.QueryScu` is one."""

    def studies(
        self, first: date, last: date, *, modality: str | None = None
    ) -> tuple[PacsStudy, ...]:
        """Studies of these days."""

    def series(self, study_uid: str) -> tuple[PacsSeries, ...]:
        """Series of a study."""


def compare(
    archive: Archive,
    watching: WatchStore,
    table: ReconcileTable,
    *,
    first: date,
    last: date,
    now: datetime,
    pacs: str,
) -> dict[str, Any]:
    """Compare these days (both included) and return the report.

    Raises
    ------
    QueryError
        The PACS gave no usable answer: nothing is known, which is not the same as "all well".
    """
    asked = [AtPacs.of(study) for study in archive.studies(first, last, modality=table.modality)]
    wanted = {study.study_uid: study for study in asked if is_wanted(study, table)}
    known = watching.standings(wanted)
    studies = []
    for uid, study in wanted.items():
        if not study.modalities or uid in known:
            series = archive.series(uid)
            if not study.modalities and all(s.modality != table.modality for s in series):
                # The PACS does not say at study level; its series do.
                continue
            study = replace(study, series=_ct_instances(series))
        studies.append(study)
    lines = reconcile(
        studies,
        {uid: _here(standing) for uid, standing in known.items()},
        now=now,
        settle_s=table.settle_s,
    )
    return document(lines, first=first.isoformat(), last=last.isoformat(), pacs=pacs, at=now)


def _ct_instances(series: Iterable[PacsSeries]) -> dict[str, int]:
    return {s.series_uid: s.instances or 0 for s in series if s.modality == "CT"}


def _here(standing: Standing) -> Here:
    return Here(
        state=standing.state,
        reason=standing.reason,
        series=standing.series,
        last_image_at=standing.last_image_at,
        completed_at=standing.completed_at,
        answered=standing.answered,
        undelivered=standing.undelivered,
        parked=standing.parked,
    )


def trouble(report: Mapping[str, Any]) -> dict[str, int]:
    """Verdicts of a report that a person should look at, without those that are none."""
    return {v.value: n for v in TROUBLE if (n := report["counts"][v.value])}


class Reconciler:
    """Makes each day's report once, whenever the node and the PACS are both there.

    Parameters
    ----------
    clock
        Aware time in the zone of the site, whose days Study Date counts.
    remind_s
        As for the other alarms.
    """

    def __init__(
        self,
        *,
        archive: Archive,
        pacs: str,
        watching: WatchStore,
        alarms: AlarmStore,
        table: ReconcileTable,
        data_dir: Path,
        clock: Callable[[], datetime],
        remind_s: float,
    ) -> None:
        self._archive = archive
        self._pacs = pacs
        self._watching = watching
        self._alarms = alarms
        self._table = table
        self._folder = data_dir / FOLDER
        self._clock = clock
        self._remind_s = remind_s
        self._failing_since: datetime | None = None
        self._log = get_logger()

    def tick(self) -> list[date]:
        """Make the reports that are due; returns their days.

        With each new day those are compared again whose trouble still stands: what came meanwhile
        clears it, and after `CATCH_UP_DAYS` it is not asked about any more.
        """
        now = self._clock()
        days = self._due(now)
        if not days:
            return []
        oldest = now.date() - timedelta(days=CATCH_UP_DAYS)
        standing = [
            day
            for alarm in self._alarms.standing()
            if alarm.name == TROUBLE_ALARM and (day := date.fromisoformat(alarm.subject)) >= oldest
        ]
        findings: list[Finding] = []
        done: list[date] = []
        for day in sorted({*days, *standing}):
            try:
                report = compare(
                    self._archive,
                    self._watching,
                    self._table,
                    first=day,
                    last=day,
                    now=now,
                    pacs=self._pacs,
                )
            except QueryError as error:
                # What was found before counts: its report is written and not made again. What
                # stands of days that could not be compared goes on standing.
                self._settle([*findings, *self._standing_but(done)], {TROUBLE_ALARM}, now)
                self._failed(day, error, now)
                return done
            findings += self._keep(day, report)
            done.append(day)
        self._failing_since = None
        self._settle(findings, RECONCILED, now)
        return days

    def _due(self, now: datetime) -> list[date]:
        """Days without a report, oldest first; the first ever is yesterday alone."""
        if now.time() < self._table.at_time:
            return []
        yesterday = now.date() - timedelta(days=1)
        # A clock that once ran ahead left a report of a day to come: it must not end the others.
        made = [day for day in self._made() if day <= yesterday]
        if not made:
            return [yesterday]
        first = max(made[-1], yesterday - timedelta(days=CATCH_UP_DAYS))
        return [first + timedelta(days=n) for n in range(1, (yesterday - first).days + 1)]

    def _made(self) -> list[date]:
        """Days that have a report, oldest first."""
        names = self._folder.glob("????-??-??.json") if self._folder.is_dir() else ()
        days = []
        for path in names:
            with contextlib.suppress(ValueError):
                days.append(date.fromisoformat(path.stem))
        return sorted(days)

    def _standing_but(self, days: Collection[date]) -> list[Finding]:
        """Alarms of trouble that stand, as findings, but for those of `days`."""
        but = {day.isoformat() for day in days}
        return [
            Finding(name=a.name, subject=a.subject, message=a.message, facts=a.facts)
            for a in self._alarms.standing()
            if a.name == TROUBLE_ALARM and a.subject not in but
        ]

    def _keep(self, day: date, report: Mapping[str, Any]) -> list[Finding]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._folder / f"{day.isoformat()}.json", json.dumps(report, indent=2) + "\n")
        self._log.info(
            "watch.reconciled",
            day=day.isoformat(),
            studies=report["studies_at_pacs"],
            **{word.lower(): n for word, n in report["counts"].items()},
        )
        found = trouble(report)
        if not found:
            return []
        words = ", ".join(f"{n} {word}" for word, n in found.items())
        return [
            Finding(
                name=TROUBLE_ALARM,
                subject=day.isoformat(),
                message=f"of {report['studies_at_pacs']} studies of {day.isoformat()} at the "
                f"PACS: {words}; see pe-triage reconcile --date {day.isoformat()}",
                facts={word.lower(): n for word, n in found.items()},
            )
        ]

    def _failed(self, day: date, error: QueryError, now: datetime) -> None:
        self._log.warning("watch.reconcile_failed", day=day.isoformat(), error=error.message)
        self._failing_since = self._failing_since or now
        if now - self._failing_since < PATIENCE:
            return
        finding = Finding(
            name=FAILED_ALARM,
            message=f"{day.isoformat()} could not be compared with the PACS: {error.message}",
            facts={"day": day.isoformat()},
        )
        self._settle([finding], {FAILED_ALARM}, now)

    def _settle(self, findings: list[Finding], names: Collection[str], now: datetime) -> None:
        changes = self._alarms.settle(findings, names=names, at=now, remind_s=self._remind_s)
        say(changes, self._log)

    def last_counts(self) -> Mapping[str, int] | None:
        """Verdict to studies of the newest report; None before the first."""
        made = self._made()
        if not made:
            return None
        try:
            text = (self._folder / f"{made[-1].isoformat()}.json").read_text(encoding="utf-8")
            counts: Mapping[str, int] = json.loads(text)["counts"]
        except (OSError, ValueError, KeyError):
            # Cut short by a power failure: no reason to stop looking.
            return None
        return counts
