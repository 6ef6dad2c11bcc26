"""Stage 1 on the CPU by OpenVINO: about three times as fast as eager PyTorch, and the same numbers.

Axes as in `pe_triage.infer.runtime`. The network is converted from the loaded bundle at each start,
so nothing lies on disk that could be stale, and it takes half a second of one core.

**One image at a time, one thread for each.** The network is compiled for one unit, and as many
units run side by side as there are threads, each on a thread of its own. That is the fastest of
the ways that were measured (no barriers, activations stay in the cache), and an image's numbers
cannot depend on which others come with it, on their order, or on how many threads the machine has.
Units whose activations are large, windows of slices above all, share threads instead.

**float32.** On processors with AMX OpenVINO would compute in bfloat16 by itself: features of
the built-in network then differ by 1.7 % of the largest one, which is beyond `TOLERANCE`, for 1.3
times the speed. The precision is therefore asked for by name.

**No word to anyone.** ``import openvino`` reports itself and each conversion to a usage-statistics
service, without asking, through the package ``openvino_telemetry``. That package is kept from being
imported; OpenVINO then takes the stand-in it has for installations without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_triage.infer.runtime import BUDGET_BYTES, RuntimeInfo, check_counts, one_thread
from pe_triage.model.encoders import Encoder

TOLERANCE: Final = 1e-4
"""Largest difference from PyTorch that is served, as a part of the largest value of PyTorch's
output: float32 in another order of summation stays near 1e-6, any shorter format does not."""

_EMBEDDINGS, _MAPS = 0, 1
_AHEAD: Final = 2
"""Requests for each stream: while one is collected, its stream has the next."""
_BATCH: Final = 16
_PROBE_KEY: Final = 20_260_101


class RuntimeMismatchError(Exception):
    """A runtime's output is not PyTorch's."""


def is_installed() -> bool:
    """Whether OpenVINO is there, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def _import_openvino() -> Any:
    """Import OpenVINO without its usage statistics (see the module's head)."""
    # None in this place makes an import of that name fail: the language's own way to forbid one.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


