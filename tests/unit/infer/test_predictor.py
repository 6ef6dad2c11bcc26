from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from pe_triage.domain import EXAM_LABELS, CtVolume, Decision, IntendedUse
from pe_triage.errors import BundleError, ConfigurationError, LeaseLostError, PermanentError
from pe_triage.imaging.windows import RSPECT_WINDOWS
from pe_triage.infer.predictor import Predictor
from pe_triage.infer.runtime import choose_device, stage_two
from pe_triage.model.bundle import load_bundle, save_bundle
from pe_triage.model.card import read_card
from pe_triage.model.consistency import RULES, count_violations
from pe_triage.model.spec import ATTENTION_BILSTM

Make = Callable[..., CtVolume]


def test_a_prediction_is_whole_and_obeys_the_rules(predictor: Predictor, make_volume: Make) -> None:
    volume = make_volume()
    inference = predictor.predict(volume)
    p = inference.prediction
    assert p.slice_probability_z.shape == p.attention_z.shape == (9,)
    assert p.slice_probability_z.dtype == p.attention_z.dtype == np.float32
    assert float(p.attention_z.sum()) == pytest.approx(1, abs=1e-5)
    assert tuple(p.exam_probability) == tuple(p.findings) == EXAM_LABELS
    exam = list(p.exam_probability.values())
    assert count_violations(p.slice_probability_z, exam) == dict.fromkeys(RULES, 0)
    assert (p.pe_probability > 0.5) == bool((p.slice_probability_z > 0.5).any())
    assert p.pe_probability == pytest.approx(float(p.slice_probability_z.max()))
    assert p.model == predictor.identity == read_card(predictor.path).identity
    assert p.model.intended_use is IntendedUse.UNTRAINED
    assert inference.feat_zd.shape == (9, 1280)
    for array in (p.slice_probability_z, p.attention_z, inference.feat_zd):
        assert not array.flags.writeable
    assert p.slice_probability_z.std() > 1e-3, "slices differ"


def test_the_same_volume_gives_the_same_answer(
    predictor: Predictor, bundle_path: Path, make_volume: Make
) -> None:
    volume = make_volume()
    first, again = predictor.predict(volume), predictor.predict(volume)
    fresh = Predictor(bundle_path, "cpu", runtime="pytorch", batch_size=4).predict(volume)
    for other in (again, fresh):
        np.testing.assert_array_equal(first.feat_zd, other.feat_zd)
        assert first.prediction.exam_probability == other.prediction.exam_probability
        assert first.prediction.pe_probability == other.prediction.pe_probability


def test_batches_do_not_change_the_answer(
    predictor: Predictor, bundle_path: Path, make_volume: Make
) -> None:
    volume = make_volume()
    reference = predictor.predict(volume)
    for size in (1, 7, 64):
        other = Predictor(bundle_path, "cpu", runtime="pytorch", batch_size=size).predict(volume)
        np.testing.assert_allclose(other.feat_zd, reference.feat_zd, atol=1e-4)
        assert other.prediction.pe_probability == pytest.approx(
            reference.prediction.pe_probability, abs=1e-4
        )


