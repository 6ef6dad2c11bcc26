"""A second runtime for work that may wait: its threads stand behind everything else.

A thread that was given a lower priority cannot take it back without privileges, so the runtime
that answers for studies keeps its own threads, and this one's are put last for good. On a quiet
machine an answer to C-STORE then waits no longer than without them, which at the priority of all
others it did (`docs/benchmarks.md`). On a machine that others keep busy such threads hardly run,
and may make others wait (`tests/benchmarks/waking.py`): who works in the background looks whether
there is a processor to spare, and rests (`node.ahead`).

Only runtimes whose numbers for one slice depend on nothing else are doubled: what is encoded here
has the bits that the other would have given.
"""

from __future__ import annotations

import copy
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import torch

from pe_triage.infer.choice import unit_shape
from pe_triage.infer.openvino_runtime import OpenVinoRuntime, probe_units
from pe_triage.infer.predictor import Predictor
from pe_triage.infer.runtime import SliceRuntime

LAST: Final = 19
"""Nice value: 1.5 % of a core's time against one thread that wants all of it."""
_TASKS: Final = Path("/proc/self/task")


def background_runtime(predictor: Predictor) -> SliceRuntime | None:
    """Double the predictor's runtime; None where that would not give the same bits.

    To be called while the process starts: threads that anything else starts meanwhile would be
    taken for the runtime's.
    """
    info, spec = predictor.runtime.info, predictor.card.spec
    if not info.independent or not spec.is_plain_slices:
        return None
    before = _threads()
    runtime = OpenVinoRuntime(
        # PyTorch's runtime has laid the weights out anew; a copy of its own is put straight.
        copy.deepcopy(predictor.network.encoder).to(memory_format=torch.contiguous_format),
        unit_shape(spec),
        # Without priorities a part of the machine must do.
        threads=info.threads if before else max(1, info.threads // 2),
    )
    units = probe_units(unit_shape(spec))
    if not np.array_equal(runtime.embed(units), predictor.runtime.embed(units)):
        return None
    for thread in _threads() - before:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, LAST)
    return runtime


def _threads() -> set[int]:
    """Threads of this process; empty where the platform does not tell."""
    try:
        return {int(path.name) for path in _TASKS.iterdir()}
    except OSError:
        return set()
