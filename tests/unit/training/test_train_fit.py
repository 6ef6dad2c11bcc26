"""Whole runs on small trees: a bundle that serves, exact resume after a kill, honest refusals."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pe_triage.cli import cli, main
from pe_triage.domain import EXAM_LABELS, IntendedUse
from pe_triage.errors import InputError
from pe_triage.model.bundle import load_bundle
from pe_triage.model.consistency import count_violations
from pe_triage.model.schedule import Schedule
from pe_triage.model.spec import ATTENTION_BILSTM, SPECS, ModelSpec
from pe_triage.training.augment import Augmentation
from pe_triage.training.cache import build_cache
from pe_triage.training.checkpoint import load_checkpoint, same_weights, save_checkpoint
from pe_triage.training.distributed import World
from pe_triage.training.fit import CardWords, Run, fit, intended_use_of
from pe_triage.training.loop import TrainingStoppedError, _has_bfloat16, processor_precision
from pe_triage.training.reporting import Reporter
from pe_triage.training.rspect import read_rspect
from pe_triage.training.settings import TrainSettings, learning_rate
from pe_triage.training.splits import split_by_patient
from pe_triage.training.volumes import load_exam
from tests.support.rspect import small_tree
from tests.support.training import wait_for_checkpoints

# Dropout and batch normalisation stay in: what is drawn must come out the same after a resume.
SPEC = replace(ATTENTION_BILSTM.reduced(32, hidden=8), backbone="tinynet_e", stride=16, dropout=0.3)
STEPS = 3 * 2 + 2 * 2
"""Of the run below: 3 epochs of 2 steps, then 2 epochs of 2 steps."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory.mktemp("fit"), 6, size=32, slices=8)


def a_run(tree: Path, out: Path, spec: ModelSpec = SPEC, **changes: object) -> Run:
    cache = build_cache(read_rspect(tree).exams, tree / "cache", spec)
    settings = TrainSettings(
        stage1=Schedule(batch=2, epochs=3, lr=1e-3, sampling="balanced"),
        stage2=Schedule(batch=2, epochs=2, lr=1e-3, scheduler="step", gamma=0.5),
        units_per_exam=4,
        checkpoint_steps=1,
        validation=0.34,
        seed=7,
        augmentation=Augmentation(),
    )
    settings = replace(settings, **changes)  # type: ignore[arg-type]
    split = split_by_patient(cache.exams, seed=settings.seed, validation=0.34, test=0.0)
    return Run(
        spec=spec, cache=cache, split=split, settings=settings, words=CardWords(name="t"), out=out
    )


