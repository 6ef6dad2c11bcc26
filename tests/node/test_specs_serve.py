"""Every named spec: trained by the command, then served by `analyze` and by a running node."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread

from pe_triage.model.bundle import load_bundle, save_bundle
from pe_triage.model.decisions import PE
from pe_triage.model.spec import SPECS
from pe_triage.phantom import generate_study, write_study
from pe_triage.training.make_tree import make_tree
from tests.node.conftest import QUICK, storescu
from tests.support.node import RunningNode, pe_triage

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
SLICES = 64
PRESETS = ("pe-acute", "negative", "pe-acute", "negative")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small phantoms to learn from: seconds, and nothing is learnt."""
    root = tmp_path_factory.mktemp("learn")
    for k, preset in enumerate(PRESETS):
        study = generate_study(60 + k, preset, size=64, n_slices=16)
        write_study(study, root / "phantoms", mask=True)
    make_tree(root / "phantoms", root / "tree")
    return root / "tree"


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
    check(json.loads(done.stdout), name)

    flags = ("--model", bundle, "--quiet-s", 3)
    with RunningNode(tmp_path / "node", *flags, settings=QUICK) as node:
        storescu(node, files)
        doc = node.wait_ended(study_uid, delivered=False, timeout_s=600)
        check(doc, name)
        assert node.stop() == 0
    shutil.rmtree(tmp_path, ignore_errors=True)  # fifteen bundles of up to 130 MB


def eager(source: Path, target: Path) -> Path:
    """The same weights with a threshold that calls PE: heatmaps go with positive answers."""
    bundle = load_bundle(source)
    card = replace(bundle.card, thresholds={**bundle.card.thresholds, PE: 1e-6})
    save_bundle(target, bundle.network.state_dict(), card, created_at=datetime.now(UTC))
    return target


def check(doc: dict, name: str) -> None:  # type: ignore[type-arg]
    assert doc["state"] == "DONE", doc["reason"]
    assert doc["outcome"] == "POSITIVE"
    assert doc["model"]["name"] == f"{name}-64"
    assert doc["model"]["intended_use"] == "demonstration"
    assert len(doc["slices"]) == SLICES
    assert doc["exam"] is not None
    heatmaps = [r for r in doc["results"] if r["kind"] == "HEATMAP"]
    assert heatmaps
    for result in heatmaps:
        ds = dcmread(result["path"])
        assert ds.pixel_array.std() > 0
        assert str(ds.SOPInstanceUID) == result["sop_instance_uid"]
