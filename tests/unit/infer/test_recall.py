"""Embeddings kept for later: the same bits, or none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from pe_triage.domain import IntendedUse
from pe_triage.infer.recall import CHECKED, KEEP_S, Recall, embed_the_rest, encoder_identity
from pe_triage.infer.runtime import RuntimeInfo
from pe_triage.model.card import BundleCard
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.spec import ATTENTION_BILSTM

pytestmark = pytest.mark.usefixtures("fresh_logs")

SERIES = "1.2.3"
FEATURES = 6
ONE, OTHER = b"1" * 32, b"2" * 32


@pytest.fixture
def hu_zyx() -> NDArray[np.int16]:
    return np.random.default_rng(1).integers(-1024, 2000, (12, 8, 10)).astype(np.int16)


class Encoder:
    """Stands in for stage 1: an embedding is a function of the slice alone."""

    def __init__(self, hu_zyx: NDArray[np.int16]) -> None:
        self.hu_zyx = hu_zyx
        self.calls: list[list[int]] = []

    def __call__(self, slices: Sequence[int]) -> NDArray[np.float32]:
        self.calls.append(list(slices))
        return embeddings(self.hu_zyx[list(slices)])


def embeddings(hu_zyx: NDArray[np.int16]) -> NDArray[np.float32]:
    flat = hu_zyx.reshape(len(hu_zyx), -1).astype(np.float32)
    return np.stack([np.sin(flat[:, : n + 1].sum(axis=1)) for n in range(FEATURES)], axis=1)


def filled(root: Path, hu_zyx: NDArray[np.int16], slices: Sequence[int]) -> Recall:
    recall = Recall(root, ONE, FEATURES)
    claim = recall.claim(SERIES)
    assert claim is not None
    for z in slices:
        one = hu_zyx[z : z + 1]
        recall.keep(SERIES, recall.keys(one), embeddings(one))
    claim.release()
    return recall


@pytest.mark.parametrize("kept", [(), (3,), (11, 0, 5), tuple(reversed(range(12)))])
def test_what_is_missing_is_encoded_and_the_bits_are_the_same(
    kept: tuple[int, ...], hu_zyx: NDArray[np.int16], tmp_path: Path
) -> None:
    recall, encoder = filled(tmp_path, hu_zyx, kept), Encoder(hu_zyx)
    found = embed_the_rest(hu_zyx, SERIES, recall, encoder)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, embeddings(hu_zyx))
    (encoded,) = encoder.calls
    assert len(encoded) == 12 - len(kept) + min(len(kept), CHECKED)
    assert set(encoded) >= set(range(12)) - set(kept)


def test_no_slice_is_given_the_embedding_of_another(
    hu_zyx: NDArray[np.int16], tmp_path: Path
) -> None:
    """Neither turned, nor in another order, nor changed by one unit in one voxel."""
    recall = filled(tmp_path, hu_zyx, range(12))
    changed = hu_zyx.copy()
    changed[:, 4, 4] += 1
    for other in (hu_zyx[:, ::-1], hu_zyx[:, :, ::-1], changed, hu_zyx.reshape(12, 10, 8)):
        assert not set(recall.keys(other)) & set(recall.known(SERIES))
        np.testing.assert_array_equal(
            embed_the_rest(other, SERIES, recall, Encoder(other)), embeddings(other)
        )
    order = np.random.default_rng(2).permutation(12)
    shuffled = Encoder(hu_zyx[order])
    found = embed_the_rest(hu_zyx[order], SERIES, recall, shuffled)
    np.testing.assert_array_equal(found, embeddings(hu_zyx)[order])
    assert len(shuffled.calls[0]) == CHECKED


def test_every_torn_or_altered_file_gives_less_and_nothing_wrong(
    hu_zyx: NDArray[np.int16], tmp_path: Path
) -> None:
    recall = filled(tmp_path, hu_zyx, range(3))
    whole = {k: v.tobytes() for k, v in recall.known(SERIES).items()}
    (path,) = tmp_path.rglob("*.emb")
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        found = {k: v.tobytes() for k, v in recall.known(SERIES).items()}
        assert found.items() <= whole.items()
        assert len(found) < 3
    for at in range(0, len(content), 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        found = {k: v.tobytes() for k, v in recall.known(SERIES).items()}
        assert found.items() <= whole.items()
        assert len(found) < 3


def test_wrong_numbers_under_a_good_checksum_are_noticed(
    hu_zyx: NDArray[np.int16], tmp_path: Path
) -> None:
    """As if a library had changed without the identity saying so."""
    recall, encoder = filled(tmp_path, hu_zyx, ()), Encoder(hu_zyx)
    recall.keep(SERIES, recall.keys(hu_zyx), embeddings(hu_zyx) * np.float32(1.0001))
    with capture_logs() as events:
        found = embed_the_rest(hu_zyx, SERIES, recall, encoder)
    assert [e["event"] for e in events] == ["ahead.disagrees"]
    np.testing.assert_array_equal(found, embeddings(hu_zyx))


def test_another_encoders_embeddings_are_not_seen(
    hu_zyx: NDArray[np.int16], tmp_path: Path
) -> None:
    filled(tmp_path, hu_zyx, range(12))
    for other in (Recall(tmp_path, OTHER, FEATURES), Recall(tmp_path, ONE, FEATURES + 1)):
        assert other.known(SERIES) == {}
    assert len(Recall(tmp_path, ONE, FEATURES).known(SERIES)) == 12


def test_the_identity_names_whatever_changes_the_numbers() -> None:
    card = BundleCard(
        name="a",
        version="1",
        spec=ATTENTION_BILSTM,
        thresholds=dict.fromkeys(THRESHOLD_KEYS, 0.5),
        intended_use=IntendedUse.UNTRAINED,
        training_data="none",
        weights_sha256="0" * 64,
    )
    info = RuntimeInfo(name="openvino", version="1", device="cpu", precision="float32", threads=2)
    one = encoder_identity(card, info)
    assert one == encoder_identity(card, replace(info, threads=7, difference=1e-6))
    others = [
        encoder_identity(replace(card, weights_sha256="1" * 64), info),
        encoder_identity(replace(card, spec=replace(ATTENTION_BILSTM, size=128)), info),
        *(
            encoder_identity(card, replace(info, **{name: "other"}))
            for name in ("name", "version", "device", "precision")
        ),
    ]
    assert len({one, *others}) == 1 + len(others)


def test_one_holds_a_series_at_a_time(tmp_path: Path) -> None:
    first, second = Recall(tmp_path, ONE, FEATURES), Recall(tmp_path, ONE, FEATURES)
    claim = first.claim(SERIES)
    assert claim is not None
    assert second.claim(SERIES) is None
    assert second.claim("1.2.4") is not None
    assert claim.stands
    second.forget([SERIES])
    assert not claim.stands
    claim.release()
    assert second.claim(SERIES) is not None


def test_what_is_old_goes_and_then_what_is_oldest(
    hu_zyx: NDArray[np.int16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recall = Recall(tmp_path, ONE, FEATURES)
    for n, series in enumerate(("1.1", "1.2", "1.3", "1.4")):
        claim = recall.claim(series)
        assert claim is not None
        claim.release()
        recall.keep(series, recall.keys(hu_zyx), embeddings(hu_zyx))
        for path in recall._place(series).iterdir():
            os.utime(path, (1e9 + n, 1e9 + n))
    left = recall.sweep(1e9 + KEEP_S + 0.5)
    assert [bool(recall.known(s)) for s in ("1.1", "1.2", "1.3", "1.4")] == [
        False,
        True,
        True,
        True,
    ]
    monkeypatch.setattr("pe_triage.infer.recall.LIMIT_BYTES", left - 1)
    assert recall.sweep(1e9) < left
    assert [bool(recall.known(s)) for s in ("1.2", "1.3", "1.4")] == [False, True, True]
    assert Recall(tmp_path / "none", ONE, FEATURES).sweep() == 0


def test_keys_that_are_known_are_not_computed_again(
    hu_zyx: NDArray[np.int16], tmp_path: Path
) -> None:
    recall = Recall(tmp_path, ONE, FEATURES)
    keys = recall.keys(hu_zyx)
    assert keys == [recall.key(hu_yx) for hu_yx in hu_zyx]
    known = [key if z % 3 else None for z, key in enumerate(keys)]
    computed: list[bytes] = []
    key = recall.key
    recall.key = lambda hu_yx: computed.append(key(hu_yx)) or computed[-1]  # type: ignore[method-assign]
    assert recall.keys(hu_zyx, known) == keys
    assert sorted(computed) == sorted(keys[::3])
