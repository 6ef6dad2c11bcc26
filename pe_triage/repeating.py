"""Something that is done again and again beside a block, such as saying that a process lives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Turn = Callable[[], float | None]
"""One turn; seconds until the next, or None: no more."""


@contextmanager
def repeating(
    turn: Turn, first_s: float, *, name: str, join_s: float | None = None
) -> Iterator[None]:
    """Call `turn` from a thread of its own while the block runs.

    Parameters
    ----------
    turn
        Must not raise.
    first_s
        Seconds until the first turn.
    name
        Of the thread.
    join_s
        How long the end of the block waits for a turn under way; None: until it has ended.
    """
    ended = threading.Event()

    def run() -> None:
        wait_s: float | None = first_s
        while wait_s is not None and not ended.wait(wait_s):
            wait_s = turn()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(join_s)
