"""What the node says of itself to Prometheus, as text for the node exporter's textfile collector.

Exposition format 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/. A file needs
no port and no secret, and what reads it is on most hospital servers already. No patient, no study.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pe_triage.watch.alarms import Charts
from pe_triage.watch.samples import Situation

PREFIX = "pe_triage_"

HELP: Mapping[str, str] = {
    "look_timestamp_seconds": "When this file was written.",
    "alarm": "1 for each alarm that stands.",
    "studies_of_a_day": "Studies of the last 24 h by state.",
    "jobs": "Runs that have not ended, by state.",
    "queue_longest_wait_seconds": "Longest wait of a run that could be claimed.",
    "since_answer_seconds": "Seconds since a run last ended with an answer.",
    "since_study_seconds": "Seconds since a new study came.",
    "not_indexed_instances": "Acknowledged instances that are not in the database yet.",
    "quarantined_objects": "Objects set aside that await a decision.",
    "failed_studies": "Studies whose newest run failed within a day.",
    "deliveries": "Results that a destination has not taken, by state.",
    "delivery_oldest_seconds": "Age of the oldest result that waits for a destination.",
    "rate": "Share of the outcome in the sliding window.",
    "rate_limit": "Limits of that share.",
    "latency_seconds": "Moving average from complete study to last delivery.",
    "latency_limit_seconds": "Upper limit of it.",
    "attention_entropy": "Moving average of the attention's entropy (0 to 1).",
    "attention_entropy_limit": "Limits of it.",
    "reconciliation_studies": "Studies of the last compared day, by verdict.",
}
"""Name to its line of help; all are gauges."""

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """One sample."""

    name: str
    value: float
    labels: Labels


def exposition(gauges: Iterable[Gauge]) -> str:
    """Text of all gauges, grouped by name in the order of `HELP`."""
    by_name: dict[str, list[Gauge]] = {}
    for gauge in gauges:
        by_name.setdefault(gauge.name, []).append(gauge)
    lines: list[str] = []
    for name, words in HELP.items():
        if name not in by_name:
            continue
        lines += [f"# HELP {PREFIX}{name} {words}", f"# TYPE {PREFIX}{name} gauge"]
        lines += [f"{PREFIX}{name}{_labels(g.labels)} {_number(g.value)}" for g in by_name[name]]
    return "\n".join(lines) + "\n"


def gauges(
    *,
    now: datetime,
    situation: Situation,
    charts: Charts,
    alarms: Sequence[tuple[str, str]],
    reconciliation: Mapping[str, int] | None = None,
) -> list[Gauge]:
    """Every gauge of one look; what is not known is left out.

    Parameters
    ----------
    alarms
        (name, subject) of each that stands.
    reconciliation
        Verdict to studies, of the last comparison.
    """
    found = [_gauge("look_timestamp_seconds", now.timestamp())]
    found += [_gauge("alarm", 1, alarm=name, subject=subject) for name, subject in alarms]
    found += [
        _gauge("studies_of_a_day", count, state=state)
        for state, count in sorted(situation.states.items())
    ]
    found += [
        _gauge("jobs", situation.queued, state="QUEUED"),
        _gauge("jobs", situation.running, state="RUNNING"),
        _gauge("queue_longest_wait_seconds", situation.longest_wait_s or 0.0),
        _gauge("not_indexed_instances", situation.not_indexed),
        _gauge("quarantined_objects", situation.quarantined),
        _gauge("failed_studies", situation.failed),
    ]
    for name, seconds in (
        ("since_answer_seconds", situation.since_answer_s),
        ("since_study_seconds", situation.since_came_s),
    ):
        if seconds is not None:
            found.append(_gauge(name, seconds))
    for waiting in situation.waiting:
        to = waiting.destination
        found += [
            _gauge("deliveries", waiting.pending, destination=to, state="PENDING"),
            _gauge("deliveries", waiting.parked, destination=to, state="PARKED"),
            _gauge("delivery_oldest_seconds", waiting.oldest_s, destination=to),
        ]
    found += _of_charts(charts)
    for verdict, count in sorted((reconciliation or {}).items()):
        found.append(_gauge("reconciliation_studies", count, verdict=verdict))
    return found


def _of_charts(charts: Charts) -> list[Gauge]:
    found: list[Gauge] = []
    for outcome, chart in (
        ("POSITIVE", charts.positive),
        ("NOT_EVALUATED", charts.not_evaluated),
        ("INDETERMINATE", charts.indeterminate),
    ):
        if chart is not None:
            found += [
                _gauge("rate", chart.rate, outcome=outcome),
                _gauge("rate_limit", chart.low / chart.studies, outcome=outcome, limit="low"),
                _gauge("rate_limit", chart.high / chart.studies, outcome=outcome, limit="high"),
            ]
    if charts.latency is not None:
        found += [
            _gauge("latency_seconds", math.exp(charts.latency.value)),
            _gauge("latency_limit_seconds", math.exp(charts.latency.high)),
        ]
    entropy = charts.attention_entropy
    if entropy is not None:
        found += [
            _gauge("attention_entropy", entropy.value),
            _gauge("attention_entropy_limit", entropy.low, limit="low"),
            _gauge("attention_entropy_limit", entropy.high, limit="high"),
        ]
    return found


def _gauge(name: str, value: float, **labels: str) -> Gauge:
    return Gauge(name=name, value=float(value), labels=labels)


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{k}="{v.translate(_ESCAPES)}"' for k, v in labels.items())
    return f"{{{inside}}}"


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
