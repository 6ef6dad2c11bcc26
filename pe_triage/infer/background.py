"""A second runtime, for work that may wait, beside the one that answers for studies.

Its threads are not put behind others by a nice value: on a busy machine a thread that was just
woken waited longer behind threads of nice value 10 or 19 than behind ordinary ones
(`tests/benchmarks/waking.py`), and what was begun at nice value 19 did not end there. Who works in
the background leaves a core free, looks whether there is a processor to spare, and rests
(`node.ahead`).

Only runtimes whose numbers for one slice depend on nothing else are doubled: what is encoded here
has the bits that the other would have given.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from pe_triage.infer.choice import unit_shape
from pe_triage.infer.openvino_runtime import OpenVinoRuntime, probe_units
from pe_triage.infer.predictor import Predictor
from pe_triage.infer.runtime import SliceRuntime


def background_runtime(predictor: Predictor) -> SliceRuntime | None:
    """Double the predictor's runtime; None where that would not give the same bits."""
    info, spec = predictor.runtime.info, predictor.card.spec
    if not info.independent or not spec.is_plain_slices:
        return None
    runtime = OpenVinoRuntime(
        # PyTorch's runtime has laid the weights out anew; a copy of its own is put straight.
        copy.deepcopy(predictor.network.encoder).to(memory_format=torch.contiguous_format),
        unit_shape(spec),
        threads=info.threads,
    )
    units = probe_units(unit_shape(spec))
    if not np.array_equal(runtime.embed(units), predictor.runtime.embed(units)):
        return None
    return runtime
