"""Label rules hold for any logits; probabilities stay useful and differentiable."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL
from pe_triage.model.consistency import RULES, count_violations
from pe_triage.model.labels import MARGIN, conjunction, consistent_probabilities

CASES = 200_000
NONE = dict.fromkeys(RULES, 0)


def _violations(image_bz: torch.Tensor, exam_bl: torch.Tensor, **more: object) -> dict[str, int]:
    out = consistent_probabilities(image_bz, exam_bl, **more)  # type: ignore[arg-type]
    found = count_violations(out.image_bz.float().numpy(), out.exam_bl.float().numpy())
    # The exam's own probability must say the same as its slices.
    assert torch.equal(out.pe_b > 0.5, (out.image_bz > 0.5).any(dim=1))
    return found


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1.0, 5.0, 40.0, 1e3, 1e30])
def test_random_logits_obey_every_rule(scale: float) -> None:
    generator = torch.Generator().manual_seed(7)
    n = CASES // 4
    image = torch.randn(n, 4, generator=generator) * scale
    exam = torch.randn(n, 9, generator=generator) * scale
    assert _violations(image, exam) == NONE


def test_each_state_occurs_among_random_logits() -> None:
    generator = torch.Generator().manual_seed(8)
    image, exam = (torch.randn(5000, k, generator=generator) * 2 for k in (4, 9))
    out = consistent_probabilities(image, exam)
    share = (out.exam_bl > 0.5).float().mean(dim=0)
    assert (share > 0.02).all(), dict(zip(EXAM_LABELS, share.tolist(), strict=True))


def test_logits_from_a_grid_of_extremes_ties_and_zeros() -> None:
    values = np.array(
        [0.0, -0.0, 1e-45, -1e-45, 1e-7, -1e-7, np.log(2), -np.log(2), 17.0, -17.0, 104.0, -104.0,
         1e4, -1e4, 3e38, -3e38, np.inf, -np.inf],
        dtype=np.float32,
    )  # fmt: skip
    rng = np.random.default_rng(9)
    image = torch.from_numpy(values[rng.integers(len(values), size=(CASES, 3))])
    exam = torch.from_numpy(values[rng.integers(len(values), size=(CASES, 9))])
    assert _violations(image, exam) == NONE


def test_all_small_combinations_around_the_boundary() -> None:
    """Every mix of three neighbouring values, at the very place where PE flips (u = 0)."""
    g = float(torch.tensor(2.0).log())  # e_neg = e_ind = 0 shift slices by -log 2
    near = [np.nextafter(np.float32(g), np.float32(d)) for d in (-9, 9)] + [np.float32(g)]
    exam = torch.tensor(list(itertools.product((-1e-7, 0.0, 1e-7), repeat=9)))
    for s in near:
        image = torch.full((len(exam), 2), float(s))
        assert _violations(image, exam) == NONE
        assert _violations(image - exam[:, :1], exam) == NONE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_obey_too(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(10)
    image = (torch.randn(30_000, 3, generator=generator) * 0.3).to(dtype)
    exam = (torch.randn(30_000, 9, generator=generator) * 0.3).to(dtype)
    if dtype is torch.bfloat16:  # 0.5 + MARGIN is no bfloat16: such logits are widened first
        image, exam = image.float(), exam.float()
    assert _violations(image, exam) == NONE


def test_rules_survive_printing_with_three_decimals() -> None:
    generator = torch.Generator().manual_seed(11)
    image, exam = (torch.randn(50_000, k, generator=generator) * 1e-3 for k in (3, 9))
    image = image + np.log(2)
    out = consistent_probabilities(image, exam)
    rounded = [np.round(p.double().numpy(), 3) for p in (out.image_bz, out.exam_bl)]
    assert count_violations(*rounded) == NONE
    assert round(0.5 + MARGIN, 3) > 0.5


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6),
    st.lists(st.floats(width=32, allow_nan=False), min_size=9, max_size=9),
    st.dictionaries(
        st.sampled_from((*EXAM_LABELS, IMAGE_LABEL, "pe")), st.floats(1e-3, 1e3), max_size=11
    ),
)
@settings(max_examples=300, deadline=None)
def test_any_floats_and_any_temperatures_obey(
    image: list[float], exam: list[float], temperatures: dict[str, float]
) -> None:
    found = _violations(torch.tensor([image]), torch.tensor([exam]), temperatures=temperatures)
    assert found == NONE


def test_random_temperatures_never_break_a_rule() -> None:
    generator = torch.Generator().manual_seed(12)
    rng = np.random.default_rng(12)
    for _ in range(20):
        t = {k: float(10 ** rng.uniform(-3, 3)) for k in (*EXAM_LABELS, IMAGE_LABEL, "pe")}
        image, exam = (torch.randn(5000, k, generator=generator) for k in (3, 9))
        assert _violations(image, exam, temperatures=t) == NONE


def test_masked_slices_do_not_count() -> None:
    generator = torch.Generator().manual_seed(13)
    image, exam = (torch.randn(500, k, generator=generator) * 3 for k in (6, 9))
    mask = torch.arange(6)[None] < torch.randint(1, 7, (500, 1), generator=generator)
    image = torch.where(mask, image, torch.full_like(image, 50.0))  # would be PE if it counted
    out = consistent_probabilities(image, exam, mask_bz=mask)
    assert (out.image_bz[~mask] == 0).all()
    for b in range(0, 500, 25):
        alone = consistent_probabilities(image[b : b + 1, mask[b]], exam[b : b + 1])
        torch.testing.assert_close(out.exam_bl[b : b + 1], alone.exam_bl)
        torch.testing.assert_close(out.image_bz[b : b + 1, mask[b]], alone.image_bz)


def test_the_conjunction_keeps_one_half_and_the_edges_of_a_product() -> None:
    p = torch.linspace(0, 1, 401, dtype=torch.float64)
    a, b = torch.meshgrid(p, p, indexing="ij")
    f = conjunction(a, b)
    torch.testing.assert_close(f, f.T)
    torch.testing.assert_close(f[-1], p)
    assert (f[0] == 0).all()
    inside = (a > 0.5) & (b > 0.5)
    assert (f[inside] > 0.5).all()
    assert (f[~inside] <= 0.5).all()
    assert (f.diff(dim=0) >= -1e-12).all(), "monotone"
    assert (f - a * b).abs().max() < 0.26
    # continuous: steps on the grid stay of the size of the grid
    assert f.diff(dim=0).max() < 4 * float(p[1])


def test_confident_logits_give_confident_probabilities() -> None:
    # ordinary acute left-sided PE with a large right ventricle
    exam = torch.tensor([[-6.0, -7.0, -5.0, -6.0, -5.0, 5.0, -4.0, 4.0, -4.0]])
    out = consistent_probabilities(torch.tensor([[-8.0, 3.0, -9.0]]), exam)
    said = dict(zip(EXAM_LABELS, out.exam_bl[0].tolist(), strict=True))
    assert {k for k, v in said.items() if v > 0.5} == {"leftsided_pe", "rv_lv_ratio_gte_1"}
    assert said["leftsided_pe"] > 0.98
    assert said["negative_exam_for_pe"] < 1e-3
    assert out.pe_b[0] > 0.99
    # negative
    out = consistent_probabilities(
        torch.tensor([[-3.0, -4.0]]), torch.tensor([[6.0, -2.0] + [0.0] * 7])
    )
    assert out.exam_bl[0, 0] > 0.98
    assert out.exam_bl[0, 1:].max() < 0.01


def test_a_tie_between_negative_and_indeterminate_does_not_reassure() -> None:
    out = consistent_probabilities(torch.tensor([[-50.0]]), torch.zeros(1, 9))
    assert out.exam_bl[0, 1] > 0.5 >= out.exam_bl[0, 0]


def test_gradients_reach_every_logit_and_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(14)
    for shift in (3.0, -3.0):
        image = torch.randn(6, 4, generator=generator, dtype=torch.float64) + shift
        exam = torch.randn(6, 9, generator=generator, dtype=torch.float64)
        image.requires_grad_(True)
        exam.requires_grad_(True)

        def both(s: torch.Tensor, e: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = consistent_probabilities(s, e)
            return out.image_bz, out.exam_bl, out.pe_b

        assert torch.autograd.gradcheck(both, (image, exam), eps=1e-7, atol=1e-5)
        total = sum((p * torch.rand_like(p)).sum() for p in both(image, exam))
        assert isinstance(total, torch.Tensor)
        total.backward()
        assert image.grad is not None
        assert exam.grad is not None
        assert (exam.grad != 0).any(dim=0).all()
        assert torch.isfinite(image.grad).all()
        assert torch.isfinite(exam.grad).all()


def test_an_all_zero_head_still_learns() -> None:
    """Each pair of labels sits on its tie; values held on a side must not cut the gradient."""
    exam = torch.zeros(1, 9, requires_grad=True)
    image = torch.full((1, 3), 1.5, requires_grad=True)
    out = consistent_probabilities(image, exam)
    (out.exam_bl * torch.arange(1.0, 10.0)).sum().backward()
    assert exam.grad is not None
    assert torch.isfinite(exam.grad).all()
    assert (exam.grad != 0).all(), exam.grad


@pytest.mark.parametrize(
    ("image", "present", "rule"),
    [
        ([0.6], ["central_pe"], 0),
        ([0.6], ["central_pe", "rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1"], 0),
        ([0.6], ["rv_lv_ratio_gte_1"], 1),
        ([0.6], ["chronic_pe", "acute_and_chronic_pe", "leftsided_pe", "rv_lv_ratio_lt_1"], 2),
        ([0.6], ["leftsided_pe", "rv_lv_ratio_lt_1", "indeterminate"], 3),
        ([0.5], [], 4),
        ([0.1], ["negative_exam_for_pe", "indeterminate"], 4),
        ([0.5], ["negative_exam_for_pe", "chronic_pe"], 5),
        ([1.5], ["central_pe", "rv_lv_ratio_lt_1"], 6),
        ([float("nan")], ["indeterminate"], 6),
    ],
)
def test_the_check_names_the_broken_rule(image: list[float], present: list[str], rule: int) -> None:
    exam = [0.51 if label in present else 0.5 for label in EXAM_LABELS]
    assert count_violations(image, exam) == {**NONE, RULES[rule]: 1}
