"""Two processes with one global batch do what one process does."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from pe_triage.model.bundle import load_bundle
from pe_triage.model.schedule import Schedule
from pe_triage.model.spec import SPECS
from pe_triage.training.cache import build_cache
from pe_triage.training.checkpoint import load_checkpoint, same_weights
from pe_triage.training.distributed import join_world
from pe_triage.training.fit import CardWords, Run, fit
from pe_triage.training.reporting import Reporter
from pe_triage.training.rspect import read_rspect
from pe_triage.training.settings import TrainSettings
from pe_triage.training.splits import split_by_patient
from tests.support.rspect import small_tree
from tests.support.training import wait_for_checkpoints

SPEC = replace(SPECS["plain-cnn"].reduced(32, hidden=8), head="sequence", dropout=0.0)
"""Both stages, without batch normalisation, whose statistics are each process' own."""


def train(rank: int, size: int, port: int, tree: str, out: str) -> None:
    torch.set_num_threads(1)
    from datetime import UTC, datetime

    environment = {"RANK": str(rank), "WORLD_SIZE": str(size)}
    if size > 1:  # a process of its own: what torchrun would have set
        os.environ |= environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    settings = TrainSettings(
        # Plain steps: Adam makes a whole step of the rounding error of a gradient that is zero.
        stage1=Schedule(batch=2, epochs=1, lr=1e-2, optimiser="sgd"),
        stage2=Schedule(batch=4, epochs=3, lr=1e-2, optimiser="sgd"),
        units_per_exam=3,
        augmentation=None,
    )
    cache = build_cache(read_rspect(Path(tree)).exams, Path(out) / f"cache{rank}", SPEC)
    split = split_by_patient(cache.exams, seed=0, validation=0.4, test=0.0)
    run = Run(
        spec=SPEC, cache=cache, split=split, settings=settings, words=CardWords(name="t"),
        out=Path(out) / f"run{size}",
    )  # fmt: skip
    with join_world("cpu", environment) as world, Reporter(speaks=False) as reporter:
        fit(run, world, reporter, now=lambda: datetime.now(UTC))


@pytest.mark.long
def test_two_processes_equal_one(tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "t", 6, size=32, slices=6)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train(0, 1, port, str(tree), str(tmp_path))
    multiprocessing.spawn(train, (2, port, str(tree), str(tmp_path)), nprocs=2)
    one, two = (load_bundle(tmp_path / f"run{n}" / "bundle") for n in (1, 2))
    moved = 0
    for name, tensor in one.network.state_dict().items():
        torch.testing.assert_close(
            two.network.state_dict()[name], tensor, rtol=1e-3, atol=1e-6, msg=name
        )
        moved += 1
    assert moved > 10
    for stage in ("stage1", "stage2"):
        key = f"{stage} validation loss"
        assert one.card.metrics[key] == pytest.approx(two.card.metrics[key], rel=1e-4)
        histories = [
            json.loads((tmp_path / f"run{n}" / f"{stage}-history.json").read_text())["history"]
            for n in (1, 2)
        ]
        for a, b in zip(*histories, strict=True):
            assert a["training_loss"] == pytest.approx(b["training_loss"], rel=1e-4)


@pytest.mark.long
def test_torchrun_trains(tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "t", 6, size=64, slices=6)
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "pe_triage", "train", "attention-bilstm", "--data", str(tree), "--out", str(out),
        "--size", "64", "--epochs1", "1", "--epochs2", "1", "--batch1", "2", "--batch2", "2",
        "--units-per-exam", "3", "--validation", "0.34", "--device", "cpu", "--no-tensorboard",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_bundle(out / "bundle").card.spec.size == 64


@pytest.mark.long
def test_torchrun_gives_what_one_process_gives(tmp_path: Path) -> None:
    """The command itself, with Adam, on a network without batch normalisation.

    Without augmentation, whose noise each process draws by itself.
    """
    tree = small_tree(tmp_path / "t", 8, size=64, slices=6)
    for processes in (1, 2):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes), "-m", "pe_triage", "train", "plain-cnn",
            "--data", str(tree), "--out", str(tmp_path / f"run{processes}"), "--size", "32",
            "--epochs1", "3", "--batch1", "4", "--max-steps1", "4", "--lr1", "1e-4",
            "--validation", "0.34", "--device", "cpu", "--no-augment", "--no-tensorboard",
        ]  # fmt: skip
        done = subprocess.run(
            command, check=False, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    histories = [
        json.loads((tmp_path / f"run{n}" / "stage1-history.json").read_text())["history"]
        for n in (1, 2)
    ]
    for a, b in zip(*histories, strict=True):
        for name in ("training_loss", "validation_loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    assert histories[0][0]["training_loss"] > histories[0][2]["training_loss"]
    one, two = (load_bundle(tmp_path / f"run{n}" / "bundle").network for n in (1, 2))
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(
            two.state_dict()[name],
            tensor,
            rtol=0,
            atol=1e-5,
            msg=lambda said, n=name: f"{n}: {said}",
        )  # 12 steps of 1e-4: a whole step that went the other way would be seen


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    sys.platform != "linux", reason="no /proc to find the ranks in: only Linux has it"
)
def test_killed_under_torchrun_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL of one rank by chance, again and again: torchrun ends, and the next one resumes."""
    tree = small_tree(tmp_path / "t", 6, size=64, slices=6)

    def command(out: Path) -> list[str]:
        return [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", "2", "-m", "pe_triage", "train", "attention-bilstm",
            "--data", str(tree), "--out", str(out), "--size", "64", "--epochs1", "2",
            "--epochs2", "3", "--batch1", "2", "--batch2", "2", "--units-per-exam", "4",
            "--validation", "0.34", "--checkpoint-steps", "1", "--device", "cpu",
            "--no-tensorboard",
        ]  # fmt: skip

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True, env=environment)
    rng = random.Random(2)
    killed_in: list[str] = []
    while True:
        more = ["--resume"] if (out / "run.json").exists() else []
        torchrun = subprocess.Popen(
            [*command(out), *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        wait_for_checkpoints(torchrun, out, rng.randint(2, 4))
        ranks = _children(torchrun.pid)
        if torchrun.poll() is None and len(ranks) == 2:
            os.kill(rng.choice(ranks), signal.SIGKILL)
        if torchrun.wait() == 0:
            break
        killed_in.append(load_checkpoint(out / "checkpoint.safetensors")[1]["progress"]["stage"])
        assert len(killed_in) < 30
    assert set(killed_in) == {"stage1", "stage2"}
    one, two = (load_bundle(p / "bundle").network.state_dict() for p in (whole, out))
    assert same_weights(one, two)


def _children(pid: int) -> list[int]:
    """Processes that `pid` started and that still run."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
