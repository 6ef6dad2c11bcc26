from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL
from pe_triage.errors import InputError
from pe_triage.model.consistency import count_violations
from pe_triage.model.decisions import PE, THRESHOLD_KEYS
from pe_triage.model.spec import SPECS
from pe_triage.training.calibration import (
    Aim,
    CalibrationData,
    brier,
    choose_thresholds,
    default_aim,
    ece_replicates,
    fit_temperatures,
    operating_point,
    pe_truth,
    reliability,
)


def test_reliability_by_hand() -> None:
    # two bins: [0.1, 0.3] observed 1/2 predicted 0.2; [0.8, 1.0] observed 1 predicted 0.9
    found = reliability([0, 1, 1, 1, -1], [0.1, 0.3, 0.8, 1.0, 0.5], bins=2)
    assert found.count_c.tolist() == [2, 2]
    assert found.predicted_c == pytest.approx([0.2, 0.9])
    assert found.observed_c == pytest.approx([0.5, 1.0])
    assert found.ece == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)
    assert brier([0, 1, -1], [0.1, 0.3, 0.9]) == pytest.approx((0.01 + 0.49) / 2)
    assert math.isnan(reliability([], []).ece)


def test_reliability_and_brier_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    p = rng.random(400)  # on an inner edge of bins each has its own convention
    p[:2] = [0.0, 1.0]
    truth = (rng.random(400) < p).astype(int)
    for bins in (4, 15):
        found = reliability(truth, p, bins=bins)
        observed, predicted = calibration_curve(truth, p, n_bins=bins, strategy="uniform")
        kept = found.count_c > 0
        assert found.observed_c[kept] == pytest.approx(observed)
        assert found.predicted_c[kept] == pytest.approx(predicted)
    assert brier(truth, p) == pytest.approx(brier_score_loss(truth, p))


def test_ece_replicates_of_unit_weights_is_the_ece() -> None:
    rng = np.random.default_rng(1)
    truth, p = rng.integers(0, 2, 90), rng.random(90)
    group = rng.integers(0, 7, 90)
    weight = np.vstack([np.ones(7), np.eye(7)[2] * 3]).astype(np.int32)
    found = ece_replicates(truth, p, group, weight)
    assert found[0] == pytest.approx(reliability(truth, p).ece)
    assert found[1] == pytest.approx(reliability(truth[group == 2], p[group == 2]).ece)


def make_data(exams: int = 600, slices: int = 6, overconfident: float = 3.0) -> CalibrationData:
    """Exams whose image logits are true log odds, multiplied by `overconfident`."""
    rng = np.random.default_rng(7)
    exam_of = np.repeat(np.arange(exams), slices)
    true_logit = rng.normal(-2.0, 2.0, exams * slices)
    image = (rng.random(exams * slices) < 1 / (1 + np.exp(-true_logit))).astype(np.int8)
    positive = np.zeros(exams, np.int8)
    np.maximum.at(positive, exam_of, image)
    unclear = (rng.random(exams) < 0.3) & (positive == 0)
    exam = np.zeros((exams, len(EXAM_LABELS)), np.int8)
    exam[:, 0], exam[:, 1] = (positive == 0) & ~unclear, unclear
    side = rng.random(exams) < 0.5
    exam[:, 4], exam[:, 5] = positive * side, positive * ~side
    big = rng.random(exams) < 0.4
    exam[:, 7], exam[:, 8] = positive * big, positive * ~big
    logit = rng.normal(0, 0.3, exam.shape) + 2.0 * exam
    # negative and indeterminate logits near log(1/2): they leave the slices' evidence as it is
    logit[:, :2] = math.log(0.5) + 0.3 * (exam[:, :2] - 0.5)
    return CalibrationData(
        image_logit_k=overconfident * true_logit,
        exam_logit_sl=logit,
        exam_of_k=exam_of,
        image_truth_k=image,
        exam_truth_sl=exam,
    )


