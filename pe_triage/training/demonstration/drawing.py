"""Drawing many phantoms side by side, one file for each seed, so that it can be interrupted."""

from __future__ import annotations

import multiprocessing
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import save_file

Make = Callable[[int], dict[str, NDArray[Any]]]


def draw_all(
    directory: Path,
    seeds: Sequence[int],
    make: Make,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make the files ``<seed>.safetensors`` that are not there yet.

    Parameters
    ----------
    make
        Returns the arrays of a seed; a function of a module, since other processes call it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not (directory / f"{seed}.safetensors").exists()]
    done = len(seeds) - len(missing)

    def note() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(seeds))

    if workers <= 1:
        for seed in missing:
            _draw(directory, seed, make)
            note()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_draw, directory, seed, make) for seed in missing]
        try:
            for future in as_completed(futures):
                future.result()
                note()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _draw(directory: Path, seed: int, make: Make) -> None:
    """Write the file of a seed whole or not at all."""
    path = directory / f"{seed}.safetensors"
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    save_file(make(seed), scratch)
    scratch.replace(path)
