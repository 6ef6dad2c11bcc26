"""Slices per second of stage 1, and what the other steps of one analysis take.

    python tests/benchmarks/stage1.py [--quick] [--slices 300] [--threads 2]

The built-in bundle on a phantom of 512 x 512, on the CPU, warm. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def timed(function: Callable[[], Any], repeat: int = 3) -> tuple[float, Any]:
    """Best of `repeat` wall times, and the last value."""
    best, value = float("inf"), None
    for _ in range(repeat):
        started = time.perf_counter()
        value = function()
        best = min(best, time.perf_counter() - started)
    return best, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="48 slices")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    count = 48 if options.quick else options.slices
    import torch

    from pe_triage.app import load_predictor
    from pe_triage.cli.analyze import read_folder
    from pe_triage.config import Settings
    from pe_triage.imaging.measure import measure_volume
    from pe_triage.imaging.volume import load_volume
    from pe_triage.infer.keyslices import key_slices
    from pe_triage.phantom import generate_study, write_study

    with tempfile.TemporaryDirectory() as scratch:
        study = generate_study(1, "pe-acute", size=512, n_slices=count)
        written = write_study(study, Path(scratch), mask=False)
        instances = read_folder(written.dicom_dir)
        started = time.perf_counter()
        predictor = load_predictor(Settings(threads=options.threads), Path(scratch) / "bundles")
        load_s = time.perf_counter() - started
        volume_s, volume = timed(lambda: load_volume(instances))
        measure_s, _ = timed(lambda: measure_volume(volume))
        predict_s, inference = timed(lambda: predictor.predict(volume), repeat=2)
        keys_s, _ = timed(lambda: key_slices(volume, inference, predictor, 5))
    print(
        json.dumps(
            {
                "slices": count,
                "threads": options.threads,
                "torch": torch.__version__,
                "bundle_made_and_loaded_s": round(load_s, 2),
                "load_volume_s": round(volume_s, 3),
                "measure_volume_s": round(measure_s, 3),
                "predict_s": round(predict_s, 2),
                "slices_per_s": round(count / predict_s, 1),
                "five_heatmaps_s": round(keys_s, 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
