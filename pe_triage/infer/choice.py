"""Which runtime serves: the fastest that is here, that the site allows, and that agrees.

PyTorch is always at hand, so a faster runtime that cannot be had costs speed and no answer; but
never in silence. A runtime that was asked for by name and cannot exist here (not installed, or with
another device) is a mistake of the configuration, and stops the start.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import torch

from pe_triage.errors import ConfigurationError
from pe_triage.infer.openvino_runtime import (
    TOLERANCE,
    OpenVinoRuntime,
    RuntimeMismatchError,
    is_installed,
    largest_difference,
    probe_units,
)
from pe_triage.infer.runtime import SliceRuntime, TorchRuntime, choose_device, one_thread
from pe_triage.logs import get_logger
from pe_triage.model.encoders import Encoder
from pe_triage.model.spec import ModelSpec

RUNTIMES: Final = ("auto", "pytorch", "openvino")


def choose_runtime(wanted: str, device: str) -> tuple[str, torch.device]:
    """Resolve the settings ``runtime`` and ``device``.

    Returns
    -------
    tuple
        ``pytorch`` or ``openvino``, and where it runs.

    Raises
    ------
    ConfigurationError
        An unknown runtime or device, one that is not here, or two that exclude each other.
    """
    if wanted not in RUNTIMES:
        raise ConfigurationError(f"runtime: {wanted!r} is not one of {', '.join(RUNTIMES)}")
    if wanted == "openvino":
        if device not in ("auto", "cpu"):
            raise ConfigurationError(f"runtime: openvino runs on the CPU, device says {device!r}")
        if not is_installed():
            raise ConfigurationError("runtime: openvino is not installed")
        return "openvino", torch.device("cpu")
    where = choose_device(device)
    if wanted == "auto" and where.type == "cpu" and is_installed():
        return "openvino", where
    return "pytorch", where


def make_runtime(
    encoder: Encoder,
    spec: ModelSpec,
    *,
    runtime: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
) -> SliceRuntime:
    """Return the runtime of stage 1; PyTorch, and a warning, where OpenVINO fails or disagrees.

    Parameters
    ----------
    encoder
        In evaluation mode, on the CPU. PyTorch's runtime moves it to its device.
    spec
        What `encoder` was built from.
    runtime, device
        The settings of these names.
    batch_size, threads
        As the runtimes take them.

    Raises
    ------
    ConfigurationError
        As `choose_runtime`, or a count below 1.
    """
    name, where = choose_runtime(runtime, device)
    if name == "pytorch":
        return TorchRuntime(encoder, where, batch_size=batch_size, threads=threads)
    shape = unit_shape(spec)
    started = time.monotonic()
    fast: OpenVinoRuntime | None = None
    reason = ""
    try:
        fast = OpenVinoRuntime(encoder, shape, batch_size=batch_size, threads=threads)
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it cannot do, PyTorch can
        reason = _one_line(error)
    # PyTorch lays the encoder's weights out anew, so it comes after the conversion.
    plain = TorchRuntime(encoder, where, batch_size=batch_size, threads=threads)
    if fast is not None:
        try:
            return _checked(fast, plain, encoder, shape)
        except Exception as error:  # noqa: BLE001 - as above
            reason = _one_line(error)
    get_logger().warning(
        "runtime.fallback",
        wanted="openvino",
        runtime="pytorch",
        spec=spec.name,
        reason=reason,
        seconds=round(time.monotonic() - started, 3),
    )
    return plain


def _checked(
    fast: OpenVinoRuntime, plain: TorchRuntime, encoder: Encoder, shape: tuple[int, ...]
) -> SliceRuntime:
    units = probe_units(shape)
    with one_thread(), torch.inference_mode():
        maps = plain.maps(units)
        embeddings = encoder.embed_maps(torch.from_numpy(maps)).numpy()
    difference = largest_difference(fast.both(units), (embeddings, maps))
    if not difference <= TOLERANCE:
        raise RuntimeMismatchError(
            f"its output differs from PyTorch's by {difference:.2g} of the largest value; "
            f"{TOLERANCE:g} is allowed"
        )
    fast.info = replace(fast.info, difference=difference)
    return fast


def unit_shape(spec: ModelSpec) -> tuple[int, ...]:
    """Shape of one unit of the network's input: (c, h, w), or (c, t, h, w) for windows."""
    if spec.encoder == "window":
        return (spec.channels, spec.window_slices, spec.size, spec.size)
    return (spec.channels, spec.size, spec.size)


def _one_line(error: Exception) -> str:
    """Name the error and what it says first, bounded: converters write pages."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:300]
