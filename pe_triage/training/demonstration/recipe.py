"""The recipe of the demonstration model, from seeds to bundles; `calibrate` finishes them.

1. Draw the phantoms of `seeds`: specimens for stage 1, whole exams for stage 2.
2. Teach the encoder on patches around vessels, on crops of the chest, on whole slices (`stages`).
3. Embed the exams, which stage 1 never saw, and teach stage 2: with attention, and with mean
   pooling beside it; the third system asks the slice of maximum confidence and has no stage 2.

Everything lies in one directory and goes on where it stopped. The same processor and number of
threads give the same weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from pe_triage.domain import IntendedUse
from pe_triage.errors import InputError
from pe_triage.model.bundle import save_bundle
from pe_triage.model.card import BundleCard
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.network import ExamNetwork
from pe_triage.model.schedule import Schedule
from pe_triage.model.spec import ModelSpec
from pe_triage.training.batches import BagDataset, read_embedding
from pe_triage.training.cache import CachedExam
from pe_triage.training.checkpoint import load_checkpoint
from pe_triage.training.demonstration.batches import PatchDataset, SliceDataset
from pe_triage.training.demonstration.drawing import Make, draw_all
from pe_triage.training.demonstration.exams import embed, exam_path, make_exam, read_exam
from pe_triage.training.demonstration.seeds import Seeds
from pe_triage.training.demonstration.specimens import make_specimen
from pe_triage.training.demonstration.stages import KINDS, PatchStage, SliceStage
from pe_triage.training.distributed import World
from pe_triage.training.loop import CHECKPOINT_NAME, StagePlan, run_stage
from pe_triage.training.reporting import Reporter
from pe_triage.training.seeding import seed_torch
from pe_triage.training.settings import TrainSettings
from pe_triage.training.stages import StageTwo

SPEC: Final = ModelSpec(
    name="demonstration",
    backbone="resnet18",
    stride=8,
    join_stride=16,
    join_dim=128,
    evidence=len(KINDS),
    size=320,
    standardise=True,
    stage1=Schedule(
        loss="image+attention", optimiser="adamw", lr=2e-4, weight_decay=0.01, scheduler="cosine",
        batch=32, batch_of="units", epochs=2, sampling="balanced", attention_weight=1.0,
    ),
    dropout=0.5,
    stage2=Schedule(
        loss="challenge", optimiser="adamw", lr=1e-3, weight_decay=0.05, scheduler="cosine",
        batch=16, epochs=12,
    ),
)  # fmt: skip
"""Cells of at most 12 mm on every phantom: stride 8 of 320 pixels over at most 470 mm."""

SYSTEMS: Final = {
    "attention": SPEC,
    "mean": replace(SPEC, name="demonstration-mean", pooling="mean"),
    "cnn-max": replace(SPEC, name="demonstration-cnn-max", head="cnn-max"),
}
"""What is compared; all read one encoder."""
HELD_OUT: Final = 120
"""Of the exams, the last: stage 2 keeps the weights that lose least on them."""
_PATCHES: Final = Schedule(
    optimiser="adamw", lr=1.5e-3, weight_decay=0.01, scheduler="cosine", batch=64,
    batch_of="units", epochs=12,
)  # fmt: skip
_PATCH_PASSES: Final = (("patches", 0.6, _PATCHES.lr), ("patches-more", 1.0, 1e-3))
"""Name, share of the specimens and learning rate: the second pass begins where the first ended."""
_CHESTS: Final = replace(_PATCHES, lr=8e-4, batch=32, epochs=10)
TRAINING_DATA: Final = (
    "phantoms only, drawn by pe-triage phantom's generator; no image of a patient. Voxel masks of "
    "clots taught stage 1, kinds of clot and the ventricles' ratio beside them."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much is trained; less for tests.

    Attributes
    ----------
    patch_steps, chest_steps, slice_steps
        Steps of one epoch.
    patch_epochs
        Of each of the two passes over patches.
    """

    patch_steps: int = 320
    chest_steps: int = 450
    slice_steps: int = 120
    patch_epochs: int = _PATCHES.epochs
    chest_epochs: int = _CHESTS.epochs
    slice_epochs: int = SPEC.stage1.epochs
    exam_epochs: int = SPEC.stage2.epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One making of the model, ready to go.

    Attributes
    ----------
    workers
        Processes that draw phantoms; one more prepares batches.
    precision
        Of stage 1: bfloat16 is three times as fast where the processor has the instructions, and
        some ten times as slow where it has not (`loop.processor_precision`).
    """

    seeds: Seeds
    out: Path
    amounts: Amounts
    workers: int = 2
    precision: torch.dtype = torch.bfloat16
    spec: ModelSpec = SPEC

    @property
    def digest(self) -> str:
        """What a run that goes on must agree on."""
        parts = {name: [p.first, p.count] for name, p in self.seeds.parts.items()}
        text = json.dumps([self.spec.to_json(), parts, str(self.amounts), str(self.precision)])
        return hashlib.sha256(text.encode()).hexdigest()


def make_demonstration(
    recipe: Recipe,
    reporter: Reporter,
    *,
    now: Callable[[], datetime],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Path]:
    """Train all of `SYSTEMS`; return their bundles, not yet calibrated.

    Raises
    ------
    InputError
        The directory holds a run with other settings.
    TrainingStoppedError
        It was asked to stop; called again, it goes on.
    """
    _claim(recipe)
    encoder = _teach_encoder(recipe, reporter, stop)
    exams = recipe.out / "exams"
    seeds = draw_phantoms(recipe, "exams", exams, make_exam, reporter)
    known = [read_exam(exam_path(exams, seed), seed) for seed in seeds]
    embeddings = _embed_all(recipe, encoder, known, reporter)
    bundles = {}
    for name, spec in SYSTEMS.items():
        own = replace(recipe.spec, name=spec.name, pooling=spec.pooling, head=spec.head)
        network = _teach_exams(recipe, name, own, encoder, known, embeddings, reporter, stop)
        bundles[name] = recipe.out / "uncalibrated" / name
        save_bundle(
            bundles[name], network.state_dict(), _card(recipe, own), created_at=now(),
            replace_existing=True,
        )  # fmt: skip
    return bundles


def draw_phantoms(
    recipe: Recipe, part: str, directory: Path, make: Make, reporter: Reporter
) -> list[int]:
    """Draw what is missing of a part of the seeds; return its seeds."""
    seeds = list(recipe.seeds.parts[part].seeds)
    reporter.begin(f"phantoms: {part}", len(seeds))
    draw_all(
        directory, seeds, make, workers=recipe.workers,
        progress=lambda done, _total: reporter.step(done),
    )  # fmt: skip
    return seeds


def _claim(recipe: Recipe) -> None:
    marker = recipe.out / "run.json"
    if marker.exists():
        if json.loads(marker.read_text(encoding="utf-8")).get("digest") != recipe.digest:
            raise InputError(f"{recipe.out} was begun with other settings: choose another --out")
        return
    try:
        recipe.out.mkdir(parents=True, exist_ok=True)
        document = {"digest": recipe.digest, "spec": recipe.spec.to_json()}
        marker.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{recipe.out}: {error.strerror or error}") from None


def _teach_encoder(
    recipe: Recipe, reporter: Reporter, stop: Callable[[], bool]
) -> dict[str, Tensor]:
    """Return the state of stage 1: encoder and slice heads, as `ExamNetwork` names them."""
    amounts, size = recipe.amounts, recipe.spec.size
    directory = recipe.out / f"specimens-{size}"
    train, held = (
        draw_phantoms(recipe, part, directory, partial(make_specimen, size=size), reporter)
        for part in ("specimens", "specimens-validation")
    )
    seed_torch(0, "demonstration weights")
    network = ExamNetwork(replace(recipe.spec, head="cnn-max"))
    network.encoder.to(memory_format=torch.channels_last)
    patches = PatchStage(network, recipe.precision)
    for name, share, lr in _PATCH_PASSES:
        some = train[: round(share * len(train))]
        plan = StagePlan(
            name=name,
            module=patches,
            schedule=replace(_PATCHES, lr=lr, epochs=amounts.patch_epochs),
            batches=partial(_patches, directory, some, amounts.patch_steps),
            validation=PatchDataset(directory, held, max(1, amounts.patch_steps // 8), -1),
            run=recipe.out,
            digest=recipe.digest,
        )
        _run(recipe, plan, reporter, stop)
    # Anew: where random numbers stand here depends on whether the patches were taught just now.
    seed_torch(0, "demonstration heads")
    module = SliceStage(network, recipe.precision)
    # Crops first, of half the pixels; then some whole slices, over which means are other means.
    for name, schedule, steps, cropped in (
        ("chests", replace(_CHESTS, epochs=amounts.chest_epochs), amounts.chest_steps, True),
        (
            "slices",
            replace(recipe.spec.stage1, epochs=amounts.slice_epochs),
            amounts.slice_steps,
            False,
        ),
    ):
        plan = StagePlan(
            name=name,
            module=module,
            schedule=schedule,
            batches=partial(_slices, directory, train, steps, cropped),
            validation=_slices(directory, held, 0, cropped, None),
            run=recipe.out,
            digest=recipe.digest,
        )
        _run(recipe, plan, reporter, stop)
    module.fold()
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _patches(directory: Path, seeds: Sequence[int], steps: int, epoch: int) -> PatchDataset:
    return PatchDataset(directory, seeds, steps, epoch)


def _slices(
    directory: Path, seeds: Sequence[int], steps: int, cropped: bool, epoch: int | None
) -> SliceDataset:
    return SliceDataset(directory, seeds, steps, epoch, cropped=cropped)


def _embed_all(
    recipe: Recipe, state: dict[str, Tensor], exams: Sequence[CachedExam], reporter: Reporter
) -> Path:
    network = ExamNetwork(replace(recipe.spec, head="cnn-max"))
    network.load_state_dict(state)
    network.eval().to(memory_format=torch.channels_last)
    hasher = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        hasher.update(name.encode() + tensor.numpy().tobytes())
    directory = recipe.out / "embeddings" / hasher.hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    reporter.begin("embeddings", len(exams))
    for done, exam in enumerate(exams, start=1):
        path = directory / f"{exam.study_uid}.safetensors"
        if not path.exists():
            feat_zd = embed(network, exam.path, recipe.precision)
            scratch = path.with_suffix(".partial")
            save_file({"feat_zd": feat_zd.contiguous()}, scratch)
            scratch.replace(path)
        reporter.step(done)
    return directory


def _teach_exams(
    recipe: Recipe,
    name: str,
    spec: ModelSpec,
    encoder: dict[str, Tensor],
    exams: Sequence[CachedExam],
    embeddings: Path,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> ExamNetwork:
    seed_torch(0, "demonstration stage 2")
    network = ExamNetwork(spec)
    network.load_state_dict(encoder, strict=False)
    if network.stage2 is None:
        return network
    held = min(HELD_OUT, len(exams) // 4)
    train, held_out = exams[:-held], exams[-held:]
    _standardise(network, embeddings, train)

    def bags(part: Sequence[CachedExam], epoch: int | None) -> Dataset[Any]:
        return BagDataset(part, spec, embeddings, spec.stage2.batch, epoch=epoch)

    plan = StagePlan(
        name=f"exams-{name}",
        module=StageTwo(network, spec.stage2.loss, torch.float32),
        schedule=replace(spec.stage2, epochs=recipe.amounts.exam_epochs),
        batches=lambda epoch: bags(train, epoch),
        validation=bags(held_out, None),
        run=recipe.out,
        digest=recipe.digest,
    )
    _run(recipe, plan, reporter, stop)
    return network


@torch.no_grad()
def _standardise(network: ExamNetwork, embeddings: Path, exams: Sequence[CachedExam]) -> None:
    """Measure each feature on the exams that stage 2 learns from."""
    assert network.stage2 is not None
    feat = torch.cat([read_embedding(embeddings, exam.study_uid) for exam in exams])
    network.stage2.feature_mean.copy_(feat.mean(dim=0))
    network.stage2.feature_std.copy_(feat.std(dim=0).clamp(min=1e-4))


def _run(recipe: Recipe, plan: StagePlan, reporter: Reporter, stop: Callable[[], bool]) -> None:
    """Run a stage, or go on with it, or take its result where it is done; then its best weights."""
    history = recipe.out / f"{plan.name}-history.json"
    if not history.exists():
        path = recipe.out / CHECKPOINT_NAME
        state = load_checkpoint(path) if path.exists() else None
        if state is not None and state[1]["progress"]["stage"] != plan.name:
            state = None
        settings = TrainSettings(
            stage1=plan.schedule, stage2=plan.schedule, checkpoint_steps=100,
            workers=0 if plan.name.startswith("exams") else 1,
        )  # fmt: skip
        progress = run_stage(plan, settings, World(), reporter, resume=state, stop=stop)
        history.write_text(json.dumps(progress.to_json(), indent=1) + "\n", encoding="utf-8")
    tensors, document = load_checkpoint(plan.best_path)
    if document["digest"] != plan.digest:
        raise InputError(f"{plan.best_path}: of another run")
    plan.module.load_state_dict(tensors)


def _card(recipe: Recipe, spec: ModelSpec) -> BundleCard:
    metrics: dict[str, Any] = {}
    for path in sorted(recipe.out.glob("*-history.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        stage = path.name.removesuffix("-history.json")
        metrics[f"{stage} validation loss"] = round(document["best"], 6)
        metrics[f"{stage} best epoch"] = document["best_epoch"] + 1
    parts = recipe.seeds.parts
    return BundleCard(
        name=spec.name,
        version="1",
        spec=spec,
        thresholds=dict.fromkeys(THRESHOLD_KEYS, 0.5),
        intended_use=IntendedUse.DEMONSTRATION,
        training_data=(
            f"{parts['specimens'].count} specimens and {parts['exams'].count} exams: "
            f"{TRAINING_DATA}"
        ),
        weights_sha256="0" * 64,
        metrics=metrics,
    )
