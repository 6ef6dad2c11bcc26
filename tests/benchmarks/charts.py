"""How often the control charts speak without a cause, and how soon with one (docs/watching.md).

Usage: PYTHONPATH=. python tests/benchmarks/charts.py
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

from pe_triage.watch.charts import ALPHA, beta_binomial, limits, value_chart

BASELINE, WINDOW = 100, 50


def first_alarm_of_rate(source: random.Random, usual: float, then: float, studies: int) -> int:
    """Study after the baseline at which the rate chart first speaks; 0: never.

    Where the rate changes, the window is full of usual studies before.
    """
    count = sum(source.random() < usual for _ in range(BASELINE))
    low, high = limits(beta_binomial(WINDOW, count + 0.5, BASELINE - count + 0.5), ALPHA)
    before = 0 if usual == then else WINDOW
    window = [source.random() < usual for _ in range(before)]
    for study in range(1, studies + 1):
        window = [*window, source.random() < then][-WINDOW:]
        if len(window) == WINDOW and not low <= sum(window) <= high:
            return study
    return 0


def first_alarm_of_value(source: random.Random, shift: float, studies: int) -> int:
    """Study after the baseline at which the moving average first speaks; 0: never."""
    baseline = [source.gauss(0, 1) for _ in range(BASELINE)]
    values: list[float] = []
    for study in range(1, studies + 1):
        values.append(source.gauss(shift, 1))
        if value_chart(baseline, values[-200:]).outside:
            return study
    return 0


def said(name: str, alarms: Iterator[int]) -> None:
    """Print the share of runs with an alarm, and its median place."""
    found = list(alarms)
    spoke = [n for n in found if n]
    median = statistics.median(spoke) if spoke else float("nan")
    print(f"{name:<44} {len(spoke) / len(found):6.1%}  median study {median:.0f}")


def main() -> None:
    """Print every case."""
    source = random.Random(1)
    for usual in (0.05, 0.15, 0.25):
        said(
            f"rate {usual:.0%}, unchanged, 1000 studies",
            (first_alarm_of_rate(source, usual, usual, 1000) for _ in range(200)),
        )
        for then in (0.0, 0.9):
            said(
                f"rate {usual:.0%} to {then:.0%}, 300 studies",
                (first_alarm_of_rate(source, usual, then, 300) for _ in range(100)),
            )
    for shift, studies in ((0.0, 1000), (0.5, 300), (1.0, 300), (2.0, 300)):
        said(
            f"average, shift {shift:g} sd, {studies} studies",
            (first_alarm_of_value(source, shift, studies) for _ in range(100)),
        )


if __name__ == "__main__":
    main()
