"""Stage 1 on the CPU: eager PyTorch, PyTorch as served, and OpenVINO, side by side.

    python tests/benchmarks/stage1.py [--quick] [--slices 300] [--threads 2] [--rounds 3]
                                      [--model BUNDLE]

The untrained EfficientNet-B0 at 256 x 256, or the bundle given, on a phantom of 512 x 512 (256 x
256 with --quick), warm. Each runtime works in a process of its own, which tells their memory apart,
and they take turns, so that a busy moment meets them all; the best round of each counts. Prints
JSON:

- ``runtimes``: slices/s of stage 1 alone (images prepared before), CPU seconds for each slice
  (which a busy machine changes less), the whole of `predict`, five heatmaps, loading, peak memory;
- ``agreement``: the largest differences from PyTorch as served;
- ``other_steps``: what else one analysis does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

RUNTIMES = ("eager", "pytorch", "openvino")
"""``eager`` is the network called as it is, in batches of 16: what the goal is a multiple of."""
BATCH = 16


def timed(function: Callable[[], Any], repeat: int = 3) -> tuple[float, float, Any]:
    """Best of `repeat` wall times, the least CPU time, and the last value."""
    wall, cpu, value = float("inf"), float("inf"), None
    for _ in range(repeat):
        started, used = time.perf_counter(), time.process_time()
        value = function()
        wall = min(wall, time.perf_counter() - started)
        cpu = min(cpu, time.process_time() - used)
    return wall, cpu, value


def peak_mib() -> float | None:
    """Peak resident memory of this process so far (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024)


def child(name: str, folder: Path, bundle: Path, threads: int, out: Path) -> None:
    """Measure one runtime; figures go to stdout, outputs to `out`."""
    import numpy as np
    import torch

    from pe_triage.cli.analyze import read_folder
    from pe_triage.imaging.volume import load_volume
    from pe_triage.infer.keyslices import key_slices
    from pe_triage.infer.predictor import Predictor

    volume = load_volume(read_folder(folder))
    before = time.perf_counter()
    runtime = "pytorch" if name == "eager" else name
    predictor = Predictor(bundle, "cpu", runtime=runtime, threads=threads)
    load_s = time.perf_counter() - before
    if predictor.runtime.info.name != runtime:
        sys.exit(f"{runtime} cannot be had here: see the event above")
    exam = predictor.input(volume)
    encode = predictor.runtime.embed
    if name == "eager":
        encoder = predictor.network.encoder.to(memory_format=torch.contiguous_format)

        @torch.inference_mode()
        def encode(images: Any) -> Any:
            return encoder(torch.from_numpy(images)).numpy()

    step = BATCH if name == "eager" else predictor.runtime.batch_size
    batches = [exam.images(at, at + step) for at in range(0, exam.plan.units, step)]
    encode(batches[0])
    embed_s, embed_cpu_s, feat = timed(lambda: np.concatenate([encode(b) for b in batches]), 2)
    figures: dict[str, Any] = {
        "slices_per_s": round(len(volume.hu_zyx) / embed_s, 1),
        "cpu_s_per_slice": round(embed_cpu_s / len(volume.hu_zyx), 5),
    }
    if name != "eager":
        del batches
        predict_s, _, inference = timed(lambda: predictor.predict(volume), 2)
        keys_s, _, _ = timed(lambda: key_slices(volume, inference, predictor, 5), 2)
        figures |= {
            "predict_s": round(predict_s, 2),
            "five_heatmaps_s": round(keys_s, 3),
            "load_s": round(load_s, 2),
            "peak_mib": peak_mib(),
            "version": predictor.runtime.info.version,
            "threads": predictor.runtime.info.threads,
        }
        p = inference.prediction
        exam_l = np.array([*p.exam_probability.values(), p.pe_probability])
        np.savez(out, feat=feat, slices=p.slice_probability_z, exam=exam_l)
    print(json.dumps(figures))


def measure(name: str, *arguments: object) -> dict[str, Any]:
    """Run one child; its figures."""
    command = [sys.executable, __file__, "--child", name, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def better(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The better of two rounds, figure by figure; of the peaks the higher."""
    return {
        key: max(a[key], b[key]) if key in ("slices_per_s", "peak_mib") else min(a[key], b[key])
        for key in a
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="32 slices of 256 x 256, one round")
    parser.add_argument("--slices", type=int, help="[default: 300, with --quick 32]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="bundle [default: untrained EfficientNet-B0]")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, folder, bundle, threads, out = options.child
        child(name, Path(folder), Path(bundle), int(threads), Path(out))
        return
    count, side, rounds = (32, 256, 1) if options.quick else (300, 512, options.rounds)
    count = options.slices or count
    import numpy as np

    from pe_triage.cli.analyze import read_folder
    from pe_triage.imaging.measure import measure_volume
    from pe_triage.imaging.volume import load_volume
    from pe_triage.imaging.windows import RSPECT_WINDOWS, window_channels
    from pe_triage.model.builtin import materialize_untrained
    from pe_triage.phantom import generate_study, write_study

    with tempfile.TemporaryDirectory() as scratch:
        study = generate_study(1, "pe-acute", size=side, n_slices=count)
        written = write_study(study, Path(scratch), mask=False)
        bundle = options.model or materialize_untrained(Path(scratch) / "bundles")
        instances = read_folder(written.dicom_dir)
        volume_s, _, volume = timed(lambda: load_volume(instances))
        measure_s, _, _ = timed(lambda: measure_volume(volume))
        windows_s, _, _ = timed(lambda: window_channels(volume.hu_zyx[:BATCH], RSPECT_WINDOWS, 256))
        found: dict[str, dict[str, Any]] = {}
        for _ in range(rounds):
            for name in RUNTIMES:
                out = Path(scratch) / f"{name}.npz"
                figures = measure(name, written.dicom_dir, bundle, options.threads, out)
                found[name] = better(found[name], figures) if name in found else figures
        with (
            np.load(Path(scratch) / "pytorch.npz") as a,
            np.load(Path(scratch) / "openvino.npz") as b,
        ):
            gap = {key: float(np.abs(a[key] - b[key]).max()) for key in a.files}
            largest = float(np.abs(a["feat"]).max())
    speed = {name: figures["slices_per_s"] for name, figures in found.items()}
    cost = {name: figures["cpu_s_per_slice"] for name, figures in found.items()}
    print(
        json.dumps(
            {
                "slices": count,
                "side": side,
                "threads": options.threads,
                "rounds": rounds,
                "runtimes": found,
                "openvino_times_eager": {
                    "by_slices_per_s": round(speed["openvino"] / speed["eager"], 2),
                    "by_cpu_time": round(cost["eager"] / cost["openvino"], 2),
                },
                "agreement": {
                    "embeddings": gap["feat"],
                    "largest_embedding": largest,
                    "slice_probabilities": gap["slices"],
                    "exam_probabilities": gap["exam"],
                },
                "other_steps": {
                    "load_volume_s": round(volume_s, 3),
                    "measure_volume_s": round(measure_s, 3),
                    "windows_and_resize_ms_per_slice": round(1000 * windows_s / BATCH, 2),
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