def test_the_predictor_is_the_network_applied_to_the_windows(
    predictor: Predictor, bundle_path: Path, make_volume: Make
) -> None:
    volume = make_volume()
    bundle = load_bundle(bundle_path)
    hu = torch.from_numpy(volume.hu_zyx.astype(np.float32))
    images = torch.stack(
        [((hu - level) / width + 0.5).clamp(0, 1) for level, width in bundle.card.spec.windows], 1
    )
    with torch.no_grad():
        logits = bundle.network(images)
    got = predictor.predict(volume)
    with torch.no_grad():
        again = bundle.network.exam_logits(torch.from_numpy(got.feat_zd.copy())[None])
    torch.testing.assert_close(logits.image_bz, again.image_bz, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(logits.exam_bl, again.exam_bl, atol=1e-3, rtol=1e-3)


def test_embeddings_are_the_means_of_the_maps(predictor: Predictor, make_volume: Make) -> None:
    images = predictor.images(make_volume().hu_zyx)
    runtime = predictor.runtime
    np.testing.assert_allclose(
        runtime.embed(images), runtime.maps(images).mean(axis=(2, 3)), atol=1e-5
    )


def test_read_only_arrays_are_welcome(predictor: Predictor, make_volume: Make) -> None:
    inference = predictor.predict(make_volume())
    again = predictor.conclude(inference.feat_zd)
    assert again.exam_probability == inference.prediction.exam_probability
    images = predictor.images(make_volume().hu_zyx[:2])
    images.setflags(write=False)
    np.testing.assert_allclose(predictor.runtime.embed(images), inference.feat_zd[:2], atol=1e-4)


def test_it_beats_between_batches_and_stops_when_told(
    predictor: Predictor, make_volume: Make
) -> None:
    beats: list[int] = []
    predictor.predict(make_volume(), beat=lambda: beats.append(1))
    assert len(beats) == 3

    def lost() -> None:
        raise LeaseLostError("gone")

    with pytest.raises(LeaseLostError):
        predictor.predict(make_volume(), beat=lost)


def test_stored_thresholds_and_temperatures_are_used(
    predictor: Predictor, bundle_path: Path, make_volume: Make, tmp_path: Path
) -> None:
    volume = make_volume()
    plain = predictor.predict(volume).prediction
    bundle = load_bundle(bundle_path)
    card = replace(
        bundle.card,
        thresholds={**bundle.card.thresholds, "pe": plain.pe_probability * 0.5},
        temperatures={"pe": 3.0, "pe_present_on_image": 3.0},
        calibrated=True,
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    save_bundle(tmp_path / "b", bundle.network.state_dict(), card, created_at=now)
    other = (
        Predictor(tmp_path / "b", "cpu", runtime="pytorch", batch_size=4).predict(volume).prediction
    )
    assert plain.pe_probability != 0.5
    assert abs(other.pe_probability - 0.5) < abs(plain.pe_probability - 0.5)
    assert other.model.sha256 != plain.model.sha256
    assert other.model.calibrated
    assert Decision.PRESENT in (other.findings["leftsided_pe"], other.findings["central_pe"],
                                other.findings["rightsided_pe"])  # fmt: skip
    assert other.thresholds["pe"] == card.thresholds["pe"]


def test_numbers_that_are_none_conclude_nothing(predictor: Predictor) -> None:
    with pytest.raises(PermanentError, match="not a number"):
        predictor.conclude(np.full((3, 1280), np.nan, np.float32))
    with pytest.raises(PermanentError, match="at least one slice"):
        predictor.conclude(np.zeros((0, 1280), np.float32))


def test_memory_does_not_grow_with_the_images_prepared(
    predictor: Predictor, make_volume: Make
) -> None:
    """Prepared images of all slices would take 40 x 3 x 128 x 128 x 4 bytes = 7.9 MB."""
    volume = make_volume((40, 128, 128))
    tracemalloc.start()
    predictor.embed(volume)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "gpu!", "", "meta"])
def test_a_device_that_is_not_here_is_one_line(device: str, bundle_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="device"):
        Predictor(bundle_path, device)


def test_stage_two_leaves_the_threads_as_they_were(predictor: Predictor) -> None:
    before = torch.get_num_threads()
    with stage_two():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(PermanentError):
        predictor.conclude(np.full((3, 1280), np.nan, np.float32))
    assert torch.get_num_threads() == before
    assert float(torch.tensor(1e-40) * 1.0) != 0, "subnormals are numbers again"


def test_the_default_windows_are_those_of_imaging() -> None:
    ours = tuple((w.level_hu, w.width_hu) for w in RSPECT_WINDOWS)
    assert ATTENTION_BILSTM.windows == ours


def test_auto_takes_what_is_there() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("more", [{"batch_size": 0}, {"threads": 0}])
def test_senseless_numbers_are_refused(bundle_path: Path, more: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        Predictor(bundle_path, "cpu", **more)


def test_no_bundle_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such directory"):
        Predictor(tmp_path / "none")
