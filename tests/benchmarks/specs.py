"""All named specs on the same phantoms under equal processor time: AUC, parameters, seconds.

    python tests/benchmarks/specs.py --out DIR [--only SPEC ...] [--quick]
    python tests/benchmarks/specs.py --out DIR --table --into docs/specs.md

What is drawn, trained and tested is fixed in ``specs.json`` beside this file. Specs that differ
only behind the encoder share its training (``--stage1-from``), as in their sources, and start with
the first of their group. Interrupted at any moment, the same command goes on where it was. Writes
``DIR/results/<spec>.json`` as each is done, and ``DIR/table.json`` and ``DIR/table.md`` of those
that are. One thread; ``--quick`` is a walk over every spec on a handful of phantoms: its figures
mean nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pe_triage.cli.analyze import read_folder  # noqa: E402
from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL  # noqa: E402
from pe_triage.imaging.volume import load_volume  # noqa: E402
from pe_triage.infer.predictor import Predictor  # noqa: E402
from pe_triage.model.bundle import load_bundle  # noqa: E402
from pe_triage.model.consistency import count_violations  # noqa: E402
from pe_triage.model.spec import NOTES, SPECS, ModelSpec  # noqa: E402
from pe_triage.phantom import generate_study, write_study  # noqa: E402
from pe_triage.training.batches import read_embedding  # noqa: E402
from pe_triage.training.cache import CachedExam, build_cache  # noqa: E402
from pe_triage.training.distributed import World  # noqa: E402
from pe_triage.training.embed import embed_all  # noqa: E402
from pe_triage.training.intervals import Resampler, rank_replicates  # noqa: E402
from pe_triage.training.make_tree import make_tree  # noqa: E402
from pe_triage.training.metrics import auc  # noqa: E402
from pe_triage.training.reporting import Reporter  # noqa: E402
from pe_triage.training.rspect import read_rspect  # noqa: E402
from pe_triage.training.splits import Split, read_split  # noqa: E402

TIMED = 3
"""Studies whose analysis is timed."""
BEGIN, END = "<!-- specs table -->", "<!-- end of specs table -->"
"""Between these a page holds the table."""


def protocol(quick: bool) -> dict[str, Any]:
    """Read the protocol; a quick one has a handful of phantoms and seconds of training."""
    document: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
    named = [name for group in document["encoders"] for name in group]
    if sorted(named) != sorted(SPECS):
        raise SystemExit("specs.json does not name every spec once")
    if quick:
        document |= {
            "parts": document["quick_parts"], "size": 64, "cpu_minutes1": 0.02,
            "cpu_minutes2": 0.02, "phantom": {"size": 64, "n_slices": 16},
        }  # fmt: skip
    return document


def make_data(out: Path, plan: dict[str, Any]) -> Path:
    """Write the phantoms as a tree in RSPECT's layout, and ``split.json``; return the tree."""
    tree, raw, split = out / "tree", out / "phantoms", out / "split.json"
    if split.exists():
        return tree
    done = out / "drawn.json"
    studies: dict[str, str] = json.loads(done.read_text()) if done.exists() else {}
    parts: dict[str, list[str]] = {}
    for part, seeds in plan["parts"].items():
        for seed in range(seeds["first"], seeds["first"] + seeds["count"]):
            if str(seed) not in studies:
                study = generate_study(seed, plan["preset"], **plan["phantom"])
                studies[str(seed)] = write_study(study, raw, mask=True).study_uid
                write_json(done, studies)
            parts.setdefault(part, []).append(studies[str(seed)])
    (tree / "train.csv").unlink(missing_ok=True)
    make_tree(raw, tree)
    write_json(split, parts)
    return tree


def train(spec: ModelSpec, first: str, out: Path, tree: Path, plan: dict[str, Any]) -> Path:
    """Train a spec by the command that everyone uses; return the run's directory."""
    run = out / "runs" / spec.name
    if (run / "bundle" / "card.json").exists():
        return run
    recipe = plan["recipe"]
    kind = "window" if spec.encoder == "window" else "slice"
    if spec.stage1.batch_of == "exams":
        kind = "slices of an exam"
    command = [
        sys.executable, "-m", "pe_triage", "train", spec.name, "--data", str(tree),
        "--out", str(run), "--cache", str(out / "cache"), "--split", str(out / "split.json"),
        "--size", str(plan["size"]), "--device", "cpu", "--no-tensorboard",
        "--cpu-minutes1", str(plan["cpu_minutes1"]), "--cpu-minutes2", str(plan["cpu_minutes2"]),
        *recipe["all"], *recipe[kind],
        *([] if spec.name == first else ["--stage1-from", str(out / "runs" / first)]),
        *(["--resume"] if (run / "run.json").exists() else []),
    ]  # fmt: skip
    log = out / "logs" / f"{spec.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        subprocess.run(command, check=True, cwd=ROOT, stdout=file, stderr=file)
    return run


