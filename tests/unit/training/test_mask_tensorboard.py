"""TensorBoard: what the command writes is what TensorBoard itself reads back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator as accumulator

from tests.support.rspect import small_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory.mktemp("board"), 5, size=32, slices=6)


def train(tree: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as a person would: its standard error shows what gets in the way."""
    return subprocess.run(
        [
            sys.executable, "-m", "pe_triage", "train", "attention-bilstm", "--data", str(tree),
            "--out", str(out), "--size", "32", "--epochs1", "2", "--epochs2", "3", "--batch1", "2",
            "--units-per-exam", "2", "--max-steps1", "1", "--validation", "0.4", "--device", "cpu",
            *more,
        ],
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip


def test_the_command_writes_the_losses_of_every_epoch(tree: Path, tmp_path: Path) -> None:
    done = train(tree, tmp_path / "run")  # no flag: TensorBoard is used because it is installed
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    board = tmp_path / "run" / "tensorboard"
    assert len(list(board.glob("events.out.tfevents.*"))) == 1
    events = accumulator.EventAccumulator(str(board))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    names = ("training loss", "validation loss", "learning rate")
    assert tags == {f"{stage}/{name}" for stage in ("stage1", "stage2") for name in names}
    for stage, epochs in (("stage1", 2), ("stage2", 3)):
        history = json.loads((tmp_path / "run" / f"{stage}-history.json").read_text())["history"]
        for name in ("training", "validation"):
            scalars = events.Scalars(f"{stage}/{name} loss")
            assert [s.step for s in scalars] == list(range(epochs))
            want = [entry[f"{name}_loss"] for entry in history]
            assert [s.value for s in scalars] == pytest.approx(want, rel=1e-5)


def test_it_can_be_left_out_and_a_refused_run_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    done = train(tree, tmp_path / "run", "--tensorboard", "--split", str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert "none.json" in done.stderr
    assert not (tmp_path / "run").exists()
