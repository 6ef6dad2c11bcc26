"""Which series is worth reading while its study still arrives, by the headers that have come.

Never a decision: what is read too early, or not early enough, costs time alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pe_triage.assemble.choice import choose_series
from pe_triage.assemble.eligibility import judge_series
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import ReceivedInstance

LEAST_SLICES = 8
"""Positions before anything is read: localizers and bolus tracking end below it."""


def worth_reading(
    by_series: Mapping[str, Sequence[ReceivedInstance]], rules: EligibilityRules
) -> tuple[str, ...]:
    """Series that a run would analyse if no other came, whatever is still missing of them.

    Parameters
    ----------
    by_series
        CT images so far, by Series Instance UID; none of them empty.

    Returns
    -------
    tuple of str
        Several where headers cannot tell them apart; empty where nothing is worth it yet.
    """
    verdicts = [judge_series(by_series[uid], rules, so_far=True) for uid in sorted(by_series)]
    choice = choose_series([v for v in verdicts if v.slices >= LEAST_SLICES])
    return choice.contenders if choice.series_uid is None else (choice.series_uid,)
