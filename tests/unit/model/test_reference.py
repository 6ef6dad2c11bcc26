"""Exams unlike those that a bundle was calibrated on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pe_triage.domain import CtVolume, IntendedUse
from pe_triage.errors import BundleError
from pe_triage.infer.predictor import Predictor
from pe_triage.model.builtin import untrained_network
from pe_triage.model.bundle import load_bundle, save_bundle
from pe_triage.model.card import CARD_NAME, BundleCard
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.reference import (
    FEWEST_EXAMS,
    MOST_UNITS,
    REFERENCE_NAME,
    EmbeddingReference,
    fit_reference,
    thinned,
)
from pe_triage.model.spec import ATTENTION_BILSTM

NOW = datetime(2026, 2, 3, tzinfo=UTC)
DIM = 24
SPEC = replace(
    ATTENTION_BILSTM,
    name="tiny",
    backbone="test_efficientnet",
    size=64,
    sequence_hidden=8,
    dense_dim=8,
)


def exams(count: int, seed: int, *, shift: float = 0.0, dim: int = DIM) -> list[np.ndarray]:
    """Embeddings that vary along a few directions, by exam and by unit."""
    mixing = np.random.default_rng(99).normal(size=(4, dim))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        own = rng.normal(size=4) @ mixing
        units = rng.normal(size=(int(rng.integers(20, 70)), 4)) @ mixing
        noise = 0.3 * rng.normal(size=(len(units), dim))
        found.append((own + units + noise + shift * rng.normal(size=dim)).astype(np.float32))
    return found


@pytest.fixture(scope="module")
def reference() -> EmbeddingReference:
    made = fit_reference(exams(200, 0))
    assert made is not None
    return made


def test_exams_of_the_same_kind_pass_and_others_do_not(reference: EmbeddingReference) -> None:
    same = np.array([reference.distance(e) for e in exams(300, 1)])
    # One in a hundred by its making; of 300 more than 10 would be met once in a thousand times.
    assert 0 <= (same > 1).sum() <= 10
    assert np.median(same) < 0.9
    other = [reference.distance(e) for e in exams(50, 2, shift=4.0)]
    assert min(other) > 1.0
    for strange in (np.zeros((40, DIM)), np.full((40, DIM), 1e6), -3 * exams(1, 5)[0]):
        assert reference.distance(strange.astype(np.float32)) > 1.0


def test_the_limit_comes_from_exams_that_the_fit_did_not_hold() -> None:
    # More figures than exams: within its own sample every exam would seem near.
    made = fit_reference(exams(60, 3, dim=200))
    assert made is not None
    same = np.array([made.distance(e) for e in exams(100, 4, dim=200)])
    assert (same > 1).mean() < 0.12


def test_few_exams_make_no_reference() -> None:
    assert fit_reference(exams(FEWEST_EXAMS - 1, 0)) is None
    assert fit_reference(exams(FEWEST_EXAMS, 0)) is not None


def test_units_are_thinned_alike_in_making_and_serving(reference: EmbeddingReference) -> None:
    long = exams(1, 7)[0]
    long = np.concatenate([long] * 8)
    assert len(thinned(long)) == MOST_UNITS
    assert reference.distance(long) == reference.distance(thinned(long))
    one = exams(1, 8)[0][:1]
    assert np.isfinite(reference.distance(one))
    with pytest.raises(ValueError, match="expected"):
        reference.distance(long[:, 1:])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = untrained_network(SPEC)
    card = BundleCard(
        name="tiny", version="1", spec=SPEC, thresholds=dict.fromkeys(THRESHOLD_KEYS, 0.5),
        intended_use=IntendedUse.DEMONSTRATION, training_data="none", weights_sha256="0" * 64,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("bundles") / "b"
    made = fit_reference(exams(50, 0, dim=network.embedding_dim))
    save_bundle(path, network.state_dict(), card, created_at=NOW, reference=made)
    return path


def copy_of(bundle: Path, to: Path) -> Path:
    to.mkdir()
    for file in bundle.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_a_bundle_carries_its_reference_and_its_identity_says_so(
    bundle: Path, tmp_path: Path
) -> None:
    loaded = load_bundle(bundle)
    assert loaded.reference is not None
    assert loaded.card.reference is not None
    assert loaded.card.reference["exams"] == loaded.reference.exams == 50
    assert BundleCard.from_json(loaded.card.to_json()) == loaded.card
    feat = exams(1, 1, dim=loaded.network.embedding_dim)[0]
    again = fit_reference(exams(50, 0, dim=loaded.network.embedding_dim))
    assert loaded.reference.distance(feat) == again.distance(feat)
    # The same weights without it are another model: they answer where this one would not.
    plain = save_bundle(
        tmp_path / "p", loaded.network.state_dict(), loaded.card, created_at=NOW
    )  # fmt: skip
    assert plain.reference is None
    assert plain.sha256 != loaded.card.sha256
    assert load_bundle(tmp_path / "p").reference is None


def test_a_reference_lost_or_harmed_is_refused(bundle: Path, tmp_path: Path) -> None:
    lost = copy_of(bundle, tmp_path / "lost")
    (lost / REFERENCE_NAME).unlink()
    with pytest.raises(BundleError, match=rf"{REFERENCE_NAME}: No such file"):
        load_bundle(lost)
    harmed = copy_of(bundle, tmp_path / "harmed")
    content = bytearray((harmed / REFERENCE_NAME).read_bytes())
    content[-1] ^= 1
    (harmed / REFERENCE_NAME).write_bytes(content)
    with pytest.raises(BundleError, match="has SHA-256"):
        load_bundle(harmed)
    wrong = copy_of(bundle, tmp_path / "wrong")
    document = json.loads((wrong / CARD_NAME).read_text())
    (wrong / CARD_NAME).write_text(json.dumps({**document, "reference": "yes"}))
    with pytest.raises(BundleError, match="reference must be an object"):
        load_bundle(wrong)
    narrow = fit_reference(exams(50, 0))
    loaded = load_bundle(bundle)
    save_bundle(
        tmp_path / "narrow", loaded.network.state_dict(), loaded.card, created_at=NOW,
        reference=narrow,
    )  # fmt: skip
    with pytest.raises(BundleError, match=f"of embeddings of {DIM}"):
        load_bundle(tmp_path / "narrow")


def test_prediction_says_how_unlike_an_exam_is(bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, "cpu", runtime="pytorch", threads=1)
    volume = CtVolume(
        hu_zyx=np.random.default_rng(0).integers(-1000, 400, (5, 64, 64), dtype=np.int16),
        spacing_mm=(3.0, 3.0, 3.0),
        affine_lps=np.eye(4),
        sop_instance_uids=tuple(f"1.{k}" for k in range(5)),
        series_uid="1.2",
    )
    found = predictor.predict(volume)
    reference = load_bundle(bundle).reference
    assert found.unlikeness == reference.distance(found.feat_zd)
    loaded = load_bundle(bundle)
    save_bundle(tmp_path / "p", loaded.network.state_dict(), loaded.card, created_at=NOW)
    plain = Predictor(tmp_path / "p", "cpu", runtime="pytorch", threads=1)
    assert plain.predict(volume).unlikeness is None