def judge(spec: ModelSpec, first: str, out: Path, tree: Path, plan: dict[str, Any]) -> Any:
    """Every figure of one trained spec on the test part."""
    run = out / "runs" / spec.name
    predictor = Predictor(run / "bundle", "cpu", threads=1)
    split = read(out, tree, spec.reduced(plan["size"]))
    began = time.process_time()
    with Reporter(speaks=False) as reporter:
        folder = embed_all(
            predictor.network, split.test, out / "runs" / first, World(), reporter, torch.float32
        )
    embedding_s = time.process_time() - began
    pe, slices, broken = [], [], 0
    for exam in split.test:
        feat = read_embedding(folder, exam.study_uid).numpy()
        own = predictor.card.spec
        said = predictor.conclude(feat, None if own.is_plain_slices else exam.plan(own))
        pe.append(said.pe_probability)
        slices.append(said.slice_probability_z)
        exam_l = [said.exam_probability[label] for label in EXAM_LABELS]
        broken += sum(count_violations(said.slice_probability_z, exam_l).values())
    seconds = []
    for exam in split.test[:TIMED]:
        volume = load_volume(read_folder(out / "phantoms" / "dicom" / exam.study_uid))
        began = time.process_time()
        predictor.predict(volume)
        seconds.append(time.process_time() - began)
    bundle = load_bundle(run / "bundle")
    stages = {}
    for stage in ("stage1", "stage2"):
        for at in (run, out / "runs" / first):
            path = at / f"{stage}-history.json"
            if path.exists():
                progress = json.loads(path.read_text())
                stages[stage] = {
                    "cpu_s": round(progress["cpu_s"], 1), "epochs": progress["epoch"],
                    "best_epoch": progress["best_epoch"] + 1, "of": at.name,
                    "validation_loss": progress["best"],
                }  # fmt: skip
                break
    if spec.head == "cnn-max":
        stages.pop("stage2", None)
    return {
        "spec": spec.name,
        "size": plan["size"],
        **areas(split.test, np.array(pe), np.concatenate(slices)),
        "parameters": sum(p.numel() for p in bundle.network.parameters()),
        "seconds_per_study": round(float(np.median(seconds)), 2),
        "test_embedding_cpu_s": round(embedding_s, 1),
        "rule_violations": broken,
        "stages": stages,
        "bundle_sha256": bundle.card.identity.sha256,
        "published": dict(NOTES[spec.name].published),
        "torch": torch.__version__,
    }


def areas(test: tuple[CachedExam, ...], pe_s: Any, slice_k: Any) -> dict[str, Any]:
    """Area under the curve of exams and of slices, with bootstrap intervals by exam."""
    resampler = Resampler(np.arange(len(test)), seed=0)
    truth_s = np.array([exam.positive for exam in test], dtype=np.int8)
    truth_k = np.concatenate([exam.image_pe_z for exam in test]).astype(np.int8)
    group_k = np.repeat(np.arange(len(test)), [exam.slices for exam in test])
    out = {}
    for name, truth, score, group in (
        ("exam_auc", truth_s, pe_s, np.arange(len(test))),
        ("slice_auc", truth_k, slice_k, group_k),
    ):
        auc_b, _ = rank_replicates(truth, score, group, resampler)
        out[name] = resampler.interval(auc(truth, score), auc_b).to_json()
    return out | {
        "exams": len(test), "positive_exams": int(truth_s.sum()),
        "slices": len(truth_k), "positive_slices": int(truth_k.sum()), "image": IMAGE_LABEL,
    }  # fmt: skip


