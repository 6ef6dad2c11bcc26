"""What is checked and prepared before a node starts, so that a mistake stops it in one line.

Everything here runs in the supervisor, which never imports torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Engine

from pe_triage.config import Settings
from pe_triage.errors import ConfigurationError, InputError, SchemaError
from pe_triage.logs import get_logger
from pe_triage.receive.spool import last_touched_at
from pe_triage.resources import demonstration_bundle
from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import check_schema, upgrade
from pe_triage.store.newest import newest_at

DEVICE_CHECK_S = 120.0
CLOCK_SLACK = timedelta(minutes=5)
"""By so much the clocks of several hosts, or of one before and after NTP, may differ."""
BACKLOG = 128
"""Connections that wait in the listening socket while a receiver is started again."""


def check_bundle(settings: Settings) -> None:
    """Card and weights digest, without torch: a wrong bundle must stop the start, not a worker."""
    from pe_triage.model.bundle import verify_weights
    from pe_triage.model.card import read_card

    path = settings.model or demonstration_bundle()
    verify_weights(path, read_card(path))


_DEVICE_CHECK = """
import sys
from pe_triage.errors import ConfigurationError
from pe_triage.infer.choice import choose_runtime
try:
    choose_runtime(sys.argv[2], sys.argv[1])
except ConfigurationError as error:
    print(error)
    sys.exit(2)
"""


def check_device(device: str, runtime: str = "auto") -> None:
    """Refuse a device or a runtime that is not here, asking torch in a process of its own.

    A node that took images in and whose workers then died one after another would look alive.
    """
    if device in ("auto", "cpu") and runtime in ("auto", "pytorch"):
        return
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _DEVICE_CHECK, device, runtime],
            capture_output=True, text=True, timeout=DEVICE_CHECK_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"device: {device} does not answer within {DEVICE_CHECK_S:g} s") from None
    if asked.returncode != 0:
        lines = asked.stdout.strip().splitlines()
        raise ConfigurationError(lines[-1] if lines else f"device: {device} cannot be used")


def prepare_database(settings: Settings) -> None:
    """Migrate the embedded database; refuse any other that is empty, outdated or newer."""
    if settings.embedded_database:
        upgrade(settings.database_url)
    engine = open_engine(settings.database_url)
    try:
        check_schema(engine)
    except SchemaError as error:
        raise InputError(f"{error}") from None
    finally:
        engine.dispose()


@contextlib.contextmanager
def hold_data_dir(settings: Settings) -> Iterator[IO[str]]:
    """Hold the data directory: two nodes on one spool would index each other's instances."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(settings.data_dir)
        file = (settings.data_dir / "serve.lock").open("a+")
    except OSError as error:
        raise InputError(
            f"cannot write to data directory {settings.data_dir}: {error.strerror}"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another pe-triage node is running on data directory {settings.data_dir}"
            ) from None
        yield file


def _close_to_others(data_dir: Path) -> None:
    """Keep other users of the machine out of a directory that is ours, made by us or found."""
    status = data_dir.stat()
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        data_dir.chmod(0o700)
        get_logger().warning("node.data_dir_closed", data_dir=str(data_dir))


def node_id_of(data_dir: Path) -> str:
    """Name of this node, made once: leases of an earlier life are recognised by it."""
    path = data_dir / "node-id"
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        text = ""
    if not text:
        text = f"node-{uuid.uuid4().hex[:12]}"
        path.write_text(f"{text}\n", encoding="ascii")
    return text


def open_listener(host: str, port: int) -> socket.socket:
    """Bind and listen; children inherit the socket, so that their death drops no connection."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(f"--host {host}: {error.strerror}") from None
    listener = socket.socket(family, kind, proto)
    # Connections of an earlier life in TIME_WAIT must not keep a restarted node off its port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def warn_if_clock_behind(settings: Settings, engine: Engine, now: datetime) -> None:
    """Say loudly that the clock shows a time before what was written down earlier.

    A step while a node runs is noticed as such; one before it starts only so. A clock that is
    ahead cannot be told from a long rest: `node.retention` waits a day before it believes it.
    """
    known = (newest_at(engine), last_touched_at(settings.spool_dir))
    newest = max((at for at in known if at is not None), default=None)
    if newest is None or newest - now <= CLOCK_SLACK:
        return
    get_logger().error(
        "clock.behind_records",
        now=now.isoformat(),
        newest=newest.isoformat(),
        hours=round((newest - now).total_seconds() / 3600.0, 1),
        message="this machine's clock is wrong, or was ahead when that was written: set it and "
        "keep it by NTP",
    )


def warn_if_open(settings: Settings, log: Any) -> None:
    """Say loudly what is not protected."""
    from pe_triage.node.roads import unprotected

    for name in unprotected(settings.destinations):
        log.warning("destination.unencrypted", destination=name)
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        return
    if settings.insecure:
        log.warning(
            "node.insecure",
            message="every calling AE from any address is accepted, without encryption",
        )
    elif not settings.accept_from:
        log.warning(
            "node.loopback_only",
            message="no --accept-from is given: only peers on loopback are accepted",
        )
    else:
        log.warning(
            "node.unencrypted",
            message="AE titles are no authentication and the network is not encrypted (no TLS)",
        )