class OpenVinoRuntime:
    """OpenVINO on the CPU, float32.

    Parameters
    ----------
    encoder
        In evaluation mode, its weights without gradients, on the CPU. It is not changed, and shares
        no memory with what is made of it here.
    unit_shape
        Shape of one unit: (c, h, w), or (c, t, h, w) for windows.
    batch_size
        Units that are best handed over at once; None takes enough to keep all threads busy. It
        changes no number.
    threads
        Threads of stage 1; None takes as many as torch has.

    Raises
    ------
    ConfigurationError
        A count below 1.
    RuntimeMismatchError
        It would not compute in float32.
    Exception
        Whatever OpenVINO raises where it cannot be imported, or cannot convert this network.
    """

    def __init__(
        self,
        encoder: Encoder,
        unit_shape: tuple[int, ...],
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_counts(batch_size=batch_size, threads=threads)
        threads = torch.get_num_threads() if threads is None else threads
        fitting = max(1, BUDGET_BYTES["cpu"] // max(1, encoder.unit_bytes))
        streams = min(threads, fitting)
        if batch_size is None:
            batch_size = min(max(_BATCH, 2 * _AHEAD * streams), fitting)
        self._batch_size = batch_size
        openvino = _import_openvino()
        compiled = openvino.Core().compile_model(
            _convert(openvino, encoder, unit_shape),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": threads,
                # Workers side by side, and containers, would be pinned to the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision != "f32":
            raise RuntimeMismatchError(f"it computes in {precision}, not in float32")
        self._unit_shape = unit_shape
        self._shapes = [tuple(port.shape)[1:] for port in compiled.outputs]
        self._requests = [compiled.create_infer_request() for _ in range(_AHEAD * streams)]
        self.info = RuntimeInfo(
            name="openvino",
            version=str(openvino.__version__).partition("-")[0],
            device="cpu",
            precision="float32",
            threads=threads,
            independent=streams == threads,
        )

    @property
    def batch_size(self) -> int:
        """Preferred number of images in one call."""
        return self._batch_size

    def embed(self, images_zchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return embeddings (z, d)."""
        return self._run(images_zchw, (_EMBEDDINGS,))[0]

    def maps(self, images_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the last feature maps (n, d, h, w) or (n, d, t, h, w)."""
        return self._run(images_nchw, (_MAPS,))[0]

    def both(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return embeddings and maps of one pass."""
        embeddings, maps = self._run(images, (_EMBEDDINGS, _MAPS))
        return embeddings, maps

    def _run(
        self, images: NDArray[np.float32], ports: tuple[int, ...]
    ) -> list[NDArray[np.float32]]:
        if images.shape[1:] != self._unit_shape:
            raise ValueError(f"units of shape {self._unit_shape} expected, got {images.shape[1:]}")
        # OpenVINO reads these arrays where they lie, and takes none that is read-only.
        units = np.require(images, np.float32, ["C", "W"])
        out = {p: np.empty((len(units), *self._shapes[p]), dtype=np.float32) for p in ports}
        running: deque[tuple[Any, int]] = deque()
        try:
            for n in range(len(units)):
                if len(running) == len(self._requests):
                    _collect(running, out)
                request = self._requests[n % len(self._requests)]
                request.start_async([units[n : n + 1]], share_inputs=True)
                running.append((request, n))
            while running:
                _collect(running, out)
        finally:  # after an error, none may go on reading arrays that are about to be freed
            for request, _ in running:
                with suppress(RuntimeError):
                    request.wait()
        return [out[p] for p in ports]


def _collect(running: deque[tuple[Any, int]], out: dict[int, NDArray[np.float32]]) -> None:
    request, n = running[0]
    request.wait()
    for port, array in out.items():
        array[n] = request.get_output_tensor(port).data[0]
    running.popleft()


def _convert(openvino: Any, encoder: Encoder, unit_shape: tuple[int, ...]) -> Any:
    """Return the encoder as an OpenVINO model of one unit, with two outputs."""

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        maps = encoder.maps(images)
        return encoder.embed_maps(maps), maps

    example = torch.zeros(1, *unit_shape)
    with warnings.catch_warnings(), torch.no_grad(), one_thread():
        # torch says of tracing that it is deprecated. A function is traced, not the module: its
        # weights become constants, which takes a sixth of the time.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            both, example, strict=False, check_trace=False
        )
        return openvino.convert_model(
            traced, example_input=example, input=[1, *unit_shape], share_weights=False
        )


def probe_units(unit_shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return units to compare runtimes on, float32 in [0, 1]; always the same.

    The first is noise around a smooth slope, so that every cell and channel differs; the second
    is air with a bright block, as slices beyond the lungs are. A window is as much work as all of
    its slices, so there the first is all.
    """
    generator = np.random.Generator(np.random.Philox(key=_PROBE_KEY))
    slope = np.linspace(0.0, 1.0, unit_shape[-1], dtype=np.float32)
    noise = 0.5 * slope + 0.5 * generator.random(unit_shape, dtype=np.float32)
    if len(unit_shape) > 3:
        return noise[None]
    block = np.zeros_like(noise)
    third = unit_shape[-1] // 3
    block[..., third : 2 * third, third : 2 * third] = 1.0
    return np.stack([noise, block])


def largest_difference(
    ours: Sequence[NDArray[np.float32]], theirs: Sequence[NDArray[np.float32]]
) -> float:
    """Compare outputs with those of PyTorch.

    Returns
    -------
    float
        The largest absolute difference of an output, as a part of the largest absolute value of
        PyTorch's; of several outputs the worst. Infinite where a shape differs or a value is no
        number.
    """
    parts = []
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return math.inf
        scale = max(float(np.abs(b).max()), float(np.finfo(np.float32).tiny))
        parts.append(float(np.abs(a - b).max()) / scale)
    return max(parts) if all(map(math.isfinite, parts)) else math.inf
