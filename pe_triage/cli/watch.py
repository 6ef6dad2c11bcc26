"""``pe-triage watch``: the control charts and the alarms that stand."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pe_triage.cli.options import node_options, settings_from
from pe_triage.domain import Outcome

if TYPE_CHECKING:
    from pe_triage.watch.charts import RateChart
    from pe_triage.watch.samples import RunSample


@click.command()
@node_options
@click.option(
    "--days", type=click.IntRange(1, 366), default=14, show_default=True, help="Days listed."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def watch(
    data_dir: Path | None,
    database: str | None,
    config: Path | None,
    days: int,
    as_json: bool,
) -> int:
    """Print control charts, days and standing alarms; exit code 1 where any alarm stands."""
    settings = settings_from(data_dir=data_dir, database=database, config=config)
    from pe_triage.cli.database import open_existing_database
    from pe_triage.clock import local_now
    from pe_triage.store.watching import WatchStore
    from pe_triage.watch.alarms import day_chart, draw, judge
    from pe_triage.watchers import alarm_store

    engine = open_existing_database(settings)
    store, now = WatchStore(engine), local_now()
    history = store.history(settings.watch)
    situation = store.situation(settings.watch, now.astimezone(UTC))
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    samples = store.days((midnight - timedelta(days=days - 1)).astimezone(UTC), now)
    # Judged anew, so that it is also seen where no node is running to raise it.
    standing = {(a.name, a.subject): a.message for a in alarm_store(settings, engine).standing()}
    standing |= {(f.name, f.subject): f.message for f in judge(history, situation, settings.watch)}
    charts = draw(history, settings.watch)
    document: dict[str, Any] = {
        "made_at": now.isoformat(),
        "baseline": {"studies": len(history.baseline), "wanted": history.wanted},
        "charts": {
            field.name: _chart(getattr(charts, field.name), field.name)
            for field in dataclasses.fields(charts)
        },
        "days": [
            _of_day(day, items, lambda runs, of: day_chart(runs, history, settings.watch, of))
            for day, items in _by_day(samples, now, days)
        ],
        "situation": dataclasses.asdict(situation),
        "alarms": [
            {"alarm": name, "subject": subject, "message": message}
            for (name, subject), message in sorted(standing.items())
        ],
    }
    click.echo(json.dumps(document, indent=2) if as_json else _text(document))
    return 1 if standing else 0


def _chart(chart: Any, name: str) -> dict[str, Any] | None:
    """Chart in the unit that people think in: shares, seconds, entropy."""
    if chart is None:
        return None
    if hasattr(chart, "count"):
        return {
            "value": chart.rate,
            "expected": chart.expected,
            "low": chart.low / chart.studies,
            "high": chart.high / chart.studies,
            "studies": chart.studies,
            "outside": chart.outside,
        }
    unit: Callable[[float], float] = math.exp if name == "latency" else float
    return {
        "value": unit(chart.value),
        "expected": unit(chart.expected),
        "low": unit(chart.low),
        "high": unit(chart.high),
        "studies": chart.studies,
        "outside": chart.outside,
    }


def _by_day(
    samples: Sequence[RunSample], now: datetime, days: int
) -> list[tuple[str, list[RunSample]]]:
    found: dict[str, list[RunSample]] = {
        (now.date() - timedelta(days=n)).isoformat(): [] for n in range(days - 1, -1, -1)
    }
    for sample in samples:
        day = sample.completed_at.astimezone(now.tzinfo).date().isoformat()
        found.setdefault(day, []).append(sample)
    return sorted(found.items())


def _of_day(
    day: str,
    samples: list[RunSample],
    chart_of: Callable[[Sequence[RunSample], Outcome], RateChart | None],
) -> dict[str, Any]:
    from pe_triage.watch.alarms import RATED

    latencies = [s.latency_s for s in samples if s.latency_s is not None]
    entropies = [s.attention_entropy for s in samples if s.attention_entropy is not None]
    words = [str(s.outcome) if s.outcome else str(s.state) for s in samples]
    return {
        "day": day,
        "studies": len(samples),
        **{word: words.count(word) for word in sorted(set(words))},
        "median_latency_s": statistics.median(latencies) if latencies else None,
        "mean_attention_entropy": statistics.fmean(entropies) if entropies else None,
        "outside": [
            word
            for word in RATED
            if (chart := chart_of(samples, word)) is not None and chart.outside
        ],
    }


COLUMNS = ("POSITIVE", "NEGATIVE", "INDETERMINATE", "NOT_EVALUATED", "FAILED")


def _text(document: dict[str, Any]) -> str:
    lines = ["chart               value    usual    from       to"]
    for name, chart in document["charts"].items():
        if chart is None:
            have, wanted = document["baseline"]["studies"], document["baseline"]["wanted"]
            lines.append(f"{name:<18}  too few studies yet (baseline: {have} of {wanted})")
            continue
        mark = "  OUTSIDE" if chart["outside"] else ""
        numbers = "  ".join(f"{chart[k]:7.3f}" for k in ("value", "expected", "low", "high"))
        lines.append(f"{name:<18}  {numbers}{mark}")
    lines += ["", "day         studies  " + "  ".join(f"{c:>13}" for c in COLUMNS) + "  latency s"]
    for day in document["days"]:
        latency = day["median_latency_s"]
        counts = "  ".join(f"{day.get(c, 0):>13}" for c in COLUMNS)
        lines.append(
            f"{day['day']}  {day['studies']:>7}  {counts}  "
            f"{'-' if latency is None else f'{latency:.0f}':>9}"
            + "".join(f"  {word} OUTSIDE" for word in day["outside"])
        )
    lines.append("")
    lines += [
        f"ALARM {a['alarm']}{' ' + a['subject'] if a['subject'] else ''}: {a['message']}"
        for a in document["alarms"]
    ] or ["no alarm stands"]
    return "\n".join(lines)
