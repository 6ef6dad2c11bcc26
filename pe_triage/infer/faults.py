"""What a GPU says when it fails, as an error of ours that is tried again and blames no study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from pe_triage.errors import DeviceFaultError

_FAULT_CLASSES: Final = frozenset({"OutOfMemoryError", "AcceleratorError", "CudaError"})
"""Names, since not every release of torch has each of them."""
_FAULT_WORDS: Final = (
    "CUDA error",
    "CUDA driver error",
    "CUDA out of memory",
    "cuDNN error",
    "CUBLAS_STATUS",
    "NVML",
    "No CUDA GPUs are available",
)


@contextmanager
def device_faults() -> Iterator[None]:
    """Turn a fault of the device into `DeviceFaultError`; everything else passes.

    Raises
    ------
    DeviceFaultError
        The device is out of memory, has failed, or is gone.
    """
    try:
        yield
    except RuntimeError as error:
        name, text = type(error).__name__, str(error)
        if name not in _FAULT_CLASSES and not any(words in text for words in _FAULT_WORDS):
            raise
        full = name == "OutOfMemoryError" or "out of memory" in text
        if full and torch.cuda.is_available():
            torch.cuda.empty_cache()
        what = "is out of memory" if full else "failed"
        # torch's own text is long and speaks of addresses and environment variables.
        raise DeviceFaultError(f"the GPU {what} ({name})", process_is_lost=not full) from None
