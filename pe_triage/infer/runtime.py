"""Stage 1 behind a port: images in, embeddings or last feature maps out.

Axes: ``z`` or ``n`` units (slices or windows of them), ``c`` channels, ``t`` slices of a window,
``h w`` rows and columns, ``d`` features. Arrays are NumPy's, so that a runtime without torch
(`pe_triage.infer.openvino_runtime`) can stand behind the same port; `pe_triage.infer.choice` says
which one serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pe_triage.errors import ConfigurationError
from pe_triage.infer.faults import device_faults
from pe_triage.model.encoders import Encoder

_MOST: Final = {"cpu": 16, "cuda": 64}
"""Units at once; on a CPU more only cost memory."""
BUDGET_BYTES: Final = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Activations at once, roughly: large units, such as windows of slices, come in smaller batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """What runs stage 1, for logs and people.

    Attributes
    ----------
    name, version
        ``pytorch`` or ``openvino``, and the library's version.
    device
        torch's name of it, such as ``cpu`` or ``cuda``.
    precision
        Of the arithmetic.
    threads
        Of the processor that one call may use.
    difference
        Largest difference from PyTorch's output found at load, as a part of that output's largest
        value; None for PyTorch itself.
    independent
        Whether a unit's numbers depend on nothing but the unit, to the last bit: neither on what
        comes with it nor on threads.
    """

    name: str
    version: str
    device: str
    precision: str
    threads: int
    difference: float | None = None
    independent: bool = False


class SliceRuntime(Protocol):
    """Runs the slice encoder.

    Attributes
    ----------
    info
        What it is.
    batch_size
        How many images it likes to get at once; it takes any number.
    """

    @property
    def info(self) -> RuntimeInfo:
        """What it is."""
        ...

    @property
    def batch_size(self) -> int:
        """Preferred number of images in one call."""
        ...

    def embed(self, images_zchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return embeddings (z, d), of images (z, c, h, w) or windows (z, c, t, h, w).

        They are exactly what `Encoder.embed_maps` makes of `maps`: for encoders that pool, the
        means over the grid.
        """
        ...

    def maps(self, images_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the last feature maps (n, d, h, w) or (n, d, t, h, w)."""
        ...


def choose_device(device: str) -> torch.device:
    """Resolve ``auto`` (CUDA where there is one), or check that the named device is here.

    Raises
    ------
    ConfigurationError
        An unknown device, or one that this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigurationError(f"device: {device!r} is not one of auto, cpu, cuda") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device: {device!r} is not one of auto, cpu, cuda")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device: {device!r} is not available on this machine")
    return chosen


def check_counts(*, batch_size: int | None, threads: int | None) -> None:
    """Refuse numbers below 1.

    Raises
    ------
    ConfigurationError
        Naming the key.
    """
    for key, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{key}: must be 1 or more")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on the calling thread alone.

    For work too small to share: on busy cores each barrier waits for the scheduler.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def stage_two() -> Iterator[None]:
    """Let torch run stage 2 as suits it: one thread, numbers below 1e-38 taken as zero.

    A gradient that fades through hundreds of steps of an LSTM ends in subnormal numbers, which
    CPUs handle in microcode: explaining a 300-slice exam took 3.2 s with them and takes 0.15 s
    without. The steps are too small for a second thread to help. One thread also sums in one order
    on every machine.
    """
    with one_thread():
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)


class TorchRuntime:
    """Eager PyTorch, float32, in inference mode.

    Parameters
    ----------
    encoder
        In evaluation mode; moved to `device`. The memory layout of one that takes slices is changed
        to channels last, which is 1.7 times as fast on CPUs.
    device
        Where it runs.
    batch_size
        Units at once; None takes as many as are quick and fit a budget of memory.
    threads
        Threads of torch in this whole process; None leaves what is set.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: torch.device,
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_counts(batch_size=batch_size, threads=threads)
        if batch_size is None:
            fitting = BUDGET_BYTES[device.type] // max(1, encoder.unit_bytes)
            batch_size = max(1, min(_MOST[device.type], fitting))
        if threads is not None:
            torch.set_num_threads(threads)
        weights = next(encoder.parameters())
        self._layout = torch.channels_last if weights.dim() == 4 else torch.contiguous_format
        self._encoder = encoder.to(device=device, memory_format=self._layout)  # type: ignore[call-overload]
        self._device = device
        self._batch_size = batch_size
        self._info = RuntimeInfo(
            name="pytorch",
            version=str(torch.__version__),
            device=str(device),
            precision="float32",
            threads=torch.get_num_threads(),
        )

    @property
    def info(self) -> RuntimeInfo:
        """What it is."""
        return self._info

    @property
    def batch_size(self) -> int:
        """Preferred number of images in one call."""
        return self._batch_size

    @device_faults()
    @torch.inference_mode()
    def embed(self, images_zchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return embeddings (z, d), computed in batches of `batch_size`."""
        parts = [self._encoder(batch).cpu() for batch in self._batches(images_zchw)]
        out: NDArray[np.float32] = torch.cat(parts).numpy()
        return out

    @device_faults()
    @torch.inference_mode()
    def maps(self, images_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the last feature maps, computed in batches of `batch_size`."""
        parts = [
            self._encoder.maps(batch).cpu().contiguous() for batch in self._batches(images_nchw)
        ]
        out: NDArray[np.float32] = torch.cat(parts).numpy()
        return out

    def _batches(self, images: NDArray[np.float32]) -> list[torch.Tensor]:
        # torch warns of arrays that are read-only, so those are copied
        whole = torch.from_numpy(np.require(images, np.float32, ["C", "W"]))
        return [
            part.to(device=self._device, memory_format=self._layout)
            for part in torch.split(whole, self._batch_size)
        ]