def test_a_temperature_is_found_again_and_lowers_the_error() -> None:
    data = make_data()
    fitted = fit_temperatures(data)
    assert fitted.temperatures[IMAGE_LABEL] == pytest.approx(3.0, rel=0.15)
    assert fitted.temperatures["negative_exam_for_pe"] == fitted.temperatures["indeterminate"]
    before, after = data.probabilities({}), data.probabilities(fitted.temperatures)
    ece = [reliability(data.image_truth_k, p[0]).ece for p in (before, after)]
    assert ece[1] < 0.02 < ece[0]
    assert reliability(data.pe_truth_s, after[2]).ece < reliability(data.pe_truth_s, before[2]).ece
    # no chronic exam at all: left alone, and said so
    assert "chronic_pe" not in fitted.temperatures
    assert "only 0 of one class" in fitted.left["chronic_pe"]
    # whatever the temperatures, no rule breaks, and PE at 0.5 is decided as before
    image = after[0].reshape(600, 6)
    assert not any(count_violations(image, after[1]).values())
    assert ((before[0] > 0.5) == (after[0] > 0.5)).all()
    assert ((before[2] > 0.5) == (after[2] > 0.5)).all()


def test_the_exam_is_its_largest_slice() -> None:
    """The shortcut over slices gives what the whole exam would."""
    import torch

    from pe_triage.model.labels import consistent_probabilities

    data = make_data(exams=20)
    whole = consistent_probabilities(
        torch.from_numpy(data.image_logit_k.reshape(20, 6)),
        torch.from_numpy(data.exam_logit_sl),
        temperatures={PE: 2.0, IMAGE_LABEL: 0.5, "central_pe": 3.0},
    )
    image, exam, pe = data.probabilities({PE: 2.0, IMAGE_LABEL: 0.5, "central_pe": 3.0})
    assert np.allclose(image, whole.image_bz.numpy().ravel(), atol=1e-12)
    assert np.allclose(exam, whole.exam_bl.numpy(), atol=1e-12)
    assert np.allclose(pe, whole.pe_b.numpy(), atol=1e-12)


def test_operating_point_by_hand() -> None:
    truth = [1, 1, 1, 1, 0, 0, 0, 0, -1]
    p = [0.9, 0.8, 0.6, 0.2, 0.7, 0.3, 0.1, 0.05, 0.99]
    assert operating_point(truth, p, Aim.parse("sensitivity>=0.75")) == pytest.approx(0.45)
    assert operating_point(truth, p, Aim.parse("sensitivity >= 0.95")) == pytest.approx(0.15)
    assert operating_point(truth, p, Aim.parse("specificity≥0.75")) == pytest.approx(0.45)
    assert operating_point(truth, p, Aim.parse("specificity>=1.0")) == pytest.approx(0.75)
    assert operating_point(truth, p, Aim.parse("youden")) == pytest.approx(0.15)  # a tie: safer
    with pytest.raises(InputError, match="exams with and without PE"):
        operating_point([1, 1], [0.2, 0.3], Aim.parse("youden"))


@pytest.mark.parametrize("text", ["", "sensitivity>0.9", "ppv>=0.9", "sensitivity>=1.5", "x"])
def test_an_aim_that_cannot_be_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="aim"):
        Aim.parse(text)


def test_the_aim_by_default_is_that_of_the_specs_source() -> None:
    assert str(default_aim(SPECS["attention-bilstm"])) == "sensitivity>=0.95"
    youden = {name for name, spec in SPECS.items() if str(default_aim(spec)) == "youden"}
    assert youden == {"effnet", "effnet-lstm", "effnet-tcn", "r3d18", "r3d18-lstm", "r3d18-tcn"}


def test_thresholds_for_every_key_in_range_and_reached() -> None:
    data = make_data()
    temperatures = fit_temperatures(data).temperatures
    chosen = choose_thresholds(data, temperatures, Aim.parse("sensitivity>=0.95"))
    assert set(chosen.thresholds) == set(THRESHOLD_KEYS)
    assert all(0 < t < 1 for t in chosen.thresholds.values())
    pe = data.probabilities(temperatures)[2]
    called = pe[data.pe_truth_s == 1] > chosen.thresholds[PE]
    assert called.mean() >= 0.95
    assert called.mean() < 0.96  # and at no greater cost than needed
    assert chosen.thresholds["chronic_pe"] == 0.5
    assert "chronic_pe" in chosen.left


def test_pe_truth() -> None:
    rows = np.zeros((3, 9), np.int8)
    rows[1, 1], rows[2, 0] = 1, -1
    assert pe_truth(rows).tolist() == [1, 0, -1]
