"""The loop that both stages run in: steps, epochs, validation, checkpoints, exact resume.

Where the loop stands is (epoch, step); batches, rates and random numbers all follow from that
(`seeding`, `settings.learning_rate`). So a checkpoint is weights, optimiser state and that pair,
and a resumed run ends with the weights of one that was never interrupted, to the last bit on one
CPU with the same number of threads. Only a limit of processor time ends a stage elsewhere.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset

from pe_triage.errors import InputError, PeTriageError
from pe_triage.model.schedule import Schedule
from pe_triage.training.checkpoint import (
    pack_optimiser,
    save_checkpoint,
    unpack_optimiser,
    with_prefix,
    without_prefix,
)
from pe_triage.training.distributed import World
from pe_triage.training.reporting import Reporter
from pe_triage.training.seeding import seed_torch
from pe_triage.training.settings import TrainSettings, learning_rate

CHECKPOINT_NAME: Final = "checkpoint.safetensors"
_OPTIMISERS: Final[dict[str, Callable[..., Optimizer]]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": SGD,
}


class TrainingStoppedError(PeTriageError):
    """Someone asked the run to stop; its checkpoint is written."""


@dataclass(slots=True)
class Progress:
    """Where a stage stands; goes into the checkpoint as it is."""

    stage: str
    epoch: int = 0
    step: int = 0
    lost: float = 0.0
    weight: float = 0.0
    best: float | None = None
    best_epoch: int = -1
    cpu_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON takes them."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage, ready to run.

    Attributes
    ----------
    name
        ``stage1`` or ``stage2``.
    module
        Takes a batch, returns (weighted loss, weight).
    batches, validation
        Datasets whose items are batches; `batches` is asked for each epoch's.
    run
        Directory of the run.
    digest
        Written to the checkpoint: what a resumed run must agree on.
    cpu_minutes
        Processor time that the stage may take; 0 for no limit.
    """

    name: str
    module: nn.Module
    schedule: Schedule
    batches: Callable[[int], Dataset[Any]]
    validation: Dataset[Any]
    run: Path
    digest: str
    cpu_minutes: float = 0.0

    @property
    def best_path(self) -> Path:
        """Weights of the epoch with the lowest validation loss."""
        return self.run / f"{self.name}-best.safetensors"


