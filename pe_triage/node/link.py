"""The line between the supervisor and one of its processes.

A child learns two things from its end of the pipe: that it should stop, and that its supervisor is
gone. The second must not be missed: a worker that outlives a killed supervisor would go on
working beside the one that the next start brings. The kernel closes a dead process's pipes, so the
end of the stream is the sign, on every platform.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection

STOP = "stop"
READY = "ready"


class ChildLink:
    """A child's end of the pipe.

    Parameters
    ----------
    connection
        The child's end, as inherited at start.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.stop = threading.Event()
        """Set when the process should finish what it is doing and return."""

    def start(self) -> None:
        """Listen to the supervisor; take over the signals.

        SIGINT reaches a whole foreground process group and is the supervisor's to answer; SIGTERM
        may come from a service manager that signals every process of the service.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def ready(self) -> None:
        """Tell the supervisor that this process can do its work."""
        self._connection.send(READY)

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                # Nothing here needs a clean end: the spool and the database are crash-safe.
                os._exit(70)
            if message == STOP:
                self.stop.set()
