"""What tests of training look at from outside."""

from __future__ import annotations

from pathlib import Path


def checkpoint_written(run: Path) -> int:
    """When the run's checkpoint was last written, ns; 0 before the first."""
    try:
        return (run / "checkpoint.safetensors").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
