"""``pe-triage train``: from an RSPECT-layout tree to a bundle."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pe_triage.domain import IntendedUse

if TYPE_CHECKING:
    from pe_triage.training.cache import ShardCache
    from pe_triage.training.distributed import World
    from pe_triage.training.reporting import Reporter

_USES = tuple(u.value for u in IntendedUse if u is not IntendedUse.UNTRAINED)


@click.command(name="train")
@click.argument("spec_name", metavar="SPEC")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Tree in RSPECT's layout: train.csv and train/<Study>/<Series>/<SOP>.dcm.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory of the run; the bundle will be OUT/bundle.",
)
@click.option(
    "--cache",
    "cache_dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Directory of preprocessed exams, shared by runs.  [default: DATA/cache]",
)
@click.option("--size", type=int, default=None, help="Rows and columns, instead of the spec's.")
@click.option("--epochs1", type=click.IntRange(1), default=None, help="Epochs of stage 1.")
@click.option("--epochs2", type=click.IntRange(1), default=None, help="Epochs of stage 2.")
@click.option("--batch1", type=click.IntRange(1), default=None, help="Batch of stage 1.")
@click.option("--batch2", type=click.IntRange(1), default=None, help="Batch of stage 2, exams.")
@click.option("--lr1", type=float, default=None, help="Rate of stage 1.")
@click.option("--lr2", type=float, default=None, help="Rate of stage 2.")
@click.option(
    "--loss1",
    default=None,
    help="Loss of stage 1: challenge, image, exam, mixed or image+attention.",
)
@click.option(
    "--attention-weight",
    type=click.FloatRange(0),
    default=None,
    help="Factor of the attention loss in image+attention.  [default: the spec's, else 1]",
)
@click.option(
    "--sampling1",
    type=click.Choice(["natural", "balanced"]),
    default=None,
    help="How stage 1 draws slices; balanced: as many with PE as without.",
)
@click.option(
    "--units-per-exam",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Slices that stage 1 draws from each exam of a batch.",
)
@click.option(
    "--max-steps1",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Steps in an epoch of stage 1 at most; 0: all.",
)
@click.option(
    "--cpu-minutes1",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Processor minutes that stage 1 may take, loaders not counted; 0: no limit.",
)
@click.option(
    "--cpu-minutes2",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="The same of stage 2.",
)
@click.option(
    "--stage1-from",
    type=click.Path(path_type=Path),
    default=None,
    help="Directory of another run whose stage 1 is taken as it is; only stage 2 is trained.",
)
@click.option(
    "--stage2-share",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of training patients that stage 1 never sees and stage 2 alone learns from.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="auto: mixed precision on a GPU.",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes that build the cache and prepare batches.",
)
@click.option(
    "--pretrained",
    type=click.Path(path_type=Path),
    default=None,
    help="Local weights of the encoder, in timm's or torchvision's form.",
)
@click.option(
    "--split",
    "split_file",
    type=click.Path(path_type=Path),
    default=None,
    help='JSON {"train": [StudyInstanceUID, …], "validation": […], "test": […]}.',
)
@click.option(
    "--validation", type=float, default=0.15, show_default=True, help="Share of patients."
)
@click.option("--test", type=float, default=0.0, show_default=True, help="Share left untouched.")
@click.option("--no-augment", is_flag=True, help="Train stage 1 on unchanged images.")
@click.option(
    "--on-bad",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="What to do with exams whose data are bad; they are named and counted either way.",
)
@click.option("--checkpoint-steps", type=click.IntRange(1), default=500, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the run in OUT, exactly where it stood.")
@click.option("--intended-use", type=click.Choice(_USES), default=None)
@click.option("--name", default=None, help="Name on the bundle's card.  [default: the spec's]")
@click.option("--model-version", default="1", show_default=True, help="Version on the card.")
@click.option("--training-data", default=None, help="Sentence on the card.")
@click.option("--tensorboard/--no-tensorboard", default=None, help="[default: if installed]")
@click.option(
    "--mlflow", "mlflow_uri", default=None, help="MLflow tracking URI, such as sqlite:///runs.db."
)
def train(spec_name: str, data: Path, out: Path, **options: Any) -> None:
    """Train both stages of SPEC on labelled CTPA and write a model bundle.

    Under torchrun each process takes its share of every batch. Stop it (Ctrl-C, SIGTERM, power
    cut) and go on with --resume.
    """
    from pe_triage.training.distributed import join_world
    from pe_triage.training.mlflow_log import MlflowLog
    from pe_triage.training.reporting import Reporter, tensorboard_there

    with join_world(options["device"]) as world:
        board = options["tensorboard"]
        if board is None:
            board = tensorboard_there()
        uri, log = options["mlflow_uri"], None
        if uri is not None and world.leads:
            log = MlflowLog(uri, out, lambda line: click.echo(line, err=True))
        with Reporter(
            speaks=world.leads,
            tensorboard=out / "tensorboard" if board else None,
            mlflow_log=log,
        ) as reporter:
            bundle = _train(spec_name, data, out, options, world, reporter)
    if world.leads:
        click.echo(bundle)


def _train(
    spec_name: str,
    data: Path,
    out: Path,
    options: dict[str, Any],
    world: World,
    reporter: Reporter,
) -> Path:
    from pe_triage.errors import InputError
    from pe_triage.model.spec import SPECS
    from pe_triage.training.augment import Augmentation
    from pe_triage.training.fit import CardWords, Run, fit
    from pe_triage.training.settings import TrainSettings
    from pe_triage.training.splits import read_split, split_by_patient

    spec = SPECS.get(spec_name)
    if spec is None:
        raise InputError(f"unknown spec {spec_name!r}; there are {', '.join(SPECS)}")
    if options["size"] is not None:
        spec = spec.reduced(options["size"])
    stage1 = _changed(spec.stage1, epochs=options["epochs1"], batch=options["batch1"],
                      lr=options["lr1"], sampling=options["sampling1"])  # fmt: skip
    stage2 = _changed(
        spec.stage2, epochs=options["epochs2"], batch=options["batch2"], lr=options["lr2"]
    )
    loss1 = options["loss1"] or stage1.loss
    weight = options["attention_weight"]
    if weight is None and loss1 == "image+attention" and not stage1.attention_weight:
        weight = 1.0  # asked for by name, for a spec whose source had none
    stage1 = _changed(stage1, attention_weight=weight)
    settings = TrainSettings(
        stage1=stage1,
        stage2=stage2,
        loss1=loss1,
        augmentation=None if options["no_augment"] else Augmentation(),
        **{
            key: options[key]
            for key in (
                "seed", "units_per_exam", "max_steps1", "cpu_minutes1", "cpu_minutes2",
                "stage2_share", "precision", "validation", "test", "checkpoint_steps", "workers",
            )
        },
    )  # fmt: skip
    use = options["intended_use"]
    words = CardWords(
        name=options["name"] or spec.name,
        version=options["model_version"],
        intended_use=IntendedUse(use) if use else None,
        training_data=options["training_data"],
    )
    cache = _cache(data, options, spec, world, reporter)
    if options["split_file"] is not None:
        split = read_split(options["split_file"], cache.exams)
    else:
        split = split_by_patient(
            cache.exams, seed=settings.seed, validation=settings.validation, test=settings.test
        )
    reporter.say(
        f"{len(split.train)} exams for training, {len(split.validation)} for validation, "
        f"{len(split.test)} for testing, {split.left_out} left out; no patient in two of them"
    )
    run = Run(
        spec=spec, cache=cache, split=split, settings=settings, words=words, out=out,
        pretrained=options["pretrained"], stage1_from=options["stage1_from"],
    )  # fmt: skip
    stopping = _StopFlag()
    return fit(
        run, world, reporter, now=lambda: datetime.now(UTC), resume=options["resume"],
        stop=stopping,
    )  # fmt: skip


def _cache(
    data: Path, options: dict[str, Any], spec: Any, world: World, reporter: Reporter
) -> ShardCache:
    """Read the table and bring the cache up to date; the leading process first, then the others."""
    from pe_triage.training.cache import build_cache
    from pe_triage.training.problems import count_problems
    from pe_triage.training.rspect import read_rspect

    root = options["cache_dir"] or data / "cache"

    def build() -> ShardCache:
        index = read_rspect(data, on_bad=options["on_bad"])
        reporter.begin("cache", len(index.exams))
        cache = build_cache(
            index.exams, root, spec, workers=options["workers"], on_bad=options["on_bad"],
            progress=lambda done, _total: reporter.step(done),
        )  # fmt: skip
        return replace(cache, problems=(*index.problems, *cache.problems))

    if world.leads:
        cache = build()
    world.wait()
    if not world.leads:
        cache = build()
    for code, count in count_problems(cache.problems).items():
        first = next(p for p in cache.problems if p.code == code)
        reporter.say(f"bad data: {code}: {count} (the first: {first})")
    return cache


def _changed(schedule: Any, **values: Any) -> Any:
    return replace(schedule, **{k: v for k, v in values.items() if v is not None})


class _StopFlag:
    """Set by SIGINT or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self._stop = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def __call__(self) -> bool:
        return self._stop

    def _note(self, number: int, frame: object) -> None:
        if self._stop:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._stop = True
