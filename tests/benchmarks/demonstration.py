"""Judge the bundled model once, on the phantoms set aside for it, beside other poolings.

    python -m tests.benchmarks.demonstration draw  --out DIR     the test parts of seeds.json
    python -m tests.benchmarks.demonstration teach --out DIR     other stages 2 on the same encoder
    python -m tests.benchmarks.demonstration judge --out DIR     evaluate: DIR/standard, DIR/hard

The bundle's stage 2 learnt from 2,380 exams. Its rivals here are taught anew on the first `EXAMS`
of the same part of the seeds: attention and mean pooling, so that these two differ in nothing but
the pooling. CNN-max has no stage 2. Exams are embedded by the runtime that serves, which is many
times as fast as bfloat16 in PyTorch where the processor only emulates it. Each step goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pe_triage.domain import CtVolume
from pe_triage.infer.predictor import Predictor
from pe_triage.model.bundle import load_bundle, save_bundle
from pe_triage.resources import demonstration_bundle
from pe_triage.training.cache import CachedExam
from pe_triage.training.demonstration import recipe as making
from pe_triage.training.demonstration.calibrate import write_phantom
from pe_triage.training.demonstration.drawing import draw_all
from pe_triage.training.demonstration.exams import exam_path, make_exam, read_exam
from pe_triage.training.demonstration.seeds import read_seeds
from pe_triage.training.evaluate import Options, evaluate
from pe_triage.training.reporting import Reporter

EXAMS: Final = 300
PARTS: Final = {"standard": "test-standard", "hard": "test-hard"}


def draw(out: Path, workers: int) -> None:
    """Write the phantoms of the test parts, with truth and masks."""
    seeds = read_seeds()
    for name, key in PARTS.items():
        part = seeds.parts[key]
        write = partial(write_phantom, part=part, seeds=seeds, out=out / f"data-{name}")
        draw_all(out / f"data-{name}" / "drawn", list(part.seeds), write, workers=workers)
        print(f"{name}: {part.count} phantoms", flush=True)


def teach(out: Path, workers: int) -> None:
    """Teach stage 2 anew with attention and with mean pooling; write ``DIR/bundles/<name>``."""
    bundle = load_bundle(demonstration_bundle())
    spec = bundle.card.spec
    seeds = read_seeds()
    parts = dict(seeds.parts)
    parts["exams"] = replace(parts["exams"], count=EXAMS)
    recipe = making.Recipe(
        seeds=replace(seeds, parts=parts), out=out, amounts=making.Amounts(), workers=workers,
        spec=spec,
    )  # fmt: skip
    bundle_state = bundle.network.state_dict()
    encoder = {k: v.clone() for k, v in bundle_state.items() if not k.startswith("stage2.")}
    with Reporter(speaks=True) as reporter:
        drawn = making.draw_phantoms(recipe, "exams", out / "exams", make_exam, reporter)
        exams = [read_exam(exam_path(out / "exams", seed), seed) for seed in drawn]
        embeddings = embed_all(out, exams, reporter)
        for name, system in making.SYSTEMS.items():
            own = replace(spec, name=f"{system.name}-{EXAMS}", pooling=system.pooling,
                          head=system.head)  # fmt: skip
            network = making._teach_exams(
                recipe, name, own, encoder, exams, embeddings, reporter, lambda: False
            )
            card = replace(
                bundle.card, name=own.name, version="1", spec=own, calibrated=False,
                temperatures={}, metrics={}, reference=None,
                thresholds=dict.fromkeys(bundle.card.thresholds, 0.5),
            )  # fmt: skip
            save_bundle(
                out / "bundles" / name, network.state_dict(), card, created_at=datetime.now(UTC),
                replace_existing=True,
            )  # fmt: skip


def embed_all(out: Path, exams: Sequence[CachedExam], reporter: Reporter) -> Path:
    """Embed the exams as the node would; processes may share the work, each taking what is left."""
    predictor = Predictor(demonstration_bundle(), "cpu", threads=torch.get_num_threads())
    directory = out / "embeddings"
    directory.mkdir(exist_ok=True)
    reporter.begin("embeddings", len(exams))
    for done, exam in enumerate(exams, start=1):
        path = directory / f"{exam.study_uid}.safetensors"
        if not path.exists():
            feat_zd = torch.from_numpy(predictor.embed(volume_of(exam)))
            scratch = path.with_suffix(f".{os.getpid()}.partial")
            save_file({"feat_zd": feat_zd}, scratch)
            scratch.replace(path)
        reporter.step(done)
    return directory


def volume_of(exam: CachedExam) -> CtVolume:
    """The voxels of an exam that was drawn."""
    with safe_open(exam.path, framework="numpy") as file:
        hu_zyx, spacing = file.get_tensor("hu_zyx"), file.get_tensor("spacing")
    z, y, x = (float(v) for v in spacing)
    for array in (hu_zyx, affine := np.diag([x, y, z, 1.0])):
        array.setflags(write=False)
    return CtVolume(
        hu_zyx=hu_zyx, spacing_mm=(z, y, x), affine_lps=affine, series_uid=exam.study_uid,
        sop_instance_uids=tuple(f"{exam.study_uid}.{k}" for k in range(len(hu_zyx))),
    )  # fmt: skip


def judge(out: Path, threads: int) -> None:
    """Evaluate the bundle beside the others; then attention beside mean pooling."""
    bundles = out / "bundles"
    shipped = demonstration_bundle()
    rivals = {
        "standard": (shipped, tuple(bundles / n for n in ("attention", "mean", "cnn-max"))),
        "hard": (shipped, ()),
        "pooling": (bundles / "attention", (bundles / "mean", bundles / "cnn-max")),
    }
    for name, (first, others) in rivals.items():
        if (out / name / "report.json").exists():
            continue
        data = out / f"data-{'standard' if name == 'pooling' else name}"
        target = out / name
        if name == "pooling" and not target.exists():
            # what was predicted for the first report is read, not made again
            target.mkdir()
            (target / "work").symlink_to(out / "standard" / "work")
        found = evaluate(
            first, data, target,
            Options(compare=others, threads=threads, heatmaps=name == "standard",
                    gallery=4 if name == "standard" else 0),
            now=datetime.now(UTC),
        )  # fmt: skip
        pe = found.document["labels"]["pe"]["auc"]
        print(f"{name}: {json.dumps(pe)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["draw", "teach", "judge"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.step == "draw":
        draw(out, options.workers)
    elif options.step == "teach":
        teach(out, options.workers)
    else:
        judge(out, options.threads)


if __name__ == "__main__":
    main()
