from __future__ import annotations

import pytest
import torch

from pe_triage.errors import DeviceFaultError
from pe_triage.infer.faults import device_faults


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
    ],
)
def test_a_fault_of_the_gpu_is_tried_again(error: Exception, lost: bool) -> None:
    with pytest.raises(DeviceFaultError) as caught, device_faults():
        raise error
    assert caught.value.process_is_lost is lost


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), device_faults():
        raise RuntimeError("shape mismatch")
