"""Which process of a node is which, seen from outside."""

from __future__ import annotations

from pathlib import Path

import psutil


def role_of(process: psutil.Process, supervisor: psutil.Process) -> str:
    """Role of a node's process, by its command, what it has open and what it has loaded."""
    if process == supervisor:
        return "supervisor"
    if "resource_tracker" in " ".join(process.cmdline()):
        return "tracker"
    if any(c.status == psutil.CONN_LISTEN for c in process.net_connections(kind="tcp")):
        return "receiver"
    libraries = {Path(m.path).name for m in process.memory_maps()}
    heavy = any(name.startswith("libtorch_cpu") for name in libraries)
    return "worker" if heavy else "coordinator"


def roles_of(supervisor_pid: int) -> dict[str, list[psutil.Process]]:
    """Processes of a node by their roles."""
    supervisor = psutil.Process(supervisor_pid)
    found: dict[str, list[psutil.Process]] = {}
    for process in (supervisor, *supervisor.children(recursive=True)):
        found.setdefault(role_of(process, supervisor), []).append(process)
    return found
