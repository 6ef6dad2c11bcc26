"""A whole training run: data, split, stage 1, embeddings, stage 2, bundle.

A run's directory holds everything that it made: ``run.json`` (settings), ``split.json``,
``problems.json``, ``checkpoint.safetensors``, the best weights and the history of each stage,
``embeddings/``, ``tensorboard/`` and ``bundle/``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from pe_triage.domain import IntendedUse
from pe_triage.errors import InputError
from pe_triage.model.bundle import save_bundle
from pe_triage.model.card import BundleCard
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.network import ExamNetwork
from pe_triage.model.pretrained import load_pretrained
from pe_triage.model.spec import ModelSpec
from pe_triage.training.batches import BagDataset, UnitDataset, UnitPlan
from pe_triage.training.cache import CachedExam, ShardCache
from pe_triage.training.checkpoint import load_checkpoint
from pe_triage.training.distributed import World
from pe_triage.training.embed import embed_all
from pe_triage.training.loop import (
    CHECKPOINT_NAME,
    StagePlan,
    precision_of,
    run_stage,
)
from pe_triage.training.reporting import Reporter
from pe_triage.training.seeding import numpy_at, seed_torch
from pe_triage.training.settings import TrainSettings
from pe_triage.training.splits import Split
from pe_triage.training.stages import StageOne, StageTwo
from pe_triage.training.takeover import take_stage_one

BUNDLE_NAME: Final = "bundle"
VALIDATION_EPOCH: Final = -1
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardWords:
    """What the bundle's card shall say besides what training knows.

    Attributes
    ----------
    intended_use
        None: ``demonstration`` where any image is of a phantom, else ``research``.
    training_data
        None: counts of exams are written.
    """

    name: str
    version: str = "1"
    intended_use: IntendedUse | None = None
    training_data: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, ready to go.

    Attributes
    ----------
    pretrained
        Weights of the encoder to start from.
    stage1_from
        Directory of a run whose stage 1 is taken as it is; only stage 2 is trained.
    """

    spec: ModelSpec
    cache: ShardCache
    split: Split
    settings: TrainSettings
    words: CardWords
    out: Path
    pretrained: Path | None = None
    stage1_from: Path | None = None

    @property
    def digest(self) -> str:
        """What a resumed run must agree on."""
        parts = [
            f"{n}:{e.study_uid}:{e.sha256}{':' if e.masked else ''}{e.clot_sha256}"
            for n in ("train", "validation")
            for e in self.split.part(n)
        ]
        parts += [
            str(self.pretrained or ""),
            *([str(self.stage1_from)] if self.stage1_from else []),
        ]
        return self.settings.digest(self.spec, parts)


def intended_use_of(cache: ShardCache, asked: IntendedUse | None) -> IntendedUse:
    """Say what the bundle is for: never more than its data allow.

    Raises
    ------
    InputError
        More was asked for than images of phantoms allow, or ``untrained``.
    """
    if asked is None:
        return IntendedUse.DEMONSTRATION if cache.phantoms else IntendedUse.RESEARCH
    if asked is IntendedUse.UNTRAINED:
        raise InputError("a trained bundle is not for intended use untrained")
    if cache.phantoms and asked is not IntendedUse.DEMONSTRATION:
        raise InputError(
            "images marked Quality Control Image (0028,0300) are among the data: such a bundle is "
            f"for demonstration, not for {asked.value}"
        )
    return asked


def fit(
    run: Run,
    world: World,
    reporter: Reporter,
    *,
    now: Callable[[], datetime],
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    cpu_s: Callable[[], float] = time.process_time,
) -> Path:
    """Train both stages and write the bundle; return its path.

    Raises
    ------
    InputError
        The directory holds another run, there is nothing to resume, or a setting does not fit.
    TrainingStoppedError
        It was asked to stop; ``resume`` goes on.
    """
    use = intended_use_of(run.cache, run.words.intended_use)
    state = _claim(run, world, resume)
    reporter.open(_words(run))
    seed_torch(run.settings.seed, "weights")
    network = ExamNetwork(run.spec)
    if run.pretrained is not None:
        loaded = load_pretrained(network.encoder, run.pretrained)
        reporter.say(
            f"{run.pretrained.name}: {loaded.loaded} tensors taken, "
            f"{len(loaded.adapted)} adapted, {len(loaded.ignored)} not used"
        )
    first, second = _share_out(run)
    for line in _about_labels(run, first):
        reporter.say(line)
    one = _stage_one(run, network, first, world)

    def go(plan: StagePlan, checkpoint: Checkpoint | None) -> None:
        progress = run_stage(
            plan, run.settings, world, reporter, resume=checkpoint, stop=stop, cpu_s=cpu_s
        )
        _load_best(plan)
        if world.leads:
            _write_json(run.out / f"{plan.name}-history.json", progress.to_json())

    if run.stage1_from is not None:
        if world.leads:
            take_stage_one(run.stage1_from, run.spec, run.split, one.best_path, run.digest)
        world.wait()
        _load_best(one)
    elif state is None or state[1]["progress"]["stage"] == one.name:
        go(one, state)
        state = None
    else:
        _load_best(one)
    if network.stage2 is not None:
        embeddings = embed_all(
            network,
            (*second, *_known(run.split.validation)),
            run.stage1_from or run.out,
            world,
            reporter,
            precision_of(run.settings, world),
        )
        go(_stage_two(run, network, second, embeddings, world), state)
    bundle = run.out / BUNDLE_NAME
    if world.leads:
        save_bundle(
            bundle,
            network.state_dict(),
            _card(run, use, first, second),
            created_at=now(),
            replace_existing=True,
        )
    world.wait()
    return bundle