def go(run: Run, *, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> Path:
    with Reporter(speaks=False) as reporter:
        return fit(run, World(), reporter, now=lambda: datetime.now(UTC), resume=resume, stop=stop)


class KilledError(BaseException):
    """Stands for kill -9: nothing of the program handles it."""


def killer(after: int, error: type[BaseException] = KilledError) -> Callable[[], bool]:
    left = [after]

    def stop() -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return False

    return stop


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(a_run(tree, tmp_path_factory.mktemp("whole") / "run"))


def test_killed_anywhere_and_resumed_the_weights_are_the_same(
    tree: Path, whole: Path, tmp_path: Path
) -> None:
    want = load_bundle(whole).network.state_dict()
    rng = random.Random(20)
    for attempt in range(3):
        run = a_run(tree, tmp_path / str(attempt), checkpoint_steps=rng.choice([1, 2, 500]))
        kills = 0
        bundle = None
        while bundle is None:
            try:
                patience = killer(rng.randint(0, 5)) if kills < 4 else (lambda: False)
                bundle = go(run, resume=kills > 0, stop=patience)
            except KilledError:
                kills += 1
        assert kills
        assert same_weights(load_bundle(bundle).network.state_dict(), want), attempt


def test_another_seed_gives_other_weights(tree: Path, whole: Path, tmp_path: Path) -> None:
    other = go(a_run(tree, tmp_path / "run", seed=8))
    a, b = (load_bundle(p).network.state_dict() for p in (whole, other))
    assert not same_weights(a, b)


@pytest.mark.long
def test_loader_processes_change_nothing(tree: Path, whole: Path, tmp_path: Path) -> None:
    bundle = go(a_run(tree, tmp_path / "run", workers=1))
    a, b = (load_bundle(p).network.state_dict() for p in (whole, bundle))
    assert same_weights(a, b)


def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on(
    tree: Path, whole: Path, tmp_path: Path
) -> None:
    run = a_run(tree, tmp_path / "run", checkpoint_steps=500)
    calls: list[int] = []
    with pytest.raises(TrainingStoppedError, match="--resume"):
        go(run, stop=lambda: calls.append(1) or len(calls) == 2)  # type: ignore[func-returns-value]
    _, document = load_checkpoint(run.out / "checkpoint.safetensors")
    assert document["progress"]["step"] == 2
    a, b = (load_bundle(p).network.state_dict() for p in (whole, go(run, resume=True)))
    assert same_weights(a, b)


def test_the_bundle_says_what_it_is_and_answers_consistently(tree: Path, whole: Path) -> None:
    bundle = load_bundle(whole)
    card = bundle.card
    assert card.intended_use is IntendedUse.DEMONSTRATION
    assert "4 phantoms for training" in card.training_data
    assert card.metrics["seed"] == 7
    assert card.metrics["stage2 validation loss"] > 0
    from pe_triage.infer.predictor import Predictor

    predictor = Predictor(whole, "cpu")
    for exam in read_rspect(tree).exams[:2]:
        said = predictor.predict(load_exam(exam).volume).prediction
        exam_l = [said.exam_probability[label] for label in EXAM_LABELS]
        assert not any(count_violations(said.slice_probability_z, exam_l).values())


def test_stage_two_learns_and_the_best_epoch_is_kept(tree: Path, tmp_path: Path) -> None:
    run = a_run(tree, tmp_path / "run", stage2=Schedule(batch=4, epochs=12, lr=2e-2))
    go(run)
    progress = json.loads((run.out / "stage2-history.json").read_text())
    losses = [e["training_loss"] for e in progress["history"]]
    assert losses[-1] < 0.8 * losses[0]
    held = [e["validation_loss"] for e in progress["history"]]
    assert progress["best"] == min(held)
    _, document = load_checkpoint(run.out / "stage2-best.safetensors")
    assert document["epoch"] == held.index(min(held))


def test_a_run_goes_on_only_as_it_began(tree: Path, tmp_path: Path) -> None:
    run = a_run(tree, tmp_path / "run")
    with pytest.raises(KilledError):
        go(run, stop=killer(1))
    with pytest.raises(InputError, match="holds a run already"):
        go(run)
    for other in (
        a_run(tree, run.out, seed=9),
        replace(run, spec=replace(SPEC, dropout=0.1)),
        replace(run, split=replace(run.split, train=run.split.train[1:])),
    ):
        with pytest.raises(InputError, match="begun with another"):
            go(other, resume=True)


def test_phantoms_make_no_research_bundle(tree: Path, tmp_path: Path) -> None:
    cache = a_run(tree, tmp_path).cache
    assert intended_use_of(cache, None) is IntendedUse.DEMONSTRATION
    with pytest.raises(InputError, match="for demonstration, not for research"):
        intended_use_of(cache, IntendedUse.RESEARCH)
    patients = replace(cache, exams=tuple(replace(e, quality_control=False) for e in cache.exams))
    assert intended_use_of(patients, None) is IntendedUse.RESEARCH
    with pytest.raises(InputError, match="not for intended use untrained"):
        intended_use_of(patients, IntendedUse.UNTRAINED)


def test_stage_two_may_learn_from_patients_that_stage_one_never_saw(
    tree: Path, tmp_path: Path
) -> None:
    card = load_bundle(go(a_run(tree, tmp_path / "run", stage2_share=0.5))).card
    assert card.metrics["exams of stage 1"] == card.metrics["exams of stage 2"] == 2


def test_a_loss_that_is_no_number_ends_the_run_in_words(tree: Path, tmp_path: Path) -> None:
    wild = Schedule(batch=2, epochs=3, lr=1e30, optimiser="sgd")
    from pe_triage.errors import PeTriageError

    with pytest.raises(PeTriageError, match="no longer a number"):
        go(a_run(tree, tmp_path / "run", stage1=wild))


def test_rates_follow_the_schedule() -> None:
    step = Schedule(lr=1.0, scheduler="step", step_epochs=20, gamma=0.9, epochs=200)
    assert [learning_rate(step, e) for e in (0, 19, 20, 45)] == pytest.approx([1, 1, 0.9, 0.81])
    cosine = Schedule(lr=1.0, scheduler="cosine", epochs=10)
    assert learning_rate(cosine, 5) == pytest.approx(0.5)
    assert learning_rate(Schedule(lr=0.3), 9) == 0.3


@pytest.mark.parametrize(
    ("able", "want"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_processor_computes_in_bfloat16_only_where_it_has_the_instructions(
    able: dict[str, bool], want: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert processor_precision() is want


def test_a_checkpoint_cut_off_is_refused_and_an_earlier_one_survives(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.arange(3.0)}, {"x": 1})
    tensors, document = load_checkpoint(path)
    assert torch.equal(tensors["a"], torch.arange(3.0))
    assert document["x"] == 1
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(path, {"a": torch.zeros(1)}, {"x": float("nan")})
    assert load_checkpoint(path)[1]["x"] == 1
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="cut off"):
        load_checkpoint(path)


def test_the_command_trains_from_a_tree_to_a_bundle(tree: Path, tmp_path: Path) -> None:
    args = [
        "train", "plain-cnn", "--data", str(tree), "--out", str(tmp_path / "run"),
        "--cache", str(tmp_path / "cache"), "--size", "32", "--epochs1", "1", "--batch1", "4",
        "--max-steps1", "2", "--validation", "0.34", "--device", "cpu", "--no-tensorboard",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    assert "no patient in two of them" in done.output
    assert load_bundle(tmp_path / "run" / "bundle").card.name == "plain-cnn-32"
    again = CliRunner().invoke(cli, args)
    assert isinstance(again.exception, InputError)


def test_wrong_usage_is_one_line_and_exit_code_2(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--data", str(tree), "--out", str(tmp_path / "run"), "--no-tensorboard"]
    assert main(["train", "nonsense", *base]) == 2
    assert "unknown spec 'nonsense'" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["train", "attention-bilstm", "--data", str(tmp_path / "empty"), "--out", "x"]) == 2
    assert "train.csv" in capsys.readouterr().err


@pytest.mark.long
def test_a_process_killed_outright_goes_on_from_the_command_line(
    tree: Path, tmp_path: Path
) -> None:
    """SIGKILL after a random number of checkpoints, again and again, in both stages."""

    def command(out: Path) -> list[str]:
        return [
            sys.executable, "-m", "pe_triage", "train", "attention-bilstm", "--data", str(tree),
            "--out", str(out), "--size", "64", "--epochs1", "2", "--epochs2", "3", "--batch1", "2",
            "--batch2", "2", "--units-per-exam", "4", "--validation", "0.34",
            "--checkpoint-steps", "1", "--device", "cpu", "--no-tensorboard",
        ]  # fmt: skip

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    rng, out = random.Random(1), tmp_path / "killed"
    killed_in: list[str] = []
    while True:
        more = ["--resume"] if (out / "run.json").exists() else []
        process = subprocess.Popen(
            [*command(out), *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_checkpoints(process, out, rng.randint(1, 3))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        if process.wait() == 0:  # it was quicker
            break
        progress = load_checkpoint(out / "checkpoint.safetensors")[1]["progress"]
        killed_in.append(progress["stage"])
        assert len(killed_in) < 30
    assert len(killed_in) >= 3
    assert set(killed_in) == {"stage1", "stage2"}
    a, b = (load_bundle(p / "bundle").network.state_dict() for p in (tmp_path / "whole", out))
    assert same_weights(a, b)


@pytest.mark.long
@pytest.mark.parametrize("name", SPECS)
def test_every_spec_trains_and_its_bundle_loads(tree: Path, tmp_path: Path, name: str) -> None:
    spec = SPECS[name].reduced(64 if SPECS[name].stride > 8 else 32, hidden=8, window=4)
    short = {"epochs": 1}
    run = a_run(
        tree,
        tmp_path / "run",
        spec,
        stage1=replace(spec.stage1, batch=2, **short),
        stage2=replace(spec.stage2, batch=2, **short),
        loss1=spec.stage1.loss,
        max_steps1=2,
    )
    bundle = load_bundle(go(run))
    assert bundle.card.spec.name == spec.name


class Clock:
    """Processor time that goes on by a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_stage_ends_when_its_processor_time_is_spent_and_keeps_its_best(
    tree: Path, tmp_path: Path
) -> None:
    run = a_run(tree, tmp_path / "run", cpu_minutes1=4 / 60, cpu_minutes2=1000.0)
    with Reporter(speaks=False) as reporter:
        bundle = fit(run, World(), reporter, now=lambda: datetime.now(UTC), cpu_s=Clock())
    one, two = (json.loads((run.out / f"stage{k}-history.json").read_text()) for k in (1, 2))
    assert one["epoch"] == 2, "cut short in the second of three epochs, after three steps"
    assert len(one["history"]) == 2
    assert one["best"] == min(e["validation_loss"] for e in one["history"])
    assert one["cpu_s"] >= 4
    assert two["epoch"] == 2, "not limited: all its epochs"
    assert load_bundle(bundle).card.metrics["stage1 best epoch"] in (1, 2)


def test_processor_time_spent_before_a_kill_counts_after_it(tree: Path, tmp_path: Path) -> None:
    def a_limited(out: Path) -> Run:
        return a_run(tree, out, cpu_minutes1=4 / 60)

    run = a_limited(tmp_path / "run")
    with Reporter(speaks=False) as reporter:
        with pytest.raises(KilledError):
            fit(
                run, World(), reporter, now=lambda: datetime.now(UTC), stop=killer(2),
                cpu_s=Clock(),
            )  # fmt: skip
        fit(
            run, World(), reporter, now=lambda: datetime.now(UTC), resume=True, cpu_s=Clock()
        )  # fmt: skip
    assert json.loads((run.out / "stage1-history.json").read_text())["epoch"] == 2


def test_another_runs_stage_one_is_taken_as_it_is(tree: Path, whole: Path, tmp_path: Path) -> None:
    other = replace(SPEC, name="gru", sequence="gru", pooling="max")
    run = replace(a_run(tree, tmp_path / "run", other), stage1_from=whole.parent)
    bundle = load_bundle(go(run))
    theirs = load_bundle(whole).network.state_dict()
    ours = bundle.network.state_dict()
    for name, tensor in theirs.items():
        if name.startswith(("encoder.", "slice_heads.")):
            assert torch.equal(ours[name], tensor), name
    assert bundle.card.metrics["stage1 of the run of"] == SPEC.name
    assert not (run.out / "stage1-history.json").exists()
    # killed in stage 2 it goes on all the same
    again = replace(run, out=tmp_path / "again")
    with pytest.raises(KilledError):
        go(again, stop=killer(3))
    resumed = load_bundle(go(again, resume=True)).network.state_dict()
    assert same_weights(resumed, ours)


def test_a_stage_one_that_does_not_fit_or_knows_too_much_is_refused(
    tree: Path, whole: Path, tmp_path: Path
) -> None:
    def taking(run: Run) -> Run:
        return replace(run, stage1_from=whole.parent)

    swapped = a_run(tree, tmp_path / "a")
    split = swapped.split
    swapped = replace(swapped, split=replace(split, train=split.validation, validation=split.train))
    with pytest.raises(
        InputError, match="learnt from patients of 4 exams of this run's validation"
    ):
        go(taking(swapped))
    with pytest.raises(InputError, match="another encoder or input"):
        go(taking(a_run(tree, tmp_path / "b", replace(SPEC, planes=3))))
    with pytest.raises(InputError, match="no stage 2"):
        go(taking(a_run(tree, tmp_path / "c", replace(SPEC, head="cnn-max"))))
    unfinished = a_run(tree, tmp_path / "d")
    with pytest.raises(KilledError):
        go(unfinished, stop=killer(1))
    with pytest.raises(InputError, match="not come to its end"):
        go(replace(a_run(tree, tmp_path / "e"), stage1_from=unfinished.out))
    with pytest.raises(InputError, match=r"run\.json: not there"):
        go(replace(a_run(tree, tmp_path / "f"), stage1_from=tmp_path))


def test_mixed_precision_trains_and_keeps_its_weights_in_float32(
    tree: Path, whole: Path, tmp_path: Path
) -> None:
    """In bfloat16 on the CPU; what CUDA does with it is not tried here."""
    run = a_run(
        tree, tmp_path / "run", precision="bf16", stage1=Schedule(batch=2, epochs=1),
        stage2=Schedule(batch=2, epochs=1),
    )  # fmt: skip
    if not _has_bfloat16():  # recurrent layers cannot; said in words before anything begins
        with pytest.raises(InputError, match="no instructions that train in it"):
            go(run)
        return
    weights = load_bundle(go(run)).network.state_dict()
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float32}
    plain = replace(run, settings=replace(run.settings, precision="fp32"), out=tmp_path / "plain")
    assert not same_weights(weights, load_bundle(go(plain)).network.state_dict())
    losses = [json.loads((r.out / "stage1-history.json").read_text())["best"] for r in (run, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_weights_from_a_file_are_where_training_begins(tree: Path, tmp_path: Path) -> None:
    import timm

    model = timm.create_model("tinynet_e", pretrained=False)
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    still = Schedule(batch=2, epochs=1, lr=1e-30)
    run = replace(a_run(tree, tmp_path / "run", stage1=still, stage2=still), pretrained=file)
    begun = load_bundle(go(run)).network.state_dict()
    assert torch.allclose(
        begun["encoder.backbone.conv_stem.weight"], model.state_dict()["conv_stem.weight"]
    )
