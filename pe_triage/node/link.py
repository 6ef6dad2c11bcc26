"""The line between the supervisor and one of its processes.

A child says that it is ready and, every few seconds, that its main loop goes round; and it learns
two things from its end of the pipe: that it should stop, and that its supervisor is
gone. The second must not be missed: a worker that outlives a killed supervisor would go on
working beside the one that the next start brings. The kernel closes a dead process's pipes, so the
end of the stream is the sign, on every platform.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from multiprocessing.connection import Connection

from pe_triage.health import Beats

STOP = "stop"
READY = "ready"
TURNED = "turned"


class ChildLink:
    """A child's end of the pipe.

    Parameters
    ----------
    connection
        The child's end, as inherited at start.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self.turned = Beats(self._tell_turned)
        """To be called each time that the process's main loop goes round."""
        self.stop = threading.Event()
        """Set when the process should finish what it is doing and return."""

    def start(self) -> None:
        """Listen to the supervisor; leave the signals to it.

        A terminal sends SIGINT to the whole foreground process group and a service manager SIGTERM
        to every process of the service, but only the supervisor knows the order of the end: what
        the receivers take in last is still to be indexed and what a worker finishes to be sent.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def ready(self) -> None:
        """Tell the supervisor that this process can do its work."""
        with self._sending:
            self._connection.send(READY)

    def _tell_turned(self) -> None:
        # A supervisor that is gone is noticed by the lifeline, not here.
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(TURNED)

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                # Nothing here needs a clean end: the spool and the database are crash-safe.
                os._exit(70)
            if message == STOP:
                self.stop.set()