def position_alone(split: Split) -> dict[str, Any]:
    """The shortcut to beat: how often a slice at this height showed PE in training."""
    bins = 12

    def at(exam: CachedExam) -> Any:
        return np.arange(exam.slices) * bins // exam.slices

    height = np.concatenate([at(e) for e in split.train])
    rate = np.bincount(height, np.concatenate([e.image_pe_z for e in split.train]), bins)
    rate = rate / np.bincount(height, minlength=bins)
    slices = np.concatenate([rate[at(e)] for e in split.test])
    return areas(split.test, np.zeros(len(split.test)), slices)


def read(out: Path, tree: Path, spec: ModelSpec) -> Split:
    """Return the split of the tree's exams, cached as `spec` needs them."""
    cache = build_cache(read_rspect(tree).exams, out / "cache", spec)
    return read_split(out / "split.json", cache.exams)


def write_json(path: Path, document: object) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    scratch.replace(path)


def table(out: Path, plan: dict[str, Any]) -> str:
    """Write ``table.json`` and ``table.md`` of the results that there are."""
    names = [name for group in plan["encoders"] for name in group]
    paths = [out / "results" / f"{name}.json" for name in names]
    results = [json.loads(path.read_text()) for path in paths if path.exists()]
    control = json.loads((out / "control.json").read_text())
    write_json(out / "table.json", {"protocol": plan, "control": control, "results": results})
    lines = [
        "| spec | exam AUC | slice AUC | parameters | s a study | CPU s of stage 1, 2 "
        "| its source, on its own data |",
        "|---|---|---|---|---|---|---|",
        f"| *slice position alone* | | {words(control['slice_auc'])} | | | | |",
    ]
    for r in results:
        stages = r["stages"]
        of = stages["stage1"]["of"]
        spent = f"{stages['stage1']['cpu_s']:.0f}{'' if of == r['spec'] else f' ({of})'}"
        spent += f", {stages['stage2']['cpu_s']:.0f}" if "stage2" in stages else ", none"
        published = ", ".join(f"{k} {v:g}" for k, v in r["published"].items()) or "not stated"
        lines.append(
            f"| `{r['spec']}` | {words(r['exam_auc'])} | {words(r['slice_auc'])} "
            f"| {r['parameters'] / 1e6:.1f} M | {r['seconds_per_study']:.2f} | {spent} "
            f"| {published.replace('_', ' ')} |"
        )
    text = "\n".join(lines) + "\n"
    (out / "table.md").write_text(text)
    return text


def put(text: str, page: Path) -> None:
    """Put the table between the page's markers."""
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def words(interval: dict[str, Any]) -> str:
    """``.812 (.750-.868)``."""
    if interval["value"] is None:
        return "-"
    value = f"{interval['value']:.3f}"
    if interval["low"] is None:
        return value
    return f"{value} ({interval['low']:.3f} to {interval['high']:.3f})"


def wanted(plan: dict[str, Any], only: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a spec and the first of its group."""
    for group in plan["encoders"]:
        for name in group:
            if not only or name in only:
                yield name, group[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a walk in minutes, no figures")
    parser.add_argument("--only", nargs="*", default=[], help="these specs; else all")
    parser.add_argument("--minutes", type=float, help="of stage 1, in place of the protocol's")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--into", type=Path, help="with --table: put it into this page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = protocol(options.quick)
    if options.minutes is not None:
        plan["cpu_minutes1"], plan["cpu_minutes2"] = options.minutes, options.minutes / 4
    out = options.out.resolve()
    if options.table:
        text = table(out, plan)
        if options.into is not None:
            put(text, options.into)
        print(text)
        return
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "protocol.json"
    if kept.exists() and json.loads(kept.read_text()) != plan:
        raise SystemExit(f"{out} holds results of another protocol")
    write_json(kept, plan)
    tree = make_data(out, plan)
    if not (out / "control.json").exists():
        spec = SPECS["cnn-max"].reduced(plan["size"])
        write_json(out / "control.json", position_alone(read(out, tree, spec)))
    for name, first in wanted(plan, options.only):
        result = out / "results" / f"{name}.json"
        if result.exists():
            continue
        if name != first:
            train(SPECS[first], first, out, tree, plan)
        train(SPECS[name], first, out, tree, plan)
        write_json(result, judge(SPECS[name], first, out, tree, plan))
        table(out, plan)
        print(f"{name}: done", flush=True)
    print(table(out, plan))


if __name__ == "__main__":
    main()
