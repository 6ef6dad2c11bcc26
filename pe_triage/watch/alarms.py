"""Which alarms stand: a table of rules, each a pure function of what is known.

An alarm's message is one line for the person who is called: what was seen, against what, and never
anything of a patient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pe_triage.domain import Outcome
from pe_triage.monitoring import WatchTable
from pe_triage.watch.charts import RateChart, ValueChart, rate_chart, value_chart
from pe_triage.watch.samples import History, RunSample, Situation

LEAST_VALUES = 10
"""Values after the baseline before a moving average is judged."""
LEAST_LATENCY_S = 0.1
"""Shorter ones are counted as this: their logarithm means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One alarm that stands.

    Attributes
    ----------
    name
        Stable word, the event of the log too.
    subject
        What it is about, where one name can stand for several; else empty.
    """

    name: str
    message: str
    subject: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """Every chart that can be drawn; None where too little is known yet."""

    positive: RateChart | None = None
    not_evaluated: RateChart | None = None
    indeterminate: RateChart | None = None
    latency: ValueChart | None = None
    """Of the natural logarithm of seconds."""
    attention_entropy: ValueChart | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a rule may look at."""

    settings: WatchTable
    history: History
    situation: Situation
    charts: Charts


def draw(history: History, settings: WatchTable) -> Charts:
    """Every chart of a history."""
    return Charts(
        positive=_rate(history, settings, Outcome.POSITIVE),
        not_evaluated=_rate(history, settings, Outcome.NOT_EVALUATED),
        indeterminate=_rate(history, settings, Outcome.INDETERMINATE),
        latency=_value(history, _log_latency),
        attention_entropy=_value(history, lambda sample: sample.attention_entropy),
    )


def judge(history: History, situation: Situation, settings: WatchTable) -> tuple[Finding, ...]:
    """All alarms that stand, in the order of `RULES`."""
    view = View(
        settings=settings, history=history, situation=situation, charts=draw(history, settings)
    )
    return tuple(finding for rule in RULES for finding in rule(view))


def day_chart(
    samples: Sequence[RunSample], history: History, settings: WatchTable, outcome: Outcome
) -> RateChart | None:
    """Chart of one day's answered studies; None without any, or before there is a baseline."""
    count, expected = _counting(outcome), RATED[outcome](settings)
    day, before = answered(samples), answered(history.baseline)
    if not day or (expected is None and (len(history.baseline) < history.wanted or not before)):
        return None
    baseline = (sum(map(count, before)), len(before)) if before else None
    return rate_chart(sum(map(count, day)), len(day), baseline=baseline, expected=expected)


RATED: Mapping[Outcome, Callable[[WatchTable], float | None]] = {
    Outcome.POSITIVE: lambda settings: settings.positive_rate,
    Outcome.NOT_EVALUATED: lambda settings: settings.not_evaluated_rate,
    Outcome.INDETERMINATE: lambda settings: settings.indeterminate_rate,
}
"""Outcomes whose share has a chart, and the share that a person has stated."""


def _counting(outcome: Outcome) -> Callable[[RunSample], bool]:
    return lambda sample: sample.outcome is outcome


def _log_latency(sample: RunSample) -> float | None:
    if sample.latency_s is None:
        return None
    return math.log(max(LEAST_LATENCY_S, sample.latency_s))


def answered(samples: Sequence[RunSample]) -> list[RunSample]:
    """Those that gave an answer; a run that FAILED is neither positive nor refused."""
    return [s for s in samples if s.outcome is not None]


def _rate(
    history: History,
    settings: WatchTable,
    outcome: Outcome,
) -> RateChart | None:
    counts, expected = _counting(outcome), RATED[outcome](settings)
    if expected is not None:
        window = answered(history.latest)[-settings.window :]
        if len(window) < settings.window:
            return None
        return rate_chart(sum(map(counts, window)), len(window), expected=expected)
    window = answered(history.recent)[-settings.window :]
    before = answered(history.baseline)
    if len(history.baseline) < history.wanted or len(window) < settings.window or not before:
        return None
    return rate_chart(
        sum(map(counts, window)), len(window), baseline=(sum(map(counts, before)), len(before))
    )