def run_stage(
    plan: StagePlan,
    settings: TrainSettings,
    world: World,
    reporter: Reporter,
    *,
    resume: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    stop: Callable[[], bool] = lambda: False,
    cpu_s: Callable[[], float] = time.process_time,
) -> Progress:
    """Train one stage to its end; its best weights then lie at ``plan.best_path``.

    Parameters
    ----------
    resume
        A checkpoint of this very stage.
    stop
        Asked after each step, on every process; if it says so anywhere, a checkpoint is written
        and the run ends.
    cpu_s
        Processor seconds of this process, loaders not counted.

    Raises
    ------
    TrainingStoppedError
        It was asked to stop.
    PeTriageError
        The loss is no number.
    """
    module = plan.module.to(world.device)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = _optimiser(plan.schedule, parameters)
    scaler = torch.amp.GradScaler(
        world.device.type, enabled=precision_of(settings, world) == torch.float16
    )
    at = Progress(stage=plan.name)
    if resume is not None:
        tensors, document = resume
        module.load_state_dict(without_prefix("model", tensors))
        unpack_optimiser(optimiser, without_prefix("optimiser", tensors), document["optimiser"])
        if scaler.is_enabled() and document["scaler"]:
            scaler.load_state_dict(document["scaler"])
        at = Progress(**document["progress"])
    wrapped = _wrapped(module, world)
    before_s = cpu_s() - at.cpu_s
    allowed_s = 60 * plan.cpu_minutes or math.inf

    def spent() -> bool:
        at.cpu_s = cpu_s() - before_s
        return at.cpu_s >= allowed_s

    def checkpoint() -> None:
        if world.leads:
            state, packed = pack_optimiser(optimiser)
            save_checkpoint(
                plan.run / CHECKPOINT_NAME,
                {**with_prefix("model", module.state_dict()), **with_prefix("optimiser", state)},
                {
                    "digest": plan.digest,
                    "progress": at.to_json(),
                    "optimiser": packed,
                    "scaler": scaler.state_dict(),
                },
            )
        world.wait()

    over = at.epoch > 0 and at.cpu_s >= allowed_s
    while at.epoch < plan.schedule.epochs and not over:
        rate = learning_rate(plan.schedule, at.epoch)
        for group in optimiser.param_groups:
            group["lr"] = rate
        data = plan.batches(at.epoch)
        steps = len(data)  # type: ignore[arg-type]
        reporter.begin(f"{plan.name} {at.epoch + 1}/{plan.schedule.epochs}", steps, at.step)
        module.train()
        for batch in _loader(data, at.step, steps, settings, world):
            seed_torch(settings.seed, plan.name, at.epoch, at.step, world.rank)
            lost, weight, halt, over = _step(
                wrapped, batch, optimiser, scaler, parameters, settings, world, (stop(), spent())
            )
            at.step += 1
            at.lost += lost
            at.weight += weight
            reporter.step(at.step, f"loss {at.lost / (at.weight or 1.0):.4f}")
            if halt:
                checkpoint()
                raise TrainingStoppedError(
                    f"stopped in {plan.name}, epoch {at.epoch + 1}, step {at.step}; "
                    "go on with --resume"
                )
            if over:
                break
            if at.step < steps and at.step % settings.checkpoint_steps == 0:
                checkpoint()
        _end_epoch(plan, at, settings, world, reporter, rate)
        over = _any(spent(), world)
        checkpoint()
    if over:
        reporter.say(f"{plan.name}: its {plan.cpu_minutes:g} CPU minutes are spent")
    return at


def _step(
    wrapped: nn.Module,
    batch: Any,
    optimiser: Optimizer,
    scaler: torch.amp.GradScaler,
    parameters: list[nn.Parameter],
    settings: TrainSettings,
    world: World,
    ends: tuple[bool, bool],
) -> tuple[float, float, bool, bool]:
    """Make one step; return the batch's weighted loss and weight, and `ends` of any process."""
    optimiser.zero_grad(set_to_none=True)
    lost_weight: Tensor = wrapped(batch)
    mine = torch.cat([lost_weight.detach().double(), lost_weight.new_tensor(ends).double()])
    lost, weight, halt, over = world.total(mine).tolist()
    if not math.isfinite(lost):
        raise PeTriageError("the loss is no longer a number: try a lower rate, or --precision fp32")
    # DistributedDataParallel takes the mean over processes: the factor makes it the sum.
    # A batch of exams without labels that this loss reads has no weight, and teaches nothing.
    factor: float = world.size / weight if weight else 0.0
    # Tensor.backward is typed in some releases of torch and not in others.
    scaler.scale(lost_weight[0] * factor).backward()  # type: ignore[no-untyped-call,unused-ignore]
    scaler.unscale_(optimiser)
    nn.utils.clip_grad_norm_(parameters, settings.clip)
    scaler.step(optimiser)
    scaler.update()
    return lost, weight, bool(halt), bool(over)


def _any(said: bool, world: World) -> bool:
    """Whether any process says so."""
    return bool(world.total(torch.tensor([said], dtype=torch.float64, device=world.device)).item())