def _words(run: Run) -> dict[str, str]:
    """Return the spec and the settings, flat, as experiment trackers take them."""
    words = {"spec": run.spec.name, "train": str(len(run.split.train)), "digest": run.digest}
    for key, value in run.settings.to_json().items():
        if isinstance(value, dict):
            words |= {f"{key}.{name}": str(part) for name, part in value.items()}
        else:
            words[key] = str(value)
    return words


def _claim(run: Run, world: World, resume: bool) -> Checkpoint | None:
    """Make the run's directory ours; return its checkpoint where there is one to go on from."""
    marker, checkpoint = run.out / "run.json", run.out / CHECKPOINT_NAME
    there = marker.exists()
    world.wait()  # every process has looked before one writes
    if there and not resume:
        raise InputError(f"{run.out} holds a run already: --resume goes on with it")
    if there:
        known = json.loads(marker.read_text(encoding="utf-8")).get("digest")
        if known != run.digest:
            raise InputError(
                f"{run.out} was begun with another spec, other settings or other data; "
                "a run goes on only as it began"
            )
    elif world.leads:
        try:
            run.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{run.out}: {error.strerror or error}") from None
        _write_json(run.out / "split.json", run.split.to_json())
        problems = [
            {"code": p.code, "study_uid": p.study_uid, "detail": p.detail, "count": p.count}
            for p in run.cache.problems
        ]
        _write_json(run.out / "problems.json", problems)
        _write_json(
            marker,
            {
                "digest": run.digest,
                "spec": run.spec.to_json(),
                "settings": run.settings.to_json(),
            },
        )
    world.wait()
    if not (there and checkpoint.exists()):
        return None
    tensors, document = load_checkpoint(checkpoint)
    if document["digest"] != run.digest:
        raise InputError(f"{checkpoint}: of another run")
    return tensors, document


def _share_out(run: Run) -> tuple[tuple[CachedExam, ...], tuple[CachedExam, ...]]:
    """Return the exams of stage 1 and of stage 2: the same, or of different patients."""
    exams, share = run.split.train, run.settings.stage2_share
    if run.spec.head == "sequence" or run.settings.loss1 == "exam":
        for name in ("train", "validation"):
            if not _known(run.split.part(name)):
                raise InputError(f"no exam for {name} has known exam labels")
    if not share:
        return exams, _known(exams)
    patients = sorted({exam.patient_key for exam in exams})
    order = numpy_at("stage2 share", run.settings.seed).permutation(len(patients))
    fresh = {patients[k] for k in order[: round(share * len(patients))]}
    parts = tuple(
        tuple(exam for exam in exams if (exam.patient_key in fresh) is wanted)
        for wanted in (False, True)
    )
    if not all(parts):
        raise InputError("the share of stage 2 leaves one stage without exams")
    if not _known(parts[1]):
        raise InputError("the share of stage 2 leaves it no exam with known exam labels")
    return parts[0], _known(parts[1])


def _known(exams: tuple[CachedExam, ...]) -> tuple[CachedExam, ...]:
    """Return the exams whose exam labels are known: all that stage 2 may learn from."""
    return tuple(exam for exam in exams if exam.exam_known)


def _about_labels(run: Run, first: tuple[CachedExam, ...]) -> list[str]:
    """Say which exams teach less than others, and whether an attention loss has masks at all."""
    lines = []
    exams = (*run.split.train, *run.split.validation)
    unknown = len(exams) - len(_known(exams))
    if unknown:
        lines.append(f"{unknown} exams without known exam labels teach stage 1 their images only")
    if run.settings.loss1 == "image+attention":
        masked = [exam for exam in first if exam.masked]
        lines.append(
            f"attention loss: clot masks of {len(masked)} of {len(first)} exams, "
            f"{sum(exam.clot_planes for exam in masked)} slices with clot"
            if masked
            else "attention loss: no exam has a clot mask, so the loss is that of the image label"
        )
    return lines


