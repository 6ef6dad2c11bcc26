"""How many processors this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(
    *,
    membership: Path = Path("/proc/self/cgroup"),
    hierarchy: Path = Path("/sys/fs/cgroup"),
) -> int:
    """Cores that threads of this process can have at once, at least 1.

    Those of the machine that its affinity leaves it, and no more than the CPU limit of its
    container or service allows (``cpu.max`` of its control group and of those above, cgroups
    version 2). More threads than that use up the limit in a part of each period, and then nothing
    of the process runs for the rest of it.

    Parameters
    ----------
    membership, hierarchy
        Where the kernel says which control group this is, and what those hold.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    return max(1, min([cores, *map(int, _limits(membership, hierarchy))]))


def _limits(membership: Path, hierarchy: Path) -> list[float]:
    """CPU limits in cores, of the process's own control group and of those that it lies in."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    group = next((line[3:] for line in lines if line.startswith("0::/")), "/")
    found = []
    place = hierarchy / group.lstrip("/")
    for directory in (place, *place.parents):
        try:
            quota, period = (directory / "cpu.max").read_text(encoding="ascii").split()
            found.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            pass  # the root has none, and "max" is no limit
        if directory == hierarchy:
            break
    return found