def _end_epoch(
    plan: StagePlan,
    at: Progress,
    settings: TrainSettings,
    world: World,
    reporter: Reporter,
    rate: float,
) -> None:
    validation = validate(plan.module, plan.validation, settings, world)
    training = at.lost / (at.weight or 1.0)
    better = at.best is None or validation < at.best
    if better:
        at.best, at.best_epoch = validation, at.epoch
        if world.leads:
            save_checkpoint(
                plan.best_path,
                plan.module.state_dict(),
                {"digest": plan.digest, "epoch": at.epoch, "validation_loss": validation},
            )
    at.history.append(
        {"epoch": at.epoch, "training_loss": training, "validation_loss": validation, "lr": rate}
    )
    reporter.figure(f"{plan.name}/training loss", training, at.epoch)
    reporter.figure(f"{plan.name}/validation loss", validation, at.epoch)
    reporter.figure(f"{plan.name}/learning rate", rate, at.epoch)
    reporter.say(
        f"{plan.name} epoch {at.epoch + 1}/{plan.schedule.epochs}: training loss {training:.4f}, "
        f"validation loss {validation:.4f}{', the lowest yet' if better else ''}"
    )
    at.epoch += 1
    at.step = 0
    at.lost = at.weight = 0.0


@torch.no_grad()
def validate(module: nn.Module, data: Dataset[Any], settings: TrainSettings, world: World) -> float:
    """Return the loss over all of `data`: one weighted mean, not a mean of means."""
    module.eval()
    total = torch.zeros(2, dtype=torch.float64, device=world.device)
    steps = len(data)  # type: ignore[arg-type]
    for batch in _loader(data, 0, steps, settings, world):
        total += module(batch).double()
    lost, weight = world.total(total).tolist()
    module.train()
    if not math.isfinite(lost):
        raise PeTriageError("the validation loss is no longer a number: try a lower rate")
    if not weight:
        raise PeTriageError("no exam for validation has the labels that this loss reads")
    return float(lost / weight)


def precision_of(settings: TrainSettings, world: World) -> torch.dtype:
    """Return the type that autocast computes in; ``auto`` is bfloat16 on GPUs that have it.

    Raises
    ------
    InputError
        bfloat16 on a processor whose recurrent layers cannot be trained in it.
    """
    if settings.precision == "bf16" and world.device.type == "cpu" and not _has_bfloat16():
        raise InputError(
            "precision bf16: this processor has no instructions that train in it; give fp32 or auto"
        )
    if settings.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            settings.precision
        ]
    if world.device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _has_bfloat16() -> bool:
    """Whether oneDNN runs recurrent layers in bfloat16 here; yes where that is not known."""
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "avx2" not in able or bool(able.get("avx512_bw") or able.get("avx_ne_convert"))


def processor_precision() -> torch.dtype:
    """Return bfloat16 where this processor computes in it, float32 where it would emulate it.

    Emulated (x86 without AVX512-BF16 or AMX), a convolution takes some ten times as long.
    """
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # of late versions
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def _optimiser(schedule: Schedule, parameters: list[nn.Parameter]) -> Optimizer:
    more: dict[str, Any] = {"momentum": 0.9} if schedule.optimiser == "sgd" else {}
    return _OPTIMISERS[schedule.optimiser](
        parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, **more
    )


def _wrapped(module: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    # A loss on the image label alone leaves the exam head out, and the other way round; without
    # this the second step would fail.
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def _loader(
    data: Dataset[Any], start: int, steps: int, settings: TrainSettings, world: World
) -> Iterator[Any]:
    """Yield the batches from `start` on, on the device; prepared ahead by worker processes."""
    cuda = world.device.type == "cuda"
    more: dict[str, Any] = {}
    if settings.workers:
        # forkserver: forking a process that holds CUDA or torch's threads may hang. It imports
        # torch once, ahead, and not once for each worker of each epoch.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pe_triage.training.batches"])
        more = {"prefetch_factor": 4, "multiprocessing_context": context}
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=None,
        sampler=range(start, steps),
        num_workers=settings.workers,
        pin_memory=cuda,
        **more,
    )
    for batch in loader:
        yield type(batch)(*(t.to(world.device, non_blocking=cuda) for t in batch))
