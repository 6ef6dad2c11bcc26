"""What tests of training look at from outside."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any


def checkpoint_written(run: Path) -> int:
    """When the run's checkpoint was last written, ns; 0 before the first."""
    try:
        return (run / "checkpoint.safetensors").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_for_checkpoints(process: subprocess.Popen[Any], run: Path, count: int) -> None:
    """Return once `count` more were written, or the process has ended."""
    seen = checkpoint_written(run)
    while process.poll() is None and count:
        now = checkpoint_written(run)
        count -= now != seen
        seen = now
        time.sleep(0.001)
