"""The challenge's score by hand, beside scikit-learn, and the loss beside the score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL
from pe_triage.errors import InputError
from pe_triage.training.losses import SampledSlices, challenge_loss, stage_one_loss
from pe_triage.training.score import (
    EXAM_WEIGHT_VECTOR,
    EXAM_WEIGHTS,
    IMAGE_WEIGHT,
    challenge_score,
    log_loss,
)


def exam_row(**ones: float) -> list[float]:
    return [ones.get(label, 0.0) for label in EXAM_LABELS]


def test_three_studies_by_hand() -> None:
    """Every number below can be checked with a pocket calculator.

    The nine exam weights add up to 1.0000000 (0.99999999997), so three exams weigh 3.

    Exam A, negative, 4 images, none positive: q = 0, so its images weigh nothing.
    Exam B, positive: central, left, RV/LV >= 1; 4 images, 1 positive: q = 1/4, each image weighs
      0.07361963 x 0.25 = 0.0184049075, all four 0.07361963.
    Exam C, positive: right, RV/LV < 1; 2 images, both positive: q = 1, each image weighs
      0.07361963, both 0.14723926.
    Sum of weights: 3 + 0.07361963 + 0.14723926 = 3.22085889.

    Every exam probability is 0.5 but two: B's rv_lv_ratio_gte_1 is 0.8 and A's negative 0.9.
    ln 2 = 0.693147, -ln 0.8 = 0.223144, -ln 0.9 = 0.105361.
      exam rows: 3 x 0.693147 = 2.079442
        less 0.2346625767 x (0.693147 - 0.223144) = 0.110292
        less 0.0736196319 x (0.693147 - 0.105361) = 0.043273     -> 1.925877
    Images of A: anything. Images of B: 0.5 each: 0.07361963 x 0.693147 = 0.051029.
    Images of C: 0.8 and 0.25: 0.07361963 x (0.223144 + 1.386294) = 0.118486.
    Score: (1.925877 + 0.051029 + 0.118486) / 3.22085889 = 2.095392 / 3.220859 = 0.650569.
    """
    truth = [
        exam_row(negative_exam_for_pe=1),
        exam_row(central_pe=1, leftsided_pe=1, rv_lv_ratio_gte_1=1),
        exam_row(rightsided_pe=1, rv_lv_ratio_lt_1=1),
    ]
    p = np.full((3, 9), 0.5)
    p[0, EXAM_LABELS.index("negative_exam_for_pe")] = 0.9
    p[1, EXAM_LABELS.index("rv_lv_ratio_gte_1")] = 0.8
    images = [[0, 0, 0, 0], [0, 1, 0, 0], [1, 1]]
    image_p = [[0.99, 0.01, 0.7, 0.2], [0.5] * 4, [0.8, 0.25]]
    score = challenge_score(images, image_p, truth, p)
    assert score.total == pytest.approx(0.650569, abs=2e-6)
    assert score.mean_log_loss["rv_lv_ratio_gte_1"] == pytest.approx(
        (2 * math.log(2) - math.log(0.8)) / 3
    )
    assert score.mean_log_loss[IMAGE_LABEL] == pytest.approx(
        (0.051029 + 0.118486) / 0.22085889, rel=1e-5
    )
    assert sum(score.share.values()) == pytest.approx(score.total)


def test_the_weight_of_an_image_is_not_multiplied_twice() -> None:
    """All exam rows perfect: what is left is the image's part, and w must not cancel or square."""
    truth = [exam_row(central_pe=1, rv_lv_ratio_lt_1=1)]
    score = challenge_score([[1]], [[0.5]], truth, truth)
    want = IMAGE_WEIGHT * math.log(2) / (1 + IMAGE_WEIGHT)
    assert score.total == pytest.approx(want, rel=1e-6)
    assert abs(score.total - IMAGE_WEIGHT**2 * math.log(2) / (1 + IMAGE_WEIGHT**2)) > 0.04


def test_weights_are_those_of_the_challenge() -> None:
    assert sum(EXAM_WEIGHTS.values()) == pytest.approx(1.0, abs=1e-9)
    assert tuple(EXAM_WEIGHTS) == EXAM_LABELS


def test_scikit_learn_agrees_row_by_row_and_weighted() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 200)
    p = rng.random(200)
    p[:4] = [0.0, 1.0, 0.0, 1.0]
    y[:4] = [0, 1, 1, 0]
    assert log_loss(y, p).mean() == pytest.approx(metrics.log_loss(y, p), rel=1e-9)
    exams = 20
    exam_y = rng.integers(0, 2, (exams, 9))
    exam_p = rng.random((exams, 9))
    images = [rng.integers(0, 2, n) for n in rng.integers(1, 30, exams)]
    image_p = [rng.random(len(i)) for i in images]
    rows_y = np.concatenate([exam_y.ravel(), *images])
    rows_p = np.concatenate([exam_p.ravel(), *image_p])
    weights = np.concatenate(
        [
            np.tile(EXAM_WEIGHT_VECTOR, exams),
            *(IMAGE_WEIGHT * i.mean() * np.ones(len(i)) for i in images),
        ]
    )
    ours = challenge_score(images, image_p, exam_y, exam_p).total
    assert ours == pytest.approx(metrics.log_loss(rows_y, rows_p, sample_weight=weights), rel=1e-9)


