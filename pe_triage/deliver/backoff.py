"""When to try a delivery again: pure arithmetic."""

from __future__ import annotations

GIVE_UP_AFTER_S = 7 * 24 * 3600.0
FIRST_DELAY_S = 2.0
MAX_DELAY_S = 600.0
_JITTER = 0.2


def next_attempt_s(attempts: int, age_s: float, *, jitter: float = 0.5) -> float | None:
    """Seconds to wait before the next attempt, doubling from 2 s up to 10 min.

    Parameters
    ----------
    attempts
        Failed attempts so far, at least 1.
    age_s
        Seconds since the delivery was first queued.
    jitter
        From 0 to 1, drawn by the caller: spreads the delay by ±20 %, so that deliveries that
        failed together do not come back together.

    Returns
    -------
    float or None
        None when it is time to give up (7 days): the delivery is parked.
    """
    if age_s >= GIVE_UP_AFTER_S:
        return None
    doublings = min(max(attempts, 1) - 1, 32)
    delay_s: float = min(FIRST_DELAY_S * 2.0**doublings, MAX_DELAY_S)
    return delay_s * (1.0 - _JITTER + 2.0 * _JITTER * jitter)
