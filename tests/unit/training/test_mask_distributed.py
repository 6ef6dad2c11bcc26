"""The attention loss under torchrun: it trains in two processes, and no parameter is missed.

That two processes give what one gives is shown in `test_train_distributed`, without batch
normalisation; here losses agree roughly only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pe_triage.phantom import generate_study, write_study
from pe_triage.training.make_tree import make_tree


@pytest.mark.long
def test_torchrun_trains_on_masks(tmp_path: Path) -> None:
    for k in range(6):
        study = generate_study(k + 1, ("pe-acute", "negative")[k % 2], size=64, n_slices=6)
        write_study(study, tmp_path / "phantoms")
    make_tree(tmp_path / "phantoms", tmp_path / "tree")
    losses = []
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes), "-m", "pe_triage", "train",
            "attention-guided-resnet", "--data", str(tmp_path / "tree"), "--out", str(out),
            "--size", "64", "--epochs1", "2", "--epochs2", "2", "--batch1", "4", "--batch2", "2",
            "--lr1", "1e-9", "--max-steps1", "3", "--validation", "0.34", "--device", "cpu",
            "--no-augment", "--no-tensorboard",
        ]  # fmt: skip
        done = subprocess.run(
            command, check=False, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        history = json.loads((out / "stage1-history.json").read_text())["history"]
        losses.append([entry["validation_loss"] for entry in history])
    # Weights hardly move at that rate; the running statistics of batch normalisation differ.
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