@given(st.integers(0, 10_000))
def test_the_loss_is_the_score(seed: int) -> None:
    """On whole exams of unequal length, padded; and what stands under the mask cannot matter."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, 3)
    z = int(lengths.max())
    mask = np.arange(z) < lengths[:, None]
    y, p = rng.integers(0, 2, (3, z)), rng.uniform(0.01, 0.99, (3, z))
    exam_y, exam_p = rng.integers(0, 2, (3, 9)), rng.uniform(0.01, 0.99, (3, 9))
    want = challenge_score(
        [y[i, :n] for i, n in enumerate(lengths)],
        [p[i, :n] for i, n in enumerate(lengths)],
        exam_y,
        exam_p,
    ).total
    loss = challenge_loss(*(torch.from_numpy(a) for a in (p, exam_p, y, exam_y, mask)))
    assert float(loss.mean) == pytest.approx(want, rel=1e-6)


def test_a_probability_of_zero_costs_much_and_its_loss_is_finite() -> None:
    p = torch.zeros(1, 2, requires_grad=True)
    exam = torch.full((1, 9), 0.5)
    loss = challenge_loss(p, exam, torch.tensor([[1, 0]]), torch.zeros(1, 9)).mean
    loss.backward()
    assert torch.isfinite(loss)
    assert float(loss.detach()) > 0.6
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()


def sampled(image: list[list[float]], exam: float, slices: int = 3) -> SampledSlices:
    truth = torch.tensor(image)
    return SampledSlices(
        truth,
        torch.full((len(image), 9), exam),
        torch.ones_like(truth),
        truth.mean(dim=1),
        torch.full((len(image),), float(slices)),
    )


@pytest.mark.parametrize(
    ("kind", "moves"), [("challenge", False), ("image", True), ("mixed", True)]
)
def test_images_of_a_negative_exam_move_only_losses_that_say_so(kind: str, moves: bool) -> None:
    image = torch.zeros(1, 3, requires_grad=True)
    loss = stage_one_loss(image, torch.zeros(1, 3, 9), sampled([[0.0, 0, 0]], 0), kind)
    loss.mean.backward()
    assert image.grad is not None
    assert bool((image.grad > 0).all()) is moves
    assert bool(image.grad.any()) is moves


def test_stage_one_hears_the_exam_labels_through_the_surest_slice_only() -> None:
    exam = torch.zeros(1, 3, 9, requires_grad=True)
    image = torch.tensor([[0.0, 2.0, 1.0]])
    stage_one_loss(image, exam, sampled([[0.0, 1, 0]], 1), "challenge").mean.backward()
    assert exam.grad is not None
    assert exam.grad[0, 1].all()
    assert not exam.grad[0, [0, 2]].any()


def test_stage_one_on_all_slices_weighs_as_the_challenge_does() -> None:
    rng = np.random.default_rng(5)
    image, exam = rng.normal(size=(2, 4)), rng.normal(size=(2, 4, 9))
    y, exam_y = rng.integers(0, 2, (2, 4)), rng.integers(0, 2, (2, 9))
    truth = SampledSlices(
        torch.from_numpy(y),
        torch.from_numpy(exam_y),
        torch.ones(2, 4),
        torch.from_numpy(y.mean(axis=1)),
        torch.full((2,), 4.0),
    )
    loss = stage_one_loss(torch.from_numpy(image), torch.from_numpy(exam), truth, "challenge")
    surest = exam[[0, 1], image.argmax(axis=1)]
    want = challenge_score(
        list(y), list(1 / (1 + np.exp(-image))), exam_y, 1 / (1 + np.exp(-surest))
    )
    assert float(loss.mean) == pytest.approx(want.total, rel=1e-5)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(InputError, match="must be one of"):
        stage_one_loss(torch.zeros(1, 1), torch.zeros(1, 1, 9), sampled([[0.0]], 0), "other")


@pytest.mark.parametrize(
    ("image_p", "exam_p"), [([[float("nan")]], 0.5), ([[0.5]], 1.5), ([[0.5, 0.5]], 0.5)]
)
def test_no_score_for_what_is_no_probability(image_p: list[list[float]], exam_p: float) -> None:
    with pytest.raises(ValueError, match=r"expected|not a number"):
        challenge_score([[0]], image_p, np.zeros((1, 9)), np.full((1, 9), exam_p))
