"""Several processes under ``torchrun``: who we are among them, and sums over all.

Without torchrun's variables in the environment there is one process and nothing is set up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import torch
from torch import Tensor, distributed

from pe_triage.errors import ConfigurationError

T = TypeVar("T")
PATIENCE: Final = timedelta(days=7)
CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where this process stands among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process' share: every size-th."""
        return items[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, on every one; the argument is left alone."""
        values = values.detach().clone()
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join_world(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end.

    Parameters
    ----------
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    ConfigurationError
        CUDA was asked for and is not here.
    """
    rank, size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(f"device must be auto, cpu or cuda, not {device!r}")
    there = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigurationError("device cuda: no CUDA device is here")
    where = torch.device("cpu")
    if there:
        where = torch.device("cuda", int(environment.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(where)
    if size == 1:
        yield World(device=where)
        return
    # The first process may build a cache for hours while the others wait.
    distributed.init_process_group("nccl" if there else "gloo", timeout=PATIENCE)
    try:
        yield World(rank=rank, size=size, device=where)
    finally:
        distributed.destroy_process_group()
