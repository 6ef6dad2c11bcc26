"""From the settings to what makes several hosts one node: one store, one that coordinates.

All of it holds for nodes on PostgreSQL. A node on its own SQLite file is alone by its lock.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from pe_triage.config import Settings
from pe_triage.errors import InputError
from pe_triage.logs import get_logger
from pe_triage.node.backup import STORE_ID
from pe_triage.node.leadership import LeaderGuard, Leadership
from pe_triage.node.link import ChildLink
from pe_triage.node.store_clock import StoreClock
from pe_triage.receive.lives import receiver_name
from pe_triage.receive.spool import Spool
from pe_triage.repeating import repeating
from pe_triage.store.leases import HOST, STORE, Leases, fact, settle_fact

HOST_LEASE_S = 20.0
"""A host that has not been heard of for so long is gone: its associations have ended."""
DEPOSED = 75
"""Exit code of a coordinator that another has replaced; it is started again, and waits."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the processes of one host are told of it; travels to them."""

    node_id: str
    store_id: str | None
    """None on SQLite."""

    def receiver(self, name: str) -> str:
        """Name under which a receiver is known in the spool."""
        return receiver_name(None if self.store_id is None else self.node_id, name)


# ------------------------------------------------------------------ one store


def enter_store(settings: Settings, engine: Engine) -> str | None:
    """See that the store is the database's own, or make it so; returns its id.

    A host whose mount is missing would take images in where no other host ever looks.

    Raises
    ------
    InputError
        The database belongs to another store.
    """
    if settings.embedded_database:
        return None
    found, known = _read_id(settings.store_dir), fact(engine, STORE)
    if known is None:
        known = settle_fact(engine, STORE, found or _make_id(settings.store_dir))
        found = _read_id(settings.store_dir)
    _compare(settings, found, known)
    return known


def check_store(settings: Settings, store_id: str | None) -> None:
    """See that the store is still there, as a process starts that writes into it.

    Raises
    ------
    InputError
        It is not: a mount that went away leaves an empty directory.
    """
    if store_id is not None:
        _compare(settings, _read_id(settings.store_dir), store_id)


def find_store(settings: Settings, engine: Engine) -> None:
    """See that a worker has the store of its database.

    Raises
    ------
    InputError
        It has another, or no node has used the database yet.
    """
    if settings.embedded_database:
        return
    known = fact(engine, STORE)
    if known is None:
        raise InputError("no node has used this database yet; start one with serve first")
    _compare(settings, _read_id(settings.store_dir), known)


def restore_store(settings: Settings, engine: Engine) -> None:
    """Mark the files of a restored node as those of its restored database."""
    if settings.embedded_database:
        return
    known = fact(engine, STORE)
    if known is not None and _read_id(settings.store_dir) != known:
        _write_id(settings.store_dir, known)


def _compare(settings: Settings, found: str | None, known: str) -> None:
    if found == known:
        return
    what = "holds no store" if found is None else "holds another store"
    raise InputError(
        f"{settings.store_dir} {what} than this database belongs to; is it mounted? "
        "All hosts on one database need the same shared_dir (docs/many-hosts.md)"
    )


def _read_id(store_dir: Path) -> str | None:
    try:
        return (store_dir / STORE_ID).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {store_dir / STORE_ID}: {error}") from None


def _make_id(store_dir: Path) -> str:
    """Write an id where there is none; of two hosts that do so at once, both get the first's."""
    return _write_id(store_dir, f"store-{uuid.uuid4().hex}", first_counts=True)


def _write_id(store_dir: Path, value: str, *, first_counts: bool = False) -> str:
    final = store_dir / STORE_ID
    temporary = store_dir / f"{STORE_ID}.{uuid.uuid4().hex}.tmp"
    try:
        store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with temporary.open("x", encoding="ascii") as file:
            file.write(f"{value}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            if first_counts:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, final)
            else:
                temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {final}: {error.strerror}") from None
    return _read_id(store_dir) or value


# ------------------------------------------------------------------ many hosts


@contextmanager
def living(
    settings: Settings, engine: Engine, node_id: str, stop: threading.Event
) -> Iterator[None]:
    """Say that this host lives while the block runs.

    Raises
    ------
    InputError
        Another host lives under the same node id: a data directory was copied.
    """
    if settings.embedded_database:
        yield
        return
    leases, name = Leases(engine), f"{HOST}{node_id}"
    machine = f"{node_id}/{socket.gethostname()}/"
    token = _take_host(leases, name, machine)
    log = get_logger()

    def renew() -> float | None:
        try:
            held = leases.renew(name, token, HOST_LEASE_S)
        except Exception as error:  # noqa: BLE001 - a database away for a moment
            log.warning("host.not_renewed", error=type(error).__name__)
            return HOST_LEASE_S / 4
        if not held:
            log.error("host.id_taken", message="another host runs under this node id")
            stop.set()
            return None
        return HOST_LEASE_S / 4

    try:
        with repeating(renew, HOST_LEASE_S / 4, name="host", join_s=HOST_LEASE_S):
            yield
    finally:
        with contextlib.suppress(Exception):
            leases.release(machine)


def _take_host(leases: Leases, name: str, machine: str) -> int:
    """Take the lease of a host, also over an earlier life on this machine, which is over."""
    until_s = time.monotonic() + HOST_LEASE_S + 5.0
    told = False
    while (token := leases.take(name, machine, HOST_LEASE_S, over=machine)) is None:
        if time.monotonic() > until_s:
            raise InputError(
                f"another host runs as {name.removeprefix(HOST)}: its data directory was copied; "
                "remove node-id from one of the two"
            )
        if not told:
            get_logger().info("host.waits", message="an earlier life of this node may still run")
        told = True
        time.sleep(1.0)
    return token


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a coordinator is given, alone or as the leader of several hosts."""

    leading: Callable[[], bool]
    guard: AbstractContextManager[object]
    clock: Callable[[], datetime]
    """By which the silence of a study is told."""
    living_boots: Callable[[], frozenset[str]]
    hosts: Callable[[], frozenset[str]] | None
    lag_s: float
    on_ready: Callable[[], None]


@contextmanager
def coordinating(
    settings: Settings,
    engine: Engine,
    spool: Spool,
    *,
    owner: str,
    link: ChildLink,
    clock: Callable[[], datetime],
) -> Iterator[Part | None]:
    """Wait until it is this process that coordinates; None where the node stops before that."""
    if settings.embedded_database:
        yield Part(
            leading=lambda: True,
            guard=threading.Lock(),
            clock=clock,
            living_boots=spool.lives.boots,
            hosts=None,
            lag_s=0.0,
            on_ready=link.ready,
        )
        return
    # Images are taken in from the first moment, whoever coordinates.
    link.ready()
    leases = Leases(engine)
    leadership = Leadership(leases, owner, on_deposed=lambda: os._exit(DEPOSED))
    if not leadership.take(link.stop):
        yield None
        return
    shared = settings.shared_dir is not None
    with leadership.running():
        yield Part(
            leading=leadership.holds,
            guard=LeaderGuard(leadership.holds),
            clock=StoreClock(spool.lives.now_s) if shared else clock,
            living_boots=partial(_living_boots, spool, leases),
            hosts=leases.living_hosts,
            lag_s=settings.shared_lag_s if shared else 0.0,
            on_ready=lambda: None,
        )


def _living_boots(spool: Spool, leases: Leases) -> frozenset[str]:
    return spool.lives.boots(leases.living_hosts())
