"""When a study is complete: several positive signs may say so early, quiet time says so at last.

Nobody states the end of a study, so each sign is a row of a table and the decision names the one
that closed. A study that grows after its result is analysed again as a superseding run; closing
early costs a second run, never a lost image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from pe_triage.assemble.geometry import SeriesGeometry
from pe_triage.domain import EligibilityVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletenessRules:
    """How long to wait, in seconds.

    Attributes
    ----------
    quiet_s
        Last resort: nothing new for this long ends a study.
    grace_s
        Time after the last instance before positive signs count: senders that open one association
        for each image come back within it.
    max_wait_s
        A study is closed this long after its first instance whatever else holds, so that it ends
        visibly.
    min_coverage_mm
        Length of the chest that the best series must cover for an early end.
    expected_wait_s
        Takes the place of a shorter `quiet_s` where more instances are expected than have come.
    """

    quiet_s: float = 60.0
    grace_s: float = 2.0
    max_wait_s: float = 3600.0
    min_coverage_mm: float = 140.0
    expected_wait_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesProgress:
    """One series of a study that is arriving."""

    verdict: EligibilityVerdict
    geometry: SeriesGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyProgress:
    """What is known of a study while it arrives.

    Attributes
    ----------
    instances
        Instances held.
    first_instance_at, last_instance_at
        Aware times of reception. An identical instance that is sent again moves the last one, for
        its sender is still at work, and never the first.
    open_associations
        Associations open now that contributed to the study, or come from a sender that did.
    all_released
        Every association that contributed has ended, by release and not by abort.
    broken_off
        An association that contributed was aborted, and its sender has brought nothing of the study
        since. An abort after the last image looks the same as one before it (PS3.8 Section 7.3
        lets data be lost by it), so nothing but a count can show that such a study is whole.
    series
        Each series' verdict and geometry so far.
    expected_instances
        Number of Study Related Instances as the sender or the PACS states it; None if unknown.
    """

    instances: int
    first_instance_at: datetime
    last_instance_at: datetime
    open_associations: int
    all_released: bool
    broken_off: bool = False
    series: tuple[SeriesProgress, ...] = ()
    expected_instances: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """Whether a study is complete, and by which sign.

    Attributes
    ----------
    sign
        ``expected_count``, ``released_and_contiguous``, ``quiet``, ``broken_off`` (quiet after an
        abort), ``max_wait``, ``clock_set_back``; ``none`` while the study is open.
    reason
        What is there, or what is waited for.
    check_again_s
        Seconds after which time alone may change the answer; None when complete. An instance that
        arrives, or an association that ends, is a reason to ask earlier.
    """

    complete: bool
    sign: str
    reason: str
    check_again_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clock:
    """Seconds passed; never negative, whatever the clock did meanwhile."""

    set_back: bool

    since_first_s: float
    since_last_s: float


Holds = Callable[[StudyProgress, CompletenessRules], str | None]
"""What is still missing for an early sign; None when all of it is there."""


def _count_missing(progress: StudyProgress, _rules: CompletenessRules) -> str | None:
    expected = progress.expected_instances
    if expected is None or expected < 1:
        return "the number of instances is not known"
    if progress.instances < expected:
        return f"{progress.instances} of {expected} instances have arrived"
    return None


def _contiguity_missing(progress: StudyProgress, rules: CompletenessRules) -> str | None:
    if progress.open_associations:
        return f"{progress.open_associations} association(s) of the sender are still open"
    if not progress.all_released:
        return "an association ended without release"
    expected = progress.expected_instances
    if expected is not None and progress.instances < expected:
        return f"{progress.instances} of {expected} instances have arrived"
    best = max(
        (s for s in progress.series if s.verdict.eligible),
        key=lambda s: (s.verdict.preference, s.verdict.series_uid),
        default=None,
    )
    if best is None:
        return "no series is eligible yet"
    if not best.geometry.contiguous:
        return f"the slices are not contiguous yet: {len(best.geometry.gaps)} gap(s)"
    if best.geometry.coverage_mm < rules.min_coverage_mm:
        return f"the slices cover only {best.geometry.coverage_mm:.0f} mm so far"
    return None


EARLY_SIGNS: tuple[tuple[str, Holds, str], ...] = (
    ("expected_count", _count_missing, "all expected instances have arrived"),
    (
        "released_and_contiguous",
        _contiguity_missing,
        "every association was released and the best series covers the chest without a gap",
    ),
)
"""Name, what is missing for it, and what it means; each counts once the grace time has passed."""


FORCED: Mapping[str, str] = {
    "broken_off": "the sender broke off (its association was aborted, not released) and did not go "
    "on: images may be missing",
    "max_wait": "closed at the time limit, while images may still have been on their way",
    "clock_set_back": "closed because the clock was set back, while images may still have been on "
    "their way",
}
"""Signs by which a study is closed though nothing says that it is whole, and what a reader is told:
it takes a negative answer its certainty."""


def judge_completeness(
    progress: StudyProgress,
    rules: CompletenessRules,
    now: datetime,
    *,
    clock_at: datetime | None = None,
) -> Completeness:
    """Decide whether a study is complete.

    Parameters
    ----------
    now
        Aware time up to which it is known what came.
    clock_at
        What the clock says, where that is later than `now` (what was acknowledged since may still
        lie in the journal). A clock that was set back a little makes the study wait as much longer;
        set back by more than the quiet time it closes the study, which would else wait unseen for
        hours: what comes later makes a superseding run.
    """
    set_back_s = (progress.last_instance_at - (clock_at or now)).total_seconds()
    clock = _Clock(
        set_back=set_back_s > rules.quiet_s,
        since_first_s=max(0.0, (now - progress.first_instance_at).total_seconds()),
        since_last_s=max(0.0, (now - progress.last_instance_at).total_seconds()),
    )
    if progress.instances < 1:
        return Completeness(
            complete=False,
            sign="none",
            reason="no instance has arrived",
            check_again_s=rules.quiet_s,
        )
    waiting: list[str] = []
    graced = False
    quiet_s = rules.quiet_s
    if progress.expected_instances is not None and progress.instances < progress.expected_instances:
        quiet_s = max(quiet_s, rules.expected_wait_s)
    for sign, missing_of, meaning in EARLY_SIGNS:
        missing = missing_of(progress, rules)
        if missing is not None:
            waiting.append(missing)
        elif clock.since_last_s >= rules.grace_s:
            return Completeness(complete=True, sign=sign, reason=meaning, check_again_s=None)
        else:
            graced = True
    if clock.set_back:
        reason = "the clock was set back behind the last instance"
        return Completeness(complete=True, sign="clock_set_back", reason=reason, check_again_s=None)
    if clock.since_last_s >= quiet_s:
        reason = f"nothing new for {quiet_s:g} s; {waiting[-1]}" if waiting else "quiet"
        sign = "broken_off" if progress.broken_off else "quiet"
        if progress.broken_off:
            reason += (
                "; its sender did not go on (one that always aborts, and never releases, gets no "
                "negative answer unless the PACS says that all has come)"
            )
        return Completeness(complete=True, sign=sign, reason=reason, check_again_s=None)
    if clock.since_first_s >= rules.max_wait_s:
        return Completeness(
            complete=True,
            sign="max_wait",
            reason=f"closed {rules.max_wait_s:g} s after the first instance"
            + (f"; {waiting[-1]}" if waiting else ""),
            check_again_s=None,
        )
    waits = [
        quiet_s - clock.since_last_s,
        rules.max_wait_s - clock.since_first_s,
        *([rules.grace_s - clock.since_last_s] if graced else []),
    ]
    return Completeness(
        complete=False,
        sign="none",
        reason="waiting out the grace time" if graced else waiting[-1],
        # Never zero: a timer that fires a moment early must not spin.
        check_again_s=max(0.01, min(waits)),
    )
