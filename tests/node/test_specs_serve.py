"""Every named spec: trained by the command, then served by `analyze` and by a running node.

First small, both stages and both ways of serving; then at the size that its source published, one
step of each stage and one study sent to a running node.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from pe_triage.infer.keyslices import key_slices
from pe_triage.infer.predictor import Predictor
from pe_triage.model.bundle import load_bundle, save_bundle
from pe_triage.model.decisions import PE
from pe_triage.model.spec import SPECS
from pe_triage.phantom import generate_study, write_study
from pe_triage.report.heatmap_picture import _MARGIN, _PANEL, _TOP, WIDTH
from pe_triage.training.evaluate_data import find_studies, load_study
from pe_triage.training.make_tree import make_tree
from tests.node.conftest import QUICK, storescu
from tests.support.node import RunningNode, pe_triage

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
SLICES = 64
PRESETS = ("pe-acute", "negative", "pe-acute", "negative")
PATIENT = {**QUICK, "lease_s": 300}
"""As quick as other tests' nodes, but a slice of a 3-D encoder may take long on a busy machine."""


def learn_from(root: Path, **how: Any) -> Path:
    """Four small phantoms to learn from: seconds, and nothing is learnt."""
    for k, preset in enumerate(PRESETS):
        study = generate_study(60 + k, preset, size=64, **how)
        write_study(study, root / "phantoms", mask=True)
    make_tree(root / "phantoms", root / "tree")
    return root / "tree"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn_from(tmp_path_factory.mktemp("learn"), n_slices=16)


@pytest.fixture(scope="module")
def short_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of the chest: at full size each slice or window costs up to 650 GFLOP."""
    root = tmp_path_factory.mktemp("short")
    return learn_from(root, n_slices=16, coverage_mm=(-50.0, 30.0))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    study = generate_study(5, "pe-acute", size=256, n_slices=SLICES, coverage_mm=(-110.0, 70.0))
    written = write_study(study, tmp_path_factory.mktemp("unseen"), mask=False)
    return written.study_uid, sorted(written.dicom_dir.glob("*.dcm"))


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_trains_end_to_end_and_serves_with_heatmaps(
    name: str, tree: Path, unseen: tuple[str, list[Path]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = pe_triage(
        "train", name, "--data", tree, "--out", run, "--cache", tree.parent / "cache",
        "--size", 64, "--epochs1", 1, "--epochs2", 1, "--batch1", 2, "--batch2", 2,
        "--max-steps1", 1, "--units-per-exam", 2, "--validation", 0.5, "--device", "cpu",
        "--no-tensorboard", timeout_s=900,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    study_uid, files = unseen
    bundle = eager(run / "bundle", tmp_path / "eager")

    out = tmp_path / "analyzed"
    done = pe_triage(
        "analyze", files[0].parent, "--out", out, "--model", bundle, "--json",
        timeout_s=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), f"{name}-64", bundle, files)
    check(served(bundle, study_uid, files, tmp_path), f"{name}-64", bundle, files)
    shutil.rmtree(tmp_path, ignore_errors=True)  # fifteen bundles of up to 130 MB


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_at_its_published_size_takes_a_step_and_serves_a_study(
    name: str, short_tree: Path, unseen: tuple[str, list[Path]], tmp_path: Path
) -> None:
    """Nothing reduced but the batch, which a processor's memory would not hold."""
    run = tmp_path / "run"
    trained = pe_triage(
        "train", name, "--data", short_tree, "--out", run, "--epochs1", 1, "--epochs2", 1,
        "--batch1", 2, "--batch2", 2, "--max-steps1", 1, "--units-per-exam", 1,
        "--validation", 0.5, "--device", "cpu", "--no-tensorboard", timeout_s=1500,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    spec, published = load_bundle(run / "bundle").card.spec, SPECS[name]
    assert replace(spec, stage1=published.stage1, stage2=published.stage2) == published
    study_uid, files = unseen
    bundle = eager(run / "bundle", tmp_path / "eager")
    check(served(bundle, study_uid, files, tmp_path), name, bundle, files)
    shutil.rmtree(tmp_path, ignore_errors=True)


def served(bundle: Path, study_uid: str, files: list[Path], folder: Path) -> dict[str, Any]:
    """Send the study to a node that runs the bundle, and return what `show --json` says of it."""
    flags = ("--model", bundle, "--quiet-s", 3)
    with RunningNode(folder / "node", *flags, settings=PATIENT) as node:
        storescu(node, files)
        doc = node.wait_ended(study_uid, delivered=False, timeout_s=1500)
        assert node.stop() == 0
    return doc


def eager(source: Path, target: Path) -> Path:
    """The same weights with a threshold that calls PE: heatmaps go with positive answers."""
    bundle = load_bundle(source)
    card = replace(bundle.card, thresholds={**bundle.card.thresholds, PE: 1e-6})
    save_bundle(target, bundle.network.state_dict(), card, created_at=datetime.now(UTC))
    return target


def check(doc: dict[str, Any], model: str, bundle: Path, files: list[Path]) -> None:
    assert doc["state"] == "DONE", doc["reason"]
    assert doc["outcome"] == "POSITIVE"
    assert doc["model"]["name"] == model
    assert doc["model"]["intended_use"] == "demonstration"
    assert len(doc["slices"]) == SLICES
    assert doc["exam"] is not None
    heatmaps = [r for r in doc["results"] if r["kind"] == "HEATMAP"]
    assert heatmaps
    stained = []
    for result in heatmaps:
        ds = dcmread(result["path"])
        assert str(ds.SOPInstanceUID) == result["sop_instance_uid"]
        stained.append(stain(ds.pixel_array))
    if max(stained) < 0.005:  # after a step or two Grad-CAM may honestly be empty everywhere
        assert not sees_anything(bundle, files), "the network points somewhere, no heatmap shows it"


def sees_anything(bundle: Path, files: list[Path]) -> bool:
    """Whether the bundle's own heatmaps of the key slices are not all empty."""
    (study,) = find_studies(files[0].parents[2]).studies
    volume = load_study(study).volume
    predictor = Predictor(bundle, "cpu", threads=2)
    keys = key_slices(volume, predictor.predict(volume), predictor, 5)
    return any(bool(key.heatmap_yx.any()) for key in keys)


def stain(rgb_yxc: NDArray[np.uint8]) -> float:
    """Share of the left panel that differs from the right one, the same slice without a heatmap."""
    rows = slice(_TOP, _TOP + _PANEL)
    left = rgb_yxc[rows, _MARGIN : _MARGIN + _PANEL].astype(int)
    right = rgb_yxc[rows, WIDTH - _MARGIN - _PANEL : WIDTH - _MARGIN].astype(int)
    return float((np.abs(left - right).max(axis=2) > 24).mean())
