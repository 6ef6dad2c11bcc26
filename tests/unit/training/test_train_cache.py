"""The shard cache, splits by patient, and weights from a file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pe_triage.errors import InputError
from pe_triage.model.inputs import ExamInput
from pe_triage.model.spec import ATTENTION_BILSTM, SPECS
from pe_triage.training.cache import CachedExam, ShardCache, build_cache, verify_cache
from pe_triage.training.inputs import planes_of, read_units, windowed
from pe_triage.training.rspect import read_rspect
from pe_triage.training.splits import read_split, split_by_patient
from pe_triage.training.volumes import load_exam
from tests.support.rspect import small_tree

SPEC = ATTENTION_BILSTM.reduced(32, hidden=8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory.mktemp("cache"), 4)


@pytest.fixture(scope="module")
def cache(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardCache:
    return build_cache(read_rspect(tree).exams, tmp_path_factory.mktemp("shards"), SPEC)


SPECS_TO_SEE = {
    "plain slices, shrunk": SPEC,
    "plain slices, as they are": SPEC.reduced(64),
    "plain slices, enlarged": SPEC.reduced(96),
    "neighbours": SPECS["rsna-first"].reduced(32),
    "windows of slices, lung mask": SPECS["r3d18-lstm"].reduced(32, window=4),
    "resampled along z, lungs' box": SPECS["multitask-r3d18-tcn"].reduced(32, window=4),
}


@pytest.mark.parametrize("which", SPECS_TO_SEE)
def test_what_training_sees_is_what_serving_sees(tree: Path, tmp_path: Path, which: str) -> None:
    """But for rounding to whole Hounsfield units: half of one in the narrowest window."""
    exam = read_rspect(tree).exams[0]
    spec = SPECS_TO_SEE[which]
    cached = build_cache([exam], tmp_path, spec).exams[0]
    plan = cached.plan(spec)
    hu = torch.from_numpy(read_units(cached, planes_of(spec, plan))).float()
    volume = load_exam(exam).volume
    served = ExamInput(spec, volume.hu_zyx, volume.spacing_mm).images(0, plan.units)
    seen = windowed(spec, hu).numpy()
    assert seen.shape == served.shape
    narrowest = min(width for _, width in spec.windows)
    assert np.abs(seen - served).max() <= 0.5 / narrowest + 1e-5
    if which == "plain slices, as they are":
        np.testing.assert_allclose(seen, served, atol=1e-6)


def test_labels_follow_the_slices_and_slices_are_read_at_random(
    tree: Path, cache: ShardCache
) -> None:
    for exam, source in zip(cache.exams, read_rspect(tree).exams, strict=True):
        loaded = load_exam(source)
        np.testing.assert_array_equal(exam.image_pe_z, loaded.image_pe_z)
        np.testing.assert_array_equal(exam.exam_l, source.exam_vector)
        whole = exam.read()
        np.testing.assert_array_equal(exam.read_at([7, 0, 7]), whole[[7, 0, 7]])
        np.testing.assert_array_equal(exam.read(2, 5), whole[2:5])
    assert cache.phantoms
    assert sum(exam.positive for exam in cache.exams) == 2


def test_no_patient_identifier_reaches_the_cache(cache: ShardCache) -> None:
    for path in cache.root.iterdir():
        assert b"PHANTOM" not in path.read_bytes()


def test_a_second_build_keeps_what_is_there_and_mends_the_rest(tree: Path, tmp_path: Path) -> None:
    index = read_rspect(tree)
    first = build_cache(index.exams[:2], tmp_path, SPEC)
    times = {e.path: e.path.stat().st_mtime_ns for e in first.exams}
    first.exams[1].path.write_bytes(first.exams[1].path.read_bytes()[:5000])
    steps: list[tuple[int, int]] = []
    second = build_cache(index.exams, tmp_path, SPEC, progress=lambda *a: steps.append(a))
    assert len(second.exams) == 4
    assert steps[-1] == (4, 4)
    assert first.exams[0].path.stat().st_mtime_ns == times[first.exams[0].path]
    assert first.exams[1].path.stat().st_mtime_ns != times[first.exams[1].path]
    assert verify_cache(second) == []
    assert not [p for p in second.root.iterdir() if p.name.startswith(".")]
    document = json.loads((second.root / "index.json").read_text())
    assert len(document["exams"]) == 4


def test_a_changed_label_builds_the_exam_anew(tree: Path, tmp_path: Path) -> None:
    exam = read_rspect(tree).exams[0]
    build_cache([exam], tmp_path, SPEC)
    other = replace(exam, labels=dict(exam.labels) | {"qa_motion": 1})
    before = next(tmp_path.rglob("*.safetensors")).stat().st_mtime_ns
    build_cache([other], tmp_path, SPEC)
    assert next(tmp_path.rglob("*.safetensors")).stat().st_mtime_ns != before


def test_processes_build_the_same_cache(tree: Path, cache: ShardCache, tmp_path: Path) -> None:
    parallel = build_cache(read_rspect(tree).exams, tmp_path, SPEC, workers=2)
    assert [e.sha256 for e in parallel.exams] == [e.sha256 for e in cache.exams]


def test_bad_exams_are_named_and_skipped_or_refused(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "tree")
    exams = read_rspect(root).exams
    exams[0].path_of(exams[0].sop_instance_uids[0]).write_bytes(b"nothing")
    built = build_cache(exams, tmp_path / "c", SPEC)
    assert [p.code for p in built.problems] == ["unreadable-file"]
    assert len(built.exams) == 3
    with pytest.raises(InputError, match="unreadable-file 1"):
        build_cache(exams, tmp_path / "c", SPEC, on_bad="fail")
    with pytest.raises(InputError, match="no exam could be used"):
        build_cache(exams[:1], tmp_path / "c", SPEC)


def test_altered_pixels_are_found(tree: Path, tmp_path: Path) -> None:
    built = build_cache(read_rspect(tree).exams[:2], tmp_path, SPEC)
    path = built.exams[0].path
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert verify_cache(built) == [built.exams[0].study_uid]


def fake(k: int, *, positive: bool, patient: str | None = None) -> CachedExam:
    exam = np.zeros(9, dtype=np.float32)
    exam[4 if positive else 0] = 1
    return CachedExam(
        study_uid=f"s{k}",
        path=Path("nowhere"),
        image_pe_z=np.array([int(positive), 0], dtype=np.uint8),
        exam_l=exam,
        patient_key=patient or f"p{k}",
        quality_control=True,
        facts={},
        sha256=f"h{k}",
        planes=2,
        spacing_z_mm=1.0,
    )


def test_patients_stay_together_and_shares_are_kept() -> None:
    exams = [fake(k, positive=k % 3 == 0, patient=f"p{k // 2}") for k in range(200)]
    split = split_by_patient(exams, seed=1, validation=0.2, test=0.1)
    keys = [{e.patient_key for e in split.part(n)} for n in ("train", "validation", "test")]
    assert [len(k) for k in keys] == [70, 20, 10]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    assert split == split_by_patient(exams[::-1], seed=1, validation=0.2, test=0.1)
    assert split != split_by_patient(exams, seed=2, validation=0.2, test=0.1)


def test_a_file_of_splits_that_leaks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["s0", "s1"], "validation": ["s2"]}))
    exams = [fake(k, positive=False) for k in range(4)]
    split = read_split(path, exams)
    assert (len(split.train), len(split.validation), split.left_out) == (2, 1, 1)
    same = [*exams[:2], fake(2, positive=False, patient="p0"), exams[3]]
    with pytest.raises(InputError, match=r"leakage.*the same patient"):
        read_split(path, same)
    copy = [*exams[:2], replace(exams[2], sha256="h1"), exams[3]]
    with pytest.raises(InputError, match=r"leakage.*the same pixels"):
        read_split(path, copy)
    path.write_text(json.dumps({"train": ["s0"], "validation": ["s0"]}))
    with pytest.raises(InputError, match="named twice or not in the data"):
        read_split(path, exams)
    path.write_text("[]")
    with pytest.raises(InputError, match="expected an object"):
        read_split(path, exams)