def _stage_one(
    run: Run, network: ExamNetwork, exams: tuple[CachedExam, ...], world: World
) -> StagePlan:
    settings = run.settings
    held_out = run.split.validation
    if settings.loss1 == "exam":
        exams, held_out = _known(exams), _known(held_out)
    masks = settings.loss1 == "image+attention"
    plan = UnitPlan.of(
        settings.stage1, exams, run.spec,
        units_per_exam=settings.units_per_exam, max_steps=settings.max_steps1,
    )  # fmt: skip
    held = UnitPlan.of(
        settings.stage1, held_out, run.spec,
        units_per_exam=settings.units_per_exam, max_steps=settings.max_steps1,
    )  # fmt: skip
    if min(plan.exams_per_batch, held.exams_per_batch) < world.size:
        raise InputError(
            f"a batch of stage 1 must give each of the {world.size} processes an exam at least"
        )

    def batches(epoch: int) -> UnitDataset:
        return UnitDataset(
            exams, run.spec, plan, seed=settings.seed, epoch=epoch, rank=world.rank,
            world=world.size, augmentation=settings.augmentation, masks=masks,
        )  # fmt: skip

    return StagePlan(
        name="stage1",
        module=StageOne(
            network, settings.loss1, precision_of(settings, world),
            settings.stage1.attention_weight,
        ),
        schedule=settings.stage1,
        batches=batches,
        validation=UnitDataset(
            held_out, run.spec, held, seed=settings.seed, epoch=VALIDATION_EPOCH,
            rank=world.rank, world=world.size, masks=masks,
        ),
        run=run.out,
        digest=run.digest,
        cpu_minutes=settings.cpu_minutes1,
    )  # fmt: skip


def _stage_two(
    run: Run,
    network: ExamNetwork,
    exams: tuple[CachedExam, ...],
    embeddings: Path,
    world: World,
) -> StagePlan:
    settings = run.settings
    if min(settings.stage2.batch, len(exams)) < world.size:
        raise InputError(
            f"a batch of stage 2 must give each of the {world.size} processes an exam at least"
        )

    def bags(part: tuple[CachedExam, ...], epoch: int | None) -> BagDataset:
        return BagDataset(
            part, run.spec, embeddings, settings.stage2.batch, seed=settings.seed, epoch=epoch,
            rank=world.rank, world=world.size,
        )  # fmt: skip

    return StagePlan(
        name="stage2",
        module=StageTwo(network, settings.stage2.loss, precision_of(settings, world)),
        schedule=settings.stage2,
        batches=lambda epoch: bags(exams, epoch),
        validation=bags(_known(run.split.validation), None),
        run=run.out,
        digest=run.digest,
        cpu_minutes=settings.cpu_minutes2,
    )


def _load_best(plan: StagePlan) -> None:
    tensors, document = load_checkpoint(plan.best_path)
    if document["digest"] != plan.digest:
        raise InputError(f"{plan.best_path}: of another run")
    plan.module.load_state_dict(tensors)


def _card(
    run: Run, use: IntendedUse, first: tuple[CachedExam, ...], second: tuple[CachedExam, ...]
) -> BundleCard:
    train, held = run.split.train, run.split.validation
    kind = "phantoms" if run.cache.phantoms else "exams"
    words = run.words.training_data or (
        f"{len(train)} {kind} for training ({sum(e.positive for e in train)} with PE), "
        f"{len(held)} for validation ({sum(e.positive for e in held)} with PE)"
    )
    metrics: dict[str, Any] = {"seed": run.settings.seed, "stage1 loss": run.settings.loss1}
    for name in ("stage1", "stage2"):
        path = run.out / f"{name}-best.safetensors"
        if path.exists():
            _, document = load_checkpoint(path)
            metrics[f"{name} validation loss"] = round(document["validation_loss"], 6)
            metrics[f"{name} best epoch"] = document["epoch"] + 1
            if "run" in document:
                metrics[f"{name} of the run of"] = document["run"]
    if first is not second:
        metrics["exams of stage 1"], metrics["exams of stage 2"] = len(first), len(second)
    own = replace(run.spec, stage1=run.settings.stage1, stage2=run.settings.stage2)
    return BundleCard(
        name=run.words.name,
        version=run.words.version,
        spec=own,
        thresholds=dict.fromkeys(THRESHOLD_KEYS, 0.5),
        intended_use=use,
        training_data=words,
        weights_sha256="0" * 64,
        metrics=metrics,
    )


def _write_json(path: Path, document: object) -> None:
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)