def _value(history: History, value: Callable[[RunSample], float | None]) -> ValueChart | None:
    if len(history.baseline) < history.wanted:
        return None
    before = [v for s in history.baseline if (v := value(s)) is not None]
    after = [v for s in history.recent if (v := value(s)) is not None]
    # Half a baseline of values is asked for: many studies may rightly have none.
    if len(before) < max(10, history.wanted // 2) or len(after) < LEAST_VALUES:
        return None
    return value_chart(before, after)


# ------------------------------------------------------------------ rules


def _positive_rate(view: View) -> Iterator[Finding]:
    yield from _rate_finding("watch.positive_rate", "POSITIVE", view.charts.positive)


def _not_evaluated_rate(view: View) -> Iterator[Finding]:
    yield from _rate_finding("watch.not_evaluated_rate", "NOT_EVALUATED", view.charts.not_evaluated)


def _indeterminate_rate(view: View) -> Iterator[Finding]:
    yield from _rate_finding("watch.indeterminate_rate", "INDETERMINATE", view.charts.indeterminate)


def _rate_finding(name: str, word: str, chart: RateChart | None) -> Iterator[Finding]:
    if chart is None or not chart.outside:
        return
    yield Finding(
        name=name,
        message=f"{chart.count} of the last {chart.studies} studies are {word}; usual here are "
        f"{chart.low} to {chart.high} ({chart.expected:.1%})",
        facts={
            "count": chart.count,
            "studies": chart.studies,
            "expected": round(chart.expected, 4),
            "low": chart.low,
            "high": chart.high,
        },
    )


def _latency(view: View) -> Iterator[Finding]:
    chart = view.charts.latency
    # Faster than ever is no alarm.
    if chart is None or chart.value <= chart.high:
        return
    now, usual, high = (math.exp(v) for v in (chart.value, chart.expected, chart.high))
    yield Finding(
        name="watch.latency",
        message=f"results take {now:.0f} s from complete study to last delivery (moving average); "
        f"usual here are {usual:.0f} s, at most {high:.0f} s",
        facts={"seconds": round(now, 3), "expected_s": round(usual, 3), "high_s": round(high, 3)},
    )


def _attention_entropy(view: View) -> Iterator[Finding]:
    chart = view.charts.attention_entropy
    if chart is None or not chart.outside:
        return
    yield Finding(
        name="watch.attention_entropy",
        message=f"the network's attention is spread as {chart.value:.3f} over the slices (moving "
        f"average); usual here are {chart.low:.3f} to {chart.high:.3f}",
        facts={
            "value": round(chart.value, 4),
            "expected": round(chart.expected, 4),
            "low": round(chart.low, 4),
            "high": round(chart.high, 4),
        },
    )


def _constant_output(view: View) -> Iterator[Finding]:
    wanted = view.settings.constant_studies
    said = [s.pe_probability for s in view.history.latest if s.pe_probability is not None]
    newest = said[-wanted:]
    if len(newest) < wanted or len({round(value, 6) for value in newest}) > 1:
        return
    yield Finding(
        name="watch.constant_output",
        message=f"the last {wanted} studies all have the probability {newest[-1]:.6f}: is the "
        "model, or what is shown to it, broken?",
        facts={"studies": wanted, "pe_probability": round(newest[-1], 6)},
    )


def _no_answer(view: View) -> Iterator[Finding]:
    now, limit_s = view.situation, view.settings.absent_s
    if not now.unanswered or (now.since_answer_s is not None and now.since_answer_s <= limit_s):
        return
    yield Finding(
        name="watch.no_answer",
        message=f"{now.unanswered} studies came more than {limit_s / 3600:.3g} h ago and are not "
        "answered, nor was any other since",
        facts={"unanswered": now.unanswered, "seconds": limit_s},
    )


def _stuck(view: View) -> Iterator[Finding]:
    now, limit_s = view.situation, view.settings.absent_s
    if not now.unanswered or now.since_answer_s is None or now.since_answer_s > limit_s:
        # Where nothing is answered at all, `watch.no_answer` says so.
        return
    yield Finding(
        name="watch.stuck",
        message=f"{now.unanswered} studies have waited for their answer for more than "
        f"{limit_s / 3600:.3g} h, though others got theirs: pe-triage studies",
        facts={"studies": now.unanswered, "seconds": limit_s},
    )


def _not_indexed(view: View) -> Iterator[Finding]:
    now, limit_s = view.situation, view.settings.stalled_s
    if not now.not_indexed or now.not_indexed_s <= limit_s:
        return
    yield Finding(
        name="watch.not_indexed",
        message=f"{now.not_indexed} acknowledged instances, the first of {now.not_indexed_s:.0f} s "
        "ago, are not in the database yet",
        facts={"instances": now.not_indexed, "oldest_s": round(now.not_indexed_s)},
    )


def _stalled(view: View) -> Iterator[Finding]:
    now, limit_s = view.situation, view.settings.stalled_s
    if now.longest_wait_s is None or now.longest_wait_s <= limit_s:
        return
    # A long queue that is worked off is slow, not stalled.
    if now.since_ended_s is not None and now.since_ended_s <= limit_s:
        return
    yield Finding(
        name="queue.stalled",
        message=f"{now.queued} runs wait, the first for {now.longest_wait_s:.0f} s, and none has "
        f"ended in {limit_s:.0f} s: is a worker running?",
        facts={
            "queued": now.queued,
            "running": now.running,
            "longest_wait_s": round(now.longest_wait_s),
        },
    )


def _undelivered(view: View) -> Iterator[Finding]:
    limit_s = view.settings.undelivered_s
    for waiting in view.situation.waiting:
        taken_s = waiting.since_taken_s
        if (
            waiting.pending
            and waiting.oldest_s > limit_s
            and (taken_s is None or taken_s > limit_s)
        ):
            yield Finding(
                name="watch.no_delivery",
                subject=waiting.destination,
                message=f"{waiting.pending} results wait for {waiting.destination}, which has "
                f"taken none in {limit_s / 3600:.3g} h",
                facts={"pending": waiting.pending, "oldest_s": round(waiting.oldest_s)},
            )


def _parked(view: View) -> Iterator[Finding]:
    for waiting in view.situation.waiting:
        if waiting.parked:
            yield Finding(
                name="watch.parked",
                subject=waiting.destination,
                message=f"{waiting.parked} results for {waiting.destination} are parked until a "
                "person looks: pe-triage deliveries list",
                facts={"parked": waiting.parked},
            )


def _uncommitted(view: View) -> Iterator[Finding]:
    for item in view.situation.uncommitted:
        yield Finding(
            name="watch.not_committed",
            subject=item.destination,
            message=f"{item.objects} results that {item.destination} took up to "
            f"{item.oldest_s / 3600:.3g} h ago are not committed to yet",
            facts={"objects": item.objects, "oldest_s": round(item.oldest_s)},
        )


def _unheard(view: View) -> Iterator[Finding]:
    if view.situation.unheard:
        yield Finding(
            name="watch.commitment_unheard",
            message=f"{view.situation.unheard} answers to requests for storage commitment were "
            "never taken by who asked",
            facts={"requests": view.situation.unheard},
        )


def _silent(view: View) -> Iterator[Finding]:
    limit_s, since_s = view.settings.silent_s, view.situation.since_came_s
    if limit_s <= 0 or since_s is None or since_s <= limit_s:
        return
    yield Finding(
        name="watch.no_study",
        message=f"no study has come for {since_s / 3600:.3g} h: does the scanner still send?",
        facts={"seconds": round(since_s)},
    )


def _failed(view: View) -> Iterator[Finding]:
    if view.situation.failed:
        yield Finding(
            name="watch.failed",
            message=f"{view.situation.failed} studies of the last day could not be analysed at "
            "all: pe-triage studies",
            facts={"studies": view.situation.failed},
        )


def _quarantined(view: View) -> Iterator[Finding]:
    if view.situation.quarantined:
        yield Finding(
            name="watch.quarantine",
            message=f"{view.situation.quarantined} objects were set aside and await a decision: "
            "pe-triage quarantine list",
            facts={"objects": view.situation.quarantined},
        )


RULES: tuple[Callable[[View], Iterator[Finding]], ...] = (
    _constant_output,
    _no_answer,
    _stuck,
    _not_indexed,
    _stalled,
    _undelivered,
    _parked,
    _uncommitted,
    _unheard,
    _failed,
    _quarantined,
    _silent,
    _positive_rate,
    _not_evaluated_rate,
    _indeterminate_rate,
    _latency,
    _attention_entropy,
)

SPACE_ALARM = "watch.space"
"""Raised by what removes files, when there is nothing more that may go."""

NAMES: Mapping[str, str] = {
    "watch.constant_output": "the same probability to 6 digits in many studies running",
    "watch.no_answer": "studies came and none was answered",
    "watch.stuck": "a study waits for hours, or its analysis hangs, while others are answered",
    "watch.not_indexed": "acknowledged instances do not reach the database",
    "queue.stalled": "runs wait and none ends",
    "watch.no_delivery": "a destination takes nothing while results wait for it",
    "watch.parked": "results that will not be sent before a person has looked",
    "watch.not_committed": "results to which a destination has not committed in time",
    "watch.commitment_unheard": "answers on storage commitment that a scanner never took",
    "watch.failed": "studies whose analysis failed within a day",
    "watch.quarantine": "objects that were set aside",
    SPACE_ALARM: "the disk fills up, and nothing more may be removed",
    "watch.no_study": "no study has come for a long time",
    "watch.positive_rate": "more or fewer POSITIVE studies than usual",
    "watch.not_evaluated_rate": "more or fewer NOT_EVALUATED studies than usual",
    "watch.indeterminate_rate": "more or fewer INDETERMINATE studies than usual",
    "watch.latency": "results take longer than usual",
    "watch.attention_entropy": "attention is spread over the slices in an unusual way",
    "watch.reconciliation": "studies of a day that the PACS has are missing here, or unanswered",
    "watch.reconciliation_failed": "the daily comparison with the PACS could not be made",
}
"""Every alarm there is, in words; the last two are raised by the daily comparison."""
